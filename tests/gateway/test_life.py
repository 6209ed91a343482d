"""From start to end: healthy at once, stopped without loss, and nothing left behind however it ends."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import Start
from tests.support.gateway import ONE_AT_ONCE, PARIS, ROOT, STORY, SUM, GatewayProcess, only

pytestmark = pytest.mark.long

LONG = STORY | {"max_new_tokens": 3500}


def stopped_cleanly(gateway: GatewayProcess) -> None:
    """Hold a gateway that was told to stop to ending with status 0, no process and no temporary file."""
    assert gateway.wait() == 0, gateway.log()
    assert gateway.gone(), gateway.processes()
    assert os.listdir(gateway.tmp) == []
    assert "Traceback" not in gateway.log()


def terminate(gateway: GatewayProcess) -> None:
    gateway.signal(signal.SIGTERM)


def interrupt(gateway: GatewayProcess) -> None:
    gateway.interrupt()


@contextmanager
def no_imports(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have forkservers that start in the block wait before their first import until its end."""
    (held := home / "held").touch()
    (home / "sitecustomize.py").write_text(f"""
import os, sys, time

while "runner.forkserver" in sys.orig_argv and os.path.exists({str(held)!r}):
    time.sleep(0.05)
""")
    monkeypatch.setenv("PYTHONPATH", str(home))
    try:
        yield
    finally:
        held.unlink()


