"""Who must go so that another fits, and which busy model must yield. A pure decision: it changes nothing."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

from gateway.scheduler import replicas
from gateway.scheduler.anticipation import expected_until
from gateway.scheduler.state import Model, Phase, State, akin


class Prospect(IntEnum):
    """How soon a load can begin on a slot, the best first."""

    NOW = 0
    SOON = 1  # there is room, or will be: a load is under way there, or those who had to go are ending
    EVICT = 2
    YIELD = 3
    TURN = 4
    UNKNOWN = 5
    BEHIND = 6  # another model is before it, there or on a slot that it needs besides


@dataclass(frozen=True, slots=True)
class Plan:
    """What it takes to load a model into ``slot``.

    ``ready``: start now. ``evict``: end these now, that is all it needs. ``yielding``: busy residents whose turn is
    over: they get no new lease and go once they have answered. ``wait_until``: when the next turn is over, or the next
    expected request overdue. With none of these it waits for what is under way: a load, or runners that are ending, or
    for those before it.
    ``due`` is when the last of the turns is over, or was.
    """

    slot: str
    prospect: Prospect = Prospect.UNKNOWN
    evict: tuple[Model, ...] = ()
    yielding: tuple[Model, ...] = ()
    wait_until: float | None = None
    due: float = 0.0

    @property
    def ready(self) -> bool:
        return self.prospect is Prospect.NOW


def plans_of(state: State, now: float) -> list[tuple[Model, Plan]]:
    """For each slot, the plan of the model whose first request has waited longest. Others wait behind it, so that a
    stream of small newcomers cannot keep a large one out. One that needs several slots keeps its place on all of them
    once it is the first on each. Until then it costs no other its turn: it will be the longest waiter soon.
    """
    cold = [model for model in state.models.values() if model.phase is Phase.COLD and model.waiting]
    plans: list[tuple[Model, Plan]] = []
    promised: dict[str, int] = {}
    for model in sorted(cold, key=lambda model: model.turn(now, state.limits)):
        found = plan(state, model, now, promised)
        needs = model.needs(found.slot)
        if promised.keys() & needs.keys():
            plans.append((model, Plan(found.slot, Prospect.BEHIND)))
            continue
        plans.append((model, found))
        promised |= needs
    return plans


def more_plans(state: State, plans: list[tuple[Model, Plan]], now: float) -> list[tuple[Model, Plan]]:
    """The plans of replicas that are to be loaded besides, each on slots that no model waits for, and no replica before
    it that can be loaded at some time."""
    taken = {slot for model, found in plans for slot in model.needs(found.slot)}
    more: list[tuple[Model, Plan]] = []
    for model in replicas.wanted(state):
        found = plan_beside(state, model, now, taken)
        if found.prospect is not Prospect.UNKNOWN:
            taken |= model.needs(found.slot).keys()
        more.append((model, found))
    return more


def plan(state: State, newcomer: Model, now: float, promised: Mapping[str, int] = MappingProxyType({})) -> Plan:
    """Plan on one of the slots that can hold it, by these in turn:

    1. where it fits with nobody going, at once or soon; then where idle models can go; then where the turn of a busy
       one is over, or will be first;
    2. where no other replica of it is;
    3. where those who would go were used longest ago;
    4. the fewest would have to yield;
    5. the tightest fit, so that the larger space stays for a larger model.

    ``promised`` are bytes of slots that a model before this one will take.
    """
    plans = [_plan_on(state, slot, newcomer, now, promised) for slot in state.usable(newcomer)]
    return _best(state, newcomer, plans or [Plan(newcomer.slots[0])])


def plan_beside(state: State, newcomer: Model, now: float, taken: Collection[str]) -> Plan:
    """Plan one more replica, for which nobody has to give way: it goes where it fits, or where idle models are enough
    that have been asked nothing for as long as a busy one may keep the slot. Never on a slot that others wait for.
    """
    if newcomer.retry_at > now:
        return Plan(newcomer.slots[0], wait_until=newcomer.retry_at)
    usable = [slot for slot in state.usable(newcomer) if not newcomer.needs(slot).keys() & set(taken)]
    plans = [_plan_beside_on(state, slot, newcomer, now) for slot in usable]
    return _best(state, newcomer, plans or [Plan(newcomer.slots[0])])


def _best(state: State, newcomer: Model, plans: list[Plan]) -> Plan:
    def order(option: Plan) -> tuple[float, ...]:
        mates = sum(akin(model, newcomer) for model in state.residents(option.slot))
        used = max((model.last_used or 0.0 for model in option.evict), default=0.0)
        free = state.slots[option.slot].budget - state.used(option.slot)
        return option.prospect, mates, option.due, used, len(option.yielding), free

    return min(plans, key=order)


def overdraft(state: State, slot: str) -> list[Model]:
    """Idle models to end because the slot's models measured larger than predicted; least recently used first."""
    residents = state.residents(slot)
    over = state.used(slot) - _leaving(residents, slot) - state.slots[slot].budget
    return _take(_least_recent(model for model in residents if _evictable(model) and not model.waiting), over, slot)


