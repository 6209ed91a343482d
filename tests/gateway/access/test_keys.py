"""API keys: who is let in, to what, and how changes of the keys count in a gateway that runs."""

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from commands.doctor import network
from tests.conftest import Start
from tests.gateway.access.conftest import Keys, administered
from tests.support.gateway import ONE_AT_ONCE, PARIS, PATIENCE, ROOT, STORY, only
from tests.support.live import watching
from utils.settings import Settings

ROUTES = ["/v1/models", "/v1/requests", "/admin/model_status", "/generate/deepseek", "/nothing/here", "/metrics"]


@pytest.fixture(scope="module")
def keys(start_for_module: Start) -> Keys:
    gateway = start_for_module(models=only("deepseek", "reasoner", deepseek=ONE_AT_ONCE), launch=False)
    made = administered(gateway)
    gateway.start()
    return made


@pytest.fixture(scope="module")
def alice(keys: Keys) -> str:
    return keys.create("alice")


# -- who is let in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in ROUTES if path != "/metrics"])
def test_without_a_key(keys: Keys, path: str, both_envelopes: Any) -> None:
    refused = keys.ask(None, "POST" if "generate" in path else "GET", path)
    error = both_envelopes(refused, 401, "Authorization: Bearer")
    assert error["code"] == "invalid_api_key"
    assert refused.headers["www-authenticate"].startswith("Bearer")


def test_health_is_for_everybody_and_says_little(keys: Keys, alice: str) -> None:
    assert keys.ask(None, "GET", "/health").json() == {"status": "healthy"}
    assert keys.ask(None, "GET", "/health/ready").status_code == 200
    assert keys.ask(alice, "GET", "/health").json()["vlm_config"]
    told = network.find_port(Settings(host="127.0.0.1", port=keys.gateway.port))
    assert told.status == "ok" and "running Switchyard" in told.says, "the doctor knows it by that little"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: token[:-1] + ("a" if token[-1] != "a" else "b"),
        lambda token: token[:-1],
        lambda token: token + "a",
        lambda token: token.upper(),
        lambda token: "none",
        lambda token: "é" * 30,
        lambda token: "sy-000000000000-" + token[-43:],
        lambda token: token.partition("-")[2],
    ],
)
def test_a_wrong_key(keys: Keys, alice: str, spoil: Any, both_envelopes: Any) -> None:
    wrong = spoil(alice).encode("latin-1")
    for headers in ({b"Authorization": b"Bearer " + wrong}, {b"X-API-Key": wrong, b"Authorization": b""}):
        refused = keys.gateway.client.get("/v1/models", headers=headers)
        both_envelopes(refused, 401, "unknown, revoked or expired")
        assert 'error="invalid_token"' in refused.headers["www-authenticate"]


def test_either_header_will_do(keys: Keys, alice: str) -> None:
    for headers in (
        {"Authorization": f"Bearer {alice}"},
        {"Authorization": f"bearer  {alice}"},
        {"Authorization": "", "X-API-Key": alice},
        {"Authorization": "Bearer none", "X-API-Key": alice},
        {"Authorization": "Basic bm9ib2R5", "X-API-Key": alice},
    ):
        assert keys.gateway.client.get("/v1/models", headers=headers).status_code == 200, headers


def test_openai_s_client(keys: Keys, alice: str) -> None:
    url = f"{keys.gateway.url}/v1"
    with pytest.raises(openai.AuthenticationError) as caught, openai.OpenAI(base_url=url, api_key="none") as client:
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=url, api_key=alice) as client:
        question: Any = [{"role": "user", "content": PARIS["prompt"]}]
        answer = client.chat.completions.create(model="deepseek", messages=question)
        assert "Paris" in str(answer.choices[0].message.content)


def test_a_body_without_a_key_is_not_read(keys: Keys) -> None:
    head = b"POST /generate/deepseek HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    with keys.gateway.raw(head) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 401")


def test_admin_wants_the_role_admin(keys: Keys, alice: str, both_envelopes: Any) -> None:
    for path in ("/admin/model_status", "/admin/usage"):
        both_envelopes(keys.ask(alice, "GET", path), 403, "alice", "admin")
    assert keys.ask(alice, "POST", "/admin/models/deepseek/unload").status_code == 403
    foreign = {"Origin": "https://elsewhere.example", "X-Forwarded-For": "203.0.113.7"}
    assert keys.gateway.client.get("/admin/model_status", headers=foreign).status_code == 200, "the key speaks for it"


