"""Replicas of one model: where their common queue is, who takes from it, and when one more is worth loading. Pure.

Requests for a model with replicas wait at one of them, its *home*. The other ready replicas with free capacity take
requests from there. When all replicas that are ready or loading are full, one more is loaded, provided that no model in
use has to end for it.
"""

from gateway.scheduler.model import Model, Phase, Request
from gateway.scheduler.state import State


def home_replica(state: State, model: Model) -> Model:
    """Return the replica at which requests wait: one that is ready, else one that is loading, else one whose last load
    did not fail, and of those rather a cold one than one that is still ending.
    """
    return min(state.group(model), key=_distance)


def _distance(model: Model) -> tuple[float, ...]:
    if model.residency.alive:
        return (model.residency.phase is Phase.LOADING,)
    return 2, model.residency.retry_at, model.residency.phase is Phase.DRAINING


def gather_waiters(state: State) -> None:
    """Move the waiters of each model with replicas to its home, which a load or an end may have changed."""
    for model in state.models.values():
        if model.spec.replicas == 1 or not model.queue.depth or (home := home_replica(state, model)) is model:
            continue
        for request in [*model.queue.waiting, *model.queue.reserved.values()]:
            if not request.bound:
                _move_request(state, request, home)


def take_waiter(state: State, model: Model, now: float) -> Request | None:
    """Let a ready replica take the next request from its home. Return it; None if there is none, or it has no capacity
    for it."""
    home = home_replica(state, model)
    waiting = [request for request in home.queue.waiting if not request.bound]
    if home is model or model.queue.waiting or not waiting:
        return None
    request = home.queue.next_waiter(now, state.limits, waiting)
    if request.answers > model.free:
        return None
    _move_request(state, request, model)
    model.measured.learn_return(now)
    return request


def replicas_to_load(state: State) -> list[Model]:
    """Return the next replica to load of each model whose replicas are full, or will be once they are loaded."""
    found = []
    for model in state.models.values():
        if model.spec.replicas == 1 or (group := state.group(model))[0] is not model:
            continue
        home = home_replica(state, model)
        if not home.residency.alive:
            continue  # it is planned like any cold model: other models have to give way to the first replica
        coming = sum(member.spec.concurrency for member in group if member.residency.phase is Phase.LOADING)
        cold = [member for member in group if member.residency.phase is Phase.COLD and not member.queue.waiting]
        if cold and sum(request.answers for request in home.queue.waiting if not request.bound) > coming:
            found.append(cold[0])
    return found


def _move_request(state: State, request: Request, to: Model) -> None:
    """Let a request wait at another replica, behind those of its priority that were submitted earlier."""
    queue = state.models[request.model].queue
    request.model = to.name
    if queue.reserved.pop(request.request_id, None):
        to.queue.reserved[request.request_id] = request
        return
    queue.waiting.remove(request)
    to.queue.insert_waiter(request)
    request.waited_for_load = request.waited_for_load or to.residency.phase is Phase.LOADING