def test_healthy_before_the_imports_are_done_and_ready_to_serve(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with no_imports(tmp_path, monkeypatch):
        gateway = start(models=only("deepseek", "reasoner"))
        ready = gateway.get("/health/ready")
        assert ready == {"status": "ready", "runners_preloaded": False}
        health = gateway.get("/health")
        assert health["status"] == "healthy" and health["profile"] == "pocket" and health["uptime"] >= 0
    # The model that needs no torch does not wait for torch.
    assert "Paris" in gateway.answer("deepseek", **PARIS)["response"]
    assert "42" in gateway.answer("reasoner", **SUM)["response"]
    gateway.preloaded()


def test_the_serving_process_has_no_torch(pocket: GatewayProcess) -> None:
    pocket.answer("reasoner", **SUM)
    for process in (pocket.server, pocket.server.parent()):
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
        assert "/main.py" in " ".join(process.cmdline())
        for library in ("libtorch", "libc10", "bitsandbytes", "libllama", "libggml"):
            assert library not in mapped, library
    runner = pocket.model("reasoner")["pid"]
    assert "libtorch" in Path(f"/proc/{runner}/maps").read_text()


def test_it_makes_its_folders_and_its_log(pocket: GatewayProcess) -> None:
    for name in ("models", "logs", "tmp"):
        assert (pocket.home / name).is_dir()
    assert "Switchyard on http://127.0.0.1" in pocket.log()
    assert "profile pocket" in (pocket.home / "logs" / "main.log").read_text()


@pytest.mark.parametrize("stop", [terminate, interrupt])
def test_requests_under_way_are_answered_before_it_stops(start: Start, stop: Callable[[GatewayProcess], None]) -> None:
    """Idle connections that clients keep open do not hold it up: the drain would wait longer than this test does."""
    gateway = start(models=only("deepseek", deepseek=ONE_AT_ONCE), drain_timeout="10m")
    with ExitStack() as streaming:
        with gateway.held():
            events = streaming.enter_context(gateway.stream("deepseek", **STORY, max_new_tokens=50))
            gateway.until(lambda: gateway.model("deepseek")["leases"], "the stream to begin")
            waiting = gateway.later(gateway.generate, "deepseek", **PARIS)
            gateway.until(lambda: gateway.model("deepseek")["waiting"], "a second request to wait")
            stop(gateway)
            gateway.until(lambda: "stopping" in gateway.log(), "the gateway to hear of it")
        last = list(events)[-1].data
    assert last["done"] is True and last["usage"]["completion_tokens"] == 50
    assert "Paris" in waiting.result().json()["response"]
    stopped_cleanly(gateway)


def test_new_requests_are_refused_while_it_stops(start: Start) -> None:
    gateway = start(models=only("deepseek"), drain_timeout="10m")
    with gateway.answering(held=True, max_new_tokens=20) as answer:
        gateway.signal(signal.SIGTERM)
        gateway.until(lambda: "stopping" in gateway.log(), "the gateway to hear of it")
        try:
            refused = gateway.generate("deepseek", **PARIS)
        except httpx.TransportError:
            pass  # it no longer listens
        else:
            assert refused.status_code == 503 and "stopping" in refused.json()["details"]
    assert answer.result().json()["usage"]["completion_tokens"] == 20
    stopped_cleanly(gateway)


def test_what_takes_longer_than_the_drain_fails_clearly(start: Start) -> None:
    gateway = start(models=only("deepseek"), drain_timeout="1s")
    with gateway.answering() as answer:
        gateway.signal(signal.SIGTERM)
        failed = answer.result()
    assert failed.status_code == 503 and failed.json()["details"]
    stopped_cleanly(gateway)


def test_a_second_ctrl_c_does_not_wait(start: Start) -> None:
    gateway = start(models=only("deepseek"), drain_timeout="10m")
    with gateway.answering() as answer:
        gateway.interrupt()
        gateway.until(lambda: "stopping" in gateway.log(), "the gateway to hear of it")
        gateway.interrupt()
        failed = answer.result()
    assert failed.status_code == 503 and failed.json()["details"]
    stopped_cleanly(gateway)


def test_stop_during_the_imports(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for them."""
    with no_imports(tmp_path, monkeypatch):
        gateway = start(models=only("deepseek", "reasoner"))
        gateway.signal(signal.SIGTERM)
        stopped_cleanly(gateway)
    assert "before its imports are done" in gateway.log() and "imports done in" not in gateway.log()


@pytest.mark.parametrize("victim", ["server", "parent"])
def test_killed_outright_it_leaves_no_orphan(start: Start, victim: str) -> None:
    gateway = start(models=only("deepseek"))
    gateway.load("deepseek")
    server = gateway.server
    old = {process.pid for process in gateway.processes()}
    if victim == "parent":
        gateway.process.kill()
        gateway.wait()
        assert gateway.gone(), gateway.processes()
        return
    server.kill()
    old.discard(gateway.process.pid)
    gateway.until(lambda: not old & {process.pid for process in gateway.processes()}, "the old processes to go")
    gateway.until(gateway.healthy, "a new server")
    assert "Paris" in gateway.answer("deepseek", **PARIS)["response"]


@pytest.mark.parametrize("stop", [terminate, interrupt])
def test_debug_server(start: Start, stop: Callable[[GatewayProcess], None]) -> None:
    gateway = start("--debug", models=only("deepseek"))
    assert "Paris" in gateway.answer("deepseek", **PARIS)["response"]
    with gateway.stream("deepseek", **PARIS) as events:
        assert list(events)[-1].data["done"] is True
    connection = gateway.later(gateway.generate, "deepseek", **LONG, timeout=1)
    assert connection.result().status_code == 504
    assert " DEBUG " in gateway.log()
    stop(gateway)
    stopped_cleanly(gateway)


def test_python_app_py(start: Start) -> None:
    gateway = start(command=[sys.executable, str(ROOT / "app.py")], models=only("deepseek"), skip_download=True)
    assert "Paris" in gateway.answer("deepseek", **PARIS)["response"]
    gateway.signal(signal.SIGTERM)
    stopped_cleanly(gateway)


def test_gunicorn_app_create_app(start: Start) -> None:
    gunicorn = str(Path(sys.executable).with_name("gunicorn"))
    gateway = start(command=[gunicorn, "app:create_app()"], cwd=ROOT, models=only("deepseek"))
    assert "Paris" in gateway.answer("deepseek", **PARIS)["response"]
    assert len(gateway.server.parent().children()) == 1, "exactly one worker"
    with gateway.answering(max_new_tokens=60) as answer:
        gateway.signal(signal.SIGTERM)
        assert answer.result().json()["usage"]["completion_tokens"] == 60
    stopped_cleanly(gateway)


def test_force_cleanup_at_start(start: Start) -> None:
    gateway = start("--force-cleanup", launch=False, models=only("deepseek"))
    gateway.tmp.mkdir()
    (gateway.tmp / "rubbish").write_text("from last time")
    gateway.start()
    assert gateway.get("/admin/temp_status")["file_count"] == 0
