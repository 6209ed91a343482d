"""Rates in Redis and in memory, requests at once, whose address counts, and web pages of other origins."""

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.conftest import Start
from tests.gateway.access.conftest import Keys, administered
from tests.support.children import free_port
from tests.support.gateway import PATIENCE, ROOT, STORY, GatewayProcess, only
from tests.support.programs import program

ORIGIN = "https://chat.example.org"
PER_ADDRESS = 20


class RedisServer:
    """A real redis-server on a free port, which keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        found = program("redis-server", "redis-server")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis(port=self.port)
        self._command = [found, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while True:
            with suppress(redis.ConnectionError):
                self.client.ping()
                return
            assert self._process.poll() is None and time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)
            self._process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    redis_server = RedisServer(tmp_path_factory.mktemp("redis"))
    redis_server.start()
    yield redis_server
    redis_server.client.close()
    redis_server.stop()


def everywhere(gateway: GatewayProcess) -> None:
    """Let each of the gateway's own questions come from an address of its own, where it names none."""

    def name(request: httpx.Request) -> None:
        request.headers.setdefault("X-Forwarded-For", f"2001:db8:{uuid.uuid4().hex[:4]}:{uuid.uuid4().hex[:4]}::1")

    gateway.client.event_hooks = {"request": [name]}


@pytest.fixture(scope="module")
def keys(start_for_module: Start, server: RedisServer) -> Keys:
    gateway = start_for_module(
        models=only("deepseek"),
        launch=False,
        rate_storage=server.url,
        rate_per_key="4/hour",
        rate_per_address=f"{PER_ADDRESS}/hour",
        trusted_proxies="127.0.0.0/8",
        cors_origins=ORIGIN,
    )
    made = administered(gateway)
    made.done("change", "root", "--rate", "1000000/hour")
    everywhere(gateway)
    gateway.start()
    return made


def listing(keys: Keys, token: str | None, address: str | None = None) -> httpx.Response:
    return keys.ask(token, "GET", "/v1/models", headers={"X-Forwarded-For": address} if address else {})


def limited(response: httpx.Response, *words: str) -> None:
    assert response.status_code == 429, response.text
    assert 0 < int(response.headers["retry-after"]) <= 3600
    assert response.headers["x-ratelimit-remaining"] == "0"
    error = response.json()["error"]
    assert error["code"] == "rate_limit_exceeded" and error["type"] == "rate_limit_error"
    assert all(word in error["message"] for word in words), error


