"""A gateway that is watched: JSON lines, traces to a collector of ours, and a slot in which models take turns."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import _starter
from tests.gateway.observe.collector import Collector
from tests.support.gateway import CHECKPOINT, GatewayProcess, only, reasoner_at


class Watched(GatewayProcess):
    """A gateway with a way to read its own figures and lines."""

    collector: Collector

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        return sum(
            value for found, having, value in self.samples() if found == name and labels.items() <= having.items()
        )

    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]

    def lines(self, **fields: Any) -> list[dict[str, Any]]:
        """The log's lines that have these fields."""
        found = [json.loads(line) for line in whole(self.log())]
        return [line for line in found if all(line.get(name) == value for name, value in fields.items())]

    def access(self, request_id: str) -> dict[str, Any]:
        """The access line of a request, once it is there."""
        (line,) = self.until(
            lambda: [line for line in self.lines(request_id=request_id) if "status" in line], "the access line"
        )
        return line


def whole(log: str) -> list[str]:
    """The lines of a log that is being written; the last one may be there in part."""
    return log[: log.rfind("\n") + 1].splitlines()


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One for all tests of this folder that only ask. Only one of its models fits its slot at a time."""
    collector = Collector()

    def home() -> Path:
        return tmp_path_factory.mktemp("watched")

    starter = _starter(home)
    start = next(starter)
    models = only("deepseek", reasoner=reasoner_at(CHECKPOINT, cache_tokens=280_000))  # 215 MB set aside
    gateway = start(
        launch=False,
        kind=Watched,
        models=models,
        log_format="json",
        log_level="debug",
        slot_budget="400MB",
        otlp_endpoint=collector.url,
        quantum=0,
    )
    assert isinstance(gateway, Watched)
    gateway.collector = collector
    gateway.environment["OTEL_BSP_SCHEDULE_DELAY"] = "100"
    yield gateway.start()  # type: ignore[misc]
    next(starter, None)
    collector.close()
