"""llama.cpp in the batch: what is remembered between requests, what is forgotten, and what a crowd changes."""

import math
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import TYPE_CHECKING, Any

import pytest

from protocol.messages import Generate
from runner.engines.interface import Sequence
from tests.runner.conftest import Engines
from tests.runner.driving import Answer, Crowd, alone, llama_of, nearly_same, request, said

pytestmark = pytest.mark.long

if TYPE_CHECKING:
    from runner.engines.gguf import BatchToken

    Feeds = Callable[[Any], list[list[BatchToken]]]

QUESTIONS = (
    "What is the capital of France?",
    "Name three colors.",
    "What is 2 + 2?",
    "Say hello.",
    "Tell me a story of a fox.",
)
ROUNDING = 0.6
STORY = "Once upon a time there was a fox who lived in the forest with her friends. "


def talk(*messages: str, **sampling: Any) -> Generate:
    """Return a conversation, the user and the assistant in turn, that goes on for a few tokens."""
    roles = ("user", "assistant")
    spoken = [said(text, roles[place % 2]) for place, text in enumerate(messages)]
    return request(*spoken, **{"max_new_tokens": 6} | sampling)


def prompt_of(crowd: Crowd, place: int) -> int:
    return crowd.watched.sequences[crowd.jobs[place]][0].prompt_length


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> "Feeds":
    """Give a function that returns a list to which an engine's evaluations are added as they are made."""

    def watch(model: Any) -> "list[list[BatchToken]]":
        seen: list[list[BatchToken]] = []
        evaluate = model._context.decode_batch

        def watched(tokens: "list[BatchToken]") -> Any:
            seen.append(list(tokens))
            return evaluate(tokens)

        monkeypatch.setattr(model._context, "decode_batch", watched)
        return seen

    return watch


def close(ours: Answer, theirs: Answer) -> None:
    """With weights of 4 bits, activations are rounded to 8 on the way: what comes of another order of additions shows
    in the first decimal. Where no rounding is in play, tests hold scores to being equal to the last bit."""
    nearly_same(ours, theirs, ROUNDING)


def test_a_crowd_changes_no_more_than_the_rounding(llama: Engines) -> None:
    """The scores of a row depend on how many are evaluated with it, in their last bits, and no answer does that is not
    on the brink."""
    asked = [
        request(question, max_new_tokens=most, logprobs=5)
        for question, most in zip(QUESTIONS, (12, 5, 12, 3, 12), strict=True)
    ]
    crowd = Crowd(llama())
    together = crowd.answers(*asked)
    assert max(len(step) for step in crowd.watched.together) == 3
    for ours, theirs in zip(together, alone(llama_of(), *asked), strict=True):
        close(ours, theirs)
    assert "Paris" in together[0].text


def test_the_same_crowd_gives_the_same_answers() -> None:
    asked = [
        request(question, max_new_tokens=8, temperature=1.0, seed=place) for place, question in enumerate(QUESTIONS)
    ]
    first, second = (Crowd(llama_of()).answers(*asked) for _ in range(2))
    assert [answer.ids for answer in first] == [answer.ids for answer in second]


def test_a_conversation_that_goes_on_reads_only_what_is_new(fed: "Feeds") -> None:
    model = llama_of()
    seen = fed(model)
    crowd = Crowd(model)
    (answer,) = crowd.answers(talk(STORY * 5 + "What is her name?"))
    assert len(seen[0]) == prompt_of(crowd, 0)
    seen.clear()
    on = [said(STORY * 5 + "What is her name?"), said(answer.text, "assistant"), said("And how old is she?")]
    crowd.answers(request(*on, max_new_tokens=6))
    assert seen[0][0].position >= prompt_of(crowd, 0) and seen[0][-1].position == prompt_of(crowd, 1) - 1
    seen.clear()
    crowd.answers(talk(STORY * 5 + "What is her name?"))
    assert [one.position for one in seen[0]] == [prompt_of(crowd, 0) - 1], "the one whose scores are wanted"


