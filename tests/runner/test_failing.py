"""What goes wrong for one request, and for all that are in a step, and that the next one is answered all the same."""

from collections.abc import Sequence as Many
from typing import Any

import pytest

from protocol.messages import Constraint, Failed, Generate
from runner.engines.interface import Sequence
from runner.generation.job import Job
from tests.runner.conftest import Engines, Media
from tests.runner.driving import Crowd, Watched, alone, at_rest, load_of, request, said

pytestmark = pytest.mark.filterwarnings("ignore")

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def failures(crowd: Crowd) -> list[Failed]:
    return [one for one in crowd.sent if isinstance(one, Failed)]


def impossible(media: Media) -> dict[str, Generate]:
    """Requests that cannot be answered, each by what its error says."""
    return {
        "the prompt has": request("What is it? " * 2000),
        "the JSON schema cannot be enforced": request(
            "17 + 25", constraint=Constraint("json_schema", '{"type": "nothing"}')
        ),
        "the JSON schema is no JSON": request("17 + 25", constraint=Constraint("json_schema", "{")),
        "the regular expression is not valid": request("17 + 25", constraint=Constraint("regex", "(")),
        "chat template has no place for them": request("17 + 25", request_fields={"tools": (TOOL,)}),
        "there is no token 100000": request("17 + 25", logit_bias=((100_000, 1.0),), choices=2),
        "there is no token -1": request("17 + 25", logit_bias=((1, 1.0), (-1, 1.0))),
    }


def test_a_request_that_cannot_be_answered_fails_alone(engine: Engines, media: Media) -> None:
    model = engine()
    good = [request(f"What is {one} + 25?", max_new_tokens=40) for one in (1, 17, 40)]
    wanted = alone(model, *good)
    bad = impossible(media)
    crowd = Crowd(model)
    jobs = crowd.ask(*good)
    crowd.until(lambda: crowd.made(jobs[2]) >= 2)
    failed = crowd.ask(*bad.values())
    crowd.finish()
    for job, told in zip(failed, bad, strict=True):
        error = crowd.answer(job).error
        assert error and error.kind == "bad_request" and told in error.error
    assert [crowd.answer(job).ids for job in jobs] == [answer.ids for answer in wanted]


