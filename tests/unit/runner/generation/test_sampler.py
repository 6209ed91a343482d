"""Choosing tokens: against plain references that sort everything, and with seeds: nothing here is left to chance."""

import multiprocessing
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings
from numpy.typing import NDArray

from protocol.messages import Sampling
from runner.generation.sampler import BrokenOutput, Sampler, _pick, largest, logprobs, nucleus

LIGHT = settings(max_examples=100, deadline=None, database=None)
INF = float("inf")
Row = NDArray[np.float32]


def row(*scores: float) -> Row:
    return np.array(scores, np.float32)


def normal(size: int, seed: int = 0, spread: float = 3.0) -> Row:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def sampler(
    prompt: tuple[int, ...] = (),
    ends: frozenset[int] = frozenset(),
    choice: int = 0,
    constraint: Any = None,
    **fields: Any,
) -> Sampler:
    return Sampler(Sampling(max_new_tokens=100, **fields), prompt, ends, choice, constraint)


def drawn(scores: Row, times: int = 4000, **fields: Any) -> Row:
    """Return how often each token was drawn, as a fraction."""
    chooser = sampler(seed=11, **fields)
    return np.bincount([chooser.sample_token(scores) for _ in range(times)], minlength=scores.size) / times


def expected(scores: Row, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Row:
    """The distribution to draw from, by sorting everything."""
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    exact = scores.astype(np.float64)[order] / temperature
    if top_k:
        exact[top_k:] = -INF
    shares = np.exp(exact - exact[0])
    shares /= shares.sum()
    before = np.cumsum(shares) - shares
    shares[before >= top_p] = 0.0
    shares[shares < min_p * shares[0]] = 0.0
    result = np.zeros(scores.size)
    result[order] = shares / shares.sum()
    return result


# -- greedy ------------------------------------------------------------------------------------------------------------


def test_greedy_takes_the_highest_and_the_first_of_equals() -> None:
    assert sampler().sample_token(row(0, 3, 1, 3)) == 1


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.0}, {"repetition_penalty": 1.2}])
@pytest.mark.parametrize(
    "scores", [row(1, float("nan"), 2), row(-INF, -INF), row(float("nan")), row(1, INF), row(float("nan"), -INF)]
)
def test_scores_that_are_no_numbers_are_an_error(scores: Row, fields: dict[str, Any]) -> None:
    with pytest.raises(BrokenOutput, match="not a number"):
        sampler(**fields).sample_token(scores)


def test_impossible_tokens_are_never_drawn() -> None:
    frequencies = drawn(row(-INF, 0, -INF, 0), temperature=50.0)
    assert frequencies[0] == frequencies[2] == 0 < min(frequencies[1], frequencies[3])


# -- drawing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"top_k": 6, "top_p": 0.9, "min_p": 0.1},
        {"top_k": 1},
        {"top_p": 1e-9},
        {"min_p": 1.0},
        {"top_k": 500},
    ],
)
@pytest.mark.parametrize("size", [12, 3000])
def test_tokens_are_drawn_by_their_probability(fields: dict[str, Any], size: int) -> None:
    scores = normal(12, spread=1.5)
    if size > 12:  # the same tokens, scattered in a vocabulary of others that are much less likely
        scores = np.concatenate([np.full(1488, -8, np.float32), scores, np.full(1500, -8, np.float32)])
    fields = {"temperature": 1.0} | fields
    wanted, seen = expected(scores, **fields), drawn(scores, **fields)
    assert not seen[wanted == 0].any(), "drawn, though left out"
    # Six standard deviations of a binomial, and two draws for what is too rare to have any.
    assert (np.abs(seen - wanted) <= 6 * np.sqrt(wanted * (1 - wanted) / 4000) + 2 / 4000).all()


def test_over_a_whole_vocabulary_every_part_is_reached() -> None:
    chooser = sampler(temperature=1.0, seed=1)
    tokens = [chooser.sample_token(np.zeros(100_003, np.float32)) for _ in range(2000)]
    assert np.histogram(tokens, bins=10, range=(0, 100_003))[0].min() > 130
    assert max(tokens) > 99_500 and len(set(tokens)) > 1900


@pytest.mark.parametrize("temperature", [1e-40, 1e-5, 1e30])
def test_no_temperature_overflows(temperature: float) -> None:
    token = sampler(temperature=temperature, seed=0).sample_token(row(-3e38, 88, 3e38, 1))
    assert token == 2 or temperature > 1


