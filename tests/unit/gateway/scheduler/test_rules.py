"""The scheduler's rules one at a time, on a state that is made up: estimates, anticipation, turns, queues, means."""

import time
from dataclasses import replace
from typing import Any

import pytest

from gateway.scheduler import Limits, Model, Phase, Spec, State, events, next_wakeup, owner, policy
from gateway.scheduler.actions import Admit, EndRunner, Refuse, Why
from gateway.scheduler.admission import grant_lease, release_request, reserve_request, submit_request
from gateway.scheduler.anticipation import expected_until, learn_from_load
from gateway.scheduler.estimate import seconds_to_any_lease, seconds_to_lease
from gateway.scheduler.eviction import Prospect, plan_loads, plan_replicas, turn_ends
from gateway.scheduler.model import Mean, Measured, Queue, Request, Residency
from gateway.scheduler.replicas import gather_waiters, home_replica, replicas_to_load
from gateway.scheduler.runners import explain_idle

NOW = 100.0
FAR = 1e6


def model(name: str = "a", size: int = 30, slots: tuple[str, ...] = ("gpu",), **fields: Any) -> Model:
    return Model(name, Spec(name, size, slots, **fields))


def state_of(*models: Model, budget: int = 100, **limits: Any) -> State:
    return State({"gpu": budget}, {one.name: one for one in models}, Limits(**limits))


def live(one: Model, phase: Phase = Phase.READY, since: float = 0.0) -> Model:
    """Give a model a runner that has been in this phase for so long."""
    home = one.residency
    home.phase, home.slot, home.load_id, home.charges = phase, "gpu", one.name, {"gpu": one.spec.predicted}
    home.load_since = home.ready_since = home.end_since = since
    return one


def measured(one: Model, **seconds: float) -> Model:
    """Set the mean durations of a model, as measured once."""
    for name, value in seconds.items():
        setattr(one.measured, name, Mean(value, 0.0, 1))
    return one


def request(number: int, **fields: Any) -> Request:
    given = {"model": "a", "deadline": FAR, "priority": 0, "since": NOW, "asked": NOW} | fields
    return Request(str(number), **given)


def with_waiters(one: Model, count: int, **fields: Any) -> Model:
    for number in range(count):
        one.queue.insert_waiter(request(number, model=one.name, **fields))
    return one


def with_lease(one: Model, since: float, **fields: Any) -> Model:
    one.queue.leases[str(since)] = request(0, granted_at=since, **fields)
    return one


# -- anticipation ------------------------------------------------------------------------------------------------------


def regular(gap: float = 2.0, deviation: float = 0.5, returns: float = 1.0, load: float = 20.0) -> Model:
    """An idle model whose next request usually comes after ``gap`` seconds."""
    one = live(model())
    one.measured = Measured(load=Mean(load, 0, 1), gap=Mean(gap, deviation, 4), returns=returns, idle_since=NOW)
    return one


def test_a_request_is_expected_within_the_gap_and_two_deviations() -> None:
    one = regular()
    state, overdue = state_of(one), NOW + 2 + 2 * 0.5 + 0.05
    assert expected_until(state, one, 1, NOW) == pytest.approx(overdue)
    assert expected_until(state, one, 1, overdue - 0.001) == pytest.approx(overdue)
    assert expected_until(state, one, 1, overdue) is None


def test_a_request_is_never_expected_for_longer_than_a_load() -> None:
    one = regular(gap=15, deviation=10)
    assert expected_until(state_of(one), one, 1, NOW) == NOW + 20


def test_waiting_must_cost_all_waiters_less_than_the_load_it_saves() -> None:
    sure = regular(gap=2, returns=1.0)
    assert expected_until(state_of(sure), sure, 9, NOW) is not None, "18 seconds for 20"
    assert expected_until(state_of(sure), sure, 10, NOW) is None, "20 seconds for 20"
    unsure = regular(gap=2, returns=0.5)
    assert expected_until(state_of(unsure), unsure, 3, NOW) is not None, "3 * (1 + 1.525) seconds for 10"
    assert expected_until(state_of(unsure), unsure, 4, NOW) is None


