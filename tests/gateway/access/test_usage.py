"""Quotas, and what was used by whom: counted for every way an answer can end, kept over a restart."""

import csv
import io
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway.access.keys import Key
from gateway.access.quotas import InsufficientQuota, Quotas
from gateway.access.usage import UsageLog, Used
from tests.conftest import Start
from tests.gateway.access.conftest import Keys, administered
from tests.support.gateway import STORY, GatewayProcess, only


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def keys(start_for_module: Start, data: Path) -> Keys:
    gateway = start_for_module(models=only("deepseek"), data_dir=data, launch=False)
    made = administered(gateway)
    gateway.start()
    return made


@pytest.fixture(autouse=True)
def the_day_does_not_end() -> None:
    """What is counted by day and month is asked in one of each."""
    if (left := 86400 - time.time() % 86400) < 120:
        time.sleep(left)


def used(gateway: GatewayProcess, key: str, **parameters: str) -> list[dict[str, Any]]:
    response = gateway.client.get("/admin/usage", params={"key": key} | parameters)
    assert response.status_code == 200, response.text
    return list(response.json()["data"])


def counted(gateway: GatewayProcess, key: str, requests: int) -> list[dict[str, Any]]:
    """Return a key's records once there are so many: one is written when its response is closed."""
    gateway.until(lambda: len(used(gateway, key, records="true")) >= requests, "its records")
    return used(gateway, key, records="true")


def test_every_surface_is_counted(keys: Keys) -> None:
    token = keys.create("counted")
    whole = keys.ask(
        token,
        "POST",
        "/generate/deepseek",
        json={"prompt": "Hello", "max_new_tokens": 4},
        headers={"X-Request-ID": "my-own"},
    ).json()["usage"]
    streamed = keys.answer(token, stream=True).text
    last = json.loads(streamed.strip().splitlines()[-1].removeprefix("data: "))["usage"]
    with openai.OpenAI(base_url=f"{keys.gateway.url}/v1", api_key=token) as client:
        chat = client.chat.completions.create(
            model="deepseek", max_tokens=4, messages=[{"role": "user", "content": "Hello"}]
        )
        texts = client.completions.create(model="deepseek", prompt=["1 + 1", "2 + 2"], max_tokens=4)
    records = counted(keys.gateway, "counted", 4)
    assert chat.usage is not None and texts.usage is not None
    assert [(record["route"], record["prompt_tokens"], record["completion_tokens"]) for record in records] == [
        ("/v1/completions", texts.usage.prompt_tokens, texts.usage.completion_tokens),
        ("/v1/chat/completions", chat.usage.prompt_tokens, chat.usage.completion_tokens),
        ("/generate/<model>", last["prompt_tokens"], last["completion_tokens"]),
        ("/generate/<model>", whole["prompt_tokens"], whole["completion_tokens"]),
    ]
    assert {(record["model"], record["status"], record["key"]) for record in records} == {("deepseek", 200, "counted")}
    assert records[-1]["request_id"] == "my-own", "as the header and the log have it"
    (total,) = used(keys.gateway, "counted")
    assert (total["requests"], total["failed"]) == (4, 0)
    assert total["prompt_tokens"] == sum(record["prompt_tokens"] for record in records)
    standing = keys.gateway.get("/admin/usage")["keys"]["counted"]
    assert standing["requests_today"] == 4
    assert standing["tokens_this_month"] == total["prompt_tokens"] + total["completion_tokens"]


def test_a_client_that_leaves_pays_for_what_it_got(keys: Keys) -> None:
    token = keys.create("leaves")
    body = STORY | {"max_new_tokens": 3500, "stream": True}
    headers = {"Authorization": f"Bearer {token}"}
    with keys.gateway.client.stream("POST", "/generate/deepseek", json=body, headers=headers) as response:
        assert any('"response"' in line for line in response.iter_lines())
    (record,) = counted(keys.gateway, "leaves", 1)
    assert record["status"] == 499 and record["completion_tokens"] > 0 and record["prompt_tokens"] > 0


def test_what_is_refused_is_not_counted(keys: Keys) -> None:
    token = keys.create("refused", "--requests-per-day", "1")
    for _ in range(2):
        assert keys.answer(token, temperature=7).status_code == 400
        assert keys.answer(token, "gpt-9").status_code == 404
        assert keys.answer(token, image="aGVsbG8=").status_code == 400
    assert keys.answer(token).status_code == 200
    assert len(counted(keys.gateway, "refused", 1)) == 1


def quota_is_used_up(refused: httpx.Response) -> str:
    assert refused.status_code == 429, refused.text
    assert 0 < int(refused.headers["retry-after"]) <= 32 * 86400
    body = refused.json()
    error = body["error"] if isinstance(body["error"], dict) else body
    assert error["type"] == error["code"] == "insufficient_quota"
    return str(error.get("message") or error["details"])


def test_quota_of_requests(keys: Keys) -> None:
    token = keys.create("few", "--requests-per-day", "2")
    assert [keys.answer(token).status_code for _ in range(2)] == [200, 200]
    assert "2 requests per day" in quota_is_used_up(keys.answer(token))
    with openai.OpenAI(base_url=f"{keys.gateway.url}/v1", api_key=token, max_retries=5) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="deepseek", prompt="1 + 1")
    assert caught.value.code == "insufficient_quota"
    assert caught.value.response.headers["x-should-retry"] == "false"
    asked = [line for line in keys.gateway.log_so_far().splitlines() if "POST /v1/completions 429" in line]
    assert len(asked) == 1, "the client is told not to try again"
    assert keys.ask(token, "GET", "/v1/models").status_code == 200
    keys.done("change", "few", "--requests-per-day", "3")
    assert keys.answer(token).status_code == 200