@LIGHT
@given(size=st.integers(1, 9000), share=st.floats(0, 1), seed=st.integers(0, 99), levels=st.integers(1, 10**6))
@example(size=9000, share=1.0, seed=0, levels=3)
def test_largest_is_what_sorting_gives(size: int, share: float, seed: int, levels: int) -> None:
    scores = np.random.default_rng(seed).integers(0, levels, size).astype(np.float32)
    count = max(1, round(share**3 * size))
    assert largest(scores, count).tolist() == np.argsort(-scores, kind="stable")[:count].tolist()


@LIGHT
@given(size=st.integers(1, 3000), top_p=st.floats(0.001, 0.999), seed=st.integers(0, 99), spread=st.floats(0, 9))
def test_nucleus_is_what_sorting_gives(size: int, top_p: float, seed: int, spread: float) -> None:
    weights = np.exp(normal(size, seed, spread))
    places = nucleus(weights, top_p)
    exact = weights.astype(np.float64)
    order = np.argsort(-exact, kind="stable")
    sums = np.cumsum(exact[order])
    goal = top_p * sums[-1]
    assert places.tolist() == sorted(places.tolist())
    assert set(places.tolist()) == set(order[: places.size].tolist()), "not the heaviest, or not the first of equals"
    assert exact[places].sum() >= goal * (1 - 1e-6), "too few"
    assert places.size == 1 or sums[places.size - 2] < goal * (1 + 1e-6), "too many"