def test_where_many_talk_each_finds_its_own_again(fed: "Feeds") -> None:
    model = llama_of()
    beginnings = [f"{name}. {STORY}" for name in ("Anna", "Bill", "Cleo")]
    crowd = Crowd(model)
    answers = crowd.answers(*map(talk, beginnings))
    seen = fed(model)
    for beginning, answer in reversed([*zip(beginnings, answers, strict=True)]):
        seen.clear()
        crowd.answers(talk(beginning, answer.text, "And then?"))
        assert len(seen[0]) < 25 < prompt_of(crowd, 0)


def exact(answer: Answer) -> list[Any]:
    return [(one.token, one.logprob, one.top) for one in answer.logprobs[0]]


@pytest.mark.parametrize("going_on", [False, True], ids=["new", "going on"])
def test_nothing_of_what_was_forgotten_is_in_any_score(going_on: bool) -> None:
    """After conversations that differ in nothing but their words, scores are the same to the last bit: what was
    said in the same places before, or is said beside it, makes no difference."""
    asked = talk(STORY + "What is her name?", "Anna.", "Is she old?", logprobs=5, max_new_tokens=8)
    answers = []
    for word, animal in (("Paris", "dog"), ("Rome", "cat")):
        model = llama_of()
        beginning = [STORY + "What is her name?"] if going_on else []
        before = talk(*beginning, *([word] if going_on else []), f"Tell me of {word} and a {animal}.", min_tokens=6)
        Crowd(model).answers(before, talk(f"What is a {animal}?", min_tokens=6))
        crowd = Crowd(model)
        crowd.ask(asked, talk(f"Where is {word}?", min_tokens=8, max_new_tokens=8))
        crowd.finish()
        assert max(len(step) for step in crowd.watched.together) == 2
        answers.append(crowd.answer(crowd.jobs[0]))
    assert exact(answers[0]) == exact(answers[1])
    assert len(answers[0].ids) == 8


def test_what_is_known_changes_no_answer(llama: Engines, fed: "Feeds") -> None:
    """After another conversation with the same beginning only what differs is prefilled."""
    model = llama()
    Crowd(model).answers(talk(STORY * 4 + "What is her name?", "Anna.", "Is she old?"))
    asked = talk(STORY * 4 + "What is her name?", "Rosa.", "Is she young?", max_new_tokens=12, logprobs=5)
    seen = fed(model)
    (ours,) = Crowd(model).answers(asked)
    assert seen[0][0].position > 50, "the beginning was not known"
    close(ours, alone(llama_of(), asked)[0])


def test_a_cancelled_prompt_is_known_as_far_as_it_was_prefilled(fed: "Feeds") -> None:
    model = llama_of()
    model.prefill_chunk = 64
    seen = fed(model)
    crowd = Crowd(model)
    begun = "Begin. " + STORY * 9
    (job,) = crowd.ask(talk(begun))

    def cancel(_: Many[Sequence]) -> None:
        job.cancel_job()

    crowd.turn()
    crowd.watched.before_prefill = cancel
    crowd.finish()
    assert [len(tokens) for tokens in seen] == [64, 64], "one chunk after it was cancelled, no more"
    crowd.watched.before_prefill = lambda _: None
    seen.clear()
    (answer,) = crowd.answers(talk(begun, logprobs=5))
    assert seen[0][0].position == 128
    close(answer, alone(llama_of(), talk(begun, logprobs=5))[0])


def test_choices_share_their_prompt(fed: "Feeds") -> None:
    model = llama_of()
    seen = fed(model)
    crowd = Crowd(model)
    asked = {"temperature": 1.5, "seed": 3, "max_new_tokens": 8}
    answer, single = crowd.answers(request("Name an animal.", choices=3, **asked), request("Name an animal.", **asked))
    assert len({tuple(ids) for ids in answer.tokens}) == 3
    evaluated = [one.position for tokens in seen for one in tokens if one.position < prompt_of(crowd, 0)]
    assert evaluated.count(0) == 1 and len(evaluated) <= prompt_of(crowd, 0) + 1, "once for all three, and for the next"
    assert single.ids[0] == answer.tokens[0][0]
    (again,) = Crowd(llama_of()).answers(request("Name an animal.", choices=3, **asked))
    assert again.tokens == answer.tokens