def test_metrics_are_not_for_strangers(keys: Keys, alice: str) -> None:
    """Whether or not there is such a route: this machine and keys of any role get past the door."""
    stranger = {"X-Forwarded-For": "203.0.113.7"}
    assert keys.ask(None, "GET", "/metrics", headers=stranger).status_code == 401
    assert keys.ask(None, "GET", "/metrics").status_code in (200, 404)
    assert keys.ask(alice, "GET", "/metrics", headers=stranger).status_code in (200, 404)


# -- what a key may do -------------------------------------------------------------------------------------------------


def test_allowed_models(keys: Keys, both_envelopes: Any) -> None:
    token = keys.create("narrow", "--models", "deepseek")
    listed = keys.ask(token, "GET", "/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["deepseek"]
    both_envelopes(keys.ask(token, "GET", "/v1/models/reasoner"), 403, "reasoner")
    both_envelopes(keys.answer(token, "reasoner"), 403, "narrow", "reasoner")
    chat = {"model": "reasoner", "messages": [{"role": "user", "content": "Hello"}]}
    error = both_envelopes(keys.ask(token, "POST", "/v1/chat/completions", json=chat), 403, "narrow", "reasoner")
    assert error["param"] == "model" and error["code"] == "model_not_allowed"
    both_envelopes(keys.ask(token, "POST", "/v1/completions", json={"model": "reasoner", "prompt": "x"}), 403)
    assert keys.gateway.model("reasoner")["state"] == "cold", "nothing was loaded for it"
    assert keys.answer(token).json()["model"] == "deepseek"
    keys.done("change", "narrow", "--models", "none")
    assert len(keys.ask(token, "GET", "/v1/models").json()["data"]) == 2


def test_requests_of_others(keys: Keys, alice: str) -> None:
    bob = keys.create("bob")
    body = STORY | {"max_new_tokens": 3500}
    asked = keys.gateway.later(lambda: keys.ask(alice, "POST", "/generate/deepseek", json=body))

    def listed(token: str) -> list[dict[str, Any]]:
        return list(keys.ask(token, "GET", "/v1/requests").json()["data"])

    (mine,) = keys.gateway.until(lambda: listed(alice), "the request to be listed")
    assert listed(bob) == []
    assert [one["id"] for one in keys.gateway.get("/v1/requests")["data"]] == [mine["id"]], "an admin sees all"
    assert keys.ask(bob, "DELETE", f"/v1/requests/{mine['id']}").status_code == 404
    assert not asked.done()
    same = keys.gateway.later(
        lambda: keys.ask(bob, "POST", "/generate/deepseek", json=body, headers={"X-Request-ID": mine["id"]})
    )
    keys.gateway.until(lambda: listed(bob), "the request of the same id to be listed")
    assert keys.ask(alice, "DELETE", f"/v1/requests/{mine['id']}").json()["cancelled"]
    assert asked.result().status_code == 499
    assert listed(bob) and not same.done(), "only her own"
    assert keys.ask(bob, "DELETE", f"/v1/requests/{mine['id']}").json()["cancelled"]
    assert same.result().status_code == 499


def test_what_a_page_is_told_is_what_its_key_may_see(keys: Keys) -> None:
    assert keys.ask(None, "GET", "/ui/live").status_code == 401
    token = keys.create("watcher", "--models", "reasoner")
    assert keys.answer(token, "reasoner").status_code == 200
    with (
        keys.gateway.answering(max_new_tokens=3500) as others,
        watching(keys.gateway) as root,
        watching(keys.gateway, token) as page,
    ):
        state = page.state()
        assert state["role"] == "user" and state["requests"] == []
        assert [model["name"] for model in state["models"]] == ["reasoner"]
        assert state["models"][0]["pid"] is None and state["models"][0]["replicas"][0]["pid"] is None
        assert root.model("reasoner")["pid"] > 0
        assert state["slots"][0]["models"] == ["reasoner"] and len(root.state()["slots"][0]["models"]) == 2
        (request,) = root.state()["requests"]
        assert root.state()["role"] == "admin" and request["key"] == "root"
        assert keys.gateway.post("/admin/models/deepseek/pin", pinned=True).status_code == 200
        assert keys.gateway.post("/admin/models/deepseek/pin", pinned=False).status_code == 200
        assert keys.gateway.post("/admin/models/reasoner/pin", pinned=True).status_code == 200
        root.entry("pinned", "deepseek", root.last() - 5)
        pinned = page.entry("pinned", "reasoner")["id"]
        assert [int(one.partition("-")[2]) for one in page.told[-3:]] == [pinned - 2, pinned - 1, pinned], "how far"
        assert {entry["model"] for entry in page.of("journal")} <= {"reasoner", None}
        assert keys.ask(token, "POST", "/admin/models/reasoner/pin", json={"pinned": False}).status_code == 403
        keys.done("change", "watcher", "--models", "none")
        assert page.ended.wait(PATIENCE), "what it may see has changed: it is to ask again"
        with watching(keys.gateway, token) as again:
            assert len(again.state()["models"]) == 2 and again.state()["requests"] == []
            keys.done("revoke", "watcher")
            assert again.ended.wait(PATIENCE)
        assert keys.ask(token, "GET", "/ui/live").status_code == 401
        assert not root.ended.is_set()
        keys.gateway.client.delete(f"/v1/requests/{request['id']}")
        assert others.result().status_code == 499
    keys.gateway.unload("reasoner")


def test_the_commands_that_ask(keys: Keys, alice: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello", "max_new_tokens": 4}\n')
    place = ["--url", keys.gateway.url]
    batch = [
        "batch",
        *place,
        "--model",
        "deepseek",
        "--input",
        str(tmp_path / "prompts.jsonl"),
        "--output",
        str(tmp_path / "results.jsonl"),
    ]
    for command in (["chat", *place, "deepseek", PARIS["prompt"]], batch):
        for key, status in (("", 1), (alice, 0)):
            ran = subprocess.run(
                [sys.executable, str(ROOT / "main.py"), *command],
                capture_output=True,
                text=True,
                env=keys.gateway.environment | {"SWITCHYARD_API_KEY": key},
                timeout=120,
            )
            assert ran.returncode == status, ran.stderr + ran.stdout
            assert status == 0 or "API key" in ran.stderr + ran.stdout
    assert json.loads((tmp_path / "results.jsonl").read_text())["response"]


# -- changes while it runs ---------------------------------------------------------------------------------------------


def test_changes_count_at_once(keys: Keys) -> None:
    first = keys.create("changing")
    assert keys.ask(first, "GET", "/v1/models").status_code == 200
    second = keys.done("rotate", "changing")["key"]
    assert keys.ask(first, "GET", "/v1/models").status_code == 401
    assert keys.ask(second, "GET", "/v1/models").status_code == 200
    keys.done("change", "changing", "--role", "admin")
    assert keys.ask(second, "GET", "/admin/model_status").status_code == 200
    keys.done("revoke", "changing")
    assert keys.ask(second, "GET", "/v1/models").status_code == 401


def test_a_key_expires(keys: Keys) -> None:
    token = keys.create("brief", "--expires", "2s")
    keys.gateway.until(lambda: keys.ask(token, "GET", "/v1/models").status_code == 401, "the key to expire")


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_a_key_revoked_while_its_request_waits(keys: Keys, stream: bool) -> None:
    name = f"waiting-{stream}"
    token = keys.create(name)
    with keys.gateway.answering() as first:
        asked = keys.gateway.later(lambda: keys.answer(token, "deepseek", stream=stream))
        keys.gateway.until(lambda: keys.gateway.model("deepseek")["waiting"], "the request to wait")
        keys.done("revoke", name)
        refused = asked.result()
        assert not first.done(), "it was refused before its turn"
        for request in keys.gateway.get("/v1/requests")["data"]:
            keys.gateway.client.delete(f"/v1/requests/{request['id']}")
    if stream:
        [told] = [json.loads(line[6:]) for line in refused.text.splitlines() if line.startswith('data: {"error"')]
        assert "event: error" in refused.text and told["status"] == 401
    else:
        assert refused.status_code == 401
    assert "revoked" in refused.text and '"response"' not in refused.text


def test_a_damaged_file_opens_no_door(keys: Keys, alice: str) -> None:
    file = keys.gateway.home / "data" / "keys.json"
    sound = file.read_text()
    for broken in ("{", '{"keys": [{"name": "x"}]}', ""):
        file.write_text(broken)
        assert keys.ask(alice, "GET", "/v1/models").status_code == 200
        assert keys.ask(None, "GET", "/v1/models").status_code == 401
    file.unlink()
    assert keys.ask(None, "GET", "/v1/models").status_code == 401
    keys.gateway.logged("stay in force")
    file.write_text(sound)
    file.chmod(0o600)
    assert keys.ask(alice, "GET", "/v1/models").status_code == 200


def test_a_first_key_closes_the_door_of_a_gateway_that_runs(start: Start) -> None:
    gateway = start(models=only("deepseek"))
    made = Keys(gateway)
    assert made.ask(None, "GET", "/v1/models").status_code == 200
    with watching(gateway) as page:
        page.first("state")
        gateway.client.headers["Authorization"] = f"Bearer {made.create('first', '--role', 'admin')}"
        assert page.ended.wait(PATIENCE), "it was let in without a key"
    assert made.ask(None, "GET", "/v1/models").status_code == 401
    made.done("revoke", "first")
    assert made.ask(None, "GET", "/v1/models").status_code == 401, "a revoked key does not open it again"
    gateway.client.headers["Authorization"] = f"Bearer {made.create('second', '--role', 'admin')}"


# -- the command line and the file -------------------------------------------------------------------------------------


def test_what_is_kept(keys: Keys, alice: str) -> None:
    folder = keys.gateway.home / "data"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # what SQLite keeps beside a file only while it writes
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    kept = (folder / "keys.json").read_text()
    _, listed, _ = keys.run("list", "--json")
    _, table, _ = keys.run("list")
    assert "alice" in {key["name"] for key in json.loads(listed)} and "alice" in table
    for text in (kept, listed, table):
        assert not [token for token in keys.tokens if token in text or token[-43:] in text]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "root"], ["root", "already"]),
        (["create", "a b"], ["name"]),
        (["create", "-x"], []),
        (["create", "x", "--models", "gpt-9"], ["gpt-9", "deepseek"]),
        (["create", "x", "--models", ","], ["--models"]),
        (["create", "x", "--tokens-per-day", "many"], ["--tokens-per-day"]),
        (["create", "x", "--tokens-per-day", "0"], ["tokens per day"]),
        (["create", "x", "--rate", "often"], ["often"]),
        (["create", "x", "--expires", "2020-01-01"], ["over"]),
        (["create", "x", "--expires", "soon"], ["soon"]),
        (["revoke", "nobody"], ["nobody", "root"]),
        (["remove", "root"], ["revoke it first"]),
        (["frob"], []),
        ([], []),
    ],
)
def test_mistakes_are_told_in_a_line(keys: Keys, arguments: list[str], words: list[str]) -> None:
    before = (keys.gateway.home / "data" / "keys.json").read_bytes()
    status, output, errors = keys.run(*arguments)
    assert status == 2 and output == ""
    assert all(word in errors for word in words), errors
    assert not words or errors.count("\n") == 1
    assert (keys.gateway.home / "data" / "keys.json").read_bytes() == before