@pytest.mark.parametrize("size", [1, 2, 511, 512, 513, 1024, 1025, 3000])
def test_the_token_is_that_at_which_the_sum_of_weights_passes_the_share(size: int) -> None:
    weights = (np.arange(size) % 5).astype(np.float32)
    weights[0] = 1
    sums = np.cumsum(weights, dtype=np.float64)
    for goal in {0, 1, sums[-1] // 3, sums[-1] // 2, sums[size // 2], sums[-1] - 1} - {sums[-1]}:
        wanted = int(np.searchsorted(sums, goal, side="right"))
        share = goal / sums[-1]
        if share * sums[-1] == goal:
            assert _pick(weights, share) == wanted


@pytest.mark.parametrize("size", [1, 512, 513, 1500])
def test_the_largest_share_takes_the_last_token_that_has_a_weight(size: int) -> None:
    weights = np.ones(size + 7, np.float32)
    weights[size:] = 0
    assert _pick(weights, np.nextafter(1.0, 0.0)) == size - 1


@pytest.mark.parametrize("seed", [22, 23, 24, 25, 27, 29])
def test_where_sums_are_rounded_no_token_without_a_weight_is_taken(seed: int) -> None:
    """Weights from 1e-20 to 1 have sums that depend on the order of adding."""
    weights = (10.0 ** np.random.default_rng(seed).uniform(-20, 0, 1507)).astype(np.float32)
    weights[1500:] = 0
    assert _pick(weights, np.nextafter(1.0, 0.0)) == 1499


def test_a_nucleus_of_nearly_all_leaves_out_what_it_can() -> None:
    assert nucleus(row(4, 1, 2, 1), 0.5).tolist() == [0]
    assert nucleus(row(4, 1, 2, 1), 0.51).tolist() == [0, 2]
    assert nucleus(row(4, 1, 2, 1), 0.875).tolist() == [0, 1, 2], "of equals the first"
    assert nucleus(row(4, 1, 2, 1), 0.9).tolist() == [0, 1, 2, 3]
    assert nucleus(row(4, 4, 4, 4), 0.5).tolist() == [0, 1]


# -- seeds -------------------------------------------------------------------------------------------------------------


def answer(chooser: Sampler, length: int = 40) -> list[int]:
    return [chooser.sample_token(normal(500, step, 0.5)) for step in range(length)]


def test_a_seed_repeats_and_choices_differ() -> None:
    first = answer(sampler(temperature=1.0, seed=5))
    assert first == answer(sampler(temperature=1.0, seed=5))
    others = [answer(sampler(temperature=1.0, seed=seed, choice=choice)) for seed, choice in [(5, 1), (5, 2), (6, 0)]]
    assert len({tuple(tokens) for tokens in [first, *others]}) == 4
    assert answer(sampler(temperature=1.0, seed=5, choice=2)) == others[1]


def test_samplers_side_by_side_do_not_disturb_each_other() -> None:
    both = [sampler(temperature=1.0, seed=seed) for seed in (1, 2)]
    mixed = [[chooser.sample_token(normal(500, step, 0.5)) for chooser in both] for step in range(40)]
    assert [list(tokens) for tokens in zip(*mixed, strict=True)] == [
        answer(sampler(temperature=1.0, seed=seed)) for seed in (1, 2)
    ]


@pytest.mark.parametrize("seed", [-1, 2**63 - 1, 2**70])
def test_any_whole_number_is_a_seed(seed: int) -> None:
    assert answer(sampler(temperature=1.0, seed=seed)) == answer(sampler(temperature=1.0, seed=seed))


def test_seeds_count_modulo_two_to_the_64() -> None:
    assert answer(sampler(temperature=1.0, seed=5)) == answer(sampler(temperature=1.0, seed=5 + 2**64))
    assert answer(sampler(temperature=1.0, seed=-1)) == answer(sampler(temperature=1.0, seed=2**64 - 1))
    seeds = (0, 1, 2**62, 2**63)
    assert len({tuple(answer(sampler(temperature=1.0, seed=seed))) for seed in seeds}) == len(seeds)


def _answer_in_child(pipe: Any) -> None:
    pipe.send(answer(sampler(temperature=1.0)))


def test_without_a_seed_no_two_answers_are_alike_in_forked_processes_either() -> None:
    context = multiprocessing.get_context("fork")
    answers = [answer(sampler(temperature=1.0))]
    for _ in range(2):
        ours, theirs = context.Pipe()
        child = context.Process(target=_answer_in_child, args=(theirs,))
        child.start()
        answers.append(ours.recv())
        child.join()
    assert len({tuple(tokens) for tokens in answers}) == 3


# -- penalties ---------------------------------------------------------------------------------------------------------


def test_repetition_penalty_divides_and_multiplies_for_prompt_and_answer() -> None:
    chooser = sampler(prompt=(0, 0, 2, 999, -1), repetition_penalty=2.0)
    assert chooser.sample_token(row(4, 2.5, -1, -1.5)) == 1  # 4 / 2 = 2
    assert chooser.sample_token(row(4, 2.5, -1, -1.5)) == 0  # 2.5 / 2 = 1.25
    assert chooser.sample_token(row(-9, -8, -1, -1.5)) == 3  # -1 * 2 = -2


def test_ids_of_the_prompt_just_outside_the_vocabulary_are_left_out() -> None:
    for prompt in ((0, 4), (0, -1)):
        assert sampler(prompt=prompt, repetition_penalty=2.0).sample_token(row(4, 2.5, -1, -1.5)) == 1
    assert sampler(prompt=(3,), repetition_penalty=2.0).sample_token(row(1, 1.5, 0, 2.5)) == 1


def test_the_last_token_of_the_vocabulary_may_be_biased() -> None:
    assert sampler(logit_bias=((2, 9.0),)).sample_token(row(1, 2, 3)) == 2
    assert sampler(logit_bias=((0, 9.0),)).sample_token(row(1, 2, 3)) == 0


@pytest.mark.parametrize("fields", [{"frequency_penalty": 1.0}, {"repetition_penalty": 1.5}])
def test_hundreds_of_tokens_are_counted(fields: dict[str, Any]) -> None:
    chooser = sampler(**fields)
    for token in range(300):
        scores = np.zeros(301, np.float32)
        scores[token] = 9.0
        assert chooser.sample_token(scores) == token
    assert chooser.sample_token(np.append(np.full(300, 5, np.float32), np.float32(4.5))) == 300


def test_an_end_outside_the_vocabulary_is_ignored_before_min_tokens() -> None:
    assert sampler(ends=frozenset({4, 3}), min_tokens=1).sample_token(row(1, 2, 3, 9)) == 2


def test_why_nothing_can_be_sampled_is_told() -> None:
    with pytest.raises(BrokenOutput, match="damaged"):
        sampler().sample_token(row(float("nan"), 1))
    with pytest.raises(BrokenOutput, match="for any token"):
        sampler().sample_token(row(-INF, -INF))


def test_presence_counts_once_and_frequency_each_time_in_the_answer_alone() -> None:
    presence = sampler(prompt=(0,), presence_penalty=1.0)
    assert [presence.sample_token(row(2, 0.5)) for _ in range(3)] == [0, 0, 0]
    frequency = sampler(prompt=(0,), frequency_penalty=1.0)
    assert [frequency.sample_token(row(2, 0.5)) for _ in range(5)] == [0, 0, 1, 0, 1]
    assert [sampler(presence_penalty=2.0).sample_token(row(2, 0.5)) for _ in range(2)] == [0, 0], "each answer its own"


@LIGHT
@given(
    prompt=st.lists(st.integers(0, 19), max_size=30),
    taken=st.lists(st.integers(0, 19), max_size=200),
    repetition=st.floats(0.5, 2),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    bias=st.dictionaries(st.integers(0, 19), st.floats(-5, 5)),
)
def test_penalties_are_what_a_loop_gives(
    prompt: list[int], taken: list[int], repetition: float, presence: float, frequency: float, bias: dict[int, float]
) -> None:
    chooser = sampler(
        prompt=tuple(prompt),
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=tuple(bias.items()),
    )
    for token in taken:
        assert chooser.sample_token(row(*(1e6 * (other == token) for other in range(20)))) == token
    scores = normal(20, len(taken))
    wanted = scores.astype(np.float64)
    for token in range(20):
        wanted[token] += bias.get(token, 0)
        if token in prompt or token in taken:
            wanted[token] = wanted[token] / repetition if wanted[token] > 0 else wanted[token] * repetition
        if token in taken:
            wanted[token] -= presence + frequency * taken.count(token)
    assert wanted[chooser.sample_token(scores)] >= wanted.max() - 1e-3


def test_logit_bias_forces_and_forbids() -> None:
    assert sampler(logit_bias=((1, 100.0),)).sample_token(row(30, 0, 5)) == 1
    assert sampler(logit_bias=((0, -100.0),)).sample_token(row(30, 0, 5)) == 2


def test_the_end_is_impossible_before_min_tokens() -> None:
    chooser = sampler(ends=frozenset({1, 2, 700}), min_tokens=2)
    assert [chooser.sample_token(row(1, 9, 8, 2)) for _ in range(3)] == [3, 3, 1]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 1.0, "top_p": 0.9},
        {"repetition_penalty": 1.5, "logprobs": 3},
        {
            "temperature": 0.7,
            "top_k": 4,
            "min_p": 0.1,
            "presence_penalty": 1.0,
            "logit_bias": ((0, 2.0),),
            "min_tokens": 1,
        },
    ],
)
def test_the_engines_scores_are_left_as_they_are(fields: dict[str, Any]) -> None:
    scores = normal(300)
    scores.flags.writeable = False
    before = scores.copy()
    chooser = sampler(prompt=(1, 2), ends=frozenset({3}), seed=0, **fields)
    for _ in range(3):
        chooser.sample_token(scores)
    assert (scores == before).all()


