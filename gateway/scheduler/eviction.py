"""Which models end so that another can be loaded, and which busy ones yield. A pure decision: it changes nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from gateway.scheduler.anticipation import expected_until
from gateway.scheduler.model import Model, Phase
from gateway.scheduler.replicas import replicas_to_load
from gateway.scheduler.state import State


class Prospect(IntEnum):
    """How soon a load can begin on a slot, the best first."""

    NOW = 0
    SOON = 1  # there is room, or will be: another load is under way there, or evicted models are ending
    EVICT = 2
    YIELD = 3
    TURN = 4
    UNKNOWN = 5
    BEHIND = 6  # another model is before it, on this slot or on another that it needs


@dataclass(frozen=True, slots=True)
class Plan:
    """What it takes to load a model into ``slot``.

    ``ready``: start the load now. ``evict``: end these models now; nothing else is needed. ``yielding``: busy residents
    whose turn is over; they get no new lease and end once they have answered. ``wait_until``: when the next turn is
    over, or the next expected request is overdue. Without any of these the model waits for another load, for runners
    that are ending, or for the models before it. ``due``: when the last turn is over, or was.
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


def plan_loads(state: State, now: float) -> list[tuple[Model, Plan]]:
    """Plan for every cold model with waiters, the longest waiter first; on each slot only the first model is planned.

    The others wait behind it, so a stream of small newcomers cannot keep a large model out. A model that needs several
    slots holds its position on all of them once it is first on each. Before that it costs no other model its turn.
    """
    cold = [model for model in state.models.values() if model.residency.phase is Phase.COLD and model.queue.waiting]
    plans: list[tuple[Model, Plan]] = []
    promised: dict[str, int] = {}
    for model in sorted(cold, key=lambda model: model.turn(now, state.limits)):
        plan = _plan(state, model, now, promised)
        needs = model.spec.needs(plan.slot)
        if promised.keys() & needs.keys():
            plans.append((model, Plan(plan.slot, Prospect.BEHIND)))
            continue
        plans.append((model, plan))
        promised |= needs
    return plans


def plan_replicas(state: State, plans: list[tuple[Model, Plan]], now: float) -> list[tuple[Model, Plan]]:
    """Plan the replicas that are to be loaded besides, each on slots that no model with a plan needs, nor a replica
    before it that will be loaded."""
    taken = {slot for model, plan in plans for slot in model.spec.needs(plan.slot)}
    more: list[tuple[Model, Plan]] = []
    for model in replicas_to_load(state):
        plan = _plan_beside(state, model, now, taken)
        if plan.prospect is not Prospect.UNKNOWN:
            taken |= model.spec.needs(plan.slot).keys()
        more.append((model, plan))
    return more


def over_budget(state: State, slot: str) -> list[Model]:
    """Return the idle models to end because the slot is over its budget, the least recently used first."""
    unused = [model for model in state.residents(slot) if model.unused]
    return _take(_least_recent(unused), state.kept(slot) - state.budgets[slot], slot)


def _plan(state: State, newcomer: Model, now: float, promised: Mapping[str, int]) -> Plan:
    """Plan on the best of the slots that can hold the newcomer, compared by these in turn:

    1. where it fits and no model has to end, at once or soon; then where it is enough to end idle models; then where
       the turn of a busy one is over, or will be first;
    2. where no other replica of it is;
    3. where the models to end were used longest ago;
    4. where the fewest have to yield;
    5. where it fits most tightly, so that the larger space stays for a larger model.

    ``promised`` are the bytes, by slot, that models before this one will take.
    """
    plans = [_plan_on(state, slot, newcomer, now, promised) for slot in state.usable(newcomer)]
    return _best(state, newcomer, plans or [Plan(newcomer.spec.slots[0])])


def _plan_beside(state: State, newcomer: Model, now: float, taken: set[str]) -> Plan:
    """Plan one more replica. No model in use gives way to it: it goes where it fits, or where it is enough to end idle
    models that were not used for as long as a busy one may keep its slot. It takes no slot that a model waits for.
    """
    if newcomer.residency.retry_at > now:
        return Plan(newcomer.spec.slots[0], wait_until=newcomer.residency.retry_at)
    plans = []
    for slot in state.usable(newcomer):
        needs = newcomer.spec.needs(slot)
        if not needs.keys() & taken:
            found = [_make_room_beside_on(state, one, newcomer, size, now) for one, size in needs.items()]
            plans.append(_combine(state, slot, newcomer, found))
    return _best(state, newcomer, plans or [Plan(newcomer.spec.slots[0])])


