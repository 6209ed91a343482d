"""The policy under load, in virtual time: the swaps and waits it is built for, on small traces; and the bounds.

Deterministic: nothing sleeps, and every trace comes from a seed.
"""

import itertools
from pathlib import Path

import pytest

from bench.simulation import bounds, figures, traces
from bench.simulation.machine import Machine, Outcome, Policy
from bench.simulation.policies import ArrivalOrder, Hindsight, Switchyard
from bench.simulation.workload import BATCH, Arrival, Client, Profile, Workload
from gateway.scheduler import Limits
from gateway.scheduler.actions import Why


def ours(workload: Workload, limits: Limits | None = None) -> Outcome:
    return Machine(workload, Switchyard(workload, limits) if limits else Switchyard(workload)).run()


def in_order(workload: Workload) -> Outcome:
    return Machine(workload, ArrivalOrder(workload)).run()


# -- the targets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [traces.alternating, traces.eight_clients])
def test_alternating_requests_swap_a_fifth_as_often_and_wait_no_longer(trace: traces.Trace) -> None:
    workload = trace(seed=3, requests=240)
    mine, plain = ours(workload), in_order(workload)
    assert len(mine.jobs) == len(plain.jobs) == 240
    assert 5 * mine.swaps <= plain.swaps
    assert figures.waits(mine.jobs)["p99"] <= figures.waits(plain.jobs)["p99"]


def test_two_clients_that_wait_for_their_answers_do_not_swap_on_every_request() -> None:
    workload = traces.two_clients(seed=3, requests=240)
    mine, plain = ours(workload), in_order(workload)
    assert plain.swaps == 240 and 5 * mine.swaps <= plain.swaps
    assert 3 * figures.waits(mine.jobs)["mean"] <= figures.waits(plain.jobs)["mean"]
    longest = 2 * (15 * 1.1 + 0.5) + 15 * 1.1 + max(job.work for job in mine.jobs)
    assert figures.waits(mine.jobs)["max"] <= longest, "two swaps and one turn, which is as long as a load"


@pytest.mark.parametrize("seed", [1, 2])
def test_mixed_requests_swap_hardly_more_than_the_optimum(seed: int) -> None:
    workload = traces.mixed(seed, seconds=900)
    mine = ours(workload)
    assert mine.swaps <= 1.15 * bounds.arrival_order(workload.arrivals, workload.sizes, workload.budget)
    assert mine.swaps <= 1.15 * Machine(workload, Hindsight(workload)).run().swaps
    assert figures.waits(mine.jobs)["p99"] <= figures.waits(in_order(workload).jobs)["p99"]


def test_a_single_client_loses_nothing_by_anticipation() -> None:
    workload = traces.one_client(requests=30)
    assert ours(workload).seconds == pytest.approx(in_order(workload).seconds)


def test_batch_requests_finish_under_an_interactive_flood() -> None:
    outcome = ours(traces.flood(seconds=300))
    batch = [job for job in outcome.jobs if job.priority == BATCH]
    assert batch and all(job.done is not None for job in batch)
    turn = 15 * 1.1 + 15  # a load of its own, and what the other one keeps the slot for
    assert max(job.wait for job in batch) < Limits().batch_patience + 2 * turn


def test_the_same_seed_gives_the_same_figures() -> None:
    first, second = (figures.summary(ours(traces.mixed(5, seconds=300))) for _ in range(2))
    assert first == second
    assert first != figures.summary(ours(traces.mixed(6, seconds=300)))


@pytest.mark.parametrize("trace", [traces.alternating, traces.bursty, traces.flood])
def test_who_is_refused_is_told_the_truth(trace: traces.Trace) -> None:
    """The median is right to a factor of 1.3, and five of six are to a factor of two or by two seconds."""
    workload = trace(seed=2)
    outcome = Machine(workload, Switchyard(workload, Limits(queue_per_model=8, queue_total=24)), patience=300).run()
    found = figures.honesty(outcome.promises)
    assert found["told"] >= 50 and outcome.refusals[Why.QUEUE_FULL] >= found["told"]
    assert 1 / 1.3 <= found["ratio"] <= 1.3
    assert found["close"] >= 5 / 6


def test_who_comes_back_when_told_is_answered() -> None:
    workload = traces.mixed(2, seconds=400)
    outcome = Machine(workload, Switchyard(workload, Limits(queue_per_model=6)), patience=1e6, retry=True).run()
    assert outcome.refusals[Why.QUEUE_FULL] and all(job.done is not None for job in outcome.jobs)


# -- the machine and the bounds ----------------------------------------------------------------------------------------