def _plan_on(state: State, slot: str, newcomer: Model, now: float, promised: Mapping[str, int]) -> Plan:
    """Decide on a slot, and on those that take what is offloaded from it: a load begins when all of them have room."""
    plans: list[Plan] = []
    going: list[Model] = []
    for one, size in newcomer.needs(slot).items():
        found, go = _room_on(state, one, newcomer, size, now, promised.get(one), going)
        plans.append(found)
        going += go
    return _all_of(state, slot, newcomer, plans)


def _all_of(state: State, slot: str, newcomer: Model, plans: list[Plan]) -> Plan:
    """Put together what it takes on every slot that a load needs. Nobody goes or yields for one that has to wait for
    something else to happen, as the end of another load, and nobody goes before all may."""
    if len(plans) == 1:
        return plans[0]
    prospect = max(found.prospect for found in plans)
    if prospect is Prospect.UNKNOWN:
        return Plan(slot)
    if prospect > Prospect.SOON and any(_loading(state, one) for one in newcomer.needs(slot)):
        waits = [found.wait_until for found in plans if found.wait_until is not None]
        return Plan(
            slot,
            max(prospect, Prospect.YIELD),
            wait_until=min(waits, default=None),
            due=max(found.due for found in plans),
        )
    evict = {model.name: model for found in plans for model in found.evict if prospect is Prospect.EVICT}
    yielding = {model.name: model for found in plans for model in found.yielding}
    waits = [found.wait_until for found in plans if found.wait_until is not None]
    return Plan(
        slot,
        prospect,
        tuple(evict.values()),
        tuple(yielding.values()),
        min(waits, default=None),
        max(found.due for found in plans),
    )


def _room_on(
    state: State, slot: str, newcomer: Model, size: int, now: float, promised: int | None, going: list[Model]
) -> tuple[Plan, list[Model]]:
    """Decide how to make room for ``size`` bytes on one slot, where those ``going`` have to go for the newcomer
    already. Return the plan and who else has to go. In this order:

    1. it fits as things are: ready, unless another model is loading there;
    2. candidates to go are, in this order: idle models, least recently used first; idle ones whose next request is
       expected so soon that a swap back would cost more than waiting for it; busy ones, those that have had the slot
       longest first. Never one that is pinned, loading, another replica of the same model, or awaited by requests of a
       better priority;
    3. if all of them together are not enough, it waits for something else to happen;
    4. a busy one may keep the slot until its turn is over, an expected one until it is overdue or its turn is over;
    5. once nobody may keep it and no lease is open, all who are needed go at once.
    """
    residents = state.residents(slot)
    need = state.used(slot) + (promised or 0) + size - state.slots[slot].budget
    if need <= 0:  # 1
        # One load at a time on a slot: two at once could run it out of memory at their peaks.
        free = promised is None and not _loading(state, slot)
        return Plan(slot, Prospect.NOW if free else Prospect.SOON), []
    need -= _leaving(residents, slot) + sum(model.charged(slot) for model in going)
    if need <= 0:
        return Plan(slot, Prospect.SOON), []

    staying = [model for model in residents if model not in going]
    until: dict[str, float] = {}  # when each that may keep the slot for a while has to give way
    idle = _least_recent(
        model for model in staying if _evictable(model) and not model.waiting and not akin(model, newcomer)
    )  # 2
    waiters = sum(
        len(model.waiting)
        for model in state.models.values()
        if slot in model.reach and model.phase in (Phase.COLD, Phase.DRAINING)
    )
    for model in idle:
        expected = expected_until(state, model, waiters, now)
        if expected is not None:
            until[model.name] = min(expected, turn_ends(state, model, newcomer, now))
    idle.sort(key=lambda model: until.get(model.name, now) > now)
    busy = _longest_ready(
        model
        for model in staying
        if model.phase is Phase.READY
        and not model.pinned
        and (model.leases or model.waiting)
        and not akin(model, newcomer)
        and not _comes_first(model, newcomer, now, state)
    )
    until |= {model.name: turn_ends(state, model, newcomer, now) for model in busy}
    go = _take(idle + busy, need, slot)
    if sum(model.charged(slot) for model in go) < need:  # 3
        return Plan(slot), []
    pending = [until[model.name] for model in go if until.get(model.name, now) > now]  # 4
    yielding = tuple(model for model in go if _gives_way(state, model, newcomer, until, now))
    due = max((until[model.name] for model in go if model.name in until), default=0.0)
    if pending:
        return Plan(slot, Prospect.TURN, yielding=yielding, wait_until=min(pending), due=due), go
    if any(model.leases for model in yielding):
        return Plan(slot, Prospect.YIELD, yielding=yielding, due=due), go
    return Plan(slot, Prospect.EVICT, evict=tuple(go), yielding=yielding), go  # 5


