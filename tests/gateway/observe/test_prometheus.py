"""What lies in ``deploy/monitoring`` works: a real Prometheus scrapes a gateway by its own configuration, evaluates its
alerts, and answers each of the dashboard's queries."""

import json
import math
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.gateway.observe.conftest import Watched
from tests.support.children import free_port
from tests.support.gateway import PARIS, PATIENCE, ROOT, SUM
from tests.support.programs import program

PLACE = ROOT / "deploy" / "monitoring"
DASHBOARD = json.loads((PLACE / "grafana" / "dashboards" / "switchyard.json").read_text())
SOMETIMES = {"switchyard_gpu_": "a GPU", "switchyard_fallbacks_total": "a fallback"}
"""Metrics that have no series without something that a test has not."""


class Prometheus:
    """One Prometheus with the repository's configuration, for one gateway, that scrapes often."""

    def __init__(self, home: Path, gateway: Watched) -> None:
        config = yaml.safe_load((PLACE / "prometheus.yml").read_text())
        (scraped,) = config["scrape_configs"]
        assert scraped["static_configs"] == [{"targets": ["switchyard:5000"]}]
        scraped["static_configs"] = [{"targets": [f"127.0.0.1:{gateway.port}"]}]
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        assert config["rule_files"] == ["alerts.yml"]
        config["rule_files"] = [str(PLACE / "alerts.yml")]
        (home / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        self.at: float | None = None
        self.gateway = gateway
        self.output = home / "output.txt"
        command = [
            program("prometheus", "prometheus"),
            f"--config.file={home / 'prometheus.yml'}",
            f"--storage.tsdb.path={home / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=home)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=PATIENCE, trust_env=False)

    def until(self, condition: Any, what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert self.process.poll() is None and time.monotonic() < deadline, f"{what}: {self.output.read_text()}"
            time.sleep(0.1)
        return value

    def query(self, expression: str) -> list[float]:
        """Return the values of an expression, those that are no number left out: now, or since ``at`` is set, then. So
        a rate over the last minute is one over the traffic, however long the tests take."""
        found = self.ask("query", query=expression, time=self.at or time.time())["result"]
        values = [float(sample["value"][1]) for sample in found]
        return [value for value in values if not math.isnan(value)]

    def has(self, watched: Watched) -> bool:
        """Whether a scrape has all that the gateway counts of its answers. If so, that is when all is asked about."""
        self.at = time.time()
        for name, labels in (
            ("generations_total", {"outcome": "answered"}),
            ("completion_tokens_total", {}),
            ("load_seconds_count", {}),
        ):
            chosen = ",".join(f'{label}="{value}"' for label, value in labels.items())
            told = self.query(f"sum(switchyard_{name}{{{chosen}}})")
            if told != [watched.value(f"switchyard_{name}", **labels)]:
                self.at = None
                return False
        return True

    def ask(self, path: str, **parameters: Any) -> Any:
        response = self.client.get(path, params=parameters)
        told = response.json()
        assert told["status"] == "success", f"{parameters}: {told.get('error')}"
        return told["data"]

    def up(self) -> bool:
        try:  # until it has read its own files it says 503
            ready = self.client.get("../../-/ready").status_code == 200
        except httpx.TransportError:
            return False
        return ready and self.query('up{job="switchyard"}') == [1]

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def prometheus(watched: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that has seen its gateway before and after some real traffic."""
    traffic(watched)
    started = Prometheus(tmp_path_factory.mktemp("prometheus"), watched)
    try:
        started.until(started.up, "the first scrape")
        traffic(watched)
        started.until(lambda: started.has(watched), "the traffic to be scraped")
        yield started
    finally:
        started.close()


def traffic(watched: Watched) -> None:
    """Have each model loaded, in place of the other, and asked."""
    for model, fields in (("reasoner", SUM), ("deepseek", PARIS), ("reasoner", SUM), ("reasoner", SUM)):
        watched.answer(model, **fields)
    assert watched.generate("nobody", **PARIS).status_code == 404


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def concrete(expression: str) -> str:
    """Return a dashboard's expression with its variables as Grafana fills them in for everything."""
    for name, value in {"$__rate_interval": "1m", "$__range": "5m", "$instance": ".*", "$model": ".*"}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def test_each_query_of_the_dashboard_has_an_answer(prometheus: Prometheus) -> None:
    queries = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    assert len(queries) > 40
    empty = []
    for title, expression in queries:
        has_data = bool(prometheus.query(concrete(expression)))
        if not has_data and not any(name in expression for name in SOMETIMES):
            empty.append(f"{title}: {expression}")
    assert not empty, "\n".join(empty)


def test_what_the_dashboard_shows_is_what_happened(prometheus: Prometheus) -> None:
    watched = prometheus.gateway
    assert prometheus.query('sum(switchyard_completion_tokens_total{model="reasoner"})') == [
        watched.value("switchyard_completion_tokens_total", model="reasoner")
    ]
    (share,) = prometheus.query(concrete('sum(rate(switchyard_load_seconds_sum{model=~"$model"}[$__rate_interval]))'))
    assert share > 0
    buckets = 'switchyard_time_to_first_token_seconds_bucket{model="reasoner"}'
    (first,) = prometheus.query(f"histogram_quantile(0.5, sum by (le) (rate({buckets}[1m])))")
    assert 0 < first < 640


def test_the_dashboard_s_variables_find_instances_and_models(prometheus: Prometheus) -> None:
    asked = {variable["name"]: variable["query"]["query"] for variable in DASHBOARD["templating"]["list"][1:]}
    assert asked == {
        "instance": "label_values(switchyard_info, instance)",
        "model": 'label_values(switchyard_queue_depth{instance=~"$instance"}, model)',
    }
    instances = prometheus.ask("label/instance/values", **{"match[]": "switchyard_info"})
    assert instances == [f"127.0.0.1:{prometheus.gateway.port}"]
    assert prometheus.ask("label/model/values", **{"match[]": "switchyard_queue_depth"}) == ["deepseek", "reasoner"]


def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    covered: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & covered, f"{panel['title']} overlaps"
        covered |= cells
    sources = {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]}
    assert sources == {"${datasource}"}
    provisioned = yaml.safe_load((PLACE / "grafana/provisioning/datasources/prometheus.yml").read_text())
    source = DASHBOARD["templating"]["list"][0]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    assert source["current"]["value"] == provisioned["datasources"][0]["uid"]


def test_every_metric_is_on_the_dashboard_or_in_an_alert(watched: Watched) -> None:
    shown = json.dumps(DASHBOARD) + (PLACE / "alerts.yml").read_text()
    ours = {name for name, _, _ in watched.samples() if name.startswith("switchyard_")}
    families = {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in ours}
    unshown = {
        "switchyard_http_request_seconds",
        "switchyard_draining",
        "switchyard_model_pinned",
        "switchyard_model_backoff",
        "switchyard_runner_memory_age_seconds",
        "switchyard_traces_dropped_total",
    }
    assert {name for name in families if name not in shown} == unshown


def test_every_alert_is_evaluated(prometheus: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        (group,) = prometheus.ask("rules")["groups"]
        return group["rules"] if all(rule["health"] != "unknown" for rule in group["rules"]) else []

    found = prometheus.until(rules, "the rules to be evaluated")
    assert len(found) == len(yaml.safe_load((PLACE / "alerts.yml").read_text())["groups"][0]["rules"])
    assert [(rule["name"], rule.get("lastError")) for rule in found if rule["health"] != "ok"] == []
    firing = {rule["name"] for rule in found if rule["state"] == "firing"}
    assert not firing & {"SwitchyardDown", "SwitchyardSchedulerStuck", "SwitchyardNoRunners", "SwitchyardOutOfMemory"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", str(PLACE / "prometheus.yml")],
        ["check", "rules", "--lint-fatal", str(PLACE / "alerts.yml")],
        ["test", "rules", str(ROOT / "tests" / "gateway" / "observe" / "alerts_test.yml")],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_finds_nothing_wrong(arguments: list[str]) -> None:
    told = subprocess.run([program("promtool", "prometheus"), *arguments], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stdout + told.stderr


def test_every_alert_is_tested_and_in_the_documentation() -> None:
    alerts = {rule["alert"] for rule in yaml.safe_load((PLACE / "alerts.yml").read_text())["groups"][0]["rules"]}
    tests = yaml.safe_load((ROOT / "tests" / "gateway" / "observe" / "alerts_test.yml").read_text())["tests"]
    fired = {check["alertname"] for test in tests for check in test["alert_rule_test"] if check.get("exp_alerts")}
    assert fired == alerts
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert {alert for alert in alerts if f"`{alert}`" not in page} == set()
