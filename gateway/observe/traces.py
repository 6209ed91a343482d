"""Traces by OpenTelemetry: a span for each HTTP request, and in it queue, load, prefill and decode.

A request hands over its times when it is over, and waits for nothing here. One thread imports OpenTelemetry at the
first request, makes the spans and gives them to the SDK's batching exporter. A collector that is slow or gone costs
traces, which are counted, never requests. Exists only where an endpoint is configured. Gateway process.
"""

import importlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.requests import timeline
from gateway.requests.timeline import RequestTimeline
from utils.settings import Settings

log = logging.getLogger(__name__)
_CAPACITY = 2000  # requests whose spans are still to be made
_STOP_PATIENCE = 2.0  # seconds for the last spans at the end
_PATH = "/v1/traces"
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_FAILED = (timeline.FAILED, timeline.OUT_OF_MEMORY, timeline.TOO_LATE)


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One HTTP request that is over. ``started`` and ``ended`` are seconds of the monotonic clock, ``carrier`` the
    headers that say which trace it belongs to."""

    name: str
    started: float
    ended: float
    status: int
    attributes: Mapping[str, Any]
    carrier: Mapping[str, str] = field(default_factory=dict)
    timelines: Sequence[RequestTimeline] = ()


class Tracing:
    """Exports traces. ``dropped`` counts lost ones: the thread was behind, or the collector did not take them."""

    def __init__(self, endpoint: str | None) -> None:
        self.dropped = 0
        self._endpoint = endpoint
        self._requests: queue.Queue[TracedRequest | None] = queue.Queue(_CAPACITY)
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Export what is left, within bounds."""
        try:
            self._requests.put_nowait(None)
        except queue.Full:
            return
        if self._thread.is_alive():
            self._thread.join(_STOP_PATIENCE)

    def add_request(self, over: TracedRequest) -> None:
        """Export the trace of a request. Returns at once."""
        try:
            self._requests.put_nowait(over)
        except queue.Full:
            self.dropped += 1

    def _lost(self, number: int) -> None:
        self.dropped += number

    def _run(self) -> None:
        over = self._requests.get()  # before the imports: they would slow down the start of the gateway
        if over is None:
            return
        try:
            spans = _Spans(self._endpoint, self._lost)
        except Exception:  # the server goes on without traces, say where OpenTelemetry cannot read one of its variables
            log.exception("traces are off: OpenTelemetry cannot be set up")
            return
        while over is not None:
            try:
                spans.make(over)
            except Exception:
                log.exception("no trace of %s", over.name)
            over = self._requests.get()
        spans.close()


class _Spans:
    """OpenTelemetry itself, imported here."""

    def __init__(self, endpoint: str | None, lost: Callable[[int], None]) -> None:
        sdk = importlib.import_module("opentelemetry.sdk.trace")
        export = importlib.import_module("opentelemetry.sdk.trace.export")
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        resources = importlib.import_module("opentelemetry.sdk.resources")
        self._api = importlib.import_module("opentelemetry.trace")
        propagation = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        self._propagator = propagation.TraceContextTextMapPropagator()
        name = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "switchyard"}
        self._provider = sdk.TracerProvider(resource=resources.Resource.create(name), shutdown_on_exit=False)
        inner = otlp.OTLPSpanExporter(endpoint=endpoint)  # without an endpoint it reads the usual variables itself
        logging.getLogger("opentelemetry.exporter").setLevel(
            logging.CRITICAL
        )  # it logs a line for each try; _Exporter logs one
        exporter = _Exporter(inner, export.SpanExportResult.SUCCESS, lost)
        self._provider.add_span_processor(export.BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("switchyard")

    def make(self, over: TracedRequest) -> None:
        """Make the spans of one request."""
        api = self._api
        offset = time.time_ns() - time.monotonic_ns()

        def moment(seconds: float) -> int:
            return int(seconds * 1e9) + offset

        root = self._tracer.start_span(
            over.name,
            self._propagator.extract(dict(over.carrier)),
            api.SpanKind.SERVER,
            attributes=dict(over.attributes),
            start_time=moment(over.started),
        )
        inside = api.set_span_in_context(root)
        failed = over.status >= 500
        for one in over.timelines:
            failed = failed or one.outcome in _FAILED
            for name, start, end, attributes in _parts(one):
                span = self._tracer.start_span(name, inside, attributes=attributes, start_time=moment(start))
                span.end(moment(end))
        if failed:
            root.set_status(api.StatusCode.ERROR, next((one.outcome for one in over.timelines if one.outcome), None))
        root.end(moment(over.ended))

    def close(self) -> None:
        self._provider.shutdown()


class _Exporter:
    """Passes spans on to an exporter, counts the requests whose spans it could not send, and says so once."""

    def __init__(self, inner: Any, success: object, lost: Callable[[int], None]) -> None:
        self._inner = inner
        self._success = success
        self._lost = lost
        self._well = True

    def export(self, spans: Sequence[Any]) -> Any:
        result = self._inner.export(spans)
        well = result is self._success
        if not well:
            self._lost(sum(span.parent is None or span.parent.is_remote for span in spans))
        if well != self._well:
            self._well = well
            if well:
                log.info("the collector takes traces again")
            else:
                log.warning("the collector does not take traces; those of now are lost")
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return bool(self._inner.force_flush(timeout_millis))


def _parts(one: RequestTimeline) -> list[tuple[str, float, float, dict[str, Any]]]:
    """Return name, start, end and attributes of each part of a request."""
    about: dict[str, Any] = {"gen_ai.request.model": one.model}
    end = one.ended or time.monotonic()
    granted = one.granted or end
    loaded = granted - one.load_seconds
    parts = [("queue", one.born, loaded, about | ({"switchyard.refusal": str(one.refusal)} if one.refusal else {}))]
    if one.cold:
        parts.append(("load", loaded, granted, about | {"switchyard.device": one.device}))
    if one.granted is not None:
        first = one.first or end
        parts.append(("prefill", granted, first, about | {"gen_ai.usage.input_tokens": one.prompt_tokens}))
        if one.first is not None:
            parts.append(
                (
                    "decode",
                    first,
                    max(first, end),
                    about
                    | {
                        "gen_ai.usage.output_tokens": one.completion_tokens,
                        "gen_ai.response.finish_reasons": list(one.finish_reasons),
                        "switchyard.outcome": one.outcome or "",
                    },
                )
            )
    return parts


def configured(settings: Settings) -> Tracing | None:
    """Return the exporter of traces, or None where no endpoint is configured."""
    off = {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "none"}
    if any(os.environ.get(name, "").lower() == value for name, value in off.items()):
        return None
    if settings.otlp_endpoint:
        return Tracing(settings.otlp_endpoint.rstrip("/").removesuffix(_PATH) + _PATH)
    return Tracing(None) if any(os.environ.get(name) for name in _VARIABLES) else None