def _gives_way(state: State, model: Model, newcomer: Model, until: dict[str, float], now: float) -> bool:
    """Whether the turn of one who has to go is over. A replica that is idle now would be given the next request of its
    model, which waits elsewhere, and another would be when that is answered, for ever.
    """
    if model.leases or model.waiting:
        return now >= until[model.name]
    return bool(model.group) and now >= turn_ends(state, model, newcomer, now)


def _plan_beside_on(state: State, slot: str, newcomer: Model, now: float) -> Plan:
    plans = [_room_beside_on(state, one, newcomer, size, now) for one, size in newcomer.needs(slot).items()]
    return _all_of(state, slot, newcomer, plans)


def _room_beside_on(state: State, slot: str, newcomer: Model, size: int, now: float) -> Plan:
    residents = state.residents(slot)
    need = state.used(slot) + size - state.slots[slot].budget
    if need <= 0:
        return Plan(slot, Prospect.SOON if _loading(state, slot) else Prospect.NOW)
    need -= _leaving(residents, slot)
    if need <= 0:
        return Plan(slot, Prospect.SOON)
    limits = state.limits
    idle = [model for model in residents if _evictable(model) and not model.waiting and not akin(model, newcomer)]
    unused = {
        model.name: (model.last_used or 0.0) + max(limits.quantum, limits.quantum_loads * model.load.value)
        for model in idle
    }
    idle.sort(key=lambda model: unused[model.name])
    go = _take(idle, need, slot)
    if sum(model.charged(slot) for model in go) < need:
        return Plan(slot)
    last = max(unused[model.name] for model in go)
    if last > now:
        return Plan(slot, Prospect.TURN, wait_until=last, due=last)
    return Plan(slot, Prospect.EVICT, evict=tuple(go))


def turn_ends(state: State, model: Model, newcomer: Model, now: float) -> float:
    """Return when a resident has to give way to ``newcomer``. It keeps the slot, counted from when it was ready and the
    newcomer began to wait,

    1. for ``limits.quantum`` in any case;
    2. for as long as its load took, if that is longer: what was loaded at such cost is used;
    3. but no longer than 1 if those who wait have a better priority than those it serves;
    4. and not so long that one of those who wait, and can still be served in time, would be too late.
    """
    blocked_since = min((request.since for request in newcomer.waiting), default=now)
    begun = max(model.ready_since, blocked_since)
    assured = begun + state.limits.quantum  # 1
    wanted = begun + state.limits.quantum_loads * model.load.value  # 2
    if wanted <= assured or _outranks(newcomer, model, now, state):  # 3
        return assured
    load = newcomer.load if newcomer.load.samples else model.load
    needed = load.value + 2 * load.deviation + model.end.value + model.service.value
    latest = [request.deadline - needed for request in newcomer.waiting]
    return max(assured, min([wanted, *(start for start in latest if start >= assured)]))  # 4


def _outranks(newcomer: Model, model: Model, now: float, state: State) -> bool:
    """Whether those who wait for the newcomer have a better priority than all whom a resident serves or has waiting."""
    served = [request.priority for request in model.leases.values()]
    if model.waiting:
        served.append(model.rank(now, state.limits))
    return bool(newcomer.waiting and served) and newcomer.rank(now, state.limits) < min(served)


def _comes_first(model: Model, newcomer: Model, now: float, state: State) -> bool:
    """Whether those who wait for a resident have priority over those who wait for the newcomer."""
    if not model.waiting or not newcomer.waiting:
        return False
    return model.rank(now, state.limits) < newcomer.rank(now, state.limits)


def _evictable(model: Model) -> bool:
    return model.idle and not model.pinned


def _longest_ready(models: Iterable[Model]) -> list[Model]:
    """Among busy models the one that has had the slot longest yields: an order that serving does not change."""
    return sorted(models, key=lambda model: (model.ready_since, model.name))


def _least_recent(models: Iterable[Model]) -> list[Model]:
    return sorted(models, key=lambda model: (model.last_used or 0.0, model.name))


def _loading(state: State, slot: str) -> bool:
    return any(model.phase is Phase.LOADING for model in state.residents(slot))


def _leaving(residents: Iterable[Model], slot: str) -> int:
    """Bytes of a slot that are about to be free: their runners are ending."""
    return sum(model.charged(slot) for model in residents if model.phase is Phase.DRAINING)


def _take(models: list[Model], need: int, slot: str) -> list[Model]:
    """The first models of the list that together have ``need`` bytes of the slot, or all of them."""
    taken: list[Model] = []
    for model in models:
        if need <= 0:
            break
        taken.append(model)
        need -= model.charged(slot)
    return taken
