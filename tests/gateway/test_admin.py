"""``/admin``: the contract's fields and types, cleaning up, and who may ask for it."""

import base64

import pytest

from tests.conftest import Start
from tests.support.gateway import PARIS, ROOT, SUM, GatewayProcess, only


@pytest.fixture(scope="module")
def both(start_for_module: Start) -> GatewayProcess:
    return start_for_module(models=only("deepseek", "reasoner"))


def test_memory_status(both: GatewayProcess) -> None:
    both.load("deepseek")
    status = both.get("/admin/memory_status")
    assert type(status["timestamp"]) is int
    for name in ("gpu_available", "memory_warning", "multimodal_safe"):
        assert type(status[name]) is bool, name
    for name in ("gpu_total_gb", "gpu_allocated_gb", "gpu_free_gb"):
        assert type(status[name]) is float, name
    if not status["gpu_available"]:
        assert status["gpu_total_gb"] == status["gpu_allocated_gb"] == status["gpu_free_gb"] == 0.0
    slot = status["slot"]
    assert slot["used_bytes"] + slot["free_bytes"] == slot["budget_bytes"]
    assert slot["used_bytes"] >= status["models"]["deepseek"]["bytes"] > 0
    assert 0 < status["host"]["available_bytes"] <= status["host"]["total_bytes"]
    assert status["gateway_bytes"] == pytest.approx(both.server.memory_info().rss, rel=0.2)


def test_model_status(both: GatewayProcess) -> None:
    both.answer("deepseek", **PARIS)
    status = both.get("/admin/model_status")
    assert type(status["timestamp"]) is int
    assert status["available_models"] == ["deepseek", "reasoner"] == list(status["model_configs"])
    assert status["profile"] == "pocket"
    for name, config in status["model_configs"].items():
        assert type(config["type"]) is str and type(config["path"]) is str, name
        assert config["path_exists"] is True
        assert type(config["quant_bits"]) is int
        assert config["state"] in ("cold", "loading", "ready", "draining")
        assert type(config["leases"]) is int and type(config["waiting"]) is int
    live = status["model_configs"]["deepseek"]
    assert live["type"] == "text"
    assert live["device"] == "cpu" and live["bytes"] > 0 and live["last_used"] <= status["timestamp"] + 1
    assert live["weights_missing"] is None
    both.unload("deepseek")
    cold = both.model("deepseek")
    assert (cold["state"], cold["device"], cold["bytes"], cold["pid"]) == ("cold", None, 0, None)


def test_temporary_files(both: GatewayProcess) -> None:
    old = both.tmp / "left-behind"
    old.mkdir()
    (old / "data.bin").write_bytes(bytes(1000))
    (both.tmp / "file.txt").write_text("hello")
    status = both.get("/admin/temp_status")
    assert type(status["timestamp"]) is int and status["temp_dir"] == str(both.tmp)
    assert status["file_count"] == 2 and status["total_bytes"] == 1005
    assert {entry["name"] for entry in status["files"]} == {"left-behind", "file.txt"}
    assert not any(entry["in_use"] for entry in status["files"])

    spared = both.post("/admin/cleanup_temp", older_than="1h").json()
    assert spared["removed"] == 0 and old.exists()
    removed = both.client.post("/admin/cleanup_temp").json()
    assert removed["removed"] == 2 and removed["freed_bytes"] == 1005
    assert both.get("/admin/temp_status")["file_count"] == 0


def test_a_link_in_tmp_is_removed_and_not_followed(both: GatewayProcess) -> None:
    kept = both.home / "kept"
    kept.mkdir()
    (kept / "precious.txt").write_text("stay")
    (both.tmp / "link").symlink_to(kept)
    assert both.client.post("/admin/cleanup_temp").json()["removed"] == 1
    assert (kept / "precious.txt").read_text() == "stay"


def test_a_link_to_nowhere_is_removed_too(both: GatewayProcess) -> None:
    dangling = both.tmp / "dangling"
    dangling.symlink_to(both.home / "nowhere")
    try:
        assert both.get("/admin/temp_status")["file_count"] == 1
        assert both.client.post("/admin/cleanup_temp").json()["removed"] == 1
        assert not dangling.is_symlink()
    finally:
        dangling.unlink(missing_ok=True)