def test_nothing_is_expected_of_a_model_that_says_nothing() -> None:
    never_loaded, busy, first = regular(load=0), regular(), regular(returns=0.5)
    busy.measured.idle_since = None
    first.measured.gap = Mean()
    for one in (never_loaded, busy, first):
        assert expected_until(state_of(one), one, 1, NOW) is None
    assert expected_until(state_of(regular(), anticipation=False), regular(), 1, NOW) is None


def test_media_being_decoded_may_cost_all_waiters_together_one_load() -> None:
    one = measured(live(model()), load=20)
    one.queue.reserved = {"1": request(1, since=NOW + 5), "2": request(2, since=NOW)}
    for waiters, until in ((0, NOW + 20), (1, NOW + 20), (2, NOW + 10)):
        assert expected_until(state_of(one), one, waiters, NOW) == until
        assert expected_until(state_of(one), one, waiters, until) is None


def test_models_that_ended_where_another_was_loaded_were_not_asked_for() -> None:
    gone, alive, elsewhere, asked = (regular() for _ in range(4))
    for name, one in zip(("gone", "elsewhere", "asked"), (gone, elsewhere, asked), strict=True):
        one.name = name
        one.residency.clear_runner()
    elsewhere.spec.slots = ("cpu",)
    asked.measured.idle_since = None
    learn_from_load(state_of(gone, alive, elsewhere, asked), ["gpu"])
    assert (gone.measured.idle_since, gone.measured.returns) == (None, 0.75)
    assert [one.measured.returns for one in (alive, elsewhere, asked)] == [1.0] * 3


# -- when a lease is likely --------------------------------------------------------------------------------------------


def test_a_ready_model_gives_a_lease_when_one_ends() -> None:
    one = with_lease(measured(live(model(concurrency=2)), service=10), NOW - 4)
    assert seconds_to_lease(state_of(one), one, NOW) == 6
    with_lease(one, NOW - 9)
    assert seconds_to_lease(state_of(one), one, NOW) == pytest.approx(10 / 3), "at least the mean time between ends"


def test_a_model_that_never_answered_is_taken_to_need_a_second() -> None:
    one = with_lease(live(model()), NOW)
    assert seconds_to_lease(state_of(one), one, NOW) == 1


def test_a_loading_model_gives_leases_when_it_is_loaded() -> None:
    one = measured(live(model(), Phase.LOADING, NOW - 12), load=30)
    assert seconds_to_lease(state_of(one), one, NOW) == 18
    assert seconds_to_lease(state_of(one), one, NOW + 50) == 0


def test_of_replicas_the_one_that_is_ready_first_counts() -> None:
    first, second, cold = replicas(3)
    measured(live(first, Phase.LOADING, NOW - 12), load=30)
    with_lease(measured(live(second), service=10), NOW - 4)
    for one in (first, second, cold):
        assert seconds_to_lease(state_of(first, second, cold), one, NOW) == 6


@pytest.mark.parametrize(("size", "seconds"), [(30, 6.0), (60, 12.0), (0, 10.0)])
def test_a_model_never_loaded_takes_as_long_for_a_byte_as_others(size: int, seconds: float) -> None:
    one, other = model("a", size), measured(model("b", 30), load=6)
    assert seconds_to_lease(state_of(one, other, model("c", 99)), one, NOW) == seconds
    assert seconds_to_lease(state_of(one), one, NOW) == 10, "nothing is known"


def cold() -> Model:
    return measured(model("new", 60), load=8)


def test_a_cold_model_with_room_takes_its_load() -> None:
    one = cold()
    assert seconds_to_lease(state_of(one, live(model("b", 40))), one, NOW) == 8


def test_a_cold_model_waits_for_a_load_on_its_slot_even_if_there_is_room() -> None:
    one, other = cold(), measured(live(model("b", 40), Phase.LOADING, NOW - 5), load=20)
    assert seconds_to_lease(state_of(one, other), one, NOW) == 15 + 8


def test_a_cold_model_waits_for_the_turn_of_one_that_is_loading_where_both_do_not_fit() -> None:
    one, other = cold(), measured(live(model("b", 60), Phase.LOADING, NOW - 5), load=20, service=2, end=1)
    with_waiters(other, 3)
    assert seconds_to_lease(state_of(one, other), one, NOW) == 15 + 3 * 2 + 1 + 8
    with_waiters(other, 30)
    assert seconds_to_lease(state_of(one, other), one, NOW) == 15 + (20 + 2) + 1 + 8, "its quantum and one answer"