def _best(state: State, newcomer: Model, plans: list[Plan]) -> Plan:
    def order(option: Plan) -> tuple[float, ...]:
        mates = sum(model.spec is newcomer.spec for model in state.residents(option.slot))
        used = max((model.residency.last_used or 0.0 for model in option.evict), default=0.0)
        free = state.budgets[option.slot] - state.used(option.slot)
        return option.prospect, mates, option.due, used, len(option.yielding), free

    return min(plans, key=order)


def _plan_on(state: State, slot: str, newcomer: Model, now: float, promised: Mapping[str, int]) -> Plan:
    """Plan on one slot and on those it offloads to: the load begins when all of them have room."""
    plans: list[Plan] = []
    going: list[Model] = []
    for one, size in newcomer.spec.needs(slot).items():
        plan, go = _make_room_on(state, one, newcomer, size, now, promised.get(one), going)
        plans.append(plan)
        going += go
    return _combine(state, slot, newcomer, plans)


def _combine(state: State, slot: str, newcomer: Model, plans: list[Plan]) -> Plan:
    """Combine the plans for every slot that a load needs. No model ends or yields while the load has to wait for
    something else, such as the end of another load; and none ends before all of them may."""
    if len(plans) == 1:
        return plans[0]
    prospect = max(plan.prospect for plan in plans)
    if prospect is Prospect.UNKNOWN:
        return Plan(slot)
    wait_until = min((plan.wait_until for plan in plans if plan.wait_until is not None), default=None)
    due = max(plan.due for plan in plans)
    if prospect > Prospect.SOON and any(_loading(state, one) for one in newcomer.spec.needs(slot)):
        return Plan(slot, max(prospect, Prospect.YIELD), wait_until=wait_until, due=due)
    evict = {model.name: model for plan in plans for model in plan.evict if prospect is Prospect.EVICT}
    yielding = {model.name: model for plan in plans for model in plan.yielding}
    return Plan(slot, prospect, tuple(evict.values()), tuple(yielding.values()), wait_until, due)


def _make_room_on(
    state: State, slot: str, newcomer: Model, size: int, now: float, promised: int | None, going: list[Model]
) -> tuple[Plan, list[Model]]:
    """Plan how to make room for ``size`` bytes on one slot. The models ``going`` end for the newcomer already. Return
    the plan and which other models have to end.

    1. The newcomer fits: ready, unless another model is loading there.
    2. The candidates are, in this order: idle models, the least recently used first; idle models whose next request is
       expected so soon that a swap back would cost more than waiting for it; busy models, the longest ready first.
       Never a model that is pinned or loading, a replica of the newcomer, or one with waiters of a better priority.
    3. If all candidates together are not enough, the newcomer waits for something else to happen.
    4. A busy model may keep the slot until its turn is over, an expected one until it is overdue or its turn is over.
    5. Once no model may keep the slot and no lease is open, all that are needed end at once.
    """
    residents = state.residents(slot)
    missing = (promised or 0) + size - state.budgets[slot]
    if state.used(slot) + missing <= 0:  # 1
        # One load at a time on a slot: two at once could run it out of memory at their peaks.
        free = promised is None and not _loading(state, slot)
        return Plan(slot, Prospect.NOW if free else Prospect.SOON), []
    need = state.kept(slot) + missing - sum(model.residency.charges.get(slot, 0) for model in going)
    if need <= 0:
        return Plan(slot, Prospect.SOON), []

    staying = [model for model in residents if model not in going]
    until: dict[str, float] = {}  # until when a model may keep the slot
    idle = _least_recent(model for model in staying if model.unused and model.spec is not newcomer.spec)  # 2
    waiters = sum(
        len(model.queue.waiting)
        for model in state.models.values()
        if slot in model.spec.reach and not model.residency.alive
    )
    for model in idle:
        expected = expected_until(state, model, waiters, now)
        if expected is not None:
            until[model.name] = min(expected, turn_ends(state, model, newcomer, now))
    idle.sort(key=lambda model: until.get(model.name, now) > now)
    busy = [
        model
        for model in staying
        if model.residency.phase is Phase.READY
        and not model.spec.pinned
        and (model.queue.leases or model.queue.waiting)
        and model.spec is not newcomer.spec
        and not _comes_first(model, newcomer, now, state)
    ]
    busy.sort(key=lambda model: (model.residency.ready_since, model.name))  # an order that serving does not change
    until |= {model.name: turn_ends(state, model, newcomer, now) for model in busy}
    go = _take(idle + busy, need, slot)
    if sum(model.residency.charges[slot] for model in go) < need:  # 3
        return Plan(slot), []
    pending = [until[model.name] for model in go if until.get(model.name, now) > now]  # 4
    yielding = tuple(model for model in go if _gives_way(state, model, newcomer, until, now))
    due = max((until[model.name] for model in go if model.name in until), default=0.0)
    if pending:
        return Plan(slot, Prospect.TURN, yielding=yielding, wait_until=min(pending), due=due), go
    if any(model.queue.leases for model in yielding):
        return Plan(slot, Prospect.YIELD, yielding=yielding, due=due), go
    return Plan(slot, Prospect.EVICT, evict=tuple(go), yielding=yielding), go  # 5


