"""``main.py download`` and ``main.py models``: what they print and how they exit, terminal or not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from commands import download as download_command
from commands import models as models_command
from main import main
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from tests.checkpoints.conftest import ROOT, spec_of, weights
from tests.checkpoints.hub_server import Hub, Repo
from utils.settings import Settings


@pytest.fixture
def catalog(hub: Hub, tmp_path: Path) -> Catalog:
    """Two models of the hub and one on a path."""
    hub.repos["acme/one"] = Repo({"config.json": b"{}", "model.safetensors": weights(50_000)})
    place = tmp_path / "mine"
    place.mkdir()
    (place / "config.json").write_text("{}")
    (place / "model.safetensors").write_bytes(weights(100))
    one = spec_of("acme/one", "one").model_copy(update={"folder": "one", "aliases": ("uno",)})
    mine = ModelSpec.model_validate({"name": "mine", "family": "generic", "source": {"path": str(place)}})
    return Catalog("pocket", [spec_of(), one, mine])


@pytest.fixture
def settings(models: Path) -> Settings:
    return Settings(models_dir=models)


def test_download_all_that_is_missing(
    hub: Hub, catalog: Catalog, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download_command.download_models(settings, catalog, []) == 0
    out = capsys.readouterr().out
    assert "tiny\tdownloaded" in out and "one\tdownloaded" in out and "mine\tlocal" in out and "(100%)" in out
    hub.listings = 0
    assert download_command.download_models(settings, catalog, []) == 0
    assert hub.listings == 0, "what is complete is not asked about"
    assert "tiny\tcomplete" in capsys.readouterr().out
    assert download_command.download_models(settings, catalog, ["uno"]) == 0
    assert hub.listings == 1, "unless it is named"


def test_one_failure_does_not_stop_the_others(
    hub: Hub, catalog: Catalog, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    del hub.repos["acme/tiny"]
    assert download_command.download_models(settings, catalog, []) == 1
    captured = capsys.readouterr()
    assert "tiny\tfailed" in captured.out and "one\tdownloaded" in captured.out
    assert "tiny: " in captured.err
    assert download_command.download_models(settings, catalog, ["nothing"]) == 2
    assert "known are tiny, one, mine" in capsys.readouterr().err


def test_bars_on_a_terminal(
    hub: Hub, catalog: Catalog, settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert download_command.download_models(settings, catalog, ["one"]) == 0
    assert "one" in capsys.readouterr().out


def test_models_as_lines_and_as_json(
    hub: Hub, catalog: Catalog, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    download_command.download_models(settings, catalog, ["one"])
    capsys.readouterr()
    models_command.list_models(settings, catalog)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["name", "tiny", "one", "mine"]
    assert lines[1][-1].startswith("absent") and lines[2][-1] == "ready" and lines[3][-1] == "ready (local)"
    assert lines[2][1] == "uno" and lines[2][5] == "acme/one"
    models_command.list_models(settings, catalog, as_json=True)
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert listed["one"]["ready"] and listed["one"]["state"] == "complete"
    assert not listed["tiny"]["ready"] and listed["tiny"]["bytes_here"] == 0


def test_models_exits_with_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SWITCHYARD_PROFILE", "pocket")
    for options in ([], ["--json"], ["--fit"]):
        assert main(["models", *options]) == 0, options
        assert "deepseek" in capsys.readouterr().out


def test_no_torch() -> None:
    code = (
        "import sys, commands.download, commands.models, checkpoints.hub.download\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