def test_a_cold_model_waits_until_an_idle_one_has_ended() -> None:
    one, other = cold(), measured(live(model("b", 41)), end=3)
    assert seconds_to_lease(state_of(one, other), one, NOW) == 3 + 8


def test_a_cold_model_waits_for_the_rest_of_an_end() -> None:
    one, other = cold(), measured(live(model("b", 41), Phase.DRAINING, NOW - 2), end=5)
    assert seconds_to_lease(state_of(one, other), one, NOW) == 3 + 8
    assert seconds_to_lease(state_of(one, other), one, NOW + 9) == 8


def test_only_as_many_residents_are_waited_for_as_have_to_go() -> None:
    one = cold()
    ends = {"b": 2.0, "c": 4.0, "d": 6.0}
    others = [measured(live(model(name, 30)), end=seconds) for name, seconds in ends.items()]
    assert seconds_to_lease(state_of(one, *others), one, NOW) == 4 + 8, "50 bytes are missing"
    others[0].spec.pinned = True
    assert seconds_to_lease(state_of(one, *others), one, NOW) == 6 + 8


def test_a_busy_model_is_waited_for_until_its_work_is_done_or_its_turn_is_over() -> None:
    one = cold()
    busy = with_lease(measured(live(model("b", 60, concurrency=2)), service=4, end=2), NOW - 1)
    assert seconds_to_lease(state_of(one, busy), one, NOW) == 3 + 2 + 8
    with_waiters(busy, 3)
    assert seconds_to_lease(state_of(one, busy), one, NOW) == (3 + 2 * 4) + 2 + 8, "two rounds of answers"
    with_waiters(busy, 6)
    assert seconds_to_lease(state_of(one, busy), one, NOW) == (10 + 4) + 2 + 8, "its quantum and one answer"


def test_a_model_that_answers_fast_is_waited_for_no_longer_than_it_takes() -> None:
    one, busy = cold(), with_lease(measured(live(model("b", 60)), service=0.5, end=2), NOW)
    assert seconds_to_lease(state_of(one, busy), one, NOW) == 0.5 + 2 + 8
    assert seconds_to_lease(state_of(busy), busy, NOW) == 0.5
    busy.queue.leases.clear()
    assert seconds_to_lease(state_of(busy), busy, NOW) == 0.5


def test_a_cold_model_waits_for_the_slot_that_is_free_first() -> None:
    one, other = cold(), measured(live(model("b", 60)), end=3)
    one.spec.slots = ("gpu", "empty")
    state = state_of(one, other)
    state.budgets["empty"] = 60
    assert seconds_to_lease(state, one, NOW) == 8


def test_an_answer_that_is_overdue_is_expected_after_the_mean_time_between_two() -> None:
    one, busy = cold(), with_lease(measured(live(model("b", 60)), service=4, end=2), NOW - 9)
    assert seconds_to_lease(state_of(one, busy), one, NOW) == 4 / 2 + 2 + 8


def test_a_model_that_is_about_to_answer_its_waiters_is_waited_for() -> None:
    one, busy = cold(), with_waiters(measured(live(model("b", 60)), service=4, end=2), 2)
    assert seconds_to_lease(state_of(one, busy), one, NOW) == 2 * 4 + 2 + 8


def test_a_cold_model_waits_for_the_turns_of_those_before_it() -> None:
    one = with_waiters(cold(), 1, since=NOW)
    before = with_waiters(measured(model("b", 60), load=4, service=2, end=1), 3, since=NOW - 1)
    assert seconds_to_lease(state_of(one, before), one, NOW) == (4 + 3 * 2 + 1) + 8
    before.spec.predicted = 40
    assert seconds_to_lease(state_of(one, before), one, NOW) == 4 + 8, "they fit together"