def test_scratch_of_a_request_under_way_is_spared(start: Start) -> None:
    gateway = start(models=only("qwen_vl"))
    image = base64.b64encode((ROOT / "examples" / "red-circle.png").read_bytes()).decode()
    asked = {"prompt": "What color is the circle?", "image": image, "max_new_tokens": 20}
    with gateway.answering("qwen_vl", held=True, **asked) as answer:
        (entry,) = gateway.get("/admin/temp_status")["files"]
        assert entry["in_use"] is True
        assert gateway.client.post("/admin/cleanup_temp").json()["removed"] == 0
        assert gateway.get("/admin/temp_status")["file_count"] == 1
    assert answer.result().status_code == 200


def test_emergency_cleanup_evicts_the_idle_and_spares_the_busy(both: GatewayProcess) -> None:
    both.answer("reasoner", **SUM)
    (both.tmp / "rubbish").write_bytes(bytes(10))
    with both.answering(held=True, max_new_tokens=20) as answer:
        freed = both.client.post("/admin/emergency_cleanup").json()
        assert freed["status"] == "success" and freed["message"]
        assert freed["evicted"] == ["reasoner"] and freed["in_use"] == ["deepseek"]
        assert freed["freed_bytes"] > 0
        assert freed["temp_entries_removed"] == 1 and freed["temp_bytes_removed"] == 10
        assert both.model("reasoner")["state"] == "cold"
        assert both.runners() == {both.model("deepseek")["pid"]}
    assert answer.result().json()["usage"]["completion_tokens"] == 20


def test_emergency_cleanup_with_force_evicts_everybody(both: GatewayProcess) -> None:
    with both.answering() as answer:
        freed = both.post("/admin/emergency_cleanup", force=True).json()
        assert freed["evicted"] == ["deepseek"] and freed["in_use"] == []
        assert both.runners() == set()
        assert answer.result().status_code == 503
    nothing = both.client.post("/admin/emergency_cleanup").json()
    assert nothing["evicted"] == [] and nothing["freed_bytes"] == 0


@pytest.mark.parametrize(
    "path", ["emergency_cleanup", "cleanup_temp", "models/deepseek/load", "models/deepseek/unload"]
)
def test_no_page_of_another_origin_may_administer(both: GatewayProcess, path: str) -> None:
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{both.port + 1}", "https://localhost"):
        response = both.client.post(f"/admin/{path}", headers={"origin": origin})
        assert response.status_code == 403, origin
        assert response.json()["details"]
    assert both.client.post("/admin/cleanup_temp", headers={"origin": both.url}).status_code == 200


def test_a_name_that_resolves_to_this_machine_is_not_this_machine(both: GatewayProcess) -> None:
    """A page can have its own name point to 127.0.0.1 (DNS rebinding): then its origin and the host agree."""
    headers = {"origin": f"http://evil.example:{both.port}", "host": f"evil.example:{both.port}"}
    assert both.client.post("/admin/cleanup_temp", headers=headers).status_code == 403


def test_unknown_model(both: GatewayProcess) -> None:
    for verb in ("load", "unload"):
        response = both.post(f"/admin/models/gpt-9/{verb}")
        assert response.status_code == 404 and "deepseek" in response.json()["details"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("models/reasoner/load", b'{"pinned": "yes"}'),
        ("models/reasoner/load", b'{"pin": true}'),
        ("models/reasoner/load", b"[]"),
        ("models/reasoner/load", b"{"),
        ("models/reasoner/unload", b'{"force": 1}'),
        ("emergency_cleanup", b'{"force": "no"}'),
        ("cleanup_temp", b'{"older_than": "soon"}'),
        ("cleanup_temp", b'{"older_than": null}'),
        ("cleanup_temp", b'{"older_than": -1}'),
        ("cleanup_temp", b'{"older_than": "-1h"}'),
    ],
)
def test_wrong_options_change_nothing(both: GatewayProcess, path: str, body: bytes) -> None:
    both.unload("reasoner")
    before = len(both.loads("reasoner"))
    response = both.client.post(f"/admin/{path}", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["details"]
    assert len(both.loads("reasoner")) == before
