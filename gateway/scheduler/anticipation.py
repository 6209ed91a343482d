"""Whether an idle model is likely to be asked again so soon that waiting for it costs less than swapping it back. Pure.

Two clients that each send their next request when the last one was answered would otherwise swap two models on every
request: at the moment one is answered its model has nothing to do, and the other's waits.

What is learnt, per model: when it has answered all it had, how long until it is asked again (``gap``), and how often
that was sooner than it could have been loaded again (``returns``).
"""

from collections.abc import Iterable

from gateway.scheduler.state import Model, Phase, State

_SLACK = 0.05  # seconds a client's next request may be later than usual, however regular it was
_WEIGHT = 0.25  # of the newest gap, in ``returns``


def expected_until(state: State, model: Model, waiters: int, now: float) -> float | None:
    """Return until when an idle model is worth waiting for although ``waiters`` requests wait for the slot, or None.

    1. Without a measured load there is nothing to weigh: None.
    2. A request for it has a place and its media are being decoded: it will be here in a moment. Waiting for it may
       cost those who wait, together, as much as the load it saves.
    3. Otherwise its next request is likely within the mean gap and two deviations, and never waited for longer than a
       load takes. With the chance ``returns`` it comes and saves a load, having cost each waiter the mean gap; else
       each has waited in vain. None if that costs more than it saves.
    """
    load = model.load.value
    if not state.limits.anticipation or not load:  # 1
        return None
    if model.reserved:  # 2
        until = min(request.since for request in model.reserved.values()) + load / max(1, waiters)
        if now < until:
            return until
    if model.idle_since is None or not model.gap.samples:
        return None
    longest = min(model.gap.value + 2 * model.gap.deviation + _SLACK, load)  # 3
    cost = waiters * (model.returns * model.gap.value + (1 - model.returns) * longest)
    until = model.idle_since + longest
    return until if now < until and cost < model.returns * load else None


def asked(model: Model, now: float) -> None:
    """Learn from a request for a model that had nothing to do."""
    if model.idle_since is None:
        return
    gap = now - model.idle_since
    model.idle_since = None
    soon = gap <= model.load.value
    model.returns += _WEIGHT * (soon - model.returns)
    if soon:
        model.gap.add(gap)


def replaced(state: State, slots: Iterable[str]) -> None:
    """Learn that models which had to go from these slots were not asked for before the one they went for was there.

    Should they be asked for later, that tells nothing about how long to wait for them: the same client may have waited
    for the other's answer first, and would not have come however long its model was kept.
    """
    for model in state.models.values():
        if model.idle_since is None or model.phase not in (Phase.COLD, Phase.DRAINING):
            continue
        if model.reach.intersection(slots):
            model.idle_since = None
            model.returns -= _WEIGHT * model.returns