def test_a_ready_model_that_others_wait_for_gives_no_lease_after_its_turn() -> None:
    one = with_lease(measured(live(model("a", 60)), service=15, load=6, end=1), NOW)
    other = with_waiters(measured(model("b", 60), load=4, service=2, end=1), 1, since=NOW)
    assert seconds_to_lease(state_of(one, other, quantum=20), one, NOW) == 15
    assert seconds_to_lease(state_of(one, other, quantum=15), one, NOW) == 15, "just in time"
    assert seconds_to_lease(state_of(one, other, quantum=14), one, NOW) == (15 + 1) + (4 + 2 + 1) + 6


def test_the_first_lease_of_any_model_with_waiters_counts() -> None:
    one, other = (measured(live(model(name), Phase.LOADING, NOW), load=9) for name in "ab")
    state = state_of(one, other)
    assert seconds_to_any_lease(state, NOW) == 1, "nobody waits"
    with_waiters(one, 1)
    assert seconds_to_any_lease(state, NOW) == 9
    measured(with_waiters(other, 1), load=5)
    assert seconds_to_any_lease(state, NOW) == 5


# -- turns -------------------------------------------------------------------------------------------------------------


def turn(resident: Model, newcomer: Model, **limits: Any) -> float:
    return turn_ends(state_of(resident, newcomer, **limits), resident, newcomer, NOW)


def test_a_turn_counts_from_when_the_resident_was_ready_and_somebody_waited() -> None:
    newcomer = with_waiters(model("b"), 1, since=90)
    assert turn(live(model(), since=50), newcomer, quantum=10) == 100
    assert turn(live(model(), since=95), newcomer, quantum=10) == 105
    assert turn(live(model(), since=50), model("b"), quantum=10) == NOW + 10, "nobody waits yet"


def test_a_turn_lasts_as_long_as_the_load_did() -> None:
    newcomer, resident = with_waiters(model("b"), 1), measured(live(model()), load=30)
    assert turn(resident, newcomer, quantum=10) == NOW + 30
    assert turn(resident, newcomer, quantum=10, quantum_loads=2) == NOW + 60
    assert turn(resident, newcomer, quantum=40) == NOW + 40


def test_a_long_turn_is_not_for_requests_of_a_worse_priority() -> None:
    newcomer, resident = with_waiters(model("b"), 1), measured(live(model()), load=30)
    with_lease(resident, NOW, priority=1)
    assert turn(resident, newcomer, quantum=10) == NOW + 10
    with_lease(resident, NOW + 1, priority=0)
    assert turn(resident, newcomer, quantum=10) == NOW + 30


@pytest.mark.parametrize(("deadline", "end"), [(135, 123), (122, 110), (121, 130), (142, 130), (FAR, 130)])
def test_a_long_turn_leaves_time_for_a_deadline_that_can_be_met(deadline: float, end: float) -> None:
    """A load of 5 s with a deviation of 1 s, after an end of 2 s, and an answer of 3 s: 12 s."""
    resident = measured(live(model()), load=30, end=2, service=3)
    newcomer = with_waiters(model("b"), 1, deadline=deadline)
    newcomer.measured.load = Mean(5, 1, 1)
    assert turn(resident, newcomer, quantum=10) == end


def test_a_newcomer_never_loaded_is_taken_to_load_as_long_as_the_resident() -> None:
    resident = measured(live(model()), load=30, end=2, service=3)
    newcomer = with_waiters(model("b"), 1, deadline=NOW + 25 + 35)
    assert turn(resident, newcomer, quantum=10) == NOW + 25


# -- queues and means --------------------------------------------------------------------------------------------------


def test_a_mean_starts_at_its_first_sample_and_moves_by_a_quarter() -> None:
    mean = Mean()
    for sample, wanted in ((8, Mean(8, 4, 1)), (12, Mean(9, 4, 2)), (1, Mean(7, 5, 3))):
        mean.add_sample(sample)
        assert mean == wanted


def test_a_batch_request_ranks_as_interactive_once_its_patience_is_over() -> None:
    batch, limits = request(1, priority=1), Limits(batch_patience=60)
    assert batch.rank(NOW + 59.9, limits) == 1 and batch.rank(NOW + 60, limits) == 0


