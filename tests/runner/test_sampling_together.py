"""How each request in a batch chooses its tokens is its own affair: seeds, stops, penalties, log probabilities."""

import math
from typing import Any

import pytest

from tests.runner.conftest import Engines
from tests.runner.driving import Crowd, alone, request

pytestmark = pytest.mark.filterwarnings("ignore")

WILD: dict[str, Any] = {"temperature": 3.0, "max_new_tokens": 12}
VARIOUS: list[dict[str, Any]] = [
    WILD | {"seed": 1},
    {"max_new_tokens": 30},
    WILD | {"seed": 2, "top_k": 200, "logprobs": 3},
    {"stop": ("= 4",), "max_new_tokens": 128},
    {"min_tokens": 20, "seed": 1, "max_new_tokens": 24, "logprobs": 0},
    WILD | {"seed": 1, "presence_penalty": 20.0},
    WILD | {"seed": 3, "frequency_penalty": -20.0, "top_p": 0.9},
    {"repetition_penalty": 2.0, "max_new_tokens": 12},
    WILD | {"seed": 4, "min_p": 0.2, "logit_bias": ((17, 5.0),)},
]


def test_each_chooses_as_if_it_were_alone(engine: Engines) -> None:
    model = engine()
    asked = [request("Hello" if "min_tokens" in one else "What is 17 + 25?", **one) for one in VARIOUS]
    crowd = Crowd(model)
    together = crowd.answers(*asked)
    assert max(len(step) for step in crowd.watched.together) == 3
    for ours, lonely, how in zip(together, alone(model, *asked), VARIOUS, strict=True):
        assert ours.error is None
        assert (ours.ids, ours.texts, ours.thoughts, ours.reasons) == (
            lonely.ids,
            lonely.texts,
            lonely.thoughts,
            lonely.reasons,
        ), how
        # Scores of a row depend on the size of the batch in the last of their bits.
        for mine, theirs in zip(ours.logprobs[0], lonely.logprobs[0], strict=True):
            assert mine.token == theirs.token and math.isclose(mine.logprob, theirs.logprob, abs_tol=1e-3)
    drawn = [tuple(answer.ids) for answer, how in zip(together, VARIOUS, strict=True) if "temperature" in how]
    assert len({*drawn}) == len(drawn), "each asked for something else"


def test_each_gets_what_it_asked_for(engine: Engines) -> None:
    asked = [request("Hello" if "min_tokens" in one else "What is 17 + 25?", **one) for one in VARIOUS]
    answers = Crowd(engine()).answers(*asked)
    stopped, patient, likely = answers[3], answers[4], answers[2]
    assert stopped.reasons == ("stop",) and stopped.text == "17 + 25"
    assert len(patient.ids) >= 20
    assert len(likely.logprobs[0]) == len(likely.ids) and all(len(one.top) == 3 for one in likely.logprobs[0])
    assert [len(one.top) for one in patient.logprobs[0]] == [0] * len(patient.ids)
    assert all(answers[other].logprobs == [[]] for other in (0, 1, 3, 5, 6, 7, 8))


def test_a_seed_gives_the_same_answer_in_any_company(engine: Engines) -> None:
    model = engine()
    seeded = WILD | {"seed": 7}
    (wanted,) = alone(model, request("What is 17 + 25?", **seeded))
    for others in ([WILD | {"seed": 8}], [{"max_new_tokens": 3}] * 2, [WILD] * 5):
        crowd = Crowd(model)
        before = crowd.ask(*(request("8 + 95", **one) for one in others))
        crowd.turn(2)
        (job,) = crowd.ask(request("What is 17 + 25?", **seeded))
        crowd.finish()
        assert crowd.answer(job).ids == wanted.ids
        assert all(crowd.answer(other).ids != wanted.ids for other in before)


def test_choices_differ_and_can_be_had_again(engine: Engines) -> None:
    model = engine()
    many = WILD | {"seed": 5, "choices": 4}  # one more than there are places
    crowd = Crowd(model)
    first, other = crowd.answers(request("What is 17 + 25?", **many), request("What is 17 + 25?", **WILD | {"seed": 5}))
    assert len({tuple(ids) for ids in first.tokens}) == 4
    assert len(first.reasons) == 4 and first.done
    assert first.done.completion_tokens == sum(len(ids) for ids in first.tokens)
    assert other.ids == first.tokens[0], "the first choice is what one alone would be"
    (again,) = Crowd(model).answers(request("What is 17 + 25?", **many))
    assert again.tokens == first.tokens and again.texts == first.texts


def test_choices_share_one_prefill(engine: Engines) -> None:
    crowd = Crowd(engine())
    (job,) = crowd.ask(request("What is 17 + 25?", choices=3, seed=5, **WILD))
    crowd.finish()
    mine = crowd.watched.sequences[job]
    assert [one for one, _, _ in crowd.watched.chunks] == [mine[0]]
    assert crowd.engine.steps > 0 and crowd.watched.together[0] == mine


def test_choices_that_find_no_place_are_read_again(engine: Engines) -> None:
    model = engine()
    crowd = Crowd(model)
    crowd.ask(*(request("Hello", max_new_tokens=6) for _ in range(2)))
    crowd.turn()
    (job,) = crowd.ask(request("What is 17 + 25?", choices=3, max_new_tokens=40))
    crowd.finish()
    answer = crowd.answer(job)
    assert answer.tokens[0] == answer.tokens[1] == answer.tokens[2], "greedy, however each was prefilled"
    assert {one for one, _, _ in crowd.watched.chunks} >= set(crowd.watched.sequences[job][:2])


def test_one_request_without_a_seed_is_not_like_the_next(engine: Engines) -> None:
    answers = Crowd(engine()).answers(*(request("What is 17 + 25?", **WILD) for _ in range(3)))
    assert len({tuple(answer.ids) for answer in answers}) == 3


def test_penalties_stay_with_their_own(engine: Engines) -> None:
    model = engine()
    plain = request("What is 17 + 25?", max_new_tokens=30)
    (wanted,) = alone(model, plain)
    crowd = Crowd(model)
    odd = [
        request("What is 17 + 25?", max_new_tokens=30, **one)
        for one in ({"repetition_penalty": 9.0}, {"frequency_penalty": 50.0}, {"presence_penalty": -50.0})
    ]
    first, *others = crowd.answers(request("What is 17 + 25?", max_new_tokens=30), *odd)
    assert first.ids == wanted.ids
    assert all(answer.ids != wanted.ids for answer in others)
