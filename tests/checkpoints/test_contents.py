"""What is fetched, what is checked, and when a folder counts as whole."""

import json
import shutil
from pathlib import Path

import pytest

from checkpoints.hub.download import download, plan
from checkpoints.hub.folder import MARKER, WORK
from checkpoints.hub.records import DownloadError, Progress
from checkpoints.hub.state import download_state
from models_registry.spec import ModelSpec
from tests.checkpoints.conftest import checkpoint, index_of, spec_of, weights
from tests.checkpoints.hub_server import Hub, Repo

FIRST = "model-00001-of-00002.safetensors"
WANTED = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "model.safetensors.index.json",
    FIRST,
    "model-00002-of-00002.safetensors",
}


def names(models: Path) -> set[str]:
    """Files in the model's folder, ours aside."""
    return {path.name for path in (models / "tiny").iterdir() if not path.name.startswith(".")}


def test_only_what_is_needed(hub: Hub, models: Path) -> None:
    planned = plan(spec_of(), models)
    assert {file.path for file in planned.files} == WANTED and not models.exists()
    assert planned.to_fetch == planned.total == sum(len(checkpoint()[name]) for name in WANTED)
    seen: list[Progress] = []
    result = download(spec_of(), models, progress=seen.append)
    assert names(models) == WANTED
    assert {entry.path for entry in hub.log} == WANTED, "nothing else was even asked for"
    for name in WANTED:
        assert (models / "tiny" / name).read_bytes() == checkpoint()[name]
    assert result.fetched == result.total == planned.total
    assert seen[-1].done == seen[-1].total == planned.total
    assert all(earlier.done <= later.done for earlier, later in zip(seen, seen[1:], strict=False))
    assert spec_of().missing(models) is None


