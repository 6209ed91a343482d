"""Put small faults into pure modules and count which the modules' own tests notice: ``python -m tests.mutants``.

A fault is one changed comparison, sign, ``and``/``or``, ``not`` or constant. A forked process imports the faulty module
in place of the real one and runs the tests that enter the changed function, the fastest first; the tree itself is never
broken. A fault that changes nothing is listed in ``mutants_alike.txt`` by its name, with the reason. Ends with status 1
if fewer than ``--least`` of a hundred are noticed for any target. All faults take tens of minutes; not part of
``make test``.
"""

import argparse
import ast
import contextlib
import copy
import gc
import importlib.abc
import importlib.machinery
import os
import pickle
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from utils.settings import ROOT

TARGETS = {
    "gateway/scheduler/*.py": ["tests/gateway/scheduler", "tests/unit/gateway/scheduler"],
    "gateway/memory/**/*.py": ["tests/unit/gateway/memory", "tests/unit/checkpoints/test_gguf_header.py"],
    "runner/generation/sampler.py": ["tests/unit/runner/generation/test_sampler.py"],
    "runner/generation/tool_calls.py": [
        "tests/unit/runner/generation/test_tool_calls.py",
        "tests/unit/runner/generation/test_constraint.py",
    ],
    "utils/tmp_manage.py": ["tests/unit/utils/test_tmp_manage.py"],
}
"""Modules, and the tests that are theirs."""
REAL_LOADS = {"told", "placed", "loads"}
"""Fixtures that load real checkpoints for tens of seconds. Tests that use them run only with ``--thorough``."""
LONG = 1.0
"""Seconds of computing from which on a test runs only with ``--thorough``: each fault that survives pays for it."""
ALIKE = Path(__file__).with_name("mutants_alike.txt")
PATIENCE = 10.0
"""Seconds, beside five times the usual ones, after which a test that has not ended fails."""
MEMORY = 6 * 2**30
"""Bytes that the tests of one fault may take."""
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
SIGNS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
}


@dataclass(frozen=True)
class Mutant:
    """One fault in a ``function`` of a ``module`` (its file): ``name`` tells it from others whatever line it is on."""

    module: str
    function: str
    name: str
    tree: ast.Module = field(repr=False)
    node: ast.AST
    fault: ast.AST

    @property
    def line(self) -> int:
        return getattr(self.node, "lineno", 0)

    @property
    def source(self) -> str:
        """The module's source with the fault."""
        whole = copy.deepcopy(self.tree, {id(self.node): self.fault})
        return ast.unparse(ast.fix_missing_locations(whole))


@dataclass
class Trace:
    """What one run of a target's tests showed: their ``seconds`` by id, and the ids or files that enter a function."""

    seconds: dict[str, float] = field(default_factory=dict)
    entered: dict[str, set[str]] = field(default_factory=dict)
    imported: list[str] = field(default_factory=list)
    """Modules that the tests import."""

    def tests(self, function: str) -> list[str]:
        """Return the ids of the tests that enter a function, the fastest first."""
        by = self.entered.get(function, set())
        found = [test for test in self.seconds if test in by or test.partition("::")[0] in by or "" in by]
        return sorted(found, key=self.seconds.__getitem__)


