"""Traces, as a collector gets them over OTLP."""

import subprocess
import sys

import pytest

from tests.gateway.observe.collector import Span
from tests.gateway.observe.conftest import Watched
from tests.support.gateway import PARIS, ROOT, SUM

SERVER, ERROR = 2, 2


def traced(
    watched: Watched, request_id: str, path: str, headers: dict[str, str] | None = None, **fields: object
) -> list[Span]:
    """Ask; return the spans of the request, the root first."""
    watched.client.post(path, json=fields, headers={"X-Request-ID": request_id} | (headers or {}))
    return watched.until(lambda: watched.collector.of_request(request_id), "the trace")  # type: ignore[no-any-return]


def test_a_cold_request_is_queue_load_prefill_and_decode(watched: Watched) -> None:
    watched.answer("deepseek", **PARIS)
    root, *children = traced(watched, "trace-cold", "/generate/reasoner", **SUM)
    assert root.name == "POST /generate/<model>" and root.kind == SERVER and root.parent_id == ""
    assert root.resource["service.name"] == "switchyard"
    assert {
        "http.request.method": "POST",
        "http.route": "/generate/<model>",
        "http.response.status_code": 200,
        "gen_ai.request.model": "reasoner",
        "url.path": "/generate/reasoner",
    }.items() <= root.attributes.items()
    assert [span.name for span in children] == ["queue", "load", "prefill", "decode"]
    for before, after in zip(children, children[1:], strict=False):
        assert before.start <= before.end == after.start <= after.end
    assert root.start <= children[0].start and children[-1].end <= root.end
    assert {span.trace_id for span in children} == {root.trace_id}
    answer = watched.access("trace-cold")
    assert children[2].attributes["gen_ai.usage.input_tokens"] == answer["prompt_tokens"]
    assert children[3].attributes["gen_ai.usage.output_tokens"] == answer["completion_tokens"]
    assert children[3].attributes["gen_ai.response.finish_reasons"] == ["stop"]
    load = (children[1].end - children[1].start) / 1e9
    assert load == pytest.approx(answer["load_seconds"], abs=1e-3)


def test_a_stream_has_a_trace_too_and_a_warm_one_no_load(watched: Watched) -> None:
    watched.answer("reasoner", **SUM)
    _, *children = traced(watched, "trace-stream", "/generate/reasoner", **SUM, stream=True)
    assert [span.name for span in children] == ["queue", "prefill", "decode"]


def test_a_client_s_trace_is_continued(watched: Watched) -> None:
    trace_id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {"traceparent": f"00-{trace_id}-{parent}-01"}
    root, *children = traced(watched, "trace-mine", "/generate/reasoner", headers, **SUM)
    assert (root.trace_id, root.parent_id) == (trace_id, parent)
    assert children and {span.trace_id for span in children} == {trace_id}


def test_what_a_client_does_not_want_sampled_is_not(watched: Watched) -> None:
    unsampled = {"traceparent": "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-00f067aa0ba902b7-00", "X-Request-ID": "trace-not"}
    watched.client.post("/generate/reasoner", json=SUM, headers=unsampled)
    assert traced(watched, "trace-after", "/generate/reasoner", **SUM), "which was exported later"
    assert not watched.collector.of_request("trace-not")


def test_a_header_that_makes_no_sense_begins_a_trace(watched: Watched) -> None:
    root, *_ = traced(watched, "trace-odd", "/generate/reasoner", {"traceparent": "00-zz-1"}, **SUM)
    assert root.parent_id == "" and len(root.trace_id) == 32


def test_a_refused_request_is_a_span_of_its_own(watched: Watched) -> None:
    (root,) = traced(watched, "trace-404", "/generate/nobody", **SUM)
    assert root.attributes["http.response.status_code"] == 404 and "gen_ai.request.model" not in root.attributes
    assert root.status != ERROR


def test_one_that_is_too_late_is_an_error(watched: Watched) -> None:
    watched.answer("deepseek", **PARIS)
    story = {"prompt": "Tell me a story of a fox.", "repetition_penalty": 1.0, "max_new_tokens": 3500, "timeout": 3}
    root, *children = traced(watched, "trace-late", "/generate/deepseek", **story)
    assert root.status == ERROR and root.attributes["http.response.status_code"] == 504
    assert children[-1].attributes["switchyard.outcome"] == "too_late"


def test_health_and_scrapes_have_no_trace(watched: Watched) -> None:
    watched.client.get("/health", headers={"X-Request-ID": "trace-health"})
    watched.client.get("/metrics", headers={"X-Request-ID": "trace-metrics"})
    assert traced(watched, "trace-last", "/generate/nobody")
    assert not watched.collector.of_request("trace-health") and not watched.collector.of_request("trace-metrics")


def test_without_an_endpoint_opentelemetry_is_not_imported() -> None:
    program = (
        "import os, sys, tempfile\n"
        "from pathlib import Path\n"
        "home = Path(tempfile.mkdtemp())\n"
        "from app import create_app\n"
        "from utils.settings import Settings\n"
        "app = create_app(Settings(profile='pocket', models_dir=home / 'm', logs_dir=home / 'l', tmp_dir=home / 't'))\n"
        "app.test_client().get('/metrics')\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
        "app.extensions['switchyard'].stop()\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "[]"
