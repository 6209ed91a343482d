"""A request that nobody wants any more: gone within a step, wherever it is, and the others notice nothing."""

import logging
import threading
from collections.abc import Sequence as Many

import pytest

from runner.engines.interface import Sequence
from runner.generation.job import Job
from tests.runner.conftest import Engines, Media
from tests.runner.driving import Crowd, alone, request

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

LONG = {"max_new_tokens": 60, "min_tokens": 60}


def test_one_of_three_leaves_and_the_next_takes_its_place(engine: Engines) -> None:
    model = engine()
    asked = [request(f"What is {one} + 25?", **LONG) for one in (1, 17, 40)] + [request("8 + 95")]
    wanted = alone(model, *asked)
    crowd = Crowd(model)
    jobs = crowd.ask(*asked)
    crowd.until(lambda: crowd.made(jobs[1]) >= 5)
    assert len(crowd.batch) == 3 and not crowd.made(jobs[3])
    jobs[1].cancel_job()
    made = crowd.made(jobs[1])
    crowd.turn()
    assert jobs[1].over and crowd.made(jobs[1]) == made
    assert crowd.made(jobs[3]) >= 1, "prefilled in the same turn"
    crowd.finish()
    assert crowd.answer(jobs[1]).reasons == ("cancelled",)
    assert crowd.answer(jobs[1]).ids == wanted[1].ids[:made]
    for place in (0, 2, 3):
        assert crowd.answer(jobs[place]).ids == wanted[place].ids


def test_in_the_middle_of_a_step(engine: Engines) -> None:
    """It still gets the token that was being made, and no other."""
    crowd = Crowd(engine())
    first, second = crowd.ask(request("1 + 25?", **LONG), request("17 + 25?", **LONG))
    crowd.until(lambda: crowd.made(first) >= 5)

    def cancel(_: Many[Sequence]) -> None:
        first.cancel_job()

    crowd.watched.before_step = cancel
    made = crowd.made(first)
    crowd.turn()
    assert first.over and crowd.made(first) == made + 1
    crowd.finish()
    assert crowd.answer(first).reasons == ("cancelled",) and len(crowd.answer(second).ids) == 60


def test_before_it_is_prepared(engine: Engines, media: Media, caplog: pytest.LogCaptureFixture) -> None:
    """Its files are gone by then, and no log mentions it."""
    crowd = Crowd(engine("qwen_vl"))
    part = media.image(1)
    gone = type(part)(part.kind, path=part.path + ".gone")
    job, other = crowd.ask(request("What color is the shape?", gone, choices=2), request("What shape is it?", part))
    job.cancel_job()
    crowd.finish()
    assert crowd.answer(job).reasons == ("cancelled", "cancelled") and job not in crowd.watched.sequences
    assert crowd.answer(other).error is None and crowd.answer(other).ids
    assert [
        record.levelname for record in caplog.records if record.name == "runner" and record.levelno > logging.INFO
    ] == []