def faults(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the faulty forms of one expression."""
    match node:
        case ast.Compare(left, [op], [right]) if type(op) in COMPARISONS:
            yield ast.Compare(left, [COMPARISONS[type(op)]()], [right])
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.BinOp(left, op, right) if type(op) in SIGNS and not _text(left) and not _text(right):
            yield ast.BinOp(left, SIGNS[type(op)](), right)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield ast.Constant(value + 1)


def _text(node: ast.AST) -> bool:
    """Whether an operand is text: a path or a string is put together, and nothing is computed."""
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the functions and methods of a module with their qualified names. Nested ones belong to the outer one."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef):
            yield prefix + child.name, child


def mutants(module: Path) -> Iterator[Mutant]:
    """Yield every fault of a module. Annotations, defaults of dataclasses and docstrings are left alone."""
    tree = ast.parse(module.read_text())
    name = str(module.relative_to(ROOT))
    seen: dict[str, int] = {}
    for function, definition in functions(tree):
        for statement in definition.body:
            for node in ast.walk(statement):
                for fault in faults(node):
                    change = f"{function}: {ast.unparse(node)} -> {ast.unparse(fault)}"
                    seen[change] = seen.get(change, 0) + 1
                    title = f"{name} {change}" + (f" #{seen[change]}" if seen[change] > 1 else "")
                    yield Mutant(name, f"{name} {function}", title, tree, node, fault)


def observed(module: Path) -> str:
    """Return a module's source in which every function notes in ``builtins.entered`` that it is entered."""
    tree = ast.parse(module.read_text())
    for function, definition in functions(tree):
        title = f"{module.relative_to(ROOT)} {function}"
        definition.body.insert(0, ast.parse(f"__import__('builtins').entered.add({title!r})").body[0])
    return ast.unparse(tree)


class _Replaced(importlib.abc.MetaPathFinder):
    """Imports modules from other source than their files'; ``sources`` are by file."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = {
            file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): source
            for file, source in sources.items()
        }

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        source = self._sources.get(name)
        spec = importlib.machinery.PathFinder.find_spec(name, path) if source is not None else None
        if source is not None and spec is not None:
            code = compile(source, str(spec.origin), "exec")
            spec.loader.get_code = lambda fullname: code  # type: ignore[union-attr]
        return spec


class _Absent(_Replaced):
    """Imports none of these modules, nor any module that needs one of them."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name in self._sources:
            raise ImportError(name)


class _Tracing:
    """A pytest plugin that fills a :class:`Trace`."""

    def __init__(self, trace: Trace, thorough: bool) -> None:
        self._trace, self._thorough = trace, thorough

    def _note(self, *names: str) -> None:
        for function in sys.modules["builtins"].entered:
            self._trace.entered.setdefault(function, set()).update(names)
        sys.modules["builtins"].entered.clear()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self._note("")  # entered while a test's file was imported: any test may depend on it
        if not self._thorough:
            items[:] = [item for item in items if not REAL_LOADS.intersection(getattr(item, "fixturenames", ()))]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        began, computed = time.monotonic(), time.process_time()
        result = yield
        self._note(item.nodeid)
        if self._thorough or time.process_time() - computed < LONG:
            self._trace.seconds[item.nodeid] = time.monotonic() - began
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        result = yield
        self._note(item.nodeid.partition("::")[0])  # a fixture may serve all tests of the file
        return result


class _Chosen:
    """A pytest plugin that runs the tests with these ids, in their order, each for a while at most."""

    def __init__(self, tests: list[str], seconds: Mapping[str, float]) -> None:
        self._order = {test: number for number, test in enumerate(tests)}
        self._seconds = seconds

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if item.nodeid in self._order]
        items[:] = sorted(chosen, key=lambda item: self._order[item.nodeid])
        for item in items:
            item.add_marker(pytest.mark.timeout(PATIENCE + 5 * self._seconds[item.nodeid]))


