"""Whether a request gets a place in a queue, and what it is told when it does not. Pure."""

import math
from functools import partial

from gateway.scheduler.actions import Action, Admit, Refuse, Why
from gateway.scheduler.estimate import any_place, next_place
from gateway.scheduler.events import Reserve
from gateway.scheduler.replicas import home
from gateway.scheduler.state import Model, Phase, Request, State


def reserve(state: State, event: Reserve, now: float) -> list[Action]:
    """Admit or refuse, in this order:

    1. the gateway is stopping: refuse;
    2. the model's last load failed, its pause is not over and no other load is under way: refuse, naming the cause;
    3. the model is larger than every slot it may use: refuse, before anything is evicted;
    4. its queue or all queues together are full: refuse, with the time until a place is likely;
    5. otherwise it has a place.

    Nobody is refused because he is likely to be too late: how long loads and answers will take is an estimate, and only
    a deadline that has passed is certain.
    """
    model = state.models[event.model] if event.bound else home(state, state.models[event.model])
    depth = sum(member.depth for member in state.group(model))

    def refuse(why: Why, detail: str, retry_after: float | None = None) -> list[Action]:
        return [Refuse(event.request_id, why, detail, retry_after)]

    if state.stopping:  # 1
        return refuse(Why.STOPPING, "the server is stopping")
    if model.phase in (Phase.COLD, Phase.DRAINING) and now < model.retry_at and not event.retry:  # 2
        return refuse(Why.BACKOFF, f"loading {model.title} failed: {model.failure}", model.retry_at - now)
    if model.phase is Phase.COLD and not state.usable(model):  # 3
        return refuse(Why.CANNOT_FIT, cannot_fit(state, model))
    for taken, limit, whose, estimate in (  # 4
        (depth, state.limits.queue_per_model, f"the queue of {model.title}", partial(next_place, state, model)),
        (state.depth, state.limits.queue_total, "the server's queue", partial(any_place, state)),
    ):
        if taken >= limit:
            retry_after = float(math.ceil(max(1.0, estimate(now))))  # what HTTP's Retry-After can say
            return refuse(Why.QUEUE_FULL, f"{whose} is full ({taken} of {limit})", retry_after)
    request = Request(  # 5
        event.request_id,
        model.name,
        event.deadline,
        event.priority,
        now,
        retry=event.retry,
        places=min(event.places, model.concurrency),
        bound=event.bound,
    )
    model.reserved[request.request_id] = state.requests[request.request_id] = request
    return [Admit(request.request_id)]


def cannot_fit(state: State, model: Model) -> str:
    """Say how much is missing on the slot where the least is, or where what it offloads from there has no room."""

    def left(slot: str) -> tuple[int, str, int]:
        return min((state.room(one, model) - size, one, size) for one, size in model.needs(slot).items())

    chosen = max(model.allowed, key=left)
    _, slot, size = left(chosen)
    where = "the slot" if len(state.slots) == 1 else f"slot {slot}"
    what = "" if slot == chosen else f" for what it offloads from {chosen}"
    return (
        f"{model.title} needs about {size / 1e6:,.0f} MB{what} and {where} can give it "
        f"{state.room(slot, model) / 1e6:,.0f} MB; "
        "load it with fewer bits, unpin a model or raise the slot's budget"
    )
