"""The description and its page: valid, complete, at home with ``docs/api.md``; and what HTTP and JSON can spell."""

import json
import re
import socket
import subprocess
import sys
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.support.gateway import PARIS, ROOT, GatewayProcess

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def document(pocket: GatewayProcess) -> dict[str, Any]:
    return pocket.get("/openapi.json")


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Every operation by its method and its path."""
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_it_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(document).validate()


def test_the_page_of_the_documentation_has_the_same_routes(document: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    written = {
        (method, re.sub(r"<\w+>", "{}", path))
        for method, path in re.findall(r"`(GET|POST|DELETE|PUT|PATCH) (/[^\s`]+)`", page)
    }
    described = {(method, re.sub(r"{\w+}", "{}", path)) for method, path in operations(document)}
    assert written == described


OPERATION_IDS = """
    admin_cleanup_temp admin_emergency_cleanup admin_kept_quantized admin_load admin_memory_status
    admin_model_status admin_pin admin_prune_quantized admin_temp_status admin_unload chat_chat
    completions_completions description_openapi description_page events_events generate_generate
    generate_generate_by_default health_health health_ready metrics_metrics models_model models_models
    moderations_video requests_cancel requests_requests template_apply_template transcriptions_transcriptions
    usage_usage weights_cancel weights_delete weights_download weights_downloads weights_weights
