"""Replicas of one model: where their common queue is, who takes from it, and when one more is worth loading. Pure.

Those who wait for a model with replicas wait at its *home*, one of them. A ready replica with a free place takes from
there. One more is loaded when those that are loaded or loading are full, where that costs nobody else a model that is
in use.
"""

from gateway.scheduler import anticipation
from gateway.scheduler.state import Model, Phase, State


def home(state: State, model: Model) -> Model:
    """The replica at which requests wait: one that is ready, else one that is loading, else one whose last load did not
    fail, and of those rather one that is not still ending.
    """
    return min(state.group(model), key=_distance)


def _distance(model: Model) -> tuple[float, ...]:
    if model.phase in (Phase.READY, Phase.LOADING):
        return (model.phase is Phase.LOADING,)
    return 2, model.retry_at, model.phase is Phase.DRAINING


def gather(state: State) -> None:
    """Have all who wait for a model wait at its home. Where that is may have changed: a replica was loaded or ended."""
    for model in state.models.values():
        if not model.group or not (model.waiting or model.reserved) or (to := home(state, model)) is model:
            continue
        for request in [request for request in (*model.waiting, *model.reserved.values()) if not request.bound]:
            _move(state, request.request_id, to)


def take(state: State, model: Model, now: float) -> bool:
    """Let a ready replica take the next one in turn from where it waits, if it has the places. Return if it did."""
    at = home(state, model)
    waiting = [request for request in at.waiting if not request.bound]
    if at is model or model.waiting or not waiting:
        return False
    request = at.next_of(waiting, now, state.limits)
    if request.places > model.free:
        return False
    _move(state, request.request_id, model)
    anticipation.asked(model, now)
    return True


def wanted(state: State) -> list[Model]:
    """For each model whose replicas are full, or will be once they are loaded, the one to be loaded next."""
    found = []
    for name in dict.fromkeys(model.group for model in state.models.values() if model.group):
        group = [model for model in state.models.values() if model.group == name]
        at = home(state, group[0])
        if at.phase not in (Phase.READY, Phase.LOADING):
            continue  # the first one is loaded for those who wait, with all that may cost others
        coming = sum(member.concurrency for member in group if member.phase is Phase.LOADING)
        cold = [member for member in group if member.phase is Phase.COLD and not member.waiting]
        if cold and sum(request.places for request in at.waiting if not request.bound) > coming:
            found.append(cold[0])
    return found


def _move(state: State, request_id: str, to: Model) -> None:
    """Let a request wait elsewhere, behind those of its priority who asked earlier."""
    request = state.requests[request_id]
    model = state.models[request.model]
    request.model = to.name
    if model.reserved.pop(request_id, None):
        to.reserved[request_id] = request
        return
    model.waiting.remove(request)
    place = len(to.waiting)
    while place and (to.waiting[place - 1].priority, to.waiting[place - 1].asked) > (request.priority, request.asked):
        place -= 1
    to.waiting.insert(place, request)
    request.waited_for_load = request.waited_for_load or to.phase is Phase.LOADING