def test_a_batch_request_that_waited_long_gets_one_lease_in_four() -> None:
    queue, limits = Queue(), Limits(batch_patience=60)
    for one in (request(1, priority=1, asked=NOW), request(2, asked=NOW + 50), request(3, asked=NOW + 40)):
        queue.insert_waiter(one)
    assert [one.request_id for one in queue.waiting] == ["3", "2", "1"]
    assert queue.next_waiter(NOW + 59, limits).request_id == "3"
    for passed_over, first in ((0, "3"), (2, "3"), (3, "1")):
        queue.passed_over = passed_over
        assert queue.next_waiter(NOW + 60, limits).request_id == first
    assert queue.first_waiter(NOW + 60, limits).request_id == "1"


def test_a_gap_as_long_as_a_load_is_a_return_and_a_longer_one_is_none() -> None:
    for gap, returns, samples in ((20, 0.25, 1), (20.1, 0.0, 0)):
        found = Measured(load=Mean(20, 0, 1), idle_since=NOW)
        found.learn_return(NOW + gap)
        assert (found.returns, found.gap.samples, found.idle_since) == (returns, samples, None)
        found.learn_return(NOW + 99)
        assert (found.returns, found.gap.samples) == (returns, samples), "it was busy"


def test_a_return_that_did_not_come_takes_a_quarter_of_the_share() -> None:
    found = Measured(returns=0.8, idle_since=NOW)
    found.learn_no_return()
    assert found == Measured(returns=pytest.approx(0.6))


def test_a_failed_model_backs_off_until_its_time_and_not_while_it_loads() -> None:
    home = Residency(retry_at=NOW)
    assert home.backs_off(NOW - 1) and not home.backs_off(NOW)
    home.phase = Phase.LOADING
    assert not home.backs_off(NOW - 1)


def test_an_idle_model_expires_after_its_time_or_never() -> None:
    home = Residency()
    for keep_alive, at in ((5, NOW + 5), (0, NOW), (-1, None)):
        home.expire_after(keep_alive, NOW)
        assert home.expires_at == at


def test_a_load_teaches_the_bytes_of_its_slot() -> None:
    alike, apart = Spec("a", 5, ("gpu",)), Spec("a", 5, ("gpu",), sizes={"gpu": 5, "cpu": 7})
    alike.learn_bytes("gpu", 6, {})
    apart.learn_bytes("gpu", 6, {"cpu": 2})
    assert (alike.predicted, alike.offloads) == (6, {})
    assert (apart.predicted, apart.sizes, apart.offloads) == (5, {"gpu": 6, "cpu": 7}, {"gpu": {"cpu": 2}})


def test_requests_wait_at_the_replica_that_is_nearest_to_answering() -> None:
    failed, ending, cold, loading, ready = replicas(5)
    failed.residency.retry_at = NOW
    live(ending, Phase.DRAINING)
    live(loading, Phase.LOADING)
    live(ready)
    order = [failed, ending, cold, loading, ready]
    while order:
        assert home_replica(state_of(*order), order[0]) is order.pop()


def replicas(count: int) -> list[Model]:
    spec = Spec("a", 30, ("gpu",), replicas=count)
    return [Model(f"a#{number}", spec) for number in range(1, count + 1)]


def test_a_request_for_any_replica_is_admitted_where_one_can_answer_and_a_bound_one_only_at_its_own() -> None:
    failed, ready = replicas(2)
    failed.residency.retry_at = NOW + 10
    live(ready)
    asked = events.Reserve("1", failed.name, FAR)
    assert reserve_request(state_of(failed, ready), asked, NOW) == [Admit("1")]
    (refused,) = reserve_request(state_of(failed, ready), replace(asked, bound=True), NOW)
    assert isinstance(refused, Refuse) and (refused.why, refused.retry_after) == (Why.BACKOFF, 10)


def test_a_submitted_request_waits_at_the_replica_that_can_answer() -> None:
    failed, ready = replicas(2)
    failed.residency.retry_at = NOW + 10
    live(ready)
    state, asked = state_of(failed, ready), request(1, model=failed.name)
    state.requests["1"] = failed.queue.reserved["1"] = asked
    assert submit_request(state, "1", NOW) == [] and asked.model == ready.name
    assert list(ready.queue.waiting) == [asked] and not failed.queue.reserved