def small(arrivals: str, sizes: dict[str, int], budget: int, every: float = 1.0) -> Workload:
    profiles = tuple(Profile(name, size, load=10.0) for name, size in sizes.items())
    asks = tuple(Arrival(position * every, model, 1.0) for position, model in enumerate(arrivals))
    return Workload("small", profiles, budget, asks)


def test_a_batch_answers_together_more_slowly() -> None:
    profile = Profile("a", 1, load=10.0, end=0.5, concurrency=2, crowding=0.5)
    workload = Workload("batch", (profile,), 1, tuple(Arrival(0.0, "a", 2.0) for _ in range(3)))
    first, second, third = ours(workload).jobs
    assert first.granted == second.granted and first.done is not None and third.done is not None
    assert first.granted is not None
    assert first.done - first.granted == pytest.approx(3.0), "2 s alone, half as much again for the one beside it"
    assert third.granted == first.done and second.done == first.done
    assert third.done - first.done == pytest.approx(2.0)


def test_a_client_thinks_between_its_answers() -> None:
    workload = Workload("one", (Profile("a", 1, load=10.0),), 1, clients=(Client(5.0, 3.0, (("a", 1.0), ("a", 2.0))),))
    first, second = ours(workload).jobs
    assert first.asked == 5.0 and first.done is not None
    assert second.asked == first.done + 3.0 and second.wait == 0


@pytest.mark.parametrize("sequence", ["abcabcabc", "abacabad", "aabbccaabb", "abcdabcdbadc"])
def test_the_optimum_in_order_of_arrival_is_the_least_of_all_ways(sequence: str) -> None:
    sizes = {"a": 1, "b": 1, "c": 2, "d": 1}
    workload = small(sequence, sizes, 3)

    def least(position: int, there: frozenset[str]) -> int:
        if position == len(sequence):
            return 0
        if (model := sequence[position]) in there:
            return least(position + 1, there)
        kept = (
            frozenset(keep) for count in range(len(there) + 1) for keep in itertools.combinations(sorted(there), count)
        )
        return 1 + min(
            least(position + 1, keep | {model}) for keep in kept if sum(sizes[m] for m in keep | {model}) <= 3
        )

    assert bounds.arrival_order(workload.arrivals, sizes, 3) == least(0, frozenset())


def test_belady_is_the_optimum_for_models_of_one_size() -> None:
    workload = small("abcdabcdacbdbadc" * 3, dict.fromkeys("abcd", 1), 2, every=100)
    policy: Policy = ArrivalOrder(workload, hindsight=True)
    assert Machine(workload, policy).run().swaps == bounds.arrival_order(workload.arrivals, workload.sizes, 2)


def test_patience_lowers_the_bound_from_every_change_to_every_model_once() -> None:
    workload = small("ab" * 50, {"a": 1, "b": 1}, 1)
    found = [bounds.any_order(workload.arrivals, workload.sizes, 1, patience) for patience in (0.0, 10.0, 30.0, 1e6)]
    assert found[0] == bounds.arrival_order(workload.arrivals, workload.sizes, 1) == 100
    assert found == sorted(found, reverse=True) and found[-1] == 2
    # A turn is at most the patience and the moment until the other is asked for again: at most 2 s more, and 1.
    assert 100 / 13 <= found[1] <= 100 / 10 + 2


def test_the_bound_holds_for_every_policy() -> None:
    workload = traces.mixed(1, seconds=300)
    for policy in (Switchyard(workload), ArrivalOrder(workload), Hindsight(workload)):
        outcome = Machine(workload, policy).run()
        patience = figures.waits(outcome.jobs)["max"]
        assert bounds.any_order(workload.arrivals, workload.sizes, workload.budget, patience) <= outcome.swaps


def test_a_file_of_real_requests(tmp_path: Path) -> None:
    code, chat = tmp_path / "code.csv", tmp_path / "chat.csv"
    code.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4000,40\n2023-11-16 18:17:05.9799600,2000,10\n"
    )
    chat.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,800,80,880,API\n45,GPT-4,400,20,420,API\n"
    )
    arrivals = traces.read_csv([code, chat]).arrivals
    assert [arrival.at for arrival in arrivals] == [0.0, 0.0, 2.0, 40.0]
    assert sorted(arrival.work for arrival in arrivals) == pytest.approx([0.6, 0.75, 2.0, 2.2])
    assert len(traces.read_csv([code, chat], every=2).arrivals) == 2
    assert len(traces.read_csv([code, chat], seconds=10).arrivals) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no requests"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ("a,b\n1,2\n", "is no request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "is no request"),
        ("TIMESTAMP,Tokens\n1,2\n", "needs ContextTokens"),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        traces.read_csv([path])
    assert str(path) in str(caught.value)
