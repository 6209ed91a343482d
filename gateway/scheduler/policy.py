"""The scheduling policy: ``decide(state, event, now) -> actions``.

Pure but for the state it is given: no clock, no thread, no I/O, no log. The same function runs in the gateway's owner
thread, in tests and in a simulator. Times are seconds of one monotonic clock.
"""

from collections.abc import Iterable, Mapping
from typing import assert_never

from gateway.scheduler import anticipation, events, replicas
from gateway.scheduler.actions import Action, EndRunner, Grant, Refuse, StartLoad, Why
from gateway.scheduler.admission import cannot_fit, reserve
from gateway.scheduler.eviction import Plan, Prospect, more_plans, overdraft, plans_of
from gateway.scheduler.state import Model, Phase, Request, State


def decide(state: State, event: events.Event, now: float) -> list[Action]:
    """Take in one event, then do what has become possible, until nothing more is: see :func:`_schedule`."""
    actions = _apply(state, event, now)
    while more := _schedule(state, now):
        actions += more
    return actions


def next_wakeup(state: State, now: float) -> float | None:
    """Return when time alone will change something, or None."""
    times = [request.deadline for request in state.requests.values() if request.granted_at is None]
    for model in state.models.values():
        if model.phase is Phase.LOADING:
            times.append(model.load_deadline)
        elif model.idle and model.expires_at is not None and not model.pinned and not model.waiting:
            times.append(model.expires_at)
        # Whoever has waited for long enough ranks higher, which may decide who comes first or who has to give way.
        ripe = (request.asked + state.limits.batch_patience for request in model.waiting if request.priority)
        times += [at for at in ripe if at > now]
    plans = plans_of(state, now)
    for _, found in (*plans, *more_plans(state, plans, now)):
        if found.wait_until is not None:
            times.append(found.wait_until)
    return min(times, default=None)


# -- what an event changes ---------------------------------------------------------------------------------------------


def _apply(state: State, event: events.Event, now: float) -> list[Action]:
    match event:
        case events.Reserve():
            return reserve(state, event, now)
        case events.Submit(request_id):
            return _submit(state, request_id, now)
        case events.Withdraw(request_id):
            request = _forget(state, request_id)
            if request is not None and request.granted_at is not None:
                _rest(state.models[request.model], now)
        case events.Release(request_id, keep_alive):
            return _release(state, request_id, keep_alive, now)
        case events.Loaded():
            return _loaded(state, event, now)
        case events.LoadFailed(load_id, cause, again):
            return _load_failed(state, load_id, cause, now, again)
        case events.RunnerLost(load_id, cause):
            return _runner_lost(state, load_id, cause, now)
        case events.RunnerEnded(load_id):
            if model := state.by_load(load_id):
                if model.phase is Phase.DRAINING:
                    model.end.add(now - model.end_since)
                _drop_leases(state, model)
                _cool(model)
        case events.Unload(name, force):
            group = state.group(state.models[name])
            if force or all(
                model.phase is not Phase.LOADING and not model.leases and not model.waiting for model in group
            ):
                return _unload(state, group, force, "unloaded", now)
        case events.Cleanup(force):
            return _unload(state, state.models.values(), force, "cleanup", now)
        case events.Pin(name, pinned):
            for model in state.group(state.models[name]):
                model.pinned = pinned
                _rest(model, now)
        case events.Predict(name, size, sizes, offloads):
            for model in state.group(state.models[name]):
                model.predicted, model.sizes, model.offloads = size, dict(sizes), _copied(offloads)
        case events.Move(name, slots, fallback, sizes, concurrency, offloads):
            for model in state.group(state.models[name]):
                model.slots, model.fallback, model.sizes, model.concurrency = slots, fallback, dict(sizes), concurrency
                model.offloads = _copied(offloads)
                model.predicted = next(iter(sizes.values()))
                model.moving = model.phase is Phase.READY
                for request in (*model.waiting, *model.reserved.values()):
                    request.places = min(request.places, concurrency)
        case events.Recharge(load_id, size, slot):
            if (charged := state.by_load(load_id)) and charged.phase in (Phase.LOADING, Phase.READY):
                if slot in ("", charged.slot):
                    charged.bytes = size
                else:
                    charged.offloaded[slot] = size
        case events.Starve(load_id):
            if (starved := state.by_load(load_id)) and starved.phase in (Phase.LOADING, Phase.READY):
                return [_end(starved, "out_of_memory", now)]
        case events.Squeeze(slot):
            return _squeeze(state, slot, now)
        case events.Drain():
            state.stopping = True
        case events.Shutdown():
            state.stopping = True
            return _shutdown(state, now)
        case events.Tick():
            pass
        case _:
            assert_never(event)
    return []


