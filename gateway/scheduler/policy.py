"""The policy itself: ``decide(state, event, now) -> actions``, and ``next_wakeup``.

Pure but for the state it is given: no clock, no thread, no I/O, no log. The same functions run in the gateway's
scheduler thread, in tests and in the simulator. Times are seconds of one monotonic clock.
"""

from typing import assert_never

from gateway.scheduler import admission, events, eviction, replicas, runners
from gateway.scheduler.actions import Action, Why
from gateway.scheduler.eviction import Plan, Prospect
from gateway.scheduler.model import Model, Phase, Request
from gateway.scheduler.state import State


def decide(state: State, event: events.Event, now: float) -> list[Action]:
    """Take in one event and return what to do.

    1. Apply the event: :func:`apply_event`.
    2. Fast path: if nothing has to be planned, :func:`_fast_path` grants the lease of the only waiter, if there is one.
    3. Otherwise plan: :func:`schedule`, again and again until nothing more is possible.
    """
    actions = apply_event(state, event, now)  # 1
    if (granted := _fast_path(state, now)) is not None:  # 2
        return actions + granted
    while more := schedule(state, now):  # 3
        actions += more
    return actions


def next_wakeup(state: State, now: float) -> float | None:
    """Return when time alone will change something, or None. Nothing is planned if nobody waits."""
    times: list[float] = []
    somebody_waits = False
    for request in state.requests.values():
        if request.granted_at is None:
            times.append(request.deadline)
            somebody_waits = somebody_waits or request.submitted
    for model in state.models.values():
        if (due := model.due) is not None:
            times.append(due)
    return min(times + _planned_times(state, now) if somebody_waits else times, default=None)


def _planned_times(state: State, now: float) -> list[float]:
    """Return when a waiter's rank rises, which may decide who is first or has to give way, and when plans change."""
    ripe = [
        request.asked + state.limits.batch_patience
        for model in state.models.values()
        for request in model.queue.waiting
        if request.priority
    ]
    plans = eviction.plan_loads(state, now)
    waits = [plan.wait_until for _, plan in (*plans, *eviction.plan_replicas(state, plans, now))]
    return [at for at in ripe if at > now] + [at for at in waits if at is not None]


# -- 1. what an event changes ------------------------------------------------------------------------------------------


def apply_event(state: State, event: events.Event, now: float) -> list[Action]:
    """Take an event into the state, and return what it leads to at once, whatever else is possible."""
    match event:
        case events.Reserve():
            return admission.reserve_request(state, event, now)
        case events.Submit(request_id):
            return admission.submit_request(state, request_id, now)
        case events.Withdraw(request_id):
            admission.withdraw_request(state, request_id, now)
        case events.Release(request_id, keep_alive):
            admission.release_request(state, request_id, keep_alive, now)
        case events.Loaded():
            return runners.load_done(state, event, now)
        case events.LoadFailed(load_id, cause, again):
            return runners.runner_gone(state, load_id, now, cause, again)
        case events.RunnerLost(load_id, cause):
            return runners.runner_gone(state, load_id, now, cause)
        case events.RunnerEnded(load_id):
            return runners.runner_gone(state, load_id, now)
        case events.Unload(name, force):
            group = state.group(state.models[name])
            if force or not any(
                member.residency.phase is Phase.LOADING or member.queue.leases or member.queue.waiting
                for member in group
            ):
                return runners.end_by_hand(state, group, force, "unloaded", now)
        case events.Cleanup(force):
            return runners.end_by_hand(state, state.models.values(), force, "cleanup", now)
        case events.Pin(name, pinned):
            spec = state.models[name].spec
            spec.pinned = pinned
            for member in state.group(state.models[name]):
                member.residency.expire_after(spec.keep_alive, now)
        case events.Predict(name, size, sizes, offloads):
            state.models[name].spec.predict_bytes(size, sizes, offloads)
        case events.Move():
            _move(state, event)
        case events.Recharge():
            runners.recharge_runner(state, event)
        case events.Starve(load_id):
            if (starved := state.by_load(load_id)) and starved.residency.alive:
                return [runners.end_runner(starved, "out_of_memory", now)]
        case events.Squeeze(slot):
            return runners.end_unused(state, slot, now)
        case events.Drain():
            state.stopping = True
        case events.Shutdown():
            state.stopping = True
            return runners.shut_down(state, now)
        case events.Tick():
            pass
        case _:
            assert_never(event)
    return []


def _move(state: State, event: events.Move) -> None:
    spec = state.models[event.model].spec
    spec.slots, spec.fallback, spec.concurrency = event.slots, event.fallback, event.concurrency
    spec.predict_bytes(next(iter(event.sizes.values())), event.sizes, event.offloads)
    for member in state.group(state.models[event.model]):
        member.residency.moving = member.residency.phase is Phase.READY
        for request in (*member.queue.waiting, *member.queue.reserved.values()):
            request.answers = min(request.answers, spec.concurrency)


