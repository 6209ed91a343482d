"""The rows of keys and values: given back, grown, and kept in order when there is no room for all."""

from typing import Any

import pytest

from tests.runner.conftest import Engines, Media
from tests.runner.driving import Crowd, alone, at_rest, request

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]


def storage(model: Any) -> list[tuple[int, ...]]:
    return [tuple(layer.keys.shape) for layer in model._cache.layers if layer.keys is not None]


def test_rows_grow_with_what_is_in_them_and_are_given_back(engine: Engines) -> None:
    model = engine()
    crowd = Crowd(model)
    (first,) = crowd.ask(request("17 + 25", max_new_tokens=150, min_tokens=150))
    crowd.turn()
    (rows, _, before, _), *_ = storage(model)
    assert (rows, before) == (1, 64)
    crowd.ask(*(request("17 + 25", max_new_tokens=9, min_tokens=9) for _ in range(2)))
    crowd.until(lambda: len(crowd.batch) == 3)
    assert storage(model)[0][0] >= 3
    crowd.finish()
    assert max(len(one.tokens) for one in crowd.watched.sequences[first]) > 2 * 64, "it outgrew a grain"
    at_rest(model)


def test_growing_changes_no_answer(engine: Engines) -> None:
    model = engine()
    asked = [
        request("Hello" * count, max_new_tokens=most, min_tokens=most)
        for count, most in ((1, 90), (20, 30), (3, 70), (9, 5), (1, 100))
    ]
    wanted = alone(model, *asked)
    crowd = Crowd(model)
    assert [answer.ids for answer in crowd.answers(*asked)] == [answer.ids for answer in wanted]


def test_one_without_room_waits_and_is_not_overtaken(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows of 100 tokens fit, two of 150, one of any length."""
    model = engine()
    monkeypatch.setattr(model, "_cells", 300)
    story = "4 + 4 and "
    asked = [
        request("17 + 25", max_new_tokens=80),
        request("8 + 95", max_new_tokens=80),
        request(story * 30 + "3 + 4", max_new_tokens=60),
        request("0 + 7", max_new_tokens=8),
    ]
    wanted = alone(model, *asked)
    crowd = Crowd(model)
    jobs = crowd.ask(*asked)
    first: list[Any] = []

    def look() -> bool:
        first.extend(job for job in jobs if crowd.made(job) and job not in first)
        return all(job.over for job in jobs)

    crowd.turn(2)
    large = crowd.watched.sequences[jobs[2]][0]
    assert large.tokens_needed * 3 > 300 and len(crowd.batch) == 2
    crowd.until(look)
    assert all(len(lengths) * max(lengths) <= 300 for lengths in crowd.watched.lengths)
    assert first == jobs, "in the order of their arrival, though the last would have fitted at once"
    assert [crowd.answer(job).ids for job in jobs] == [answer.ids for answer in wanted]


@pytest.mark.parametrize("cells", [50, 80, 130])
def test_those_that_outgrow_the_cache_wait_and_come_to_the_same(
    engine: Engines, monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    """They need more than they reserved, so that they are preempted and prefilled again."""
    model = engine()
    asked = [
        request("Hello", max_new_tokens=60, min_tokens=60),
        request("What is 17 + 25?", max_new_tokens=60, temperature=2.0, seed=3, frequency_penalty=0.5),
        request("17 + 25", max_new_tokens=40, min_tokens=40, choices=2, temperature=1.0, seed=1),
    ]
    wanted = alone(model, *asked)
    monkeypatch.setattr(model, "_cells", cells)
    monkeypatch.setattr("runner.engines.interface._EXPECTED_TOKENS", 4)
    crowd = Crowd(model)
    together = crowd.answers(*asked)
    prefilled = [one for one, before, _ in crowd.watched.chunks if before == 0]
    assert len(prefilled) > len({*prefilled}), "none was preempted"
    assert [answer.tokens for answer in together] == [answer.tokens for answer in wanted]
    assert [answer.texts for answer in together] == [answer.texts for answer in wanted]
    assert all(len(lengths) == 1 or len(lengths) * max(lengths) <= cells for lengths in crowd.watched.lengths)


def test_what_cannot_be_read_again_is_never_put_back(
    engine: Engines, media: Media, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = engine("qwen_vl")
    asked = [
        request("Hello", max_new_tokens=40, min_tokens=40),
        request(media.image(1), "What color is the shape?", max_new_tokens=12, min_tokens=12),
        request("What is it?", max_new_tokens=40, min_tokens=40),
    ]
    wanted = alone(model, *asked)
    crowd = Crowd(model)
    jobs = crowd.ask(*asked)
    crowd.until(lambda: all(crowd.made(job) for job in jobs))
    picture = crowd.watched.sequences[jobs[1]][0]
    monkeypatch.setattr(model, "_cells", 2 * len(picture.tokens))
    crowd.finish()
    reads = [one for one, _, _ in crowd.watched.chunks]
    assert reads.count(picture) == 1 and len(reads) > 3, "others gave way"
    assert [crowd.answer(job).ids for job in jobs] == [answer.ids for answer in wanted]


def test_a_lone_sequence_always_fits(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine()
    monkeypatch.setattr(model, "_cells", 1)
    answers = Crowd(model).answers(request("What is 17 + 25?"), request("What is 8 + 95?", choices=2))
    assert [answer.texts for answer in answers] == [["17 + 25 = 42"], ["8 + 95 = 103"] * 2]


def test_leaving_moves_the_last_row_into_the_gap(engine: Engines) -> None:
    """At the level of the cache: rows of known contents, removed from the front, the middle and the end."""
    engine()
    import torch
    from transformers import DynamicCache

    from runner.engines.kv_rows import RowCache

    def prompt(value: float, length: int) -> Any:
        cache = DynamicCache()
        for layer in range(2):
            cache.update(torch.full((1, 2, length, 4), value), torch.full((1, 2, length, 3), -value), layer)
        return cache

    def contents() -> list[tuple[float, int]]:
        found = []
        for row, length in enumerate(rows.lengths):
            for layer in rows.layers:
                kept = layer.keys[row, :, :length]
                assert (kept == kept[0, 0, 0]).all() and (layer.values[row, :, :length] == -kept[0, 0, 0]).all()
                assert torch.isfinite(layer.keys).all(), "what is masked is multiplied by 0"
            found.append((float(rows.layers[0].keys[row, 0, 0, 0]), length))
        return found

    rows = RowCache(2)
    for value, length in ((1.0, 5), (2.0, 70), (3.0, 1), (4.0, 200)):
        rows.add_row(prompt(value, length), 0, length)
    assert rows.add_row(rows, 1, rows.lengths[1]) == 4
    assert contents() == [(1.0, 5), (2.0, 70), (3.0, 1), (4.0, 200), (2.0, 70)]
    rows.remove_row(0)
    assert contents() == [(2.0, 70), (2.0, 70), (3.0, 1), (4.0, 200)]
    rows.remove_row(2)
    rows.remove_row(2)
    assert contents() == [(2.0, 70), (2.0, 70)]
    mask = rows.begin_step()
    assert mask.shape == (2, 1, 1, 71) and mask.all()
    rows.remove_row(1)
    rows.remove_row(0)
    assert all(layer.keys is None for layer in rows.layers)
    assert rows.add_row(prompt(5.0, 3), 0, 3) == 0 and rows.begin_step().shape == (1, 1, 1, 4)