def _submit(state: State, request_id: str, now: float) -> list[Action]:
    request = state.requests.get(request_id)
    if request is None or request.submitted:
        return []
    if not request.bound:
        state.models[request.model].reserved.pop(request_id, None)
        request.model = replicas.home(state, state.models[request.model]).name
    model = state.models[request.model]
    if model.phase in (Phase.COLD, Phase.DRAINING) and now < model.retry_at and not request.retry:
        _forget(state, request_id)
        return [Refuse(request_id, Why.BACKOFF, f"loading {model.title} failed: {model.failure}", model.retry_at - now)]
    model.reserved.pop(request_id, None)
    request.submitted, request.since, request.asked = True, now, now
    # Priority classes first, then arrival: each request goes behind its equals. Model.next knows who ripens meanwhile.
    place = len(model.waiting)
    while place and model.waiting[place - 1].priority > request.priority:
        place -= 1
    model.waiting.insert(place, request)
    request.waited_for_load = model.phase is Phase.LOADING
    anticipation.asked(model, now)
    return []


def _forget(state: State, request_id: str) -> Request | None:
    request = state.requests.pop(request_id, None)
    if request is None:
        return None
    model = state.models[request.model]
    model.reserved.pop(request_id, None)
    model.leases.pop(request_id, None)
    if request in model.waiting:
        model.waiting.remove(request)
    return request


def _release(state: State, request_id: str, keep_alive: float | None, now: float) -> list[Action]:
    request = _forget(state, request_id)
    if request is None or request.granted_at is None:
        return []
    model = state.models[request.model]
    model.service.add(now - request.granted_at)
    model.last_used = now
    if not model.leases and not model.waiting:
        model.idle_since = now
    _rest(model, now, keep_alive)
    return []


def _rest(model: Model, now: float, keep_alive: float | None = None) -> None:
    """Set when an idle model goes: after ``keep_alive`` seconds, never if that is negative."""
    seconds = model.keep_alive if keep_alive is None else keep_alive
    model.expires_at = None if seconds < 0 else now + seconds


def _loaded(state: State, event: events.Loaded, now: float) -> list[Action]:
    model, size = state.by_load(event.load_id), event.bytes
    if model is None or model.phase is not Phase.LOADING:
        return []  # the news of a load that was given up meanwhile
    assert model.slot is not None
    model.phase, model.bytes, model.ready_since, model.last_used = Phase.READY, size + event.transient, now, now
    model.offloaded |= event.offloaded
    model.failures, model.retry_at = 0, 0.0
    for member in state.group(model):
        if member.sizes:
            member.sizes[model.slot] = size
        else:
            member.predicted = size
        if model.offloaded:
            member.offloads[model.slot] = dict(model.offloaded)
    model.load.add(now - model.load_since)
    _rest(model, now)
    taken = {model.slot: size, **model.offloaded}
    anticipation.replaced(state, taken)
    if state.has_room(model, taken):
        return []
    refused = [] if state.usable(model) else _refuse_all(state, model, Why.CANNOT_FIT, cannot_fit(state, model))
    return [_end(model, "cannot_fit", now, "it takes more than was predicted, and does not fit"), *refused]


def _load_failed(state: State, load_id: str, cause: str, now: float, again: bool = False) -> list[Action]:
    model = state.by_load(load_id)
    if model is None:
        return []
    was_loading, taken = model.phase is Phase.LOADING, [slot for slot in (model.slot, *model.offloaded) if slot]
    _cool(model)
    if again and was_loading:  # those who wait for it still do: it is planned for anew
        return [action for slot in taken for action in _squeeze(state, slot, now)]
    return _back_off(state, model, cause, now) if was_loading else []


def _squeeze(state: State, slot: str, now: float) -> list[Action]:
    """End every idle model of a slot that nobody waits for and nobody pinned."""
    idle = [model for model in state.residents(slot) if model.idle and not model.pinned and not model.waiting]
    return [_end(model, "evicted", now, "memory was short, and it was idle") for model in idle]


