"""The worker's metrics and the small HTTP server that shows them. The worker's process; any thread may count.

Names begin with ``moderation_worker_``; docs/worker.md has the table. Must not know how anything is counted.
"""

import logging
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

logger = logging.getLogger(__name__)

OUTCOMES = ("completed", "adopted", "duplicate", "retried", "returned", "busy", "dead_lettered", "held", "lost")
_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """The figures of one worker."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kept: dict[str, Any] = {"namespace": "moderation_worker", "registry": self.registry}
        self.messages = Counter("messages", "Messages received, by what became of them", ["outcome"], **kept)
        for outcome in OUTCOMES:
            self.messages.labels(outcome)
        self.seconds = Histogram("job_seconds", "Time from claim to completion", buckets=_SECONDS, **kept)
        self.running = Gauge("jobs_running", "Jobs being worked on", **kept)
        self.fetched = Counter("video_bytes", "Bytes of videos read from S3", **kept)
        self.failures = Counter("aws_failures", "Calls of AWS that failed after botocore's own tries", **kept)
        self.ready = Gauge("model_server_ready", "1 if the model server could be asked when last looked", **kept)
        self.polled = Gauge("last_poll_timestamp_seconds", "When the queue was last asked", **kept)

    def serve_metrics(self, host: str, port: int) -> None:
        """Start a server in its own thread. :raises OSError: if the port cannot be opened."""
        start_http_server(port, host, self.registry)
        logger.info("metrics at http://%s:%d/metrics", host, port)