# -- 2. the fast path --------------------------------------------------------------------------------------------------


def _fast_path(state: State, now: float) -> list[Action] | None:
    """Return the grant of the only waiter, or nothing if nobody waits; None if the state has to be planned, because

    a. more than one request waits;
    b. a deadline has passed;
    c. a request without a lease is for a model with replicas, which might serve it elsewhere;
    d. a slot is over its budget;
    e. a load takes too long, a keep-alive time is over, or a runner is to move;
    f. the only waiter's model is not ready, or has not enough free capacity.

    In every other state :func:`schedule` would do the same: it plans for models with waiters, and there are none.
    """
    waiter: Request | None = None
    for request in state.requests.values():
        if request.granted_at is not None:
            continue
        if request.submitted and waiter is not None:  # a
            return None
        if now >= request.deadline or state.models[request.model].spec.replicas > 1:  # b, c
            return None
        if request.submitted:
            waiter = request
    for slot, budget in state.budgets.items():  # d
        if state.kept(slot) > budget:
            return None
    for model in state.models.values():  # e
        if model.residency.moving or ((due := model.due) is not None and now >= due):
            return None
    if waiter is None:
        return []
    model = state.models[waiter.model]
    if model.residency.phase is not Phase.READY or waiter.answers > model.free:  # f
        return None
    return [admission.grant_lease(state, model, waiter, now)]


# -- 3. what has become possible ---------------------------------------------------------------------------------------


def schedule(state: State, now: float) -> list[Action]:
    """Do once all that can be done now:

    1. refuse requests whose deadline has passed;
    2. end loads that take too long, models idle past their keep-alive time, and idle ones to be loaded in another way;
    3. let the requests for a model with replicas wait at the replica that is nearest to answering;
    4. end idle models of a slot that is over its budget, because a model measured larger than predicted;
    5. plan for each cold model with waiters, the longest waiter first: start it, evict for it, or mark who yields;
    6. grant leases of ready models that do not have to yield;
    7. load one more replica of a model whose replicas are full, where no other model has to give way.
    """
    actions = admission.refuse_late_requests(state, now)  # 1
    actions += runners.end_expired_runners(state, now)  # 2
    replicas.gather_waiters(state)  # 3
    for slot in state.budgets:  # 4
        actions += [
            runners.end_runner(other, "evicted", now, "the slot's models take more than was predicted, and it was idle")
            for other in eviction.over_budget(state, slot)
        ]
    yielding: set[str] = set()
    plans = eviction.plan_loads(state, now)  # 5
    for model, plan in plans:
        if not state.usable(model) and plan.prospect is not Prospect.BEHIND:
            actions += admission.refuse_waiters(
                state, model, Why.CANNOT_FIT, admission.explain_cannot_fit(state, model)
            )
            continue
        actions += _carry_out(state, model, plan, now)
        for victim in plan.evict:
            for request in victim.queue.waiting:  # they are older: the victim would be back before the newcomer
                request.since = now
        yielding.update(victim.name for victim in plan.yielding)
    for model in state.models.values():  # 6
        if model.residency.phase is Phase.READY and model.name not in yielding:
            actions += _grant_leases(state, model, now)
    for model, plan in eviction.plan_replicas(state, plans, now):  # 7
        actions += _carry_out(state, model, plan, now)
    return actions


def _carry_out(state: State, newcomer: Model, plan: Plan, now: float) -> list[Action]:
    """Start the newcomer's load, or end the models that make room for it."""
    if plan.ready:
        return [runners.start_load(state, newcomer, plan.slot, now)]
    actions: list[Action] = []
    for victim in plan.evict:
        if victim.residency.phase is Phase.READY:  # a newcomer to another slot may have evicted it already
            turn = any(model is victim for model in plan.yielding)
            why = "its turn was over" if turn else runners.explain_idle(victim, now)
            actions.append(runners.end_runner(victim, "evicted", now, why, newcomer.spec.name))
    return actions


def _grant_leases(state: State, model: Model, now: float) -> list[Action]:
    """Grant leases of a ready model in turn. A request that wants several answers waits for them, and no other request
    overtakes it."""
    actions: list[Action] = []
    if model.residency.moving:
        return actions
    while model.queue.waiting:
        request = model.queue.next_waiter(now, state.limits)
        if request.answers > model.free:
            break
        actions.append(admission.grant_lease(state, model, request, now))
    while model.spec.replicas > 1 and (taken := replicas.take_waiter(state, model, now)):
        actions.append(admission.grant_lease(state, model, taken, now))
    return actions