def test_a_request_that_moves_to_a_loading_replica_has_waited_for_a_load() -> None:
    for phase, waited_before, waited in (
        (Phase.LOADING, False, True),
        (Phase.READY, False, False),
        (Phase.READY, True, True),
    ):
        gone, home = replicas(2)
        with_waiters(gone, 1, waited_for_load=waited_before)
        gather_waiters(state_of(gone, live(home, phase)))
        assert [one.waited_for_load for one in home.queue.waiting] == [waited] and not gone.queue.waiting


def test_of_models_asked_for_at_once_the_one_used_longest_ago_has_its_turn_first() -> None:
    old, new = with_waiters(model("old"), 1), with_waiters(model("new"), 1)
    old.residency.last_used, new.residency.last_used = NOW - 9, NOW - 1
    assert old.turn(NOW, Limits()) < new.turn(NOW, Limits())


def test_leases_of_interactive_requests_are_counted_until_a_batch_request_has_one() -> None:
    one = live(model(concurrency=9))
    for priority, passed_over in ((0, 1), (0, 2), (1, 0), (0, 1)):
        asked = request(passed_over, priority=priority)
        one.queue.insert_waiter(asked)
        grant_lease(state_of(one), one, asked, NOW)
        assert one.queue.passed_over == passed_over


def test_a_model_is_idle_only_when_all_was_answered() -> None:
    one = live(model(concurrency=2))
    state = state_of(one)
    for number in (1, 2):
        state.requests[str(number)] = one.queue.leases[str(number)] = request(number, granted_at=NOW)
    release_request(state, "1", None, NOW + 1)
    assert one.measured.idle_since is None and one.queue.depth == 0
    with_waiters(one, 1)
    one.queue.reserved["9"] = request(9)
    assert one.queue.depth == 2
    one.queue.waiting.clear()
    release_request(state, "2", None, NOW + 2)
    assert one.measured.idle_since == NOW + 2


def test_a_refusal_names_the_slot_that_lacks_memory() -> None:
    state = state_of(model(size=2, offloads={"gpu": {"ram": 25}}), budget=10)
    state.budgets["ram"] = 20
    (refused,) = reserve_request(state, events.Reserve("1", "a", FAR), NOW)
    assert isinstance(refused, Refuse) and "slot ram" in refused.detail and "offloads from gpu" in refused.detail


def test_one_more_replica_is_loaded_at_a_time_for_more_answers_than_are_coming() -> None:
    first, second, third = group = replicas(3)
    with_waiters(with_lease(live(first), NOW), 1)
    assert replicas_to_load(state_of(*group)) == [second]
    live(second, Phase.LOADING)
    assert replicas_to_load(state_of(*group)) == [], "one answer is coming"
    with_waiters(first, 1)
    assert replicas_to_load(state_of(*group)) == [third]


def test_an_idle_replica_gets_no_lease_once_its_turn_is_over() -> None:
    """It would be given the next request of its model, which waits at another replica."""
    newcomer = with_waiters(model("new", 90), 1, since=NOW - 10)
    for count, since, yields in ((2, 0, True), (2, NOW - 9, False), (1, 0, False)):
        resident = live(replicas(count)[0], since=since)
        [(planned, plan)] = plan_loads(state_of(newcomer, resident, quantum=10), NOW)
        assert planned is newcomer and plan.evict == (resident,)
        assert plan.yielding == ((resident,) if yields else ())


def test_who_ends_is_told_whether_its_turn_was_over_or_it_was_idle() -> None:
    for count, why in ((2, "its turn was over"), (1, "it had been idle for 30 s")):
        newcomer = with_waiters(model("new", 90), 1, since=NOW - 10)
        resident = live(replicas(count)[0])
        resident.residency.last_used = NOW - 30
        [ended] = policy.schedule(state_of(newcomer, resident, quantum=10), NOW)
        assert isinstance(ended, EndRunner) and (ended.why, ended.newcomer) == (why, "new")


def test_how_long_a_model_was_idle_is_told_from_a_second_on() -> None:
    one = live(model())
    assert explain_idle(one, NOW) == "it was idle", "it was never used"
    for used, told in ((NOW - 0.9, "it was idle"), (NOW - 1, "it had been idle for 1 s")):
        one.residency.last_used = used
        assert explain_idle(one, NOW) == told


