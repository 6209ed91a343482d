"""Whether waiting for an idle model's next request costs less than ending the model and loading it back. Pure.

Two clients that each send their next request once the last one was answered would otherwise swap two models on every
request: at the moment one client is answered its model is idle, and the other client's model waits for the slot.

What is learnt per model is in :class:`gateway.scheduler.model.Measured`: ``gap`` and ``returns``.
"""

from collections.abc import Iterable

from gateway.scheduler.model import Model
from gateway.scheduler.state import State

_SLACK = 0.05
"""Seconds by which a client's next request may be later than usual, however regular it was."""


def expected_until(state: State, model: Model, waiters: int, now: float) -> float | None:
    """Return until when an idle model is kept although ``waiters`` requests wait for its slot; None if not at all.

    1. Nothing can be compared without a measured load: None.
    2. A request for the model is reserved and its media are being decoded, so it will be submitted soon. Waiting for it
       may cost all waiters together as much as the load it saves.
    3. Otherwise its next request is likely within the mean gap and two deviations; a longer wait than a load is never
       worth it. With probability ``returns`` the request comes and saves a load, and each waiter has lost the mean gap;
       otherwise each waiter has lost the whole wait. None if that costs more than it saves.
    """
    measured, load = model.measured, model.measured.load.value
    if not state.limits.anticipation or not load:  # 1
        return None
    if model.queue.reserved:  # 2
        until = min(request.since for request in model.queue.reserved.values()) + load / max(1, waiters)
        if now < until:
            return until
    if measured.idle_since is None or not measured.gap.samples:
        return None
    longest = min(measured.gap.value + 2 * measured.gap.deviation + _SLACK, load)  # 3
    cost = waiters * (measured.returns * measured.gap.value + (1 - measured.returns) * longest)
    until = measured.idle_since + longest
    return until if now < until and cost < measured.returns * load else None


def learn_from_load(state: State, slots: Iterable[str]) -> None:
    """Learn that models which ended on these slots were not asked for before the newcomer was loaded.

    A later request for such a model teaches nothing about how long to keep it: its client may have waited for the
    newcomer's answer first, and would not have come earlier however long the model was kept.
    """
    for model in state.models.values():
        if model.measured.idle_since is None or model.residency.alive:
            continue
        if model.spec.reach.intersection(slots):
            model.measured.learn_no_return()