# -- constraints -------------------------------------------------------------------------------------------------------


class Script:
    """A mask that allows these tokens, one set after the other, and keeps what it was given."""

    def __init__(self, *allowed: set[int]) -> None:
        self._allowed = allowed
        self.taken: list[int] = []

    def mask_scores(self, scores: Row) -> None:
        for token in set(range(scores.size)) - self._allowed[len(self.taken)]:
            scores[token] = -INF

    def accept_token(self, token: int) -> None:
        self.taken.append(token)

    @property
    def finished(self) -> bool:
        return len(self.taken) == len(self._allowed)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_mask_holds_and_is_moved_on(temperature: float) -> None:
    mask = Script({2}, {0, 3}, {1})
    chooser = sampler(constraint=mask, temperature=temperature, seed=0)
    tokens = []
    while not chooser.finished:
        tokens.append(chooser.sample_token(row(9, 8, 1, 8.5)))
    assert tokens == mask.taken and tokens[0] == 2 and tokens[1] in (0, 3) and tokens[2] == 1


def test_min_tokens_gives_way_where_the_mask_leaves_only_the_end() -> None:
    chooser = sampler(ends=frozenset({1}), min_tokens=9, constraint=Script({0, 1}, {1}))
    assert [chooser.sample_token(row(0, 9, 9)) for _ in range(2)] == [0, 1]


def test_a_mask_that_leaves_nothing_is_an_error() -> None:
    with pytest.raises(BrokenOutput, match="no token is left"):
        sampler(constraint=Script(set())).sample_token(row(1, 2))


# -- log probabilities -------------------------------------------------------------------------------------------------


def test_log_probabilities_are_the_models_own() -> None:
    scores = normal(1000)
    exact = scores.astype(np.float64)
    exact -= np.log(np.exp(exact).sum())
    chooser = sampler(logprobs=4, temperature=0.3, seed=1, logit_bias=((7, 100.0),), repetition_penalty=1.4)
    assert chooser.last_logprob is None
    assert chooser.sample_token(scores) == 7
    assert chooser.last_logprob is not None
    logprob, top = chooser.last_logprob
    assert logprob == pytest.approx(exact[7], abs=1e-5)
    assert [token for token, _ in top] == np.argsort(-exact)[:4].tolist()
    assert [value for _, value in top] == pytest.approx(np.sort(exact)[::-1][:4].tolist(), abs=1e-5)


def test_log_probabilities_without_others_and_of_more_than_there_are() -> None:
    assert logprobs(row(0, 0), 1, 0) == (pytest.approx(np.log(0.5)), [])
    assert [token for token, _ in logprobs(row(0, 5, -INF), 1, 20)[1]] == [1, 0, 2]


def test_log_probabilities_only_if_asked() -> None:
    chooser = sampler(temperature=1.0)
    chooser.sample_token(row(1, 2))
    assert chooser.last_logprob is None