@pytest.mark.parametrize(
    ("phase", "budget", "prospect"),
    [
        (None, 60, Prospect.NOW),
        (Phase.READY, 90, Prospect.NOW),
        (Phase.READY, 89, Prospect.EVICT),
        (Phase.LOADING, 90, Prospect.SOON),
        (Phase.LOADING, 89, Prospect.UNKNOWN),
        (Phase.DRAINING, 90, Prospect.NOW),
        (Phase.DRAINING, 89, Prospect.SOON),
        (Phase.DRAINING, 60, Prospect.SOON),
    ],
)
def test_when_a_load_can_begin_beside_a_resident_of_30_bytes(
    phase: Phase | None, budget: int, prospect: Prospect
) -> None:
    newcomer, resident = with_waiters(model("new", 60), 1), model("b", 30)
    if phase is not None:
        live(resident, phase)
    [(_, plan)] = plan_loads(state_of(newcomer, resident, budget=budget), NOW)
    assert plan.prospect is prospect and plan.evict == ((resident,) if prospect is Prospect.EVICT else ())


@pytest.mark.parametrize(
    ("phase", "budget", "prospect"),
    [
        (Phase.READY, 90, Prospect.NOW),
        (Phase.READY, 89, Prospect.EVICT),
        (Phase.LOADING, 90, Prospect.SOON),
        (Phase.LOADING, 89, Prospect.UNKNOWN),
        (Phase.DRAINING, 89, Prospect.SOON),
        (Phase.DRAINING, 60, Prospect.SOON),
    ],
)
def test_when_one_more_replica_can_be_loaded_beside_a_resident_of_30_bytes(
    phase: Phase, budget: int, prospect: Prospect
) -> None:
    first, second = replicas(2)
    first.spec.predicted, first.spec.slots = 60, ("gpu",)
    with_waiters(with_lease(live(first), NOW), 1)
    first.residency.slot, first.residency.charges = "elsewhere", {"elsewhere": 60}
    resident = live(model("b", 30), phase)
    state = state_of(first, second, resident, budget=budget, quantum=10)
    state.budgets["elsewhere"] = 60
    [(planned, plan)] = plan_replicas(state, [], NOW)
    assert planned is second and plan.prospect is prospect
    assert plan.evict == ((resident,) if prospect is Prospect.EVICT else ())


def test_a_model_goes_where_the_least_is_left_free() -> None:
    newcomer = with_waiters(model("new", 60, ("empty", "gpu")), 1)
    state = state_of(newcomer, live(model("b", 30)))
    state.budgets["empty"] = 100
    [(_, plan)] = plan_loads(state, NOW)
    assert (plan.slot, plan.ready) == ("gpu", True)
    state.budgets["empty"] = 60
    [(_, plan)] = plan_loads(state, NOW)
    assert plan.slot == "empty"


def offloading(*others: Model, ram: int) -> State:
    """A state in which ``new`` waits for 60 bytes of the GPU and 10 of the RAM."""
    newcomer = with_waiters(model("new", 60, offloads={"gpu": {"ram": 10}}), 1)
    state = state_of(newcomer, *others)
    state.budgets["ram"] = ram
    return state


def in_ram(one: Model) -> Model:
    one.spec.slots, one.residency.slot, one.residency.charges = ("ram",), "ram", {"ram": one.spec.predicted}
    return one


def test_a_load_that_offloads_begins_soon_when_another_load_ends_on_one_of_its_slots() -> None:
    loading = in_ram(live(model("b", 30), Phase.LOADING))
    [(_, plan)] = plan_loads(offloading(loading, ram=40), NOW)
    assert plan.prospect is Prospect.SOON


def test_a_load_that_offloads_evicts_on_both_slots_what_is_in_its_way() -> None:
    on_gpu, beside = live(model("b", 60)), in_ram(live(model("c", 30)))
    for ram, evict in ((40, (on_gpu,)), (39, (on_gpu, beside))):
        [(_, plan)] = plan_loads(offloading(on_gpu, beside, ram=ram), NOW)
        assert (plan.prospect, plan.evict) == (Prospect.EVICT, evict)