@pytest.mark.parametrize("family", ["qwen_vl", "qwen_audio", "qwen_omni", "blip_vqa"])
def test_so_does_one_with_the_wrong_media(
    engine: Engines, media: Media, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.generation.loop._CANCEL_SECONDS", 0.0)  # nobody cancels it
    crowd = Crowd(engine(family))
    part = media.sound(1) if family == "qwen_audio" else media.image(1)
    missing = type(part)(part.kind, path=part.path + ".gone")
    good, lost = crowd.ask(
        request("What color is the shape?", part, max_new_tokens=3), request("What is it?", missing, max_new_tokens=3)
    )
    crowd.finish()
    assert crowd.answer(good).error is None and crowd.answer(good).ids
    error = crowd.answer(lost).error
    assert error and error.kind == "internal" and "gone" in error.error


class Broken(Exception):
    pass


def test_a_step_that_fails_takes_those_in_it_and_nobody_else(engine: Engines) -> None:
    model = engine()
    again = request("What is 17 + 25?")
    (wanted,) = alone(model, again)
    crowd = Crowd(Watched(model))
    doomed = crowd.ask(request("1 + 25", choices=2), request("3 + 4"))
    waiting = crowd.ask(again, request("8 + 95"))
    crowd.turn(3)

    raised = Broken("the step failed")

    def fail(_: Many[Sequence]) -> None:
        raise raised

    crowd.watched.before_step = fail
    crowd.turn()
    assert [job.over for job in (*doomed, *waiting)] == [True, True, False, False]
    assert [one.request_id for one in failures(crowd)] == [job.request.request_id for job in doomed]
    assert {one.kind for one in failures(crowd)} == {"internal"}
    assert crowd.fatal == [raised], "somebody looks whether the process is of any use still"
    at_rest(model)
    crowd.watched.before_step = lambda _: None
    crowd.finish()
    assert [crowd.answer(job).error for job in waiting] == [None, None]
    assert crowd.answer(waiting[0]).ids == wanted.ids


def test_a_step_that_fails_halfway_leaves_a_cache_to_go_on_with(
    engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As running out of memory does: in some layers this step's keys are written, in others not."""
    model = engine()
    again = request("What is 17 + 25?")
    (wanted,) = alone(model, again)
    crowd = Crowd(model)
    doomed = crowd.ask(*(request("1 + 25", max_new_tokens=9) for _ in range(3)))
    crowd.turn(2)
    layer = model._model.model.layers[-1]

    def fail(*_: object) -> None:
        raise Broken("halfway")

    hook = layer.register_forward_pre_hook(fail)
    crowd.turn()
    hook.remove()
    assert all(job.over for job in doomed)
    at_rest(model)
    assert Crowd(model).answers(again)[0].ids == wanted.ids


def test_a_prompt_that_fails_in_its_prefill(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine()
    monkeypatch.setattr(model, "prefill_chunk", 32)
    crowd = Crowd(model)
    (good,) = crowd.ask(request("What is 17 + 25?"))
    crowd.turn(2)
    bad, after = crowd.ask(request("How much is it? " * 20 + "8 + 95", choices=2), request("8 + 95"))

    def fail(sequences: Many[Sequence]) -> None:
        if any(one.job is bad and one.prefilled == 64 for one in sequences):
            raise Broken("the third chunk")

    crowd.watched.before_prefill = fail
    crowd.finish()
    assert [one.request_id for one in failures(crowd)] == [bad.request.request_id]
    assert crowd.answer(good).text == "17 + 25 = 42" and crowd.answer(after).text == "8 + 95 = 103"


def test_scores_that_are_no_numbers_fail_the_one_they_are_of(engine: Engines) -> None:
    model = engine()
    crowd = Crowd(model)
    jobs = crowd.ask(*(request(f"What is {one} + 25?") for one in (1, 17, 40)))
    crowd.turn(2)
    step = crowd.watched.engine.decode_step

    def broken(sequences: Many[Sequence]) -> list[Any]:
        scores = step(sequences)
        return [row * float("nan") if one.job is jobs[1] else row for one, row in zip(sequences, scores, strict=True)]

    crowd.watched.decode_step = broken  # type: ignore[method-assign]
    crowd.finish()
    error = crowd.answer(jobs[1]).error
    assert error and "not a number" in error.error
    assert [crowd.answer(jobs[place]).text for place in (0, 2)] == ["1 + 25 = 26", "40 + 25 = 65"]


def test_a_choice_that_fails_takes_its_siblings_along(engine: Engines) -> None:
    crowd = Crowd(engine())
    several, other = crowd.ask(request("1 + 25", choices=2, min_tokens=20), request("17 + 25"))
    crowd.turn(3)
    second = crowd.watched.sequences[several][1]

    def broken(token: int, logprob: object = None) -> bool:
        raise Broken("the second choice")

    second.choice.append_token = broken  # type: ignore[method-assign]
    crowd.finish()
    assert [one.request_id for one in failures(crowd)] == [several.request.request_id]
    assert crowd.answer(other).text == "17 + 25 = 42"


class Ended(BaseException):
    """Raised where a runner's process would end."""


def test_a_batch_that_breaks_ends_the_process(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is gone beside a heart that beats on would be a model that answers nobody for ever."""
    from runner import main

    def end(status: int = 0) -> None:
        raise Ended(status)

    def broken(_: Sequence) -> None:
        raise Broken("a place cannot be taken back")

    monkeypatch.setattr(main, "_exit", end)
    watched = Watched(engine())
    monkeypatch.setattr(watched, "release_sequence", broken)
    runner = main.Runner(None)  # type: ignore[arg-type]
    sent: list[Any] = []
    monkeypatch.setattr(runner, "send", sent.append)
    monkeypatch.setattr(runner, "_load", lambda _: watched)
    job = Job(request("17 + 25"), sent.append)
    prepare = watched.prepare_sequences

    def prepared(asked: Job) -> list[Sequence]:
        sequences = prepare(asked)
        asked.cancel_job()  # it is dropped before anything that is guarded
        return sequences

    monkeypatch.setattr(watched, "prepare_sequences", prepared)
    runner._inbox.put(job)
    with pytest.raises(Ended, match="1"):
        runner._serve(load_of("transformers", "deepseek", ""))


@pytest.mark.parametrize("family", ["blip_vqa", "qwen_omni"])
def test_one_of_those_answered_by_generate_fails_alone(engine: Engines, media: Media, family: str) -> None:
    crowd = Crowd(engine(family))
    picture = [media.image(1)] if family == "blip_vqa" else []
    spoken = {} if picture else {"switches": {"speech": True}}
    asked = (request("What is it?", *picture, max_new_tokens=4, request_fields=spoken) for _ in range(2))
    bad, good = crowd.ask(*asked)
    prepare = crowd.watched.prepare_sequences

    def broken(token: int, logprob: object = None) -> bool:
        raise Broken("the first of them")

    def sabotaged(job: Job) -> list[Sequence]:
        sequences = prepare(job)
        if job is bad:
            sequences[0].choice.append_token = broken  # type: ignore[method-assign]
        return sequences

    crowd.watched.prepare_sequences = sabotaged  # type: ignore[method-assign]
    crowd.finish()
    assert crowd.answer(bad).error
    assert crowd.answer(good).error is None and crowd.answer(good).ids


def test_a_request_that_only_wants_its_prompt(engine: Engines) -> None:
    crowd = Crowd(engine())
    (good,) = crowd.ask(request("What is 17 + 25?"))
    crowd.turn(2)
    (shown,) = crowd.ask(request(said("What is 3 + 4?"), request_fields={"render_only": True}))
    crowd.turn()
    done = crowd.answer(shown).done
    assert done and "What is 3 + 4?" in done.extras["prompt"] and len(done.extras["token_ids"]) == done.prompt_tokens
    crowd.finish()
