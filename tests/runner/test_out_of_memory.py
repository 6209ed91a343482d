"""Memory that runs out while requests are answered: freed and tried again, then fewer at once, at last one that fails
alone. Whatever is given up is prefilled again and comes to the same answer.
"""

import os
import subprocess
import sys
import weakref
from typing import Any

import pytest

from protocol.messages import Relief
from runner.errors import DamagedError, OutOfMemory, RequestError, classify, is_sticky, out_of_memory
from runner.process.fault_injection import parse_rules, with_faults
from tests.runner.conftest import Engines, Media
from tests.runner.driving import Crowd, Watched, alone, at_rest, load_of, request
from tests.support.gateway import CHECKPOINT, ROOT, SMOLLM2

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

SUMS = [request(f"What is {one} + 25?") for one in (1, 17, 40)]
ANSWERS = ["1 + 25 = 26", "17 + 25 = 42", "40 + 25 = 65"]


def short(model: Any, text: str, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Crowd:
    """A batch over an engine that runs out of memory by these rules."""
    monkeypatch.setenv("SWITCHYARD_INJECT_FAULT", text)
    load = load_of("transformers", "deepseek", CHECKPOINT, **fields)
    return Crowd(Watched(with_faults(model, load)))


def steps(crowd: Crowd) -> list[str]:
    return [one.step for one in crowd.sent if isinstance(one, Relief)]


@pytest.mark.parametrize("kind", ["memory", "cpu", "cuda"])
def test_a_step_that_finds_no_memory_is_made_once_more(
    engine: Engines, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    crowd = short(engine(), f"decode after=3 times=1 kind={kind}", monkeypatch)
    answers = crowd.answers(*SUMS)
    assert [answer.text for answer in answers] == ANSWERS
    assert steps(crowd) == ["retried"]
    assert all(answer.done and answer.done.relief == ("retried",) for answer in answers)
    assert max(len(together) for together in crowd.watched.together[4:]) == 3, "as many at once as before"


def test_then_half_of_them_go_on_and_the_others_are_read_again(
    engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = engine()
    wanted = alone(model, *SUMS)
    crowd = short(model, "decode above=1 after=4", monkeypatch)
    jobs = crowd.ask(*SUMS)
    crowd.until(lambda: "smaller_batch" in steps(crowd))
    assert len(crowd.batch) == 1 and crowd.made(jobs[0]) >= 2, "the latest wait, with what they have made"
    crowd.finish()
    assert [crowd.answer(job).ids for job in jobs] == [answer.ids for answer in wanted]
    assert steps(crowd) == ["retried", "smaller_batch"]
    told = [one for one in crowd.sent if isinstance(one, Relief)]
    assert [(one.batch, one.most) for one in told] == [(3, 3), (1, 3)]
    after = Crowd(crowd.watched)
    after.batch = crowd.batch
    assert all(crowd.answer(job).done.relief == ("retried", "smaller_batch") for job in jobs)  # type: ignore[union-attr]


def test_the_smaller_batch_lasts_and_grows_again_after_a_while(
    engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.generation.out_of_memory._STEPS_BEFORE_RAISE", 100)
    crowd = short(engine(), "decode above=1 times=2", monkeypatch)
    jobs = crowd.ask(*(request("17 + 25", max_new_tokens=60, min_tokens=60) for _ in range(6)))
    crowd.finish()
    sizes = [len(together) for together in crowd.watched.together[2:]]
    assert steps(crowd) == ["retried", "smaller_batch", "larger_batch", "larger_batch"]
    assert set(sizes[:100]) == {1} and 2 in sizes[100:] and sizes == sorted(sizes[:-60]) + sizes[-60:]
    assert all(crowd.answer(job).error is None for job in jobs)


def test_one_alone_that_finds_no_memory_twice_fails_alone(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine()
    crowd = short(model, "decode times=2", monkeypatch)
    (doomed,) = crowd.ask(SUMS[0])
    crowd.finish()
    error = crowd.answer(doomed).error
    assert error and (error.kind, error.alone) == ("out_of_memory", True) and "injected" in error.error
    at_rest(model)
    assert crowd.answers(SUMS[1])[0].text == ANSWERS[1]
    assert len(crowd.fatal) == 1 and not is_sticky(crowd.fatal[0]), "the process is of use still"


def test_a_prompt_is_read_again_then_alone(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine()
    wanted = alone(model, *SUMS)
    crowd = short(model, "prefill above=1", monkeypatch)
    answers = crowd.answers(*SUMS)
    assert [answer.ids for answer in answers] == [answer.ids for answer in wanted]
    assert steps(crowd)[:2] == ["retried", "smaller_batch"]


def test_a_prompt_that_finds_no_memory_beside_others_waits_for_them(
    engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the third chunk of its prompt, as far as it gets while another is answered."""
    model = engine()
    monkeypatch.setattr(model, "prefill_chunk", 32)
    long = request("How much is it? " * 20 + "8 + 95")
    (wanted,) = alone(model, long)
    crowd = Crowd(Watched(model))
    (first,) = crowd.ask(SUMS[1])
    crowd.turn(2)
    (late,) = crowd.ask(long)

    def fail(sequences: Any) -> None:
        if any(one.job is late and one.prefilled == 64 for one in sequences) and not first.over:
            raise MemoryError

    crowd.watched.before_prefill = fail
    crowd.until(lambda: "smaller_batch" in steps(crowd))
    assert not first.over and crowd.made(late) == 0 and crowd.watched.sequences[late][0].prefilled == 0
    crowd.finish()
    assert crowd.answer(first).text == ANSWERS[1] and crowd.answer(late).ids == wanted.ids


class Paced(Watched):
    """One whose chunks are the engine's own."""

    prefill_chunk_bounds = property(lambda self: self.engine.prefill_chunk_bounds)  # type: ignore[assignment]
    prefill_chunk = property(
        lambda self: self.engine.prefill_chunk, lambda self, value: setattr(self.engine, "prefill_chunk", value)
    )


def test_a_prompt_alone_is_prefilled_in_smaller_chunks(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine()
    monkeypatch.setattr(model, "prefill_chunk", 256)
    long = request("How much is it? " * 20 + "8 + 95")
    (wanted,) = alone(model, long)
    size = wanted.done.prompt_tokens if wanted.done else 0
    crowd = Crowd(Paced(model))

    def fail(*_: Any, input_ids: Any, **__: Any) -> None:
        if input_ids.shape[1] > 64:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    forward = model._forward
    monkeypatch.setattr(model, "_forward", lambda **inputs: (fail(**inputs), forward(**inputs))[1])
    assert size > 128
    (answer,) = crowd.answers(long)
    assert answer.text == wanted.text and answer.done and "smaller_piece" in answer.done.relief
    assert model.prefill_chunk <= 64


def test_pictures_are_shown_again(engine: Engines, media: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt with media is prefilled as a whole; its inputs must not be lost with the failure."""
    model = engine("qwen_vl")
    asked = [request(media.image(seed), "What color is the shape?", max_new_tokens=6) for seed in (1, 2)]
    wanted = alone(model, *asked)
    crowd = short(model, "prefill times=2", monkeypatch)
    second = crowd.ask(asked[1])
    crowd.finish()
    assert crowd.answer(second[0]).error, "alone, and prefilled whole: nothing smaller can be tried"
    crowd = short(model, "prefill after=1 times=2", monkeypatch)
    assert [answer.ids for answer in crowd.answers(*asked)] == [answer.ids for answer in wanted]
    assert steps(crowd) == ["retried", "smaller_batch"]


def test_of_several_that_cannot_be_read_again_the_latest_fails(
    engine: Engines, media: Media, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = engine("qwen_vl")
    asked = [request(media.image(seed), "What color is the shape?", max_new_tokens=6) for seed in (1, 2)]
    (wanted,) = alone(model, asked[0])
    crowd = short(model, "decode above=1 times=2", monkeypatch)
    first, latest = crowd.answers(*asked)
    assert first.ids == wanted.ids
    assert latest.error and latest.error.kind == "out_of_memory" and not latest.error.alone


@pytest.mark.parametrize("times", [1, 2])
def test_a_sibling_that_finds_no_memory_waits(engine: Engines, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    model = engine()
    wanted = alone(model, request("8 + 95", choices=3, temperature=1.0, seed=1))
    crowd = short(model, f"fork after=1 times={times}", monkeypatch)
    (answer,) = crowd.answers(request("8 + 95", choices=3, temperature=1.0, seed=1))
    assert answer.tokens == wanted[0].tokens
    assert steps(crowd) == ["retried", "smaller_batch"][:times]


@pytest.mark.parametrize(("family", "text"), [("blip_vqa", "generate times=1"), ("blip_vqa", "generate above=1")])
def test_answers_by_generate(
    engine: Engines, media: Media, monkeypatch: pytest.MonkeyPatch, family: str, text: str
) -> None:
    model = engine(family)
    asked = [request(media.image(seed), "What color is the shape?", max_new_tokens=3) for seed in (1, 2)]
    wanted = alone(model, *asked)
    crowd = short(model, text, monkeypatch)
    assert [answer.text for answer in crowd.answers(*asked)] == [answer.text for answer in wanted]
    assert steps(crowd) == ["smaller_batch"]
    crowd = short(model, "generate times=2", monkeypatch)
    failed = crowd.answers(asked[0])[0].error
    assert failed and failed.kind == "out_of_memory" and steps(crowd) == ["retried"]


def test_a_request_is_prepared_once_more(engine: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = short(engine(), "prepare times=1", monkeypatch)
    (answer,) = crowd.answers(SUMS[1])
    assert answer.text == ANSWERS[1] and answer.done and answer.done.relief == ("retried",)
    crowd = short(engine(), "prepare times=2", monkeypatch)
    failed = crowd.answers(SUMS[1])[0].error
    assert failed and failed.kind == "out_of_memory"


def test_nothing_of_the_failed_attempt_is_held_during_the_next(
    engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception's traceback holds the frames, and they the tensors, that were to be freed."""
    import torch

    model = engine()
    held: list[Any] = []
    forward = model._forward

    def fail_once(**inputs: Any) -> Any:
        activation = torch.ones(1000)
        if not held:
            held.append(weakref.ref(activation))
            raise MemoryError
        assert held[0]() is None
        return forward(**inputs)

    crowd = Crowd(model)
    (job,) = crowd.ask(SUMS[1])
    crowd.turn(2)
    monkeypatch.setattr(model, "_forward", fail_once)
    crowd.finish()
    assert crowd.answer(job).text == ANSWERS[1] and held


def test_llama_cpp(llama: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    asked = [
        request(text, max_new_tokens=12)
        for text in ("Hello", "What is the capital of France?", "What is the capital of Italy?")
    ]
    wanted = alone(model, *asked)
    crowd = short(model, "prefill times=1; decode after=3 times=1; decode above=1 after=6", monkeypatch)
    answers = crowd.answers(*asked)
    assert steps(crowd) == ["retried", "retried", "retried", "smaller_batch"]
    assert all(answer.error is None for answer in answers)
    assert [answer.ids[:3] for answer in answers] == [answer.ids[:3] for answer in wanted]


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for a matmul"), False),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: an illegal memory access"), False),
        (OSError(2, "No such file"), False),
        (RequestError("field 'prompt': out of memory is a fine story"), False),
    ],
)
def test_what_counts(error: Exception, is_it: bool) -> None:
    assert out_of_memory(error) is is_it
    assert isinstance(classify(error), OutOfMemory) is is_it
    assert is_sticky(error) is ("illegal" in str(error))


def test_an_error_that_comes_of_it_counts() -> None:
    try:
        try:
            raise MemoryError("the processor")
        except MemoryError as error:
            raise DamagedError("the checkpoint cannot be loaded") from error
    except DamagedError as error:
        assert classify(error).kind == "out_of_memory"


@pytest.mark.parametrize("text", ["nowhere times=1", "decode times=many", "decode wrong=1"])
def test_a_rule_that_is_none_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        parse_rules(text)


LIMITED = """
import os, resource, sys
from runner.process import compat
{compat}
from multiprocessing.connection import Pipe
from protocol.messages import Load, Progress
from runner.main import Runner
import runner.engines.{engine}
{preload}

def load(spare, cells):
    ours, theirs = Pipe()
    runner = Runner(theirs)
    runner.send = lambda message: isinstance(message, Progress) or theirs.send(message)
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + spare, size + spare))
    runner._load(Load("load-1", "model", "deepseek", "{engine}", "{path}", 16, "cpu", threads=1, context=4096,
                      cache_tokens=cells))
    while ours.poll():
        message = ours.recv()
        told = getattr(message, "kind", ""), getattr(message, "error", "")
        print("MESSAGE", type(message).__name__, *told, flush=True)

for spare, cells in {cases}:
    if (pid := os.fork()) == 0:
        try:
            load(spare, cells)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.mark.parametrize(
    ("engine_name", "path", "cases"),
    [
        ("transformers", CHECKPOINT, [(4 * 2**20, 8192), (12 * 2**20, 8192)]),
        ("llama_cpp", SMOLLM2, [(50 * 2**20, 4096), (2**28, 200_000)]),
    ],
)
def test_a_load_within_a_real_limit(engine_name: str, path: Any, cases: list[tuple[int, int]]) -> None:
    """A process that may not map more than that: its allocations really fail, in the library's own ways."""
    preload = "import runner.families.deepseek" if engine_name == "transformers" else ""
    compat = "compat.import_torchvision()" if preload else ""
    script = LIMITED.format(engine=engine_name, path=path, preload=preload, compat=compat, cases=cases)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("MESSAGE")]
    assert len(said) == len(cases), done.stderr[-3000:]
    assert all(line.startswith("MESSAGE LoadFailed out_of_memory") for line in said), said
