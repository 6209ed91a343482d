"""Weights fetched and deleted by a real gateway from a hub on loopback: progress, cancel, resume, refusals, deletion.

The tests stand in the order of a model's life: absent, half there, whole, used, deleted, fetched again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from checkpoints.hub.folder import lock
from tests.checkpoints.hub_server import Hub, Repo
from tests.conftest import Start
from tests.support.gateway import CHECKPOINT, SUM, GatewayProcess, only, reasoner_at

WEIGHTS = "model.safetensors"
HELD = 400_000
"""Bytes of the weights that come before the hub stops, in the tests that want a download in its middle."""


def hub_model(repo: str, folder: str, **fields: Any) -> dict[str, Any]:
    source = {"hub": repo} | ({"file": fields.pop("file")} if "file" in fields else {})
    return reasoner_at("") | {"source": source, "folder": folder, "cpu_quant_bits": 16} | fields


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A hub with the reasoner's checkpoint, closed, huge and in others' company."""
    files = {file.name: file.read_bytes() for file in CHECKPOINT.iterdir()}
    with Hub() as server:
        server.repos = {
            "acme/reasoner": Repo(files),
            "acme/gated": Repo(files, token="secret"),
            "acme/huge": Repo(files, announce={WEIGHTS: 10**16}),
            "acme/ggufs": Repo({"a.gguf": b"GGUF" * 10_000, "b.gguf": b"GGUF" * 20_000}),
        }
        yield server


@pytest.fixture(scope="module")
def gateway(hub: Hub, start_for_module: Start, tmp_path_factory: pytest.TempPathFactory) -> GatewayProcess:
    """A gateway of models that are on the hub, in ways that differ."""
    models = only(
        sums=hub_model("acme/reasoner", "sums"),
        twin=hub_model("acme/reasoner", "sums", quant_bits=16),
        next=hub_model("acme/reasoner", "next"),
        gated=hub_model("acme/gated", "gated"),
        lost=hub_model("acme/nowhere", "lost"),
        huge=hub_model("acme/huge", "huge"),
        linked=hub_model("acme/reasoner", "linked"),
        here=reasoner_at(CHECKPOINT),
        one=hub_model("acme/ggufs", "ggufs", file="a.gguf", engine="llama_cpp"),
        two=hub_model("acme/ggufs", "ggufs", file="b.gguf", engine="llama_cpp"),
    )
    started = start_for_module(launch=False, models=models)
    home = tmp_path_factory.mktemp("hf")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        started.environment.pop(name, None)
    started.environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN_PATH": str(home / "no-token")}
    return started.start()


def folder(gateway: GatewayProcess, name: str) -> Path:
    return gateway.home / "models" / name


def told(gateway: GatewayProcess, name: str) -> dict[str, Any]:
    """The model's entry of ``/admin/weights``."""
    return next(model for model in gateway.get("/admin/weights")["models"] if model["name"] == name)


def ask(gateway: GatewayProcess, name: str) -> dict[str, Any]:
    response = gateway.post(f"/admin/models/{name}/download")
    assert response.status_code == 202, response.text
    return response.json()["download"]


def state(gateway: GatewayProcess, name: str) -> dict[str, Any]:
    return gateway.get("/admin/downloads")["downloads"][name]


def stages(gateway: GatewayProcess, name: str) -> dict[str, tuple[str, int]]:
    """The stage and the bytes of each file of the model's download that is not done."""
    files = state(gateway, name)["files"]
    return {file["path"]: (file["stage"], file["done"]) for file in files if file["stage"] != "done"}


def ended(gateway: GatewayProcess, name: str) -> dict[str, Any]:
    """Return how the model's download ended, once it has."""
    gateway.until(lambda: state(gateway, name)["state"] not in ("queued", "running"), f"the download of {name}")
    return state(gateway, name)


def zygotes(gateway: GatewayProcess) -> list[str]:
    """The models that have a process kept ready for their next load."""
    processes = gateway.get("/admin/memory_status")["host"]["processes"]
    return [process["model"] for process in processes if process["role"] == "zygote"]


def delete(gateway: GatewayProcess, name: str, **parameters: str) -> httpx.Response:
    return gateway.client.delete(f"/admin/models/{name}/weights", params=parameters)


