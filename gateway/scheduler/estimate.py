"""When a place in a full queue will be free, from what loads, ends and answers took lately. Pure; no promise.

A place is free when a request that waits gets its lease: at once when its model becomes ready, else when a lease ends.
"""

from collections.abc import Iterable

from gateway.scheduler.eviction import turn_ends
from gateway.scheduler.state import Limits, Model, Phase, State

_SERVICE = 1.0  # seconds, of a model that has not answered yet
_LOAD = 10.0  # seconds, while no model has been loaded yet


def next_place(state: State, model: Model, now: float) -> float:
    """Return the seconds until a request that waits for ``model``, or for any of its replicas that are there, is likely
    to get its lease:

    1. ready: when the next of its leases ends, unless a turn of others begins before: then as if it were cold;
    2. loading: what is left of the load;
    3. cold or ending: its slot becomes free, those who are before it have their turns, and it is loaded.
    """
    here = [member for member in state.group(model) if member.phase in (Phase.READY, Phase.LOADING)]
    return min(_next_place(state, member, now) for member in here or [model])


def _next_place(state: State, model: Model, now: float) -> float:
    if model.phase is Phase.READY:  # 1
        ends = _next_release(model, now)
        others = [other for other in _queue(state, model, now) if _in_the_way(state, model, other)]
        if not others or now + ends <= turn_ends(state, model, others[0], now):
            return ends
        left = _all_released(model, now) + model.end.value
        return left + sum(_turn(other, state) for other in others) + _load(state, model)
    if model.phase is Phase.LOADING:  # 2
        return _load_left(state, model, now)
    before: list[Model] = []  # 3
    for other in _queue(state, model, now):
        if other is model:
            break
        before.append(other)
    wait = _room(state, (before or [model])[0], now)
    for other in before:
        wait += _turn(other, state) if _in_the_way(state, model, other) else _load(state, other)
    return wait + _load(state, model)


def any_place(state: State, now: float) -> float:
    """Return the seconds until a request that waits for any model is likely to get its lease."""
    return min((next_place(state, model, now) for model in state.models.values() if model.depth), default=_SERVICE)


def _queue(state: State, model: Model, now: float) -> list[Model]:
    """The cold models with waiters that share a slot with ``model``, in the order in which they will be loaded."""
    cold = [
        other
        for other in state.models.values()
        if other.waiting and other.phase in (Phase.COLD, Phase.DRAINING) and other.reach & model.reach
    ]
    return sorted(cold, key=lambda other: other.turn(now, state.limits))


def _in_the_way(state: State, model: Model, other: Model) -> bool:
    """Whether the two do not fit together wherever both would take memory of the same slots."""
    together = [(one, two) for one in _places(model) for two in _places(other) if one.keys() & two.keys()]
    return bool(together) and all(
        any(one[slot] + two[slot] > state.slots[slot].budget for slot in one.keys() & two.keys())
        for one, two in together
    )


def _places(model: Model) -> list[dict[str, int]]:
    """The bytes it takes of the slots where it is, or would take of those where it may be."""
    if model.slot is None:
        return [model.needs(slot) for slot in model.allowed]
    return [{slot: model.charged(slot) for slot in (model.slot, *model.offloaded)}]


def _room(state: State, newcomer: Model, now: float) -> float:
    """Seconds until there is room for the next one to be loaded, on the slot where that is soonest."""
    return min(
        max(_room_on(state, one, newcomer, size, now) for one, size in newcomer.needs(slot).items())
        for slot in state.usable(newcomer) or newcomer.slots[:1]
    )


def _room_on(state: State, slot: str, newcomer: Model, size: int, now: float) -> float:
    """Seconds until enough residents have left, those that leave first counted first."""
    residents = state.residents(slot)
    need = state.used(slot) + size - state.slots[slot].budget
    wait = max((_load_left(state, other, now) for other in residents if other.phase is Phase.LOADING), default=0.0)
    leaving = sorted(
        (_leaves(state, other, newcomer, now), other.charged(slot)) for other in residents if not other.pinned
    )
    for seconds, freed in leaving:
        if need > 0:
            wait, need = max(wait, seconds), need - freed
    return wait


def _leaves(state: State, resident: Model, newcomer: Model, now: float) -> float:
    """Seconds until a resident's memory is back, if ``newcomer`` is the next to take its place."""
    match resident.phase:
        case Phase.DRAINING:
            return max(0.0, resident.end.value - (now - resident.end_since))
        case Phase.LOADING:
            return _load_left(state, resident, now) + _turn(resident, state) - _load(state, resident)
        case _ if resident.idle and not resident.waiting:
            return resident.end.value
    left = turn_ends(state, resident, newcomer, now) - now
    work = _all_released(resident, now) + _work(resident)
    return max(0.0, min(left + _service(resident), work)) + resident.end.value


def _turn(model: Model, state: State) -> float:
    """Seconds a model takes the slot: its load, then its work or its quantum, then its end."""
    quantum = _quantum(model, state.limits) + _service(model)
    return _load(state, model) + min(quantum, max(_work(model), _service(model))) + model.end.value


def _quantum(model: Model, limits: Limits) -> float:
    return max(limits.quantum, limits.quantum_loads * model.load.value)


def _work(model: Model) -> float:
    """Seconds to answer all who wait, as many at once as the model takes."""
    rounds = -(-len(model.waiting) // model.concurrency)
    return rounds * _service(model)


def _service(model: Model) -> float:
    return model.service.value if model.service.samples else _SERVICE


def _next_release(model: Model, now: float) -> float:
    """Seconds until the first lease ends. It cannot be told of answers that have taken longer than the mean already, so
    never less than what lies between two ends if they come evenly.
    """
    spread = _service(model) / (len(model.leases) + 1)
    return max(spread, min(_left(model, now), default=0.0))


def _all_released(model: Model, now: float) -> float:
    """Seconds until the last lease ends; where all are overdue, a share of the mean answer as above."""
    spread = _service(model) / (len(model.leases) + 1) if model.leases else 0.0
    return max((*_left(model, now), spread))


def _left(model: Model, now: float) -> Iterable[float]:
    granted = (request.granted_at for request in model.leases.values())
    return [_service(model) - (now - at) for at in granted if at is not None]


def _load_left(state: State, model: Model, now: float) -> float:
    return max(0.0, _load(state, model) - (now - model.load_since))


def _load(state: State, model: Model) -> float:
    """Seconds of a load: its own mean, or where it has none, by its bytes as the others' loads went."""
    if model.load.samples:
        return model.load.value
    known = [other for other in state.models.values() if other.load.samples and other.predicted]
    if not known or not model.predicted:
        return _LOAD
    return model.predicted * sum(other.load.value for other in known) / sum(other.predicted for other in known)
