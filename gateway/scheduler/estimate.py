"""How long until a request that is refused now would get a lease: what Retry-After says. Pure; an estimate, no promise.

It follows from how long loads, ends and answers took lately. A waiter gets its lease at once when its model becomes
ready, otherwise when a lease of its model ends.
"""

from gateway.scheduler.eviction import turn_ends
from gateway.scheduler.model import Model, Phase
from gateway.scheduler.state import State

_SERVICE = 1.0
"""Seconds of an answer, for a model that has not answered yet."""
_LOAD = 10.0
"""Seconds of a load, while no model has been loaded yet."""


def seconds_to_lease(state: State, model: Model, now: float) -> float:
    """Return the seconds until a waiter of ``model``, or of a replica with a runner, is likely to get a lease.

    1. Ready: when the next of its leases ends; if another model's turn begins before, as if it were cold.
    2. Loading: the rest of the load.
    3. Cold or ending: its slot becomes free, the models before it have their turns, and it is loaded.
    """
    alive = [member for member in state.group(model) if member.residency.alive]
    return min(_seconds_to_lease(state, member, now) for member in alive or [model])


def _seconds_to_lease(state: State, model: Model, now: float) -> float:
    if model.residency.phase is Phase.READY:  # 1
        ends = _next_release(model, now)
        others = [other for other in _queue(state, model, now) if _excludes(state, model, other)]
        if not others or now + ends <= turn_ends(state, model, others[0], now):
            return ends
        left = _all_released(model, now) + model.measured.end.value
        return left + sum(_turn(other, state) for other in others) + _load(state, model)
    if model.residency.phase is Phase.LOADING:  # 2
        return _load_left(state, model, now)
    before: list[Model] = []  # 3
    for other in _queue(state, model, now):
        if other is model:
            break
        before.append(other)
    wait = _seconds_to_room(state, (before or [model])[0], now)
    for other in before:
        wait += _turn(other, state) if _excludes(state, model, other) else _load(state, other)
    return wait + _load(state, model)


def seconds_to_any_lease(state: State, now: float) -> float:
    """Return the seconds until a request that waits for any model is likely to get its lease."""
    return min(
        (seconds_to_lease(state, model, now) for model in state.models.values() if model.queue.depth), default=_SERVICE
    )


def _queue(state: State, model: Model, now: float) -> list[Model]:
    """The cold and ending models with waiters that share a slot with ``model``, in the order of their loads."""
    cold = [
        other
        for other in state.models.values()
        if other.queue.waiting and not other.residency.alive and other.spec.reach & model.spec.reach
    ]
    return sorted(cold, key=lambda other: other.turn(now, state.limits))


def _excludes(state: State, model: Model, other: Model) -> bool:
    """Whether the two models would share slots, and fit together on none of those."""
    together = [(one, two) for one in _footprints(model) for two in _footprints(other) if one.keys() & two.keys()]
    return bool(together) and all(
        any(one[slot] + two[slot] > state.budgets[slot] for slot in one.keys() & two.keys()) for one, two in together
    )


def _footprints(model: Model) -> list[dict[str, int]]:
    """The bytes by slot that the model takes now; of a cold one, what it would take on each slot it may use."""
    if model.residency.slot is None:
        return [model.spec.needs(slot) for slot in model.spec.allowed]
    return [model.residency.charges]


def _seconds_to_room(state: State, newcomer: Model, now: float) -> float:
    """Seconds until there is room to load ``newcomer``, on the slot where that is soonest."""
    return min(
        max(_seconds_to_room_on(state, one, newcomer, size, now) for one, size in newcomer.spec.needs(slot).items())
        for slot in state.usable(newcomer) or newcomer.spec.slots[:1]
    )


def _seconds_to_room_on(state: State, slot: str, newcomer: Model, size: int, now: float) -> float:
    """Seconds until enough residents have ended, counting those that end first."""
    residents = state.residents(slot)
    need = state.used(slot) + size - state.budgets[slot]
    wait = max(
        (_load_left(state, other, now) for other in residents if other.residency.phase is Phase.LOADING), default=0.0
    )
    leaving = sorted(
        (_seconds_to_end(state, other, newcomer, now), other.residency.charges[slot])
        for other in residents
        if not other.spec.pinned
    )
    for seconds, freed in leaving:
        if need > 0:
            wait, need = max(wait, seconds), need - freed
    return wait


def _seconds_to_end(state: State, resident: Model, newcomer: Model, now: float) -> float:
    """Seconds until a resident's memory is back, if ``newcomer`` is the next model to be loaded there."""
    match resident.residency.phase:
        case Phase.DRAINING:
            return max(0.0, resident.measured.end.value - (now - resident.residency.end_since))
        case Phase.LOADING:
            return _load_left(state, resident, now) + _turn(resident, state) - _load(state, resident)
        case _ if resident.unused:
            return resident.measured.end.value
    left = turn_ends(state, resident, newcomer, now) - now
    work = _all_released(resident, now) + _work(resident)
    return max(0.0, min(left + _service(resident), work)) + resident.measured.end.value


def _turn(model: Model, state: State) -> float:
    """Seconds that a model takes its slot: its load, then its work or its quantum, then its end."""
    quantum = model.quantum(state.limits) + _service(model)
    return _load(state, model) + min(quantum, max(_work(model), _service(model))) + model.measured.end.value


def _work(model: Model) -> float:
    """Seconds to answer all waiters, as many at once as the model can."""
    rounds = -(-len(model.queue.waiting) // model.spec.concurrency)
    return rounds * _service(model)


def _service(model: Model) -> float:
    return model.measured.service.value if model.measured.service.samples else _SERVICE


def _next_release(model: Model, now: float) -> float:
    """Seconds until the first lease ends, at least the mean time between two ends.

    Nothing can be said of answers that have taken longer than the mean already.
    """
    spread = _service(model) / (len(model.queue.leases) + 1)
    return max(spread, min(_left(model, now), default=0.0))


def _all_released(model: Model, now: float) -> float:
    """Seconds until the last lease ends; if all are overdue, the mean time between two ends."""
    spread = _service(model) / (len(model.queue.leases) + 1) if model.queue.leases else 0.0
    return max((*_left(model, now), spread))


def _left(model: Model, now: float) -> list[float]:
    granted = (request.granted_at for request in model.queue.leases.values())
    return [_service(model) - (now - at) for at in granted if at is not None]


def _load_left(state: State, model: Model, now: float) -> float:
    return max(0.0, _load(state, model) - (now - model.residency.load_since))


def _load(state: State, model: Model) -> float:
    """Seconds of a load: the model's own mean; without one, by its bytes at the mean speed of other models' loads."""
    if model.measured.load.samples:
        return model.measured.load.value
    known = [other for other in state.models.values() if other.measured.load.samples and other.spec.predicted]
    if not known or not model.spec.predicted:
        return _LOAD
    return (
        model.spec.predicted
        * sum(other.measured.load.value for other in known)
        / sum(other.spec.predicted for other in known)
    )