def test_rate_of_a_key(keys: Keys, server: RedisServer) -> None:
    token, other = keys.create("often"), keys.create("other")
    answers = [listing(keys, token) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["3", "2", "1", "0"]
    assert {answer.headers["x-ratelimit-limit"] for answer in answers} == {"4"}
    assert "retry-after" not in answers[0].headers
    limited(listing(keys, token), "often", "4 per 1 hour")
    assert listing(keys, other).status_code == 200
    kept = [name.decode() for name in server.client.keys("*")]
    assert any("switchyard" in name for name in kept)
    assert not [name for name in kept for token in keys.tokens if token[-43:] in name]


def test_a_key_s_own_rate(keys: Keys) -> None:
    token = keys.create("slow", "--rate", "1/hour")
    assert listing(keys, token).status_code == 200
    limited(listing(keys, token), "slow", "1 per 1 hour")
    keys.done("change", "slow", "--rate", "100/hour")
    assert listing(keys, token).status_code == 200


def test_rate_of_an_address_counts_what_is_refused(keys: Keys) -> None:
    """Whoever tries keys is slowed down too; what stands before the proxy's own word is the client's invention."""
    spoofed = [f"198.51.100.{n}, 203.0.113.5" for n in range(PER_ADDRESS)]
    assert [listing(keys, "sy-none", address).status_code for address in spoofed] == [401] * PER_ADDRESS
    limited(listing(keys, "sy-none", "203.0.113.5"), "one address")
    assert listing(keys, "sy-none", "203.0.113.6").status_code == 401
    assert listing(keys, "sy-none", "203.0.113.5, 127.0.0.9").status_code == 429, "a second trusted proxy"
    assert keys.gateway.client.get("/health", headers={"X-Forwarded-For": "203.0.113.5"}).status_code == 200
    assert keys.gateway.client.get("/openapi.json", headers={"X-Forwarded-For": "203.0.113.5"}).status_code == 429
    network = [listing(keys, "sy-none", f"2001:db8:5:5::{n + 1}") for n in range(PER_ADDRESS + 1)]
    assert [answer.status_code for answer in network] == [401] * PER_ADDRESS + [429]


def test_looking_at_the_dashboard_takes_nothing_of_the_rate(keys: Keys) -> None:
    token = keys.create("viewer")
    said = {"X-Forwarded-For": "203.0.113.77", "Sec-Fetch-Site": "same-origin"}
    with httpx.Client(base_url=keys.gateway.url, headers=said, trust_env=False, timeout=60) as browser:
        assert browser.post("/ui/login", data={"key": token}).status_code == 303
        pages = [browser.get(path).status_code for path in ("/ui/", "/ui/live?probe") for _ in range(PER_ADDRESS)]
        assert pages == [200] * PER_ADDRESS + [204] * PER_ADDRESS
        assert browser.get("/v1/models").headers["x-ratelimit-remaining"] == "3", "this is use of the API"


def test_requests_at_once(keys: Keys) -> None:
    token, other = (keys.create(name, "--concurrent", "1", "--rate", "1000/hour") for name in ("single", "double"))
    body = STORY | {"max_new_tokens": 3500, "stream": True}
    ask = {"json": {"prompt": "Hello", "max_new_tokens": 1}}
    with keys.gateway.client.stream(
        "POST", "/generate/deepseek", json=body, headers={"Authorization": f"Bearer {token}"}
    ) as stream:
        assert any('"response"' in line for line in stream.iter_lines())
        refused = keys.ask(token, "POST", "/generate/deepseek", **ask)
        assert refused.status_code == 429 and "1 requests under way" in refused.json()["details"]
        assert refused.headers["retry-after"]
        assert keys.ask(token, "GET", "/v1/models").status_code == 200
        assert keys.ask(other, "POST", "/generate/deepseek", **ask).status_code == 200
    keys.gateway.until(lambda: keys.ask(token, "POST", "/generate/deepseek", **ask).status_code == 200, "its place")
    assert keys.ask(token, "POST", "/generate/deepseek", json={}).status_code == 400
    assert keys.ask(token, "POST", "/generate/deepseek", **ask).status_code == 200, "what is refused holds no place"


def test_a_whole_answer_holds_no_place_while_it_is_sent(tmp_path: Path) -> None:
    """Whoever has read it may ask again before its response is closed, which here it never is."""
    folders = {f"{name}_dir": str(tmp_path / name) for name in ("models", "logs", "tmp", "data")}
    program = (
        "from app import create_app\n"
        "from utils.settings import Settings\n"
        f"app = create_app(Settings(profile='pocket', concurrent_per_address=1, **{folders}))\n"
        "kept = [app.test_client().post('/generate/deepseek', json={}) for _ in range(3)]\n"
        "print([one.status_code for one in kept])\n"
        "app.extensions['switchyard'].stop()\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "[400, 400, 400]"


# -- web pages ---------------------------------------------------------------------------------------------------------


def preflight(gateway: GatewayProcess, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Authorization": "",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    return gateway.client.options("/v1/chat/completions", headers=headers)


def test_pages_of_the_named_origin(keys: Keys) -> None:
    asked = preflight(keys.gateway, ORIGIN)
    assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == ORIGIN
    allowed = set(asked.headers["access-control-allow-headers"].lower().split(", "))
    assert {"authorization", "content-type", "x-stainless-lang"} <= allowed
    answer = keys.ask(keys.tokens[0], "GET", "/v1/models", headers={"Origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert {"x-should-retry", "x-request-id"} <= set(
        answer.headers["access-control-expose-headers"].lower().split(", ")
    )
    assert "access-control-allow-credentials" not in answer.headers
    refused = keys.ask(None, "GET", "/v1/models", headers={"Origin": ORIGIN})
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize(
    "origin", ["https://elsewhere.example", f"{ORIGIN}.evil.example", "null", "http://chat.example.org"]
)
def test_pages_of_other_origins(keys: Keys, origin: str) -> None:
    assert "access-control-allow-origin" not in preflight(keys.gateway, origin).headers
    answer = keys.ask(keys.tokens[0], "GET", "/v1/models", headers={"Origin": origin})
    assert "access-control-allow-origin" not in answer.headers


def test_without_the_setting_no_origin(pocket: GatewayProcess) -> None:
    assert "access-control-allow-origin" not in preflight(pocket, ORIGIN).headers
    assert "access-control-allow-origin" not in pocket.client.get("/v1/models", headers={"Origin": ORIGIN}).headers


def test_whoever_is_no_trusted_proxy_speaks_for_itself(pocket: GatewayProcess) -> None:
    pocket.client.get("/v1/models", headers={"X-Forwarded-For": "203.0.113.77"})
    assert "203.0.113.77" not in pocket.log()


# -- Redis gone --------------------------------------------------------------------------------------------------------


def test_redis_gone_and_back(keys: Keys, server: RedisServer) -> None:
    token = keys.create("steady")
    assert listing(keys, token).status_code == 200
    server.stop()
    answers = [listing(keys, token) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 4 + [429], "counted in memory"
    assert answers[3].headers["x-ratelimit-remaining"] == "0"
    keys.gateway.logged("falling back to in-memory")
    server.start()
    keys.gateway.until(lambda: keys.gateway.get("/v1/models") and server.client.keys("*"), "Redis to be used again")


@pytest.mark.parametrize(("lost", "status"), [("refuse", 503), ("allow", 200)])
def test_without_redis(start: Start, lost: str, status: int) -> None:
    gateway = start(
        models=only("deepseek"),
        rate_storage=f"redis://127.0.0.1:{free_port()}/0",
        rate_storage_lost=lost,
        rate_per_address="1/hour",
        launch=False,
    )
    gateway.launch()
    gateway.until(gateway.healthy, "the gateway to be healthy")
    answers: list[Any] = [gateway.client.get(path) for path in ("/v1/models", "/v1/models")]
    assert [answer.status_code for answer in answers] == [status] * 2
    if status == 503:
        assert "retry-after" in answers[0].headers and "rates" in answers[0].json()["error"]["message"]
    gateway.stop()
    assert "Traceback" not in gateway.log() and "storage does not answer" in gateway.log()