def refused(response: httpx.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    for word in words:
        assert word in response.json()["details"]


def test_absent(gateway: GatewayProcess) -> None:
    refused(gateway.generate("sums", **SUM), 503, "are missing", "python main.py download sums")
    found = told(gateway, "sums")
    assert found["state"] == "absent" and found["bytes_here"] == 0 and found["download"] is None
    assert found["fit"]["fits"] is None and found["fit"]["parts"] is None and found["fit"]["reason"]
    assert found["shared_with"] == ["twin"] and not found["loaded"]
    here = told(gateway, "here")
    assert here["state"] == "local" and here["fit"]["fits"] and here["fit"]["parts"]["weights"] > 1_000_000
    whole = gateway.get("/admin/weights")
    assert whole["slots"][0]["sets"] == [["here"]] and 0 < whole["disk"]["free"] < whole["disk"]["total"]
    assert gateway.get("/admin/downloads")["downloads"] == {}
    (gateway.home / "models").rename(gateway.home / "elsewhere")
    try:
        gone = gateway.get("/admin/weights")
    finally:
        (gateway.home / "elsewhere").rename(gateway.home / "models")
    assert gone["disk"]["models_bytes"] == 0 and 0 < gone["disk"]["free"], "the disk that they would be on"


def test_progress_is_seen_and_a_cancelled_download_is_kept(hub: Hub, gateway: GatewayProcess) -> None:
    hub.repos["acme/reasoner"].hold[WEIGHTS] = HELD
    first = ask(gateway, "sums")
    assert ask(gateway, "next")["state"] == "queued"
    hub.wait_held(1)
    gateway.until(
        lambda: stages(gateway, "sums") == {WEIGHTS: ("fetching", HELD)},
        "all files but the one that is held, and what came of that",
    )
    seen = state(gateway, "sums")
    total = sum(len(content) for name, content in hub.repos["acme/reasoner"].files.items() if name != "README.md")
    assert seen["state"] == "running" and seen["total"] == total and seen["fetched"] == seen["done"] < total
    assert state(gateway, "next")["position"] == 1

    again = ask(gateway, "sums")
    assert again["queued"] == first["queued"], "a second asker gets the same download"
    assert told(gateway, "sums")["state"] == "partial"
    refused(delete(gateway, "sums"), 409, "is being downloaded", "cancel")
    refused(gateway.generate("sums", **SUM), 503, "did not finish")

    waiting = gateway.client.delete("/admin/models/next/download").json()["download"]
    running = gateway.client.delete("/admin/models/sums/download").json()["download"]
    assert waiting["state"] == running["state"] == "cancelled"
    (part,) = folder(gateway, "sums").rglob("*.incomplete")
    assert part.stat().st_size >= HELD and not folder(gateway, "next").exists()
    assert not [child for child in gateway.processes() if "gateway.weights.download_process" in child.cmdline()]
    found = told(gateway, "sums")
    assert found["state"] == "partial" and found["bytes_total"] == total and HELD < found["bytes_here"] < total
    assert gateway.client.delete("/admin/models/sums/download").json()["download"] == running


def test_it_goes_on_where_it_was_and_the_model_answers(hub: Hub, gateway: GatewayProcess) -> None:
    del hub.repos["acme/reasoner"].hold[WEIGHTS]
    hub.release.set()
    hub.forget()
    ask(gateway, "sums")
    result = ended(gateway, "sums")
    assert result["state"] == "done" and result["done"] == result["total"] > result["fetched"]
    (served,) = [entry for entry in hub.log if entry.path == WEIGHTS]
    assert served.start >= HELD and served.status == 206
    assert told(gateway, "sums")["state"] == "complete" and told(gateway, "sums")["fit"]["fits"]
    assert gateway.answer("sums", **SUM)["response"].endswith("= 42")
    assert told(gateway, "sums")["loaded"]


def test_what_is_whole_is_compared_with_the_hub(hub: Hub, gateway: GatewayProcess) -> None:
    listings = hub.listings
    ask(gateway, "sums")
    assert ended(gateway, "sums")["fetched"] == 0 and hub.listings == listings + 1


def test_what_is_used_is_not_deleted_unless_forced(gateway: GatewayProcess) -> None:
    refused(delete(gateway, "sums"), 409, "twin", "force=true")
    quantized = folder(gateway, ".switchyard") / "quantized" / "sums-4bit-0123"
    quantized.mkdir(parents=True)
    (quantized / "switchyard.json").write_text(
        '{"model": "sums", "bits": 4, "variant": "cpu", "bytes": 5, "files": {}}'
    )
    assert told(gateway, "sums")["kept_bytes"] == 5
    gateway.until(lambda: "sums" in zygotes(gateway), "a zygote of sums")
    freed = delete(gateway, "sums", force="true")
    assert freed.status_code == 200, freed.text
    assert freed.json()["models"] == ["sums", "twin"] and freed.json()["unloaded"] == ["sums"]
    assert freed.json()["freed_bytes"] > 1_300_000 and freed.json()["quantized_bytes"] == 5
    left = [path.name for path in (gateway.home / "models").iterdir()]
    assert not folder(gateway, "sums").exists() and not quantized.exists()
    assert not [name for name in left if name.startswith(".removed")]
    assert gateway.model("sums")["state"] == "cold"
    gateway.until(lambda: "sums" not in zygotes(gateway), "its zygote to go")
    refused(gateway.generate("sums", **SUM), 503, "are missing", "python main.py download sums")
    assert told(gateway, "sums")["state"] == "absent" and told(gateway, "sums")["download"] is None
    assert delete(gateway, "sums", force="true").json()["freed_bytes"] == 0


def test_the_journal_tells_it(gateway: GatewayProcess) -> None:
    told = [
        entry["text"]
        for kind in ("download", "deleted")
        for entry in gateway.get(f"/admin/events?model=sums&kind={kind}")["data"]
    ]
    for words in (
        "Downloading sums from acme/reasoner",
        "cancelled at",
        "sums is downloaded",
        "as the hub has them",
        "were deleted",
    ):
        assert any(words in text for text in told), (words, told)


def test_loaded_and_alone(gateway: GatewayProcess) -> None:
    ask(gateway, "next")
    assert ended(gateway, "next")["state"] == "done"
    gateway.load("next")
    refused(delete(gateway, "next"), 409, "next is loaded", "unload it first")
    gateway.unload("next")
    assert delete(gateway, "next").json()["unloaded"] == []
    ask(gateway, "next")
    ended(gateway, "next")
    assert gateway.answer("next", **SUM)["response"].endswith("= 42"), "asked again without a restart"
    gateway.unload("next")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gated", ["gated", "HF_TOKEN"]),
        ("lost", ["no repository acme/nowhere"]),
        ("huge", ["huge needs", "are free there"]),
    ],
)
def test_what_cannot_be_fetched_says_why(hub: Hub, gateway: GatewayProcess, name: str, words: list[str]) -> None:
    hub.forget()
    ask(gateway, name)
    result = ended(gateway, name)
    assert result["state"] == "failed"
    for word in words:
        assert word in result["error"]
    assert not [entry for entry in hub.log if entry.status in (200, 206)], "no byte of it was fetched"
    assert told(gateway, name)["state"] == "absent" and told(gateway, name)["download"]["error"] == result["error"]