def test_keys_made_at_the_same_time(keys: Keys) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(keys.run_apart, *zip(*(("create", f"many{number}") for number in range(4)), strict=True)))
    assert [ran.returncode for ran in made] == [0] * 4, made
    tokens = {ran.stdout.strip() for ran in made}
    assert len(tokens) == 4 and "shown this once" in made[0].stderr
    for token in tokens:
        assert keys.ask(token, "GET", "/v1/models").status_code == 200


def test_a_damaged_file_stops_a_start_in_one_line(start: Start) -> None:
    gateway = start(models=only("deepseek"), launch=False)
    (gateway.home / "data").mkdir()
    (gateway.home / "data" / "keys.json").write_text('{"keys": 7}')
    assert gateway.launch().wait() == 2
    assert "keys.json" in gateway.log() and "Traceback" not in gateway.log()


def test_no_key_is_in_any_log(keys: Keys, alice: str) -> None:
    keys.ask(alice, "GET", "/v1/models")
    keys.ask(alice[:-1] + "_", "GET", "/v1/models")
    text = keys.gateway.log_so_far() + (keys.gateway.home / "logs" / "main.log").read_text()
    assert "/v1/models" in text
    assert not [token for token in keys.tokens if token[-43:-1] in text]
    assert "Traceback" not in text and os.path.exists(keys.gateway.home / "data" / "usage.db")
