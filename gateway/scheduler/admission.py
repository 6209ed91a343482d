"""One request's way through the queue: reserve, submit, grant, release; and how it is refused. Pure."""

import math

from gateway.scheduler import replicas
from gateway.scheduler.actions import Action, Admit, Grant, Refuse, Why
from gateway.scheduler.estimate import seconds_to_any_lease, seconds_to_lease
from gateway.scheduler.events import Reserve
from gateway.scheduler.model import Model, Phase, Request
from gateway.scheduler.state import State


def reserve_request(state: State, event: Reserve, now: float) -> list[Action]:
    """Admit or refuse a request, in this order:

    1. the gateway is stopping: refuse;
    2. the model's last load failed, its pause is not over and no other load is under way: refuse and name the cause;
    3. the model is larger than every slot it may use: refuse, before anything is evicted;
    4. the model's queue or all queues together are full: refuse, with the time until a lease is likely;
    5. otherwise admit.

    No request is refused because it is likely to be too late: durations of loads and answers are estimates, and only a
    deadline that has passed is certain.
    """
    model = state.models[event.model]
    if model.spec.replicas > 1 and not event.bound:
        model = replicas.home_replica(state, model)
    if state.stopping:  # 1
        return [Refuse(event.request_id, Why.STOPPING, "the server is stopping")]
    if model.residency.backs_off(now) and not event.retry:  # 2
        return [_refuse_backoff(event.request_id, model, now)]
    if model.residency.phase is Phase.COLD and not state.usable(model):  # 3
        return [Refuse(event.request_id, Why.CANNOT_FIT, explain_cannot_fit(state, model))]
    of_model = total = 0  # 4
    for queued in state.requests.values():
        if queued.granted_at is None:
            total += 1
            of_model += state.models[queued.model].spec is model.spec
    if of_model >= state.limits.queue_per_model:
        seconds, limit = seconds_to_lease(state, model, now), state.limits.queue_per_model
        return [_refuse_full(event.request_id, f"the queue of {model.spec.name}", of_model, limit, seconds)]
    if total >= state.limits.queue_total:
        seconds, limit = seconds_to_any_lease(state, now), state.limits.queue_total
        return [_refuse_full(event.request_id, "the server's queue", total, limit, seconds)]
    request = Request(  # 5
        event.request_id,
        model.name,
        event.deadline,
        event.priority,
        now,
        retry=event.retry,
        answers=min(event.answers, model.spec.concurrency),
        bound=event.bound,
    )
    model.queue.reserved[request.request_id] = state.requests[request.request_id] = request
    return [Admit(request.request_id)]


def submit_request(state: State, request_id: str, now: float) -> list[Action]:
    """Let a reserved request wait for its model. It is refused if the model has begun to back off meanwhile."""
    request = state.requests.get(request_id)
    if request is None or request.submitted:
        return []
    model = state.models[request.model]
    model.queue.reserved.pop(request_id, None)
    if model.spec.replicas > 1 and not request.bound:
        model = replicas.home_replica(state, model)
        request.model = model.name
    if model.residency.backs_off(now) and not request.retry:
        state.forget_request(request_id)
        return [_refuse_backoff(request_id, model, now)]
    request.submitted, request.since, request.asked = True, now, now
    request.waited_for_load = model.residency.phase is Phase.LOADING
    model.queue.insert_waiter(request)
    model.measured.learn_return(now)
    return []


def grant_lease(state: State, model: Model, request: Request, now: float) -> Grant:
    """Give a waiter of a ready model its lease."""
    model.queue.waiting.remove(request)
    for member in state.group(model):
        member.queue.passed_over = 0 if request.priority else member.queue.passed_over + 1
    request.granted_at = now
    model.queue.leases[request.request_id] = request
    model.residency.last_used, model.residency.expires_at, model.measured.idle_since = now, None, None
    assert model.residency.load_id is not None
    return Grant(request.request_id, model.name, model.residency.load_id, request.waited_for_load)


def release_request(state: State, request_id: str, keep_alive: float | None, now: float) -> None:
    """End a lease and learn how long it took. ``keep_alive`` replaces the model's for this idle time."""
    request = state.forget_request(request_id)
    if request is None or request.granted_at is None:
        return
    model = state.models[request.model]
    model.measured.service.add_sample(now - request.granted_at)
    model.residency.last_used = now
    if not model.queue.leases and not model.queue.waiting:
        model.measured.idle_since = now
    model.residency.expire_after(model.spec.keep_alive if keep_alive is None else keep_alive, now)


def withdraw_request(state: State, request_id: str, now: float) -> None:
    """Forget a request that was given up before its runner was asked."""
    request = state.forget_request(request_id)
    if request is not None and request.granted_at is not None:
        model = state.models[request.model]
        model.residency.expire_after(model.spec.keep_alive, now)


def refuse_waiters(state: State, model: Model, why: Why, detail: str, retry_after: float | None = None) -> list[Action]:
    """Refuse every request that waits for a model; if the server is stopping, also those that are reserved."""
    requests = [*model.queue.waiting, *(model.queue.reserved.values() if why is Why.STOPPING else ())]
    for request in requests:
        state.forget_request(request.request_id)
    return [Refuse(request.request_id, why, detail, retry_after) for request in requests]


def refuse_late_requests(state: State, now: float) -> list[Action]:
    """Refuse requests without a lease whose deadline has passed, and say what each waited for."""
    late = [request for request in state.requests.values() if request.granted_at is None and now >= request.deadline]
    actions: list[Action] = []
    for request in late:
        model = state.models[request.model]
        name = model.spec.name
        waited_for = {
            Phase.COLD: f"room for {name}",
            Phase.LOADING: f"{name} to load",
            Phase.READY: f"its turn on {name} ({len(model.queue.waiting)} waiting)",
            Phase.DRAINING: f"{name} to end before it can be loaded again",
        }[model.residency.phase]
        state.forget_request(request.request_id)
        detail = f"the deadline passed while it waited for {waited_for}"
        actions.append(Refuse(request.request_id, Why.TOO_LATE, detail))
    return actions


def explain_cannot_fit(state: State, model: Model) -> str:
    """Say how much memory is missing: on the slot where the least is, or on the one it would offload to from there."""

    def shortest(slot: str) -> tuple[int, str, int]:
        return min((state.room(one, model) - size, one, size) for one, size in model.spec.needs(slot).items())

    chosen = max(model.spec.allowed, key=shortest)
    _, slot, size = shortest(chosen)
    where = "the slot" if len(state.budgets) == 1 else f"slot {slot}"
    what = "" if slot == chosen else f" for what it offloads from {chosen}"
    return (
        f"{model.spec.name} needs about {size / 1e6:,.0f} MB{what} and {where} can give it "
        f"{state.room(slot, model) / 1e6:,.0f} MB; "
        "load it with fewer bits, unpin a model or raise the slot's budget"
    )


def _refuse_backoff(request_id: str, model: Model, now: float) -> Refuse:
    detail = f"loading {model.spec.name} failed: {model.residency.failure}"
    return Refuse(request_id, Why.BACKOFF, detail, model.residency.retry_at - now)


def _refuse_full(request_id: str, queue: str, length: int, limit: int, seconds: float) -> Refuse:
    retry_after = float(math.ceil(max(1.0, seconds)))  # whole seconds: HTTP's Retry-After says no fractions
    return Refuse(request_id, Why.QUEUE_FULL, f"{queue} is full ({length} of {limit})", retry_after)