def _back_off(state: State, model: Model, cause: str, now: float) -> list[Action]:
    """Leave a model alone for a while. Where another replica is there or on its way, those who can do with it wait for
    it; where none is, all are left alone: what was wrong with this load is likely to be with the next.
    """
    failures = model.failures + 1
    pause = min(state.limits.backoff_first * 2 ** min(failures - 1, 60), state.limits.backoff_max)
    alone = [model]
    if any(member.phase in (Phase.READY, Phase.LOADING) for member in state.group(model)):
        replicas.gather(state)
    else:
        alone = state.group(model)
    for member in alone:
        member.failures, member.retry_at, member.failure = failures, now + pause, cause
    detail = f"loading {model.title} failed: {cause}"
    return [action for member in alone for action in _refuse_all(state, member, Why.LOAD_FAILED, detail, pause)]


def _runner_lost(state: State, load_id: str, cause: str, now: float) -> list[Action]:
    model = state.by_load(load_id)
    if model is None:
        return []
    if model.phase is Phase.LOADING:
        return _load_failed(state, load_id, cause, now)
    _drop_leases(state, model)
    _cool(model)
    return []


def _drop_leases(state: State, model: Model) -> None:
    """Forget the leases of a runner that is gone. Whoever spoke for the runner tells the requests."""
    for request_id in list(model.leases):
        _forget(state, request_id)


def _unload(state: State, models: Iterable[Model], force: bool, reason: str, now: float) -> list[Action]:
    """End what may be ended: idle models, with ``force`` also busy and loading ones, and those who wait for them.

    A cleanup spares pinned models; asking for one by name does not.
    """
    actions: list[Action] = []
    for model in models:
        if force:
            if model.phase in (Phase.READY, Phase.LOADING):
                actions.append(_end(model, reason, now))
            actions += _refuse_all(state, model, Why.UNLOADED, f"{model.title} was unloaded by force")
        elif model.idle and not model.waiting and not (model.pinned and reason == "cleanup"):
            actions.append(_end(model, reason, now))
    return actions


def _shutdown(state: State, now: float) -> list[Action]:
    actions: list[Action] = []
    for model in state.models.values():
        actions += _refuse_all(state, model, Why.STOPPING, "the server is stopping")
        if model.phase in (Phase.READY, Phase.LOADING):
            actions.append(_end(model, "shutdown", now))
    return actions


def _end(model: Model, reason: str, now: float, why: str = "", newcomer: str = "") -> EndRunner:
    assert model.load_id is not None
    model.phase, model.end_since, model.moving = Phase.DRAINING, now, False
    return EndRunner(model.name, model.load_id, reason, newcomer, why)


def _evict(victim: Model, newcomer: Model, found: Plan, now: float) -> EndRunner:
    """End one that a newcomer's plan names."""
    turn = any(model is victim for model in found.yielding)
    return _end(victim, "evicted", now, "its turn was over" if turn else _idle_for(victim, now), newcomer.title)


def _idle_for(model: Model, now: float) -> str:
    seconds = now - (model.last_used or now)
    return f"it had been idle for {seconds:.0f} s" if seconds >= 1 else "it was idle"


def _cool(model: Model) -> None:
    model.phase, model.slot, model.load_id, model.bytes, model.expires_at = Phase.COLD, None, None, 0, None
    model.moving, model.offloaded = False, {}


