"""Tests the nginx example: checked by nginx, then run in front of a gateway with TLS, a stream, a stop and a
refusal."""

import json
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.checks import DEPLOY, run
from tests.support.children import free_port
from tests.support.gateway import PARIS, PATIENCE, STORY, GatewayProcess
from tests.support.programs import program
from utils.settings import Settings

EXAMPLE = (DEPLOY / "nginx" / "switchyard.conf").read_text()
_FRAME = """
{user}
daemon off;
worker_processes 1;
pid {home}/nginx.pid;
error_log stderr info;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    include {home}/switchyard.conf;
}}
"""


def replaced(text: str, old: str, new: str) -> str:
    assert old in text, f"{old!r} is not in the example any more"
    return text.replace(old, new)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for this machine."""
    folder = tmp_path_factory.mktemp("nginx")
    run(
        program("openssl", "openssl"),
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        folder / "key.pem",
        "-out",
        folder / "cert.pem",
    )
    return folder


def configure(home: Path, upstream: int) -> tuple[int, int]:
    """Write the example for free ports and this certificate; return the ports of HTTP and HTTPS."""
    plain, secure = free_port(), free_port()
    text = replaced(EXAMPLE, "listen 80;", f"listen 127.0.0.1:{plain};")
    text = replaced(text, "listen 443 ssl", f"listen 127.0.0.1:{secure} ssl")
    text = replaced(text, "server 127.0.0.1:5000;", f"server 127.0.0.1:{upstream};")
    text = replaced(text, "/etc/nginx/tls/switchyard.pem", str(home / "cert.pem"))
    text = replaced(text, "/etc/nginx/tls/switchyard.key", str(home / "key.pem"))
    (home / "switchyard.conf").write_text(text)
    (home / "nginx.conf").write_text(_FRAME.format(home=home, user="" if os.getuid() else "user root;"))
    return plain, secure


@pytest.fixture(scope="module")
def proxy(home: Path, pocket: GatewayProcess) -> Iterator[httpx.Client]:
    """A client of nginx in front of the gateway."""
    _, port = configure(home, pocket.port)
    with (home / "log.txt").open("wb") as log:
        nginx = subprocess.Popen(
            [program("nginx", "nginx"), "-p", home, "-c", home / "nginx.conf"], stdin=subprocess.DEVNULL, stderr=log
        )
    trusting = ssl.create_default_context(cafile=home / "cert.pem")
    try:
        pocket.until(lambda: _listens(port) or nginx.poll() is not None, "nginx to listen")
        assert nginx.poll() is None, (home / "log.txt").read_text()
        with httpx.Client(
            base_url=f"https://localhost:{port}", verify=trusting, timeout=PATIENCE, trust_env=False
        ) as client:
            yield client
    finally:
        nginx.terminate()
        nginx.wait(PATIENCE)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_nginx_accepts_it(home: Path) -> None:
    configure(home, 5000)
    run(program("nginx", "nginx"), "-t", "-q", "-p", home, "-c", home / "nginx.conf")


def test_limits_are_the_gateways() -> None:
    def value(name: str) -> str:
        (found,) = set(re.findall(rf"^\s*{name} (\S+);", EXAMPLE, re.MULTILINE))
        return found

    default = Settings()
    assert int(value("client_max_body_size").removesuffix("m")) * 2**20 > default.max_body
    assert float(value("proxy_read_timeout").removesuffix("s")) >= default.max_timeout
    assert value("proxy_next_upstream") == "off"


def test_answers_come_through(proxy: httpx.Client) -> None:
    assert proxy.get("/health").json()["status"] == "healthy"
    answered = proxy.post("/generate/deepseek", json=PARIS)
    assert "Paris" in answered.json()["response"]
    assert answered.headers["strict-transport-security"]


def test_a_stream_arrives_while_it_is_being_made(proxy: httpx.Client, pocket: GatewayProcess) -> None:
    """The first piece arrives while the model still answers; disconnecting ends the request."""
    with proxy.stream("POST", "/generate/deepseek", json=STORY | {"stream": True, "max_new_tokens": 3500}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        pieces = 0
        while pieces < 3:
            line = next(lines)
            pieces += line.startswith("data:") and bool(json.loads(line.removeprefix("data:")))
        assert pocket.model("deepseek")["leases"] == 1
    pocket.until(lambda: not pocket.model("deepseek")["leases"], "the request of a client that left to end")


def test_a_body_too_large_is_refused_by_the_gateway(proxy: httpx.Client, pocket: GatewayProcess) -> None:
    """The gateway answers itself: its limit is 200 kB, less than nginx's."""
    refused = proxy.post("/generate/deepseek", json={"prompt": "a" * 300_000})
    assert refused.status_code == 413 and refused.json()["error"]
    assert refused.json() == pocket.post("/generate/deepseek", prompt="a" * 300_000).json()


def test_admin_and_figures_are_not_for_the_world(proxy: httpx.Client) -> None:
    for claim in ({}, {"X-Forwarded-For": "127.0.0.1"}, {"Host": "127.0.0.1"}):
        refused = proxy.get("/admin/model_status", headers=claim)
        assert refused.status_code == 403 and "error" in refused.json()
    assert proxy.get("/metrics").status_code == 403


def test_plain_http_is_sent_to_https(home: Path, proxy: httpx.Client) -> None:
    (port,) = re.findall(r"listen 127.0.0.1:(\d+);", (home / "switchyard.conf").read_text())
    moved = httpx.get(
        f"http://127.0.0.1:{port}/health?a=b",
        headers={"Host": "switchyard.example.com"},
        timeout=PATIENCE,
        trust_env=False,
    )
    assert moved.status_code == 308
    assert moved.headers["location"] == "https://switchyard.example.com/health?a=b"