def test_a_choice_that_ends_takes_nothing_of_its_siblings_along() -> None:
    """They share the prompt's keys. The first leaves, another moves in, and the others' scores stay what they were."""
    asked = request("Tell me a story of a fox.", choices=3, temperature=1.0, seed=9, max_new_tokens=12, logprobs=5)
    (wanted,) = alone(llama_of(), asked)
    crowd = Crowd(llama_of())
    job, other = crowd.ask(asked, request("What is the capital of France?", max_new_tokens=12))
    crowd.turn(2)
    leaving = crowd.watched.sequences[job][0]
    leaving.limit = leaving.generated + 1
    crowd.finish()
    assert "Paris" in crowd.answer(other).text
    assert len(crowd.answer(job).tokens[0]) == leaving.limit < 12
    for choice in (1, 2):
        for ours, theirs in zip(crowd.answer(job).logprobs[choice], wanted.logprobs[choice], strict=True):
            if ours.token != theirs.token:
                break
            assert math.isclose(ours.logprob, theirs.logprob, abs_tol=ROUNDING)


def test_free_places_give_way_when_cells_are_wanting() -> None:
    """All that is remembered and all that is asked do not fit together; nothing that is asked fails for it."""
    model = llama_of(context=256, cache_tokens=256)
    crowd = Crowd(model)
    crowd.answers(*(talk(f"{place} " + STORY * 3) for place in range(3)))
    held = sum(len(tokens) for tokens in model._cached_tokens)
    asked = talk("Now " + STORY * 9, logprobs=5)
    (answer,) = Crowd(model).answers(asked)
    assert answer.error is None and held + answer.done.prompt_tokens > 256  # type: ignore[union-attr]
    assert sum(len(tokens) for tokens in model._cached_tokens) <= 256
    close(answer, alone(llama_of(context=256, cache_tokens=256), asked)[0])


def test_those_that_outgrow_the_context_wait_and_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.engines.interface._EXPECTED_TOKENS", 4)
    model = llama_of(context=256, cache_tokens=256)
    model._context.cells = 120  # llama.cpp has no fewer than 256
    asked = [request(f"Tell me a story of {place} foxes.", max_new_tokens=40, min_tokens=40) for place in (2, 3, 4)]
    crowd = Crowd(model)
    answers = crowd.answers(*asked)
    assert [len(answer.ids) for answer in answers] == [40] * 3 and all(answer.error is None for answer in answers)
    assert all(sum(lengths) <= 120 or len(lengths) == 1 for lengths in crowd.watched.lengths)
    assert len(crowd.watched.chunks) > 3, "none was preempted and prefilled again"


def test_the_end_of_the_window_ends_the_answer() -> None:
    model = llama_of(context=64, cache_tokens=128)
    (answer,) = Crowd(model).answers(request("Tell me a story of a fox.", max_new_tokens=500, min_tokens=500))
    assert answer.reasons == ("length",) and answer.done and answer.done.prompt_tokens + len(answer.ids) == 64
    (refused,) = Crowd(model).answers(request(STORY * 5))
    assert refused.error and refused.error.kind == "bad_request" and "holds 64" in refused.error.error


def test_places_are_free_after_a_failure(llama: Engines) -> None:
    model = llama()
    crowd = Crowd(model)

    def fail(_: Many[Sequence]) -> None:
        raise ArithmeticError

    jobs = crowd.ask(*(request(question, max_new_tokens=9) for question in QUESTIONS[:3]))
    crowd.turn(2)
    crowd.watched.before_step = fail
    crowd.turn()
    crowd.watched.before_step = lambda _: None
    assert [crowd.answer(job).error.kind for job in jobs] == ["internal"] * 3  # type: ignore[union-attr]
    (answer,) = crowd.answers(request(QUESTIONS[0], max_new_tokens=9))
    assert "Paris" in answer.text