def _gives_way(state: State, model: Model, newcomer: Model, until: dict[str, float], now: float) -> bool:
    """Whether a model that has to end gets no new lease until then, because its turn is over.

    An idle replica yields too: it would otherwise be given the next request of its model, which waits at another
    replica, then one more once that is answered, and so on for ever.
    """
    if model.queue.leases or model.queue.waiting:
        return now >= until[model.name]
    return model.spec.replicas > 1 and now >= turn_ends(state, model, newcomer, now)


def _make_room_beside_on(state: State, slot: str, newcomer: Model, size: int, now: float) -> Plan:
    residents = state.residents(slot)
    missing = size - state.budgets[slot]
    if state.used(slot) + missing <= 0:
        return Plan(slot, Prospect.SOON if _loading(state, slot) else Prospect.NOW)
    need = state.kept(slot) + missing
    if need <= 0:
        return Plan(slot, Prospect.SOON)
    idle = [model for model in residents if model.unused and model.spec is not newcomer.spec]
    unused = {model.name: (model.residency.last_used or 0.0) + model.quantum(state.limits) for model in idle}
    idle.sort(key=lambda model: unused[model.name])
    go = _take(idle, need, slot)
    if sum(model.residency.charges[slot] for model in go) < need:
        return Plan(slot)
    last = max(unused[model.name] for model in go)
    if last > now:
        return Plan(slot, Prospect.TURN, wait_until=last, due=last)
    return Plan(slot, Prospect.EVICT, evict=tuple(go))


def turn_ends(state: State, model: Model, newcomer: Model, now: float) -> float:
    """Return when a resident has to give way to ``newcomer``. Its turn counts from when it was ready and the newcomer
    had a waiter. It keeps the slot

    1. for ``limits.quantum`` in any case;
    2. for ``limits.quantum_loads`` times its load if that is longer, so that an expensive load is used;
    3. but no longer than 1 if the newcomer's waiters have a better priority than the requests the resident serves;
    4. and no longer than lets each waiter that can be served before its deadline be served, but never less than 1.
    """
    waiting = newcomer.queue.waiting
    blocked_since = min((request.since for request in waiting), default=now)
    begun = max(model.residency.ready_since, blocked_since)
    assured = begun + state.limits.quantum  # 1
    wanted = begun + state.limits.quantum_loads * model.measured.load.value  # 2
    if wanted <= assured or _outranks(newcomer, model, now, state):  # 3
        return assured
    load = newcomer.measured.load if newcomer.measured.load.samples else model.measured.load
    needed = load.value + 2 * load.deviation + model.measured.end.value + model.measured.service.value
    latest = [request.deadline - needed for request in waiting]
    return max(assured, min([wanted, *(start for start in latest if start >= assured)]))  # 4


def _outranks(newcomer: Model, model: Model, now: float, state: State) -> bool:
    """Whether the newcomer's waiters have a better priority than all requests that a resident serves or has waiting."""
    served = [request.priority for request in model.queue.leases.values()]
    if model.queue.waiting:
        served.append(model.queue.best_rank(now, state.limits))
    return bool(newcomer.queue.waiting and served) and newcomer.queue.best_rank(now, state.limits) < min(served)


def _comes_first(model: Model, newcomer: Model, now: float, state: State) -> bool:
    """Whether a resident's waiters have a better priority than the newcomer's."""
    if not model.queue.waiting or not newcomer.queue.waiting:
        return False
    return model.queue.best_rank(now, state.limits) < newcomer.queue.best_rank(now, state.limits)


def _least_recent(models: Iterable[Model]) -> list[Model]:
    return sorted(models, key=lambda model: (model.residency.last_used or 0.0, model.name))


def _loading(state: State, slot: str) -> bool:
    return any(model.residency.phase is Phase.LOADING for model in state.residents(slot))


def _take(models: list[Model], need: int, slot: str) -> list[Model]:
    """Return the first models of the list that together have ``need`` bytes of the slot, or all of them."""
    taken: list[Model] = []
    for model in models:
        if need <= 0:
            break
        taken.append(model)
        need -= model.residency.charges[slot]
    return taken
