"""Shared by all tests: gateways started on demand, their logs when a test fails, and a check that none leaks.

With pytest-xdist a file's tests run in one process (``--dist loadfile``), and so do those of a folder that shares a
gateway, so what a module or such a folder shares is still made once.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import CHECKPOINT, GatewayProcess, only, reasoner_at

TESTS = Path(__file__).parent
WORKERS = 3
"""Processes that ``-n auto`` runs the tests in, on two cores: each waits for a third of its time."""
TOGETHER = ("gateway/routes/openai", "gateway/observe", "web/playground")
"""Folders in ``tests`` whose files share a gateway."""
LONGEST = (
    "families/test_answers.py",
    "web/playground",
    "gateway/routes/openai",
    "gateway/observe",
    "web/test_shell.py",
    "web/test_overview.py",
    "gateway/test_slots.py",
    "gateway/test_life.py",
    "gateway/routes/openapi/test_conformance.py",
    "gateway/test_out_of_memory.py",
    "gateway/test_failures.py",
    "gateway/test_many_slots.py",
    "gateway/test_zygotes.py",
    "worker/test_queue_many.py",
    "worker/test_queue.py",
    "gateway/access/test_slow_clients.py",
    "unit/gateway/memory/test_measured.py",
)
"""What in ``tests`` takes tens of seconds, the longest first: what is begun last should be short."""
WITHOUT = ("checkpoints", "gateway/scheduler", "media", "pocket", "runner", "unit")
"""Folders whose tests start no gateway."""
_started: list[GatewayProcess] = []
_logged: dict[GatewayProcess, int] = {}
Start = Callable[..., GatewayProcess]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One where there is a GPU, whose memory the tests of one gateway must not take from another's."""
    return 1 if Path("/dev/nvidiactl").exists() else WORKERS


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As ``--dist loadfile``, but a folder that shares a gateway is one piece of work."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LoadFolder(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return next((folder for folder in TOGETHER if file.startswith(f"tests/{folder}/")), file)

    return LoadFolder(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what takes longest first, then files that start gateways, then what is over in a moment."""
    ranks = {TESTS / name: rank for rank, name in enumerate(LONGEST)}

    def rank(item: pytest.Item) -> int:
        after = len(ranks) + _without(item.path)
        return min(ranks.get(item.path, after), ranks.get(item.path.parent, after))

    items.sort(key=rank)


def _without(path: Path) -> bool:
    """Whether the tests of a file start no gateway."""
    return path.relative_to(TESTS).as_posix().startswith(WITHOUT)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show what the gateways said beside a failure."""
    report = yield
    if report.failed:
        for gateway in _started:
            report.sections.append((f"gateway at {gateway.url}", gateway.story()))
    return report


def _starter(home: Callable[[], Path]) -> Iterator[Start]:
    """Give a function that makes gateways; end them all, and hold them to having left nothing."""
    mine: list[GatewayProcess] = []

    def start(
        *arguments: str, launch: bool = True, kind: type[GatewayProcess] = GatewayProcess, **options: Any
    ) -> GatewayProcess:
        gateway = kind(home(), *arguments, **options)
        mine.append(gateway)
        _started.append(gateway)
        return gateway.start() if launch else gateway

    yield start
    left: list[str] = []
    for gateway in mine:
        gateway.stop_checked(left)
        _started.remove(gateway)
        _logged.pop(gateway, None)
    assert not left, left


@pytest.fixture(scope="module")
def start_for_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start gateways that serve all tests of a module."""
    yield from _starter(lambda: tmp_path_factory.mktemp("gateway"))


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start gateways for one test."""
    yield from _starter(lambda: tmp_path_factory.mktemp("gateway"))


@pytest.fixture(autouse=True)
def nothing_outlives_a_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test no running gateway has a lease, a waiter, a request, scratch, or a runner that it does not know of.

    Where tests have no gateway, one that has served others is asked again only if it logged something since.
    """
    yield
    without = _without(request.path)
    for gateway in _started:
        if gateway.running and not (without and gateway.output.stat().st_size == _logged.get(gateway)):
            gateway.until(lambda gateway=gateway: not _busy(gateway), "leases, scratch and stray runners to go", 60)
            _logged[gateway] = gateway.output.stat().st_size


def _busy(gateway: GatewayProcess) -> str:
    models = gateway.get("/admin/model_status")["model_configs"].values()
    for model in models:
        if model["leases"] or model["waiting"] or model["state"] in ("loading", "draining"):
            return f"{model['name']} is {model['state']}"
    if requests := gateway.get("/v1/requests")["data"]:
        return f"requests under way: {requests}"
    if scratch := gateway.get("/admin/temp_status")["files"]:
        return f"in tmp/: {scratch}"
    strays = gateway.runners() - {replica["pid"] for model in models for replica in model["replicas"]}
    return f"stray runners {strays}" if strays else ""


@pytest.fixture(scope="session")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One gateway for all tests that only ask: the pocket profile, and the reasoner at 8 and 16 bits beside it."""
    models = {f"reasoner{bits}": reasoner_at(CHECKPOINT, quant_bits=bits, cpu_quant_bits=bits) for bits in (8, 16)}
    starter = _starter(lambda: tmp_path_factory.mktemp("pocket"))
    yield next(starter)(models=only("deepseek", "reasoner", **models), max_body="200kB").preloaded()
    next(starter, None)
