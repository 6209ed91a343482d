"""What an engine does ahead of a load leaves nothing behind that a load of another kind would trip over."""

from dataclasses import replace
from typing import Any

import pytest

from protocol.messages import ChatMessage, Generate, Load, Part, Sampling
from runner import main
from tests.runner.driving import load_of, silent
from tests.support.gateway import CHECKPOINT

ASKED = Generate("", (ChatMessage("user", (Part("text", "17 + 25"),)),), Sampling(1))
LOAD = load_of("transformers", "deepseek", CHECKPOINT, quant_bits=4, cache_tokens=1000)


def opened() -> Any:
    from runner.process import compat

    compat.import_torchvision()
    from runner.engines.transformers import ENGINE

    engine = ENGINE(LOAD, silent)
    assert engine.open_checkpoint() is not None, "its weights stay where they are"
    return engine


def taken_over(engine: Any, load: Load) -> Any:
    engine.adopt_load(load, silent)
    return engine.load_model()


def test_a_load_like_the_rehearsed_one_is_done_already() -> None:
    import torch

    engine = opened()
    engine.rehearse_load(ASKED)
    model, seed = engine._model, torch.initial_seed()
    report = taken_over(engine, replace(LOAD, load_id="load-2"))
    assert report.load_id == "load-2" and report.mapped_bytes and report.weight_bytes
    assert engine._model is model and engine._cells == 1000
    opened().rehearse_load(ASKED)
    assert torch.initial_seed() != seed, "each draws its own random numbers"


@pytest.mark.parametrize("fields", [{"cache_tokens": 500}, {"batch_wait": 0.5}, {"threads": 2}])
def test_a_load_that_differs_is_done_again(fields: dict[str, Any]) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        engine = opened()
        engine.rehearse_load(ASKED)
        seed = torch.initial_seed()
        taken_over(engine, replace(LOAD, load_id="load-2", **fields))
        assert torch.initial_seed() != seed and engine._cells == fields.get("cache_tokens", 1000)
        assert torch.get_num_threads() == fields.get("threads", 1)
    finally:
        torch.set_num_threads(before)


def test_a_rehearsal_that_fails_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened()
    model = engine._opened_model
    with monkeypatch.context() as failing:
        failing.setattr(engine, "_prepare_batch", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.rehearse_load(ASKED)
    report = taken_over(engine, replace(LOAD, load_id="load-2"))
    assert report.load_id == "load-2" and engine._model is model


def test_a_spare_runner_listens_though_its_rehearsal_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []

    class Failing:
        def rehearse_load(self, request: Generate) -> None:
            raise MemoryError("as it happens")

    class Listening:
        def __init__(self, connection: Any, opened: Any) -> None:
            heard.append(opened)

        def serve_messages(self) -> None: ...

    for name in ("_setup_process", "Connection"):
        monkeypatch.setattr(main, name, lambda *_: None)
    monkeypatch.setattr(main, "Runner", Listening)
    engine: Any = Failing()
    main.wait_for_load(0, engine, "a")
    assert heard == [engine]