def test_while_it_is_prepared_and_its_files_go_first(
    engine: Engines, media: Media, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner sees that the files are gone before it hears why."""
    model = engine("qwen_vl")
    crowd = Crowd(model)
    part = media.image(1)
    (job,) = crowd.ask(request("What color is the shape?", type(part)(part.kind, path=part.path + ".gone")))
    monkeypatch.setattr("runner.generation.loop._CANCEL_SECONDS", 60.0)  # the thread that says why may be late
    looked, prepare = threading.Event(), model.prepare_sequences

    def prepares(asked: Job) -> list[Sequence]:
        try:
            return list(prepare(asked))
        finally:
            looked.set()

    monkeypatch.setattr(model, "prepare_sequences", prepares)
    word = threading.Thread(target=lambda: looked.wait(60) and job.cancel_job())
    word.start()
    crowd.finish()
    word.join()
    assert crowd.answer(job).reasons == ("cancelled",)
    assert [
        record.levelname for record in caplog.records if record.name == "runner" and record.levelno > logging.INFO
    ] == []


@pytest.mark.parametrize("others", [0, 1])
def test_during_its_prefill(engine: Engines, monkeypatch: pytest.MonkeyPatch, others: int) -> None:
    model = engine()
    monkeypatch.setattr(model, "prefill_chunk", 32)
    crowd = Crowd(model)
    crowd.ask(*(request("17 + 25?", **LONG) for _ in range(others)))
    (long,) = crowd.ask(request("How much is it? " * 40 + "8 + 95"))
    crowd.until(lambda: sum(chunk[0].job is long for chunk in crowd.watched.chunks) == 2)

    def cancel(sequences: Many[Sequence]) -> None:
        if any(one.job is long for one in sequences):
            long.cancel_job()  # arrives during the third chunk

    crowd.watched.before_prefill = cancel
    crowd.finish()
    chunks = [(before, after) for one, before, after in crowd.watched.chunks if one.job is long]
    assert chunks == [(0, 32), (32, 64), (64, 96)]
    assert crowd.answer(long).reasons == ("cancelled",) and not crowd.made(long)


def test_while_it_waits(engine: Engines) -> None:
    crowd = Crowd(engine())
    jobs = crowd.ask(*(request("17 + 25?", **LONG) for _ in range(5)))
    crowd.turn()
    assert not crowd.made(jobs[3])
    jobs[3].cancel_job()
    crowd.turn()
    assert jobs[3].over and not any(job.over for job in jobs[:3])
    crowd.finish()
    assert not any(chunk[0].job is jobs[3] for chunk in crowd.watched.chunks), "never prefilled"
    assert [crowd.answer(job).reasons for job in jobs] == [("length",)] * 3 + [("cancelled",), ("length",)]


def test_before_it_arrives(engine: Engines) -> None:
    crowd = Crowd(engine())
    (job,) = crowd.ask(request("17 + 25?"))
    job.cancel_job()
    crowd.finish()
    assert crowd.answer(job).reasons == ("cancelled",) and not crowd.watched.chunks and not crowd.watched.together


def test_all_of_them(engine: Engines) -> None:
    crowd = Crowd(engine())
    jobs = crowd.ask(*(request("17 + 25?", **LONG) for _ in range(4)))
    crowd.turn(4)
    for job in jobs:
        job.cancel_job()
    steps = crowd.engine.steps
    crowd.turn()
    assert all(job.over for job in jobs) and crowd.engine.steps == steps
    assert len(crowd.batch) == 0


def test_no_step_after_the_last_wanted_token(engine: Engines) -> None:
    """Of n tokens the first comes with the prompt, so that n - 1 steps make them."""
    model = engine()
    before = model.steps
    Crowd(model).answers(request("17 + 25?", **LONG))
    assert model.steps - before == 59
    before = model.steps
    Crowd(model).answers(*(request("17 + 25?", **LONG) for _ in range(3)))
    assert model.steps - before == 59, "three at once take no more steps than one"
    before = model.steps
    Crowd(model).answers(*(request("17 + 25?", max_new_tokens=1) for _ in range(3)))
    assert model.steps == before


def test_all_choices_go_at_once(engine: Engines) -> None:
    crowd = Crowd(engine())
    several, other = crowd.ask(request("17 + 25?", choices=4, **LONG), request("8 + 95"))
    crowd.turn(3)
    several.cancel_job()
    crowd.turn()
    assert crowd.answer(several).reasons == ("cancelled",) * 4
    crowd.finish()
    assert crowd.answer(other).text == "8 + 95 = 103"


@pytest.mark.parametrize("when", [0, 1, 2])
def test_one_answered_by_generate(engine: Engines, media: Media, when: int) -> None:
    """BLIP answers by ``generate``: a cancellation is heard between its steps."""
    model = engine("blip_vqa")
    crowd = Crowd(model)
    jobs = crowd.ask(
        *(request("What color is the shape?", media.image(seed), max_new_tokens=12, min_tokens=12) for seed in range(2))
    )
    calls = 0

    def cancel(*_: object) -> None:
        nonlocal calls
        if calls == when:
            jobs[0].cancel_job()
        calls += 1

    hook = model._model.text_decoder.register_forward_pre_hook(cancel)
    try:
        crowd.turn()
    finally:
        hook.remove()
    assert crowd.answer(jobs[0]).reasons == ("cancelled",) and len(crowd.answer(jobs[0]).ids) <= when + 1
    assert crowd.answer(jobs[1]).reasons == ("length",) and len(crowd.answer(jobs[1]).ids) == 12


def test_generate_does_not_hold_up_a_prefill(engine: Engines, media: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine("qwen_omni")
    monkeypatch.setattr(model, "prefill_chunk", 32)
    crowd = Crowd(model)
    (long,) = crowd.ask(request("What color is it? " * 40, max_new_tokens=4))
    crowd.turn()
    assert len(crowd.watched.chunks) == 1 and not crowd.made(long)
    (spoken,) = crowd.ask(request("Hello", max_new_tokens=4, request_fields={"switches": {"speech": True}}))
    crowd.until(lambda: long.over)
    crowd.finish()
    done = crowd.answer(spoken).done
    assert done and done.extras["audio"]
