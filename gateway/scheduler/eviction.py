"""Who must go so that another fits, and which busy model must yield. A pure decision: it changes nothing."""

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.scheduler.state import Model, Phase, State


@dataclass(frozen=True, slots=True)
class Plan:
    """What it takes to load a model into ``slot``.

    ``ready``: start now. ``evict``: end these now, that is all it needs. ``yielding``: busy residents whose quantum is
    over: they get no new lease and go once they have answered. ``wait_until``: when the next quantum is over. With
    none of these it waits for what is under way: a load, or runners that are ending.
    """

    slot: str
    ready: bool = False
    evict: tuple[Model, ...] = ()
    yielding: tuple[Model, ...] = ()
    wait_until: float | None = None


def plan(state: State, newcomer: Model, now: float) -> Plan:
    """Plan on the slot that is ready soonest, then the one with the tightest fit, of those it can fit at all."""
    possible = [slot for slot in newcomer.slots if state.room(slot, newcomer) >= newcomer.predicted]
    plans = [_plan_on(state, slot, newcomer, now) for slot in possible] or [Plan(newcomer.slots[0])]
    return min(plans, key=lambda option: (not option.ready, not option.evict, len(option.yielding),
                                          state.slots[option.slot].budget - state.used(option.slot)))  # fmt: skip


def overdraft(state: State, slot: str) -> list[Model]:
    """Idle models to end because the slot's models measured larger than predicted; least recently used first."""
    residents = state.residents(slot)
    over = state.used(slot) - sum(m.bytes for m in residents if m.phase is Phase.DRAINING) - state.slots[slot].budget
    return _take(_least_recent(model for model in residents if _evictable(model) and not model.waiting), over)


def _plan_on(state: State, slot: str, newcomer: Model, now: float) -> Plan:
    residents = state.residents(slot)
    need = state.used(slot) + newcomer.predicted - state.slots[slot].budget
    if need <= 0:
        # One load at a time on a slot: two at once could run it out of memory at their peaks.
        return Plan(slot, ready=all(model.phase is not Phase.LOADING for model in residents))
    need -= sum(model.bytes for model in residents if model.phase is Phase.DRAINING)

    idle = _least_recent(model for model in residents if _evictable(model) and not model.waiting)
    busy = _longest_ready(
        model for model in residents
        if model.phase is Phase.READY and not model.pinned and (model.leases or model.waiting)
        and not _comes_first(model, newcomer, now, state)
    )  # fmt: skip
    go = _take(idle + busy, need)
    if sum(model.bytes for model in go) < need:
        return Plan(slot)  # a pinned model or one that is loading stands in the way
    # A busy model keeps the slot for a quantum, counted from when it was ready and this one began to wait.
    blocked_since = min(request.since for request in newcomer.waiting) if newcomer.waiting else now
    ends = {
        model.name: max(model.ready_since, blocked_since) + state.limits.quantum for model in go if model in busy
    }
    yielding = tuple(model for model in go if model.name in ends and now >= ends[model.name])
    pending = [end for end in ends.values() if end > now]
    if pending or any(model.leases for model in yielding):
        return Plan(slot, yielding=yielding, wait_until=min(pending, default=None))
    return Plan(slot, evict=tuple(go), yielding=yielding)


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


def _take(models: list[Model], need: int) -> list[Model]:
    """The first models of the list that together have ``need`` bytes, or all of them."""
    taken: list[Model] = []
    for model in models:
        if need <= 0:
            break
        taken.append(model)
        need -= model.bytes
    return taken
