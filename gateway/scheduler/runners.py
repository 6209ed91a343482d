"""One runner's life: started, loaded or failed, ended, lost, unloaded by a person. Pure: it returns actions.

An event about a runner that is gone changes nothing: its load id belongs to no model any more.
"""

from collections.abc import Iterable

from gateway.scheduler import anticipation, replicas
from gateway.scheduler.actions import Action, EndRunner, StartLoad, Why
from gateway.scheduler.admission import explain_cannot_fit, refuse_waiters
from gateway.scheduler.events import Loaded, Recharge
from gateway.scheduler.model import Model, Phase
from gateway.scheduler.state import State


def start_load(state: State, model: Model, slot: str, now: float) -> StartLoad:
    """Begin to load a cold model."""
    state.loads += 1
    residency = model.residency
    residency.phase, residency.slot, residency.charges = Phase.LOADING, slot, model.spec.needs(slot)
    residency.load_id = f"{model.name}-{state.loads}"
    residency.load_since, residency.load_deadline = now, now + state.limits.load_timeout
    for request in model.queue.waiting:
        request.waited_for_load = True
    return StartLoad(model.name, residency.load_id, slot)


def end_runner(model: Model, reason: str, now: float, why: str = "", newcomer: str = "") -> EndRunner:
    """Ask a runner to end. Its memory stays charged until RunnerEnded."""
    residency = model.residency
    assert residency.load_id is not None
    residency.phase, residency.end_since, residency.moving = Phase.DRAINING, now, False
    return EndRunner(model.name, residency.load_id, reason, newcomer, why)


def load_done(state: State, event: Loaded, now: float) -> list[Action]:
    """Make a model ready, and learn what its load took. End it at once if it is larger than there is room for."""
    model = state.by_load(event.load_id)
    if model is None or model.residency.phase is not Phase.LOADING:
        return []  # the load was given up meanwhile
    residency = model.residency
    assert residency.slot is not None
    residency.phase, residency.ready_since, residency.last_used = Phase.READY, now, now
    residency.charges |= {residency.slot: event.bytes + event.transient, **event.offloaded}
    residency.failures, residency.retry_at = 0, 0.0
    residency.expire_after(model.spec.keep_alive, now)
    model.spec.learn_bytes(residency.slot, event.bytes, residency.offloaded)
    model.measured.load.add_sample(now - residency.load_since)
    taken = residency.charges | {residency.slot: event.bytes}
    anticipation.learn_from_load(state, taken)
    if state.has_room(model, taken):
        return []
    refused = []
    if not state.usable(model):
        refused = refuse_waiters(state, model, Why.CANNOT_FIT, explain_cannot_fit(state, model))
    return [end_runner(model, "cannot_fit", now, "it takes more than was predicted, and does not fit"), *refused]


def runner_gone(state: State, load_id: str, now: float, cause: str | None = None, again: bool = False) -> list[Action]:
    """Forget a runner whose memory is back, and its leases. Its reader thread tells the requests that had them.

    If it was loading, back off because of ``cause``. With ``again`` make room instead: its waiters stay, and the next
    load is planned at once.
    """
    model = state.by_load(load_id)
    if model is None:
        return []
    phase, slots = model.residency.phase, list(model.residency.charges)
    if phase is Phase.DRAINING:
        model.measured.end.add_sample(now - model.residency.end_since)
    for request_id in list(model.queue.leases):
        state.forget_request(request_id)
    model.residency.clear_runner()
    if phase is not Phase.LOADING:
        return []
    if again:
        return [action for slot in slots for action in end_unused(state, slot, now)]
    return _back_off(state, model, cause, now) if cause is not None else []


def recharge_runner(state: State, event: Recharge) -> None:
    """Charge a runner for what it really takes of a slot."""
    model = state.by_load(event.load_id)
    if model is None or model.residency.slot is None or not model.residency.alive:
        return
    model.residency.charges[event.slot or model.residency.slot] = event.bytes


def end_unused(state: State, slot: str, now: float) -> list[Action]:
    """End every unused model of a slot, because memory is short."""
    unused = [model for model in state.residents(slot) if model.unused]
    return [end_runner(model, "evicted", now, "memory was short, and it was idle") for model in unused]


def end_expired_runners(state: State, now: float) -> list[Action]:
    """End loads that take too long, models whose keep-alive time is over, and idle ones to be loaded in another way."""
    actions: list[Action] = []
    for model in state.models.values():
        if model.due is not None and now >= model.due:
            if model.residency.phase is Phase.LOADING:
                cause = f"it was not loaded after {state.limits.load_timeout:g} s"
                actions += [end_runner(model, "load_timeout", now, cause), *_back_off(state, model, cause, now)]
            else:
                actions.append(end_runner(model, "expired", now, explain_idle(model, now)))
        if model.idle and model.residency.moving:
            actions.append(end_runner(model, "moved", now))
    return actions


def end_by_hand(state: State, models: Iterable[Model], force: bool, reason: str, now: float) -> list[Action]:
    """End what a person may end: idle models; with ``force`` also busy and loading ones, refusing those who wait.

    A cleanup spares pinned models; an unload by name does not.
    """
    actions: list[Action] = []
    for model in models:
        if force:
            if model.residency.alive:
                actions.append(end_runner(model, reason, now))
            actions += refuse_waiters(state, model, Why.UNLOADED, f"{model.spec.name} was unloaded by force")
        elif model.idle and not model.queue.waiting and not (model.spec.pinned and reason == "cleanup"):
            actions.append(end_runner(model, reason, now))
    return actions


def shut_down(state: State, now: float) -> list[Action]:
    """Refuse every request without a lease and end every runner."""
    actions: list[Action] = []
    for model in state.models.values():
        actions += refuse_waiters(state, model, Why.STOPPING, "the server is stopping")
        if model.residency.alive:
            actions.append(end_runner(model, "shutdown", now))
    return actions


def explain_idle(model: Model, now: float) -> str:
    seconds = now - (model.residency.last_used or now)
    return f"it had been idle for {seconds:.0f} s" if seconds >= 1 else "it was idle"


def _back_off(state: State, model: Model, cause: str, now: float) -> list[Action]:
    """Try no load of a model for a while, and refuse its waiters.

    If another replica is ready or loading, only this one backs off, and its waiters move there. Otherwise all replicas
    do: what was wrong with this load is likely to be wrong with the next.
    """
    failures = model.residency.failures + 1
    pause = min(state.limits.backoff_first * 2 ** min(failures - 1, 60), state.limits.backoff_max)
    members = state.group(model)
    if any(member.residency.alive for member in members):
        replicas.gather_waiters(state)
        members = [model]
    detail = f"loading {model.spec.name} failed: {cause}"
    actions: list[Action] = []
    for member in members:
        member.residency.failures, member.residency.retry_at, member.residency.failure = failures, now + pause, cause
        actions += refuse_waiters(state, member, Why.LOAD_FAILED, detail, pause)
    return actions
