"""Requests that cannot be honoured: the right status, ``error`` and ``details`` that name what is wrong."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Start
from tests.support.gateway import ONE_AT_ONCE, PARIS, STORY, SUM, GatewayProcess, only


def refused(response: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    """Hold a response to being an error of this status whose details have all these words."""
    assert response.status_code == status, response.text
    body = response.json()
    assert isinstance(body["error"], str) and body["error"]
    assert isinstance(body["details"], str)
    for word in words:
        assert word in body["details"], body
    return body


def test_unknown_model_names_the_known_ones(pocket: GatewayProcess) -> None:
    refused(pocket.generate("gpt-9", prompt="Hello"), 404, "gpt-9", "deepseek", "reasoner")


def test_no_body(pocket: GatewayProcess) -> None:
    refused(pocket.client.post("/generate/deepseek"), 400, "no body", "prompt")
    refused(pocket.client.post("/generate/deepseek", content=b"  "), 400, "no body")


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "Hello"',
        b"Hello",
        b"\xff\xfe\x00",
        b'{"prompt": "\xff"}',
        b"[" * 100_000,
        b'{"max_new_tokens": ' + b"9" * 10_000 + b"}",
    ],
)
def test_body_that_is_not_json(pocket: GatewayProcess, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    refused(pocket.client.post("/generate/deepseek", content=body, headers=headers), 400, "JSON")


@pytest.mark.parametrize("body", ["[1, 2]", '"Hello"', "null", "7", "true"])
def test_json_that_is_no_object(pocket: GatewayProcess, body: str) -> None:
    refused(pocket.client.post("/generate/deepseek", content=body), 400, "object")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", 7),
        ("prompt", None),
        ("prompt", ["Hello"]),
        ("max_new_tokens", 0),
        ("max_new_tokens", -5),
        ("max_new_tokens", 10**9),
        ("max_new_tokens", 10**300),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", "many"),
        ("max_new_tokens", "5"),
        ("max_new_tokens", True),
        ("temperature", -0.1),
        ("temperature", 2.5),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("top_k", 1.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", 5),
        ("repetition_penalty", float("nan")),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("min_tokens", -1),
        ("min_tokens", 10**6),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"5": 200}),
        ("logit_bias", [5]),
        ("response_format", "json"),
        ("response_format", {"type": "xml"}),
        ("response_format", {"type": "regex"}),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", "x"),
        ("seed", 1.5),
        ("stop", [""]),
        ("stop", ""),
        ("stop", 7),
        ("stop", [7]),
        ("stop", ["x"] * 17),
        ("keep_alive", "soon"),
        ("keep_alive", True),
        ("keep_alive", float("nan")),
        ("keep_alive", [1]),
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", 10**9),
        ("timeout", "later"),
        ("timeout", float("inf")),
        ("priority", "urgent"),
        ("stream", "yes"),
        ("stream", 1),
        ("system", 7),
    ],
)
def test_wrong_values_are_named(pocket: GatewayProcess, field: str, value: Any) -> None:
    body = json.dumps({"prompt": "Hello"} | {field: value})  # with NaN, which no strict client would send
    response = pocket.client.post("/generate/deepseek", content=body, headers={"content-type": "application/json"})
    refused(response, 400, field)


def test_missing_prompt_is_named(pocket: GatewayProcess) -> None:
    refused(pocket.generate("deepseek", max_new_tokens=5), 400, "prompt")


def test_unknown_field_is_named(pocket: GatewayProcess) -> None:
    refused(pocket.generate("deepseek", prompt="Hello", max_tokens=5), 400, "max_tokens", "max_new_tokens")


def test_a_text_model_refuses_an_image(pocket: GatewayProcess) -> None:
    refused(pocket.generate("deepseek", prompt="What is this?", image="aGVsbG8="), 400, "image", "text")


def test_a_form_s_values_are_checked_too(pocket: GatewayProcess) -> None:
    response = pocket.client.post("/generate/deepseek", data={"prompt": "Hello", "max_new_tokens": "many"})
    refused(response, 400, "max_new_tokens")


def test_text_that_is_no_unicode(pocket: GatewayProcess) -> None:
    """JSON can spell half a surrogate pair; no tokenizer can take it."""
    for model in ("deepseek", "reasoner"):
        response = pocket.client.post(f"/generate/{model}", content=b'{"prompt": "Hello \\ud800"}')
        refused(response, 400, "prompt")


@pytest.mark.parametrize(("model", "window"), [("deepseek", "4096"), ("reasoner", "2048")])
def test_prompt_longer_than_the_context_names_both_numbers(pocket: GatewayProcess, model: str, window: str) -> None:
    body = refused(pocket.generate(model, prompt="What is 17 + 25? " * 900), 400, "tokens", window)
    numbers = [int(word) for word in body["details"].replace(",", " ").split() if word.isdigit()]
    assert len(numbers) == 2 and max(numbers) > int(window)
    pid = pocket.model(model)["pid"]
    assert pocket.answer(model, **SUM)["response"]
    assert pocket.model(model)["pid"] == pid


def test_an_answer_ends_where_the_context_does(pocket: GatewayProcess) -> None:
    def tokens(words: int) -> int:
        return int(pocket.answer("reasoner", prompt="1 " * words, max_new_tokens=1)["usage"]["prompt_tokens"])

    few, more = tokens(100), tokens(200)
    words = 100 + (2040 - few) * 100 // (more - few)
    answer = pocket.answer("reasoner", prompt="1 " * words, max_new_tokens=100)
    assert 2000 < answer["usage"]["prompt_tokens"] < 2048
    assert answer["usage"]["total_tokens"] == 2048
    assert answer["finish_reason"] == "length"


def test_body_over_the_limit(pocket: GatewayProcess) -> None:
    refused(pocket.generate("deepseek", prompt="x" * 300_000), 413, "200000", "SWITCHYARD_MAX_BODY")


def test_body_over_the_limit_without_a_length(pocket: GatewayProcess) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(30):
            yield b"x" * 10_000
        yield b'"}'

    refused(pocket.client.post("/generate/deepseek", content=chunks()), 413, "200000")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/generate/deepseek"),
        ("PUT", "/generate/deepseek"),
        ("DELETE", "/generate/deepseek"),
        ("GET", "/admin/emergency_cleanup"),
        ("GET", "/admin/models/deepseek/load"),
        ("POST", "/admin/memory_status"),
        ("POST", "/health"),
    ],
)
def test_wrong_method(pocket: GatewayProcess, method: str, path: str) -> None:
    response = pocket.client.request(method, path)
    refused(response, 405)
    assert response.headers["allow"]


def test_unknown_path(pocket: GatewayProcess) -> None:
    refused(pocket.client.get("/nothing/here"), 404)
    refused(pocket.client.post("/generate/", json=PARIS), 404)


def test_deadline_while_it_answers(pocket: GatewayProcess) -> None:
    pocket.load("deepseek")
    refused(pocket.generate("deepseek", **STORY, max_new_tokens=3500, timeout=0.5), 504, "deadline")


def test_deadline_while_it_waits_for_its_turn(start: Start) -> None:
    gateway = start(models=only("deepseek", deepseek=ONE_AT_ONCE))
    with gateway.answering(held=True, max_new_tokens=20) as first:
        refused(gateway.generate("deepseek", **PARIS, timeout="500ms"), 504, "deadline", "its turn")
    assert first.result().json()["usage"]["completion_tokens"] == 20


def test_no_refusal_ended_a_runner(pocket: GatewayProcess) -> None:
    assert "lost " not in pocket.log()
    assert "Traceback" not in pocket.log()
