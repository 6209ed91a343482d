"""What is remembered of loads, and what the scheduler is told of a model's next one: runners that only report."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from gateway.memory.footprint.prediction import Footprints
from gateway.memory.placement import Placement
from gateway.processes.pool import RunnerPool
from gateway.processes.zygotes import Zygotes
from gateway.scheduler import events
from models_registry.catalog import load_catalog
from protocol import messages
from tests.support.gateway import CHECKPOINT, only
from utils.settings import load_settings

RESIDENT, PEAK = 300_000_000, 900_000_000


class Reporting:
    """The runners of a gateway with one model on the CPU, whose weights are opened when ``opened`` says so."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        own = tmp_path / "models.yaml"
        entry = {"family": "deepseek", "source": {"path": str(CHECKPOINT)}, "cpu_quant_bits": 8, "cache_tokens": 1024}
        own.write_text(yaml.safe_dump({"models": only() | {"mine": entry}}))
        settings = load_settings(
            profile="pocket", models_file=own, models_dir=tmp_path / "models", device="cpu", slot_budget="5GB"
        )
        catalog = load_catalog(settings)
        self.placement, self.posted, self.opened = Placement(settings, catalog), [], False
        self.asked: list[messages.Load] = []
        zygotes = Zygotes(SimpleNamespace(), 0)  # type: ignore[arg-type]
        monkeypatch.setattr(zygotes, "has_weights", self._has_weights)
        deaf: Any = SimpleNamespace(runner_event=lambda *news: None)
        owner: Any = SimpleNamespace(post=self.posted.append)
        self.runners = RunnerPool(settings, catalog, self.placement, zygotes, owner, deaf, deaf)
        self.spec = self.placement.on(catalog["mine"], "cpu")

    def _has_weights(self, load: messages.Load) -> bool:
        self.asked.append(load)
        return self.opened

    def settled(self, **said: Any) -> None:
        """A runner that was loaded takes less now."""
        loaded = messages.Loaded("mine-1", "cpu", RESIDENT, 4096, {}, "int8", **said)
        handle = SimpleNamespace(
            load=messages.Load("mine-1", "mine", "deepseek", "transformers", "", 8, "cpu"),
            loaded=loaded,
            from_zygote=False,
            account=SimpleNamespace(growth=0, resident=RESIDENT),
        )
        self.runners._handles["mine-1"] = handle  # type: ignore[assignment]
        self.runners._hear(events.Recharge("mine-1", RESIDENT))

    def expected(self) -> int:
        """Return what the scheduler was told last that the next load will take."""
        told = self.posted[-1]
        assert isinstance(told, events.Predict) and told.sizes == {"cpu": told.bytes}
        return told.bytes


@pytest.fixture
def reporting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reporting:
    return Reporting(tmp_path, monkeypatch)


def test_a_load_of_kept_weights_leaves_the_peak_as_it_was(reporting: Reporting) -> None:
    predicted = reporting.placement.footprints.parts(reporting.spec, "cpu").transient
    assert predicted > 0
    reporting.settled(peak_bytes=1, from_kept=True)
    assert reporting.placement.needs(reporting.spec, "cpu").peak == RESIDENT + predicted
    reporting.settled(peak_bytes=PEAK)
    reporting.settled(peak_bytes=1, from_kept=True)
    again = Footprints(reporting.placement._settings.models_dir)
    assert again.charge(reporting.spec, "cpu", 1024, 5 * 10**9).peak == RESIDENT + PEAK


def test_the_next_load_is_charged_a_peak_unless_its_weights_are_opened(reporting: Reporting) -> None:
    reporting.settled(peak_bytes=PEAK)
    assert reporting.posted[0] == events.Recharge("mine-1", RESIDENT)
    assert reporting.expected() == RESIDENT + PEAK
    reporting.opened = True
    reporting.settled(peak_bytes=PEAK)
    assert reporting.expected() == reporting.placement.needs(reporting.spec, "cpu").total < RESIDENT + PEAK
    reporting.runners.move_model("mine")
    told = reporting.posted[-1]
    assert isinstance(told, events.Move) and told.sizes == {"cpu": reporting.posted[-2].bytes}
    assert {(load.name, load.quant_bits, load.device) for load in reporting.asked} == {("mine", 8, "cpu")}