def _copied(offloads: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {slot: dict(sizes) for slot, sizes in offloads.items()}


def _refuse_all(state: State, model: Model, why: Why, detail: str, retry_after: float | None = None) -> list[Action]:
    waiting = list(model.waiting) + (list(model.reserved.values()) if why is Why.STOPPING else [])
    for request in waiting:
        _forget(state, request.request_id)
    return [Refuse(request.request_id, why, detail, retry_after) for request in waiting]


# -- what has become possible ------------------------------------------------------------------------------------------


def _schedule(state: State, now: float) -> list[Action]:
    """Do all that can be done now:

    1. refuse requests whose deadline has passed, saying what they waited for; those who wait for a model with replicas
       wait at the one that is nearest to answering;
    2. end loads that take too long, models idle past their keep-alive or to be loaded in another way, and idle ones of
       a slot that is over its budget because something measured larger than predicted;
    3. see what each cold model with waiters needs, the longest waiter first: start it, evict for it, mark who yields;
    4. grant leases of ready models that do not have to yield;
    5. load one more replica of a model whose replicas are full, where that costs nobody anything.
    """
    actions = _expire_requests(state, now) + _expire_models(state, now)
    replicas.gather(state)
    for slot in state.slots:
        actions += [
            _end(other, "evicted", now, "the slot's models take more than was predicted, and it was idle")
            for other in overdraft(state, slot)
        ]
    yielding: set[str] = set()
    plans = plans_of(state, now)
    for model, found in plans:
        if not state.usable(model) and found.prospect is not Prospect.BEHIND:
            actions += _refuse_all(state, model, Why.CANNOT_FIT, cannot_fit(state, model))
            continue
        if found.ready:
            actions.append(_start(state, model, found.slot, now))
        for victim in found.evict:
            if victim.phase is Phase.READY:  # it may have gone for another already, who waits for another slot
                actions.append(_evict(victim, model, found, now))
            for request in victim.waiting:  # or the victim, whose waiters are older, would be back before the newcomer
                request.since = now
        yielding.update(victim.name for victim in found.yielding)
    for model in state.models.values():
        while model.phase is Phase.READY and model.name not in yielding and _may_grant(state, model, now):
            actions.append(_grant(state, model, now))
        if model.group and model.phase is Phase.READY and model.name not in yielding:
            while replicas.take(state, model, now):
                actions.append(_grant(state, model, now))
    for model, found in more_plans(state, plans, now):
        if found.ready:
            actions.append(_start(state, model, found.slot, now))
        actions += [_evict(victim, model, found, now) for victim in found.evict if victim.phase is Phase.READY]
    return actions


def _expire_requests(state: State, now: float) -> list[Action]:
    late = [request for request in state.requests.values() if request.granted_at is None and now >= request.deadline]
    actions: list[Action] = []
    for request in late:
        model = state.models[request.model]
        waited_for = {
            Phase.COLD: f"room for {model.title}",
            Phase.LOADING: f"{model.title} to load",
            Phase.READY: f"its turn on {model.title} ({len(model.waiting)} waiting)",
            Phase.DRAINING: f"{model.title} to end before it can be loaded again",
        }[model.phase]
        _forget(state, request.request_id)
        detail = f"the deadline passed while it waited for {waited_for}"
        actions.append(Refuse(request.request_id, Why.TOO_LATE, detail))
    return actions


def _expire_models(state: State, now: float) -> list[Action]:
    actions: list[Action] = []
    for model in state.models.values():
        if model.phase is Phase.LOADING and now >= model.load_deadline:
            cause = f"it was not loaded after {state.limits.load_timeout:g} s"
            actions += [_end(model, "load_timeout", now, cause), *_back_off(state, model, cause, now)]
        elif model.idle and not model.pinned and not model.waiting and model.expires_at is not None:
            if now >= model.expires_at:
                actions.append(_end(model, "expired", now, _idle_for(model, now)))
        if model.idle and model.moving:
            actions.append(_end(model, "moved", now))
    return actions


def _start(state: State, model: Model, slot: str, now: float) -> StartLoad:
    state.loads += 1
    model.phase, model.slot, model.bytes = Phase.LOADING, slot, model.size(slot)
    model.offloaded = dict(model.offloads.get(slot, {}))
    model.load_id = f"{model.name}-{state.loads}"
    model.load_since, model.load_deadline = now, now + state.limits.load_timeout
    for request in model.waiting:
        request.waited_for_load = True
    return StartLoad(model.name, model.load_id, slot)


def _may_grant(state: State, model: Model, now: float) -> bool:
    """Whether there are places for the next one in turn. One that wants several waits for them and is not overtaken."""
    if not model.waiting or model.moving:
        return False
    return model.next(now, state.limits).places <= model.free


def _grant(state: State, model: Model, now: float) -> Grant:
    request = model.next(now, state.limits)
    model.waiting.remove(request)
    for member in state.group(model):
        member.passed_over = 0 if request.priority else member.passed_over + 1
    request.granted_at = now
    model.leases[request.request_id] = request
    model.last_used, model.expires_at, model.idle_since = now, None, None
    assert model.load_id is not None
    return Grant(request.request_id, model.name, model.load_id, request.waited_for_load)
