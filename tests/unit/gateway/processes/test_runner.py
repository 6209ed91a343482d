"""A handle's way from a fork to the news of a load, and what becomes of it where a fork or descriptors are missing."""

import resource
import socket
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from forking.child import Child
from gateway.memory.footprint.prediction import Charge
from gateway.processes.channel import RunnerChannel
from gateway.processes.runner import RunnerProcess, RunnerState
from gateway.scheduler import events
from protocol import messages

LOAD = messages.Load("a-1", "a", "generic", "transformers", "/nowhere", 4, "cpu")
CHARGE = Charge(100, 0, 0, 100, 0)


class Forks:
    """Gives out the children it is told to, and keeps the runners' ends of their channels."""

    def __init__(self, *children: Child) -> None:
        self.children = list(children)
        self.ends: SimpleQueue[Connection] = SimpleQueue()

    def fork_runner(self, load: messages.Load, needs: Any) -> tuple[Child, Connection]:
        ours, theirs = socket.socketpair()
        self.ends.put(Connection(theirs.detach()))
        return self.children.pop(0), Connection(ours.detach())

    def reject_zygote(self, load: messages.Load, why: str) -> None: ...

    def measured_bytes(self, load: messages.Load) -> int | None:
        return None

    def record_measured(self, load: messages.Load, measured: int) -> None: ...


@pytest.fixture
def news() -> Iterator["SimpleQueue[events.Event]"]:
    yield SimpleQueue()


def handle(forks: Forks, news: "SimpleQueue[events.Event]") -> RunnerProcess:
    return RunnerProcess(LOAD, (), forks, news.put, 30.0, CHARGE, "cpu", "", lambda model, step: None)  # type: ignore[arg-type]


@pytest.fixture
def born() -> Iterator[Callable[..., Child]]:
    """Makes a child that is a process, which lives for as long as the test looks. It may be killed, as a runner that
    does not end."""
    with subprocess.Popen(["sleep", "600"]) as process:

        def make(token: str = "a-1") -> Child:
            child = Child(token)
            child.set_forked(process.pid)
            return child

        yield make
        process.kill()


def test_a_spare_runner_that_is_gone_when_it_is_taken_is_replaced(
    news: "SimpleQueue[events.Event]", born: Callable[..., Child]
) -> None:
    spare = Child("spare", zygote=born(), spare=True)
    forks = Forks(spare, born())
    runner = handle(forks, news)
    runner.start_process()
    end = forks.ends.get(timeout=60)
    spare.set_ended(-9)
    end.close()  # killed with its load unread
    end = forks.ends.get(timeout=60)
    assert end.recv() == LOAD
    end.send(messages.Loaded("a-1", "cpu", 10, None, {}, "nf4"))
    assert isinstance(news.get(timeout=60), events.Loaded)
    runner.end_runner("unloaded")
    assert end.recv() == messages.Stop()
    runner._child.set_ended(0)  # type: ignore[union-attr]
    end.close()
    assert isinstance(news.get(timeout=60), events.RunnerEnded)
    with pytest.raises(Empty):
        news.get_nowait()


def test_one_that_was_forked_when_it_was_wanted_is_not(
    news: "SimpleQueue[events.Event]", born: Callable[..., Child]
) -> None:
    child = Child("a-1", zygote=born())
    forks = Forks(child, born())
    handle(forks, news).start_process()
    end = forks.ends.get(timeout=60)
    child.set_ended(-11)
    end.close()
    assert isinstance(news.get(timeout=60), events.RunnerLost)
    assert forks.ends.empty()


S = RunnerState


@pytest.mark.parametrize(
    ("way", "refused"),
    [
        ([S.LOADING, S.SETTLING, S.READY, S.STARVED, S.ENDING, S.ENDED], []),
        ([S.LOADING], [S.FORKING, S.READY, S.STARVED]),
        ([], [S.SETTLING, S.READY, S.STARVED]),
        ([S.LOADING, S.SETTLING], [S.FORKING, S.LOADING]),
        ([S.LOADING, S.SETTLING, S.STARVED], [S.READY, S.SETTLING, S.STARVED]),
        ([S.ENDING], [S.LOADING, S.SETTLING, S.READY, S.STARVED, S.ENDING]),
        ([S.ENDED], list(S)),
    ],
)
def test_states_follow_each_other_in_one_order(way: list[RunnerState], refused: list[RunnerState]) -> None:
    runner = handle(Forks(), SimpleQueue())
    assert all(runner._move_to(state) for state in way)
    assert not any(runner._move_to(state) for state in refused)
    assert runner.state is (way[-1] if way else S.FORKING)
    assert runner.alive is not bool({S.STARVED, S.ENDING, S.ENDED} & set(way))
    runner.channel.close()


def test_the_first_reason_of_an_end_stays() -> None:
    runner = handle(Forks(), SimpleQueue())
    for reason in ("evicted", "unloaded"):
        runner.end_runner(reason)
    runner.end_starved("too much")
    assert (runner.end_reason, runner.starved) == ("evicted", "")
    assert not runner.submit_request(messages.Generate("r", (), messages.Sampling(1)), SimpleQueue(), None, 0.0)
    runner.channel.close()


@pytest.mark.parametrize(("loaded", "state"), [(False, S.ENDING), (True, S.STARVED)])
def test_a_runner_that_takes_too_much_is_ended_once(loaded: bool, state: RunnerState) -> None:
    """By itself while it loads; once it serves by the scheduler, which must grant no more leases on it."""
    news: SimpleQueue[events.Event] = SimpleQueue()
    runner = handle(Forks(), news)
    if loaded:
        runner._handle(messages.Loaded("a-1", "cpu", 10, None, {}, "nf4"))
        assert isinstance(news.get_nowait(), events.Loaded)
    for cause in ("the first", "the second"):
        runner.end_starved(cause)
    assert (runner.state, runner.starved) == (state, "the first") and not runner.alive
    assert news.qsize() == loaded and (not loaded or news.get_nowait() == events.Starve("a-1"))
    runner.channel.close()


def test_a_closed_channel_takes_no_request() -> None:
    channel = RunnerChannel("a-1")
    ours, theirs = socket.socketpair()
    channel.open_connection(Connection(ours.detach()))
    mailbox: SimpleQueue[object] = SimpleQueue()
    request = messages.Generate("r", (), messages.Sampling(1))
    assert channel.submit_request(request, mailbox, None, 0.0)
    assert list(channel.close()) == ["r"]
    assert not channel.submit_request(request, mailbox, None, 0.0) and channel.in_flight == {}
    theirs.close()


def test_what_has_ended_can_be_told_without_a_descriptor(born: Callable[..., Child]) -> None:
    child = born()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # not one more
    try:
        assert not child.has_ended()
        assert not child.wait_ended(0)
        nameless = born("b")
        assert not nameless.has_ended()
        nameless.set_ended(0)
        assert nameless.has_ended() and nameless.wait_ended(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    child.set_ended(0)
    assert child.has_ended()