"""


def test_operations_keep_their_ids(document: dict[str, Any]) -> None:
    """Generated clients name their methods by these."""
    found = {operation["operationId"] for operation in operations(document).values()}
    assert found == set(OPERATION_IDS.split())


def test_a_summary_is_one_line(document: dict[str, Any]) -> None:
    assert not [one["operationId"] for one in operations(document).values() if "\n" in one["summary"]]


def test_no_route_goes_undescribed(pocket: GatewayProcess, document: dict[str, Any]) -> None:
    """The gateway's own list of its routes, asked from its rules: only what is for browsers has no description, and
    that is all pages and their files."""
    program = (
        "from app import create_app; from gateway.routes.openapi.operation import operation_of; app = create_app();"
        "print('routes:', sorted({rule.rule for rule in app.url_map.iter_rules()"
        " if operation_of(app.view_functions[rule.endpoint]) is None and not rule.rule.startswith('/ui/')}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=pocket.environment, capture_output=True, text=True, timeout=120
    )
    assert "routes: ['/docs/<name>']\n" in ran.stdout, ran.stdout + ran.stderr


def test_it_names_the_models_and_limits_of_this_server(pocket: GatewayProcess, document: dict[str, Any]) -> None:
    names = set(pocket.get("/admin/model_status")["available_models"])
    found = operations(document)
    generate = found["POST", "/generate/{model}"]
    assert names <= set(generate["parameters"][0]["schema"]["enum"])
    fields = generate["requestBody"]["content"]["application/json"]["schema"]["properties"]
    most = pocket.get("/health")["vlm_config"]["max_new_tokens"]
    assert fields["max_new_tokens"]["anyOf"][0]["maximum"] == most
    assert "prompt" in fields and "image" not in fields and "fps" not in fields  # no model here takes them
    chat = found["POST", CHAT]["requestBody"]["content"]["application/json"]["schema"]
    assert names <= set(chat["properties"]["model"]["enum"]) and chat["additionalProperties"] is False


def test_statuses_and_envelopes(document: dict[str, Any]) -> None:
    for (method, path), operation in operations(document).items():
        answers = operation["responses"]
        assert "422" not in answers and {"200", "202"} & set(answers), path
        for status, answer in answers.items():
            if not status.startswith("2"):
                shape = answer["content"]["application/json"]["schema"]["$ref"]
                assert shape.endswith("/ErrorEnvelope" if path.startswith("/v1/") else "/Error"), (method, path)
    stream = operations(document)["POST", CHAT]["responses"]["200"]["content"]["text/event-stream"]["schema"]
    assert {kind["title"] for kind in stream["anyOf"]} == {"message", "progress", "end"}


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_from_elsewhere(pocket: GatewayProcess) -> None:
    page = pocket.client.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    loaded = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
    assert len(loaded) == 5 and "://" not in page.text and "<style" not in page.text
    assert not re.search(r"<script>|\son\w+=", page.text)
    for address in loaded:
        found = pocket.client.get(f"/{address}")
        assert found.status_code == 200 and found.content, address
        plain = pocket.client.get(f"/{address}", headers={"Accept-Encoding": "identity"})
        assert plain.content == found.content and "content-encoding" not in plain.headers
        if "swagger" in address:
            assert found.headers["content-encoding"] == "gzip" and "Accept-Encoding" in found.headers["vary"]
    assert 'url: "openapi.json"' in pocket.client.get("/docs/start.js").text


@pytest.mark.parametrize("name", ["nothing.js", "..%2f__init__.py", "%2e%2e/flask_swagger_ui.py", "index.css"])
def test_only_the_page_s_own_files_are_there(pocket: GatewayProcess, name: str) -> None:
    assert pocket.client.get(f"/docs/{name}").status_code == 404


# -- what a body may be ------------------------------------------------------------------------------------------------


def refused(response: httpx.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    for word in words:
        assert word in response.text


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/mixed", "image/png"])
@pytest.mark.parametrize("path", ["/generate/reasoner", CHAT, "/v1/audio/transcriptions", "/admin/cleanup_temp"])
def test_a_body_of_another_type(pocket: GatewayProcess, path: str, kind: str) -> None:
    refused(pocket.client.post(path, content=b'{"prompt": "x"}', headers={"content-type": kind}), 415, "send")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json; charset=latin-1", 415),
        ("application/json; charset=utf-16", 415),
        ("application/json; charset=UTF-8", 200),
        ("application/vnd.own+json", 200),
        ("APPLICATION/JSON", 200),
    ],
)
def test_json_by_other_names(pocket: GatewayProcess, kind: str, status: int) -> None:
    body = json.dumps({"prompt": "What is 1 + 1?", "max_new_tokens": 1})
    response = pocket.client.post("/generate/reasoner", content=body, headers={"content-type": kind})
    assert response.status_code == status, response.text


@pytest.mark.parametrize(
    "body", [b'{"prompt": "x", "prompt": "y"}', b'{"prompt": "x", "messages": [{"role": "user", "role": "user"}]}']
)
def test_a_key_that_comes_twice(pocket: GatewayProcess, body: bytes) -> None:
    refused(pocket.client.post("/generate/reasoner", content=body), 400, "comes twice")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e999"])
def test_a_number_that_is_none_wherever_it_is(pocket: GatewayProcess, number: str) -> None:
    for field, place in (
        (f'"chat_template_kwargs": {{"a": [{number}]}}', "chat_template_kwargs.a[0]"),
        (f'"logit_bias": {{"5": {number}}}', "logit_bias.5"),
    ):
        body = f'{{"model": "reasoner", "messages": {json.dumps(HELLO)}, {field}}}'
        refused(pocket.client.post(CHAT, content=body), 400, place, "finite")


def test_a_penalty_that_would_overflow(pocket: GatewayProcess) -> None:
    """Scores divided by next to nothing are infinite, and then no token can be chosen."""
    refused(pocket.generate("reasoner", **PARIS | {"repetition_penalty": 5e-324}), 400, "repetition_penalty")


@pytest.mark.parametrize(("field", "value"), [("length_penalty", True), ("store", 0), ("use_beam_search", 0)])
def test_true_is_not_one_where_a_parameter_must_ask_for_nothing(
    pocket: GatewayProcess, field: str, value: object
) -> None:
    refused(pocket.post(CHAT, model="reasoner", messages=HELLO, **{field: value}), 400, field)


@pytest.mark.parametrize(
    ("message", "at"),
    [
        ({"role": "user", "content": [{"type": "text", "text": "x", "more": 1}]}, "messages[0].content[0].more"),
        ({"role": "assistant", "content": "x", "reasoning": 5}, "messages[0].reasoning"),
        ({"role": "user", "content": "x", "annotations": ["y"]}, "messages[0].annotations"),
    ],
)
def test_a_message_has_no_keys_that_nobody_reads(pocket: GatewayProcess, message: object, at: str) -> None:
    refused(pocket.post(CHAT, model="reasoner", messages=[message]), 400, at)


def test_null_in_a_schema_of_a_tool_stays(pocket: GatewayProcess) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {"type": "object", "properties": {"a": {"enum": ["x", None], "default": None}}},
        },
    }
    shown = pocket.post("/v1/apply_template", model="deepseek", messages=HELLO, tools=[tool])
    assert shown.status_code == 200, shown.text
    assert "null" in shown.json()["prompt"]


def test_a_wrong_priority_is_refused_also_where_the_body_has_one(pocket: GatewayProcess) -> None:
    fields = {"prompt": "x", "max_new_tokens": 1, "priority": "batch"}
    refused(pocket.client.post("/generate/reasoner", json=fields, headers={"x-priority": "{}"}), 400, "X-Priority")


# -- methods and lengths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("TRACE", "/health", {"GET", "HEAD", "OPTIONS"}),
        ("PUT", "/generate/reasoner", {"POST", "OPTIONS"}),
        ("GET", CHAT, {"POST", "OPTIONS"}),
        ("POST", "/openapi.json", {"GET", "HEAD", "OPTIONS"}),
        ("PATCH", "/v1/requests/x", {"DELETE", "OPTIONS"}),
        ("MAKEUP", "/docs", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_another_method(pocket: GatewayProcess, method: str, path: str, allowed: set[str]) -> None:
    response = pocket.client.request(method, path)
    assert response.status_code == 405 and set(response.headers["allow"].split(", ")) == allowed
    options = pocket.client.options(path)
    assert options.status_code == 200 and set(options.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("accept", ["*/*", "text/html"])
def test_head_is_get_without_its_body(pocket: GatewayProcess, accept: str) -> None:
    """Wherever there is a GET, and for a browser at the front door."""
    paths = [path for path, methods in pocket.get("/openapi.json")["paths"].items() if "get" in methods]
    assert {"/health", "/v1/models", "/admin/events"} <= set(paths)
    for path in (*paths, "/", "/docs", "/ui", "/ui/", "/ui/login", "/ui/nothing", "/ui/live?probe", "/nothing"):
        asked = re.sub(r"{\w+}", "deepseek", path)
        head, get = (pocket.client.request(method, asked, headers={"Accept": accept}) for method in ("HEAD", "GET"))
        assert (head.status_code, head.content) == (get.status_code, b""), path
        for name in ("content-type", "location"):
            assert head.headers.get(name) == get.headers.get(name), path
    assert pocket.client.head("/", headers={"Accept": accept}).status_code == (302 if accept == "text/html" else 404)


@pytest.mark.parametrize("length", ["100000", "-5", "many", "5, 7"])
def test_a_length_that_does_not_hold(pocket: GatewayProcess, length: str) -> None:
    """A body shorter than it says, or a length that is none: refused or dropped, and nobody else notices."""
    head = f"POST /generate/reasoner HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
    with pocket.raw(head.encode() + b'{"prompt": "x"}') as connection:
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(100)
    assert not answer or answer.split()[1] == b"400"
    assert pocket.get("/health")["status"] == "healthy"