def test_only_a_model_s_own_file_of_a_shared_folder(gateway: GatewayProcess) -> None:
    for name in ("one", "two"):
        ask(gateway, name)
        assert ended(gateway, name)["state"] == "done"
    assert told(gateway, "one")["deletable_bytes"] == 40_000 and told(gateway, "one")["shared_with"] == []
    assert delete(gateway, "one").json()["freed_bytes"] == 40_000
    assert told(gateway, "one")["state"] == "absent" and told(gateway, "two")["state"] == "complete"
    assert delete(gateway, "two").status_code == 200 and not folder(gateway, "ggufs").exists()


def test_links_and_own_folders_are_left_alone(gateway: GatewayProcess, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    folder(gateway, "linked").symlink_to(tmp_path)
    refused(delete(gateway, "linked", force="true"), 409, "is a link to", str(tmp_path))
    assert told(gateway, "linked")["not_deletable"]
    folder(gateway, "linked").unlink()
    refused(delete(gateway, "here", force="true"), 409, "were not downloaded")
    refused(gateway.post("/admin/models/here/download"), 409, "does not come from a hub")
    assert (tmp_path / "config.json").exists() and (CHECKPOINT / WEIGHTS).exists()


def test_a_link_inside_a_folder_is_not_followed(gateway: GatewayProcess, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x" * 1000)
    (folder(gateway, "linked") / "deep").mkdir(parents=True)
    (folder(gateway, "linked") / "deep" / "outside").symlink_to(tmp_path)
    (folder(gateway, "linked") / "file").symlink_to(tmp_path / "precious")
    assert delete(gateway, "linked").json()["freed_bytes"] == 0
    assert not folder(gateway, "linked").exists() and (tmp_path / "precious").exists()


def test_another_process_s_download_is_not_deleted_under_it(hub: Hub, gateway: GatewayProcess) -> None:
    with lock(folder(gateway, "next")):
        refused(delete(gateway, "next"), 409, "another download", "is running")
        ask(gateway, "next")
        assert "another download" in ended(gateway, "next")["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/admin/models/nobody/download", 404),
        ("DELETE", "/admin/models/nobody/download", 404),
        ("DELETE", "/admin/models/nobody/weights", 404),
        ("DELETE", "/admin/models/next/weights?force=perhaps", 400),
        ("DELETE", "/admin/models/next/weights?force=true&force=false", 400),
        ("DELETE", "/admin/models/next/weights?also=all", 400),
    ],
)
def test_what_nobody_can_mean(gateway: GatewayProcess, method: str, path: str, status: int) -> None:
    assert gateway.client.request(method, path).status_code == status
    refused(gateway.post("/admin/models/next/download", speed=1), 400, "speed")


def test_a_download_ends_with_the_gateway(hub: Hub, gateway: GatewayProcess) -> None:
    """The end of the module stops the gateway, and holds it to leaving no process."""
    assert delete(gateway, "next").status_code == 200
    hub.forget()
    hub.release.clear()
    hub.repos["acme/reasoner"].hold[WEIGHTS] = HELD
    ask(gateway, "next")
    hub.wait_held(1)
    gateway.until(lambda: state(gateway, "next")["done"] > HELD, "the bytes before the hold")
    assert state(gateway, "next")["state"] == "running"
    assert gateway.stop() == 0
    assert gateway.gone()
    (part,) = folder(gateway, "next").rglob(f"{WEIGHTS}.*.incomplete")
    assert part.stat().st_size >= HELD