def forked(
    sources: Mapping[str, str], tests: list[str], plugin: object, result: tuple[Trace, Path] | None = None
) -> int:
    """Run tests in a forked process with other source for some modules. Return its pid; its status is pytest's."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        if result is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
        sys.meta_path.insert(0, _Replaced(sources))
        options = [
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
            *tests,
        ]
        code = int(pytest.main(options, plugins=[plugin]))
        if result is not None:
            trace, file = result
            trace.imported = [name for name in sys.modules if not re.search(r"pytest|conftest|\btest_", name)]
            file.write_bytes(pickle.dumps(trace))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def traced(sources: Mapping[str, str], tests: list[str], thorough: bool) -> Trace:
    """Run a target's tests once, and import what they import beside the target's modules, so that forks need not."""
    empty = Trace()
    sys.modules["builtins"].entered = set()  # type: ignore[attr-defined]
    with tempfile.NamedTemporaryFile() as file:
        _, status = os.waitpid(forked(sources, tests, _Tracing(empty, thorough), (empty, Path(file.name))), 0)
        if status:
            sys.exit(f"without any fault these tests fail: {' '.join(tests)}")
        trace: Trace = pickle.loads(Path(file.name).read_bytes())
    sys.meta_path.insert(0, absent := _Absent(sources))
    for name in trace.imported:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    sys.meta_path.remove(absent)
    gc.freeze()  # forks need not look through what they do not change
    if os.waitpid(forked({}, tests, _Chosen(list(trace.seconds), trace.seconds), (Trace(), Path(os.devnull))), 0)[1]:
        sys.exit(f"without any fault these tests fail in a fork: {' '.join(tests)}")
    return trace


def attempted(tried: list[Mutant], trace: Trace, jobs: int) -> Iterator[tuple[Mutant, bool]]:
    """Yield each fault and whether it was noticed, ``jobs`` of them at a time."""
    waiting, running = list(reversed(tried)), dict[int, tuple[Mutant, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop()
                if not (tests := trace.tests(mutant.function)):
                    yield mutant, False
                    continue
                files = sorted({test.partition("::")[0] for test in tests})
                pid = forked({mutant.module: mutant.source}, files, _Chosen(tests, trace.seconds))
                patience = PATIENCE + 5 * sum(trace.seconds[test] for test in tests)
                running[pid] = mutant, time.monotonic() + patience
            time.sleep(0.01)
            for pid, (mutant, until) in list(running.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if not ended and time.monotonic() < until:
                    continue
                if not ended:
                    print(f"its tests did not end: {mutant.name}", flush=True)
                _end(pid)
                del running[pid]
                yield mutant, not ended or status != 0
    finally:
        for pid in running:
            _end(pid)


def _end(pid: int) -> None:
    """End a fork and what its tests started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only faults whose names contain one of these words")
    parser.add_argument("--most", type=int, help="faults tried of each target, drawn by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--least", type=float, default=90.0, help="percent that must be noticed for each target")
    parser.add_argument("--thorough", action="store_true", help="run also the slowest tests")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.chdir(ROOT)
    alike = {name for line in ALIKE.read_text().splitlines() if (name := line.partition("  #")[0]) and name[0] != "#"}
    report, failed = [], False
    for pattern, tests in TARGETS.items():
        modules = sorted(ROOT.glob(pattern))
        every = [one for module in modules for one in mutants(module)]
        chosen = [one for one in every if not options.words or any(word in one.name for word in options.words)]
        if not chosen:
            continue
        tried = [one for one in chosen if one.name not in alike]
        alike -= {one.name for one in every}
        if options.most is not None:
            tried = random.Random(options.seed).sample(tried, min(options.most, len(tried)))
        trace = traced({str(module.relative_to(ROOT)): observed(module) for module in modules}, tests, options.thorough)
        survivors = 0
        for done, (mutant, noticed) in enumerate(attempted(tried, trace, options.jobs), 1):
            if not noticed:
                survivors += 1
                source = (ROOT / mutant.module).read_text().splitlines()[mutant.line - 1].strip()
                print(f"{mutant.module}:{mutant.line}: {source}\n    not noticed: {mutant.name}", flush=True)
            if sys.stderr.isatty():
                print(f"\r{done} of {len(tried)}", end="", file=sys.stderr)
        share = 100 * (1 - survivors / max(1, len(tried)))
        failed |= share < options.least
        report.append(f"{pattern:32} {len(tried):5} {len(tried) - survivors:8} {share:3.0f} % {survivors:10}")
        report[-1] += f" {len(chosen) - len(tried) if options.most is None else 0:6}"
    print(f"{'target':32} {'tried':>5} {'noticed':>14} {'survivors':>10} {'alike':>6}", *report, sep="\n")
    if not options.words and alike:
        print("These names in mutants_alike.txt are no faults any more; delete them:", *sorted(alike), sep="\n")
    return int(failed or bool(not options.words and alike))


if __name__ == "__main__":
    sys.exit(main())