def test_quota_of_tokens_outlives_a_restart(keys: Keys, data: Path, start: Start) -> None:
    token = keys.create("thrifty", "--tokens-per-month", "10")
    assert keys.answer(token).status_code == 200, "what is begun within the quota is finished"
    assert "10 tokens per month" in quota_is_used_up(keys.answer(token))
    chat = {"model": "deepseek", "messages": [{"role": "user", "content": "Hello"}]}
    quota_is_used_up(keys.ask(token, "POST", "/v1/chat/completions", json=chat))
    before = counted(keys.gateway, "thrifty", 1)
    again = start(models=only("deepseek"), data_dir=data, launch=False)
    again.client.headers = keys.gateway.client.headers
    again.start()
    quota_is_used_up(
        again.client.post("/generate/deepseek", json={"prompt": "Hello"}, headers={"Authorization": f"Bearer {token}"})
    )
    assert used(again, "thrifty", records="true") == before


def test_filters_and_csv(keys: Keys) -> None:
    token = keys.create("tabled")
    keys.answer(token)
    keys.answer(token)
    counted(keys.gateway, "tabled", 2)
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    for parameters, there in (
        ({"model": "deepseek"}, True),
        ({"model": "other"}, False),
        ({"day": "2020-01-01"}, False),
        ({"since": "2020-01-01"}, True),
        ({"until": "2020-01-01"}, False),
        ({"since": "2020-01-01", "until": today}, True),
    ):
        assert bool(used(keys.gateway, "tabled", **parameters)) is there, parameters
    assert len(used(keys.gateway, "tabled", records="true", limit="1")) == 1
    for asked in (
        {"params": {"key": "tabled", "format": "csv"}},
        {"params": {"key": "tabled"}, "headers": {"Accept": "text/csv"}},
    ):
        response = keys.gateway.client.get("/admin/usage", **asked)  # type: ignore[arg-type]
        assert response.headers["content-type"].startswith("text/csv")
        (row,) = csv.DictReader(io.StringIO(response.text))
        assert (row["key"], row["model"], row["requests"]) == ("tabled", "deepseek", "2")
    nobody = keys.gateway.client.get("/admin/usage", params={"key": "nobody", "format": "csv", "records": "true"})
    assert nobody.text.startswith("at,day,key,model,route,status,") and nobody.text.count("\n") == 1


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"day": "today"}, "day"),
        ({"since": "2020-1-1"}, "since"),
        ({"until": "2020-01-01\n"}, "must look like 2026-01-31"),
        ({"model": ["deepseek", "reasoner"]}, "'model' comes twice"),
        ({"kye": "x"}, "kye"),
        ({"format": "xml"}, "format"),
        ({"records": "yes"}, "records"),
        ({"limit": "0"}, "limit"),
        ({"records": "true", "limit": "0"}, "limit"),
        ({"records": "true", "limit": "9" * 400}, "limit"),
    ],
)
def test_wrong_parameters_are_named(keys: Keys, parameters: dict[str, Any], word: str) -> None:
    response = keys.gateway.client.get("/admin/usage", params=parameters)
    assert response.status_code == 400 and word in response.json()["details"]


# -- without a gateway -------------------------------------------------------------------------------------------------


def key(**limits: int) -> Key:
    return Key(id="0" * 12, name="some", digest="0" * 64, created=0, **limits)


def moment(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_days_and_months_end_in_utc() -> None:
    quotas, mine = Quotas(), key(requests_per_day=1, requests_per_month=2)
    quotas.take(mine, moment("2028-02-28T23:59:00"))
    with pytest.raises(InsufficientQuota) as caught:
        quotas.take(mine, moment("2028-02-28T23:59:30"))
    assert caught.value.retry_after == 30
    quotas.take(mine, moment("2028-02-29T00:00:00"))
    with pytest.raises(InsufficientQuota, match="per day"):
        quotas.check(mine, moment("2028-02-29T12:00:00"))
    quotas = Quotas([(mine.id, "2028-12-01", 2, 0)])
    with pytest.raises(InsufficientQuota, match="per month") as caught:
        quotas.check(mine, moment("2028-12-31T23:00:00"))
    assert caught.value.retry_after == 3600
    quotas.check(mine, moment("2029-01-01T00:00:00"))


def test_a_request_given_back_leaves_the_quota_as_it_was() -> None:
    quotas, mine = Quotas(), key(requests_per_day=1)
    quotas.take(mine, 1000.0)
    quotas.give_back(mine, 1000.0)
    quotas.take(mine, 1000.0)
    assert quotas.used(mine, 1000.0)["requests_today"] == 1


def _used(at: float, request_id: str) -> Used:
    day = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
    return Used(at, day, None, None, "m", "/generate/<model>", 200, 1, 2, 0.5, request_id)


def test_old_records_are_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "usage.db"
    now = time.time()
    log = UsageLog(file, retention=1e9)
    log.add_record(_used(now - 50 * 86400, "old"))
    log.add_record(_used(now, "new"))
    log.close()
    log.close()
    again = UsageLog(file, retention=40 * 86400)
    try:
        again.add_record(_used(now, "newer"))
        assert {record["request_id"] for record in again.records({}, 10)} == {"new", "newer"}
        assert again.sums({"key": ""})[0]["requests"] == 2
    finally:
        again.close()


def test_records_that_cannot_be_written_stop_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = UsageLog(tmp_path / "usage.db", retention=1e9)
    (tmp_path / "usage.db").unlink()
    (tmp_path / "usage.db").mkdir()
    log.add_record(_used(time.time(), "lost"))
    log.flush()
    log.close()
    assert "1 records of usage are lost" in caplog.text