def test_only_those_who_wait_for_the_slot_count_against_an_expected_model() -> None:
    expected = regular()
    newcomer = with_waiters(model("new", 60), 1)
    served = with_waiters(live(model("served", 30)), 12, since=NOW + 1)
    elsewhere = with_waiters(model("elsewhere", 5, ("cpu",)), 12, since=NOW + 1)
    state = state_of(expected, newcomer, served, elsewhere)
    state.budgets["cpu"] = 5
    plan = next(plan for planned, plan in plan_loads(state, NOW) if planned is newcomer)
    assert (plan.prospect, plan.wait_until) == (Prospect.TURN, pytest.approx(NOW + 3.05))
    with_waiters(newcomer, 11)
    plan = next(plan for planned, plan in plan_loads(state, NOW) if planned is newcomer)
    assert (plan.prospect, plan.evict) == (Prospect.EVICT, (expected,))


def test_a_model_that_answers_yields_once_its_turn_is_over() -> None:
    newcomer, busy = with_waiters(model("new", 90), 1), with_lease(live(model("b", 30)), NOW - 5)
    state = state_of(newcomer, busy, quantum=10)
    [(_, plan)] = plan_loads(state, NOW)
    assert (plan.prospect, plan.yielding, plan.wait_until) == (Prospect.TURN, (), NOW + 10)
    [(_, plan)] = plan_loads(state, NOW + 10)
    assert (plan.prospect, plan.yielding, plan.evict) == (Prospect.YIELD, (busy,), ())


def test_one_more_replica_that_failed_or_fits_nowhere_is_not_loaded() -> None:
    first, second = replicas(2)
    with_waiters(with_lease(live(first), NOW), 1)
    second.residency.retry_at = NOW + 5
    [(_, plan)] = plan_replicas(state_of(first, second), [], NOW)
    assert (plan.slot, plan.prospect, plan.wait_until) == ("gpu", Prospect.UNKNOWN, NOW + 5)
    [(_, plan)] = plan_replicas(state_of(first, second), [], NOW + 5)
    assert plan.ready
    [(_, plan)] = plan_replicas(state_of(first, second, budget=59), [], NOW + 5)
    assert (plan.slot, plan.prospect, plan.wait_until) == ("gpu", Prospect.UNKNOWN, None)


def test_one_more_replica_waits_until_an_idle_model_was_unused_for_a_quantum() -> None:
    first, second = replicas(2)
    first.spec.predicted = 60
    with_waiters(with_lease(live(first), NOW), 1)
    first.residency.slot, first.residency.charges = "elsewhere", {"elsewhere": 60}
    early, late = live(model("b", 30)), live(model("c", 30))
    early.residency.last_used, late.residency.last_used = NOW - 20, NOW - 10
    state = state_of(first, second, late, early, budget=90, quantum=10)
    state.budgets["elsewhere"] = 60
    [(_, plan)] = plan_replicas(state, [], NOW)
    assert plan.evict == (early,), "that is enough"
    state.budgets["gpu"] = 60
    [(_, plan)] = plan_replicas(state, [], NOW)
    assert plan.evict == (early, late)
    [(_, plan)] = plan_replicas(state, [], NOW - 1)
    assert (plan.prospect, plan.evict, plan.wait_until) == (Prospect.TURN, (), NOW)


def test_a_model_that_cannot_fit_says_how_much_it_needs_and_how_much_there_is() -> None:
    state = state_of(model(size=3 * 10**12), budget=2 * 10**12)
    (refused,) = reserve_request(state, events.Reserve("1", "a", FAR), NOW)
    assert isinstance(refused, Refuse) and refused.why is Why.CANNOT_FIT
    assert "needs about 3,000,000 MB and the slot can give it 2,000,000 MB" in refused.detail


def test_time_alone_changes_a_batch_requests_rank() -> None:
    one = with_waiters(live(model(), Phase.LOADING), 1, priority=1, submitted=True)
    one.residency.load_deadline = FAR
    state = state_of(one, batch_patience=60)
    state.requests = {waiter.request_id: waiter for waiter in one.queue.waiting}
    assert next_wakeup(state, NOW) == NOW + 60
    assert next_wakeup(state, NOW + 60) == FAR


def test_the_owner_sleeps_until_it_is_to_wake_but_no_longer_than_an_hour() -> None:
    now = time.monotonic()
    assert owner._pause(now - 5) == 0
    assert 50 < owner._pause(now + 60) <= 60
    assert owner._pause(now + 1e9) == 3600