def test_the_token_goes_to_the_hub_alone(hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["acme/tiny"].token = "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    download(spec_of(), models)
    assert {entry.path: entry.authorized for entry in hub.log}[FIRST] is False
    assert {entry.path: entry.authorized for entry in hub.log}["config.json"] is True


def test_speech_adds_the_speakers(hub: Hub, models: Path) -> None:
    download(spec_of(), models)
    assert "spk_dict.pt" not in names(models)
    hub.forget()
    download(spec_of(), models, speech=True)
    assert names(models) == WANTED | {"spk_dict.pt"}
    assert hub.sent(FIRST) == 0
    download(spec_of(), models)
    assert "spk_dict.pt" in names(models), "asking without speech takes nothing away"


def test_single_file_without_an_index(hub: Hub, models: Path) -> None:
    hub.repos["acme/one"] = Repo({"config.json": b"{}", "model.safetensors": weights(50_000), "model.bin": b"x"})
    download(spec_of("acme/one"), models)
    assert names(models) == {"config.json", "model.safetensors"}


def test_pickled_weights_alone_are_refused(hub: Hub, models: Path) -> None:
    hub.repos["acme/old"] = Repo({"config.json": b"{}", "pytorch_model.bin": b"\x80" * 50_000})
    with pytest.raises(DownloadError, match=r"acme/old@main: .*no safetensors weights.*pytorch_model\.bin"):
        download(spec_of("acme/old"), models)
    assert not models.exists()


def test_gguf_takes_its_file_only(hub: Hub, models: Path) -> None:
    sizes = {"a.Q4_K_M.gguf": 50_000, "a.Q8_0.gguf": 90_000}
    ggufs = {name: b"GGUF" + bytes(size) for name, size in sizes.items()}
    hub.repos["acme/gguf"] = Repo({"config.json": b"{}", **ggufs})
    spec = spec_of("acme/gguf", file="a.Q4_K_M.gguf")
    download(spec, models)
    assert names(models) == {"a.Q4_K_M.gguf"} and download_state(spec, models).name == "complete"
    other = spec_of("acme/gguf", file="a.Q8_0.gguf")
    assert download_state(other, models).name == "absent"
    hub.repos["acme/gguf"].fail = {"a.Q8_0.gguf": [404]}
    with pytest.raises(DownloadError):
        download(other, models)
    assert download_state(spec, models).name == "complete", "its neighbour's half download is not its own"
    download(other, models)
    assert download_state(spec, models).name == download_state(other, models).name == "complete"
    with pytest.raises(DownloadError, match=r"no a\.Q2\.gguf; it has a\.Q4_K_M\.gguf, a\.Q8_0\.gguf"):
        plan(spec_of("acme/gguf", file="a.Q2.gguf"), models)


@pytest.mark.parametrize("name", [FIRST, "config.json"])
def test_wrong_content_is_refused(hub: Hub, models: Path, name: str) -> None:
    hub.repos["acme/tiny"].corrupt = {name}
    with pytest.raises(DownloadError, match=f"{name} arrived damaged"):
        download(spec_of(), models)
    assert name not in names(models)
    assert not list((models / "tiny" / WORK).glob(f"{name}*")), "a wrong part is not kept"
    assert download_state(spec_of(), models).name != "complete"
    hub.repos["acme/tiny"].corrupt = set()
    download(spec_of(), models)
    assert download_state(spec_of(), models).name == "complete"


def test_an_index_that_names_what_is_not_there(hub: Hub, models: Path) -> None:
    hub.repos["acme/tiny"].files["model.safetensors.index.json"] = index_of(FIRST, "model-9.safetensors")
    with pytest.raises(DownloadError, match=r"names model-9\.safetensors, which is not in the repository"):
        plan(spec_of(), models)
    hub.repos["acme/tiny"].files["model.safetensors.index.json"] = index_of("../../etc/x.safetensors")
    with pytest.raises(DownloadError, match="not a list of safetensors files"):
        plan(spec_of(), models)


def test_filled_by_hand(hub: Hub, models: Path) -> None:
    folder = models / "tiny"
    folder.mkdir(parents=True)
    assert download_state(spec_of(), models).name == "absent"
    for name in WANTED:
        (folder / name).write_bytes(checkpoint()[name])
    assert download_state(spec_of(), models).name == "complete"
    left = folder / ".cache" / "huggingface" / "download" / "abc.incomplete"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert download_state(spec_of(), models).name == "partial"
    result = download(spec_of(), models)
    assert result.fetched == 0, "what is right is adopted, not fetched"
    assert download_state(spec_of(), models).name == "complete"


@pytest.mark.parametrize("damage", ["gone", "short", "pointer"])
def test_filled_by_hand_but_not_whole(hub: Hub, models: Path, damage: str) -> None:
    folder = models / "tiny"
    folder.mkdir(parents=True)
    for name in WANTED:
        (folder / name).write_bytes(checkpoint()[name])
    shard = folder / FIRST
    if damage == "gone":
        shard.unlink()
    elif damage == "short":
        shard.write_bytes(checkpoint()[FIRST][:-1000])
    else:
        shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 600000\n")
    state = download_state(spec_of(), models)
    assert state.name == "partial" and FIRST in state.reason
    assert download(spec_of(), models).fetched == len(checkpoint()[FIRST])
    assert download_state(spec_of(), models).name == "complete"


def test_a_whole_folder_that_lost_something(hub: Hub, models: Path) -> None:
    download(spec_of(), models)
    marker = json.loads((models / "tiny" / MARKER).read_text())
    assert marker["commit"] == hub.repos["acme/tiny"].commit and set(marker["files"]) == WANTED
    (models / "tiny" / FIRST).write_bytes(b"short")
    state = download_state(spec_of(), models)
    assert state.name == "partial" and FIRST in state.reason and state.missing
    shutil.rmtree(models / "tiny")
    assert download_state(spec_of(), models).name == "absent"


def test_another_repository_in_the_folder(hub: Hub, models: Path) -> None:
    download(spec_of(), models)
    hub.repos["acme/other"] = Repo({"config.json": b"{}", "model.safetensors": weights(50_000, 9)})
    other = spec_of("acme/other")
    state = download_state(other, models)
    assert state.name == "partial" and "acme/tiny@main, not acme/other@main" in state.reason
    download(other, models)
    assert download_state(other, models).name == "complete"
    assert FIRST not in names(models), "weights of the other are not left to be mixed up"


def test_models_that_need_no_download(models: Path, tmp_path: Path) -> None:
    here = tmp_path / "mine"
    here.mkdir()
    spec = ModelSpec.model_validate({"name": "mine", "family": "generic", "source": {"path": str(here)}})
    state = download_state(spec, models)
    assert state.name == "local" and state.missing and "config.json" in state.missing
    (here / "config.json").write_text("{}")
    (here / "model.safetensors").write_bytes(weights(100))
    assert download_state(spec, models).missing is None
    with pytest.raises(DownloadError, match="nothing to download"):
        plan(spec, models)
