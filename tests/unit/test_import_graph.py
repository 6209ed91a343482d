"""The imports between our own modules have no circle, and ``app.py`` and ``main.py`` know only what they may.

import-linter takes packages and sees neither single modules nor what is imported by name. Here every import counts: at
the top, inside a function, under ``TYPE_CHECKING``, and by ``import_module`` with a name that starts with ours.
"""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from utils.settings import ROOT

Graph = dict[str, set[str]]
OUTSIDE = {"tests", "models", "logs", "tmp", "docs", "web"}
"""Folders without modules of the product."""


@cache
def modules() -> dict[str, Path]:
    """Our modules' files, by dotted name."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/**/*.py")]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    return {
        name.removesuffix(".__init__"): file
        for name, file in names.items()
        if name.partition(".")[0] not in OUTSIDE and name != "gunicorn.conf"
    }


@cache
def graph() -> Graph:
    """The modules of ours that each of ours imports."""
    return {name: set(_imported(file, set(modules()))) - {name} for name, file in modules().items()}


def _imported(file: Path, known: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        match node:
            case ast.Import(names):
                yield from (one.name for one in names if one.name in known)
            case ast.ImportFrom(module, names, 0) if module:
                for one in names:  # a module of a package, or a name that the package itself defines
                    inner = f"{module}.{one.name}"
                    yield from {inner if inner in known else module} & known
            case ast.Call(ast.Name("import_module") | ast.Attribute(_, "import_module"), [first, *_]):
                yield from _by_name(first, known)


def _by_name(name: ast.expr, known: set[str]) -> Iterator[str]:
    """Yield the modules that ``import_module(name)`` may import: for an f-string, all that begin as it does."""
    match name:
        case ast.Constant(str(module)):
            yield from {module} & known
        case ast.JoinedStr([ast.Constant(str(start)), *_]):
            yield from (module for module in known if module.startswith(start))


def test_it_sees_every_kind_of_import(tmp_path: Path) -> None:
    file = tmp_path / "one.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport a\nfrom p import b, x\nif TYPE_CHECKING:\n    from p.c import C\n"
        "def f(name):\n    from d import D\n    import_module('e')\n    importlib.import_module(f'q.{name}')\n"
    )
    known = {"a", "p", "p.b", "p.c", "d", "e", "q.one", "q.two", "other"}
    assert set(_imported(file, known)) == known - {"other"}


def test_it_sees_the_tree() -> None:
    assert (
        "gateway.gateway" in graph()["gateway.build"]
        and "runner.families.qwen_vl" in graph()["runner.engines.transformers"]
    )


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("module", "rooms"),
    [("app", {"gateway", "models_registry", "utils"}), ("main", {"commands"}), ("deploy.healthcheck", set())],
)
def test_single_modules_know_only_what_they_may(module: str, rooms: set[str]) -> None:
    assert {name.partition(".")[0] for name in graph()[module]} <= rooms


def test_only_what_serves_imports_the_application() -> None:
    importers = {name for name, found in graph().items() if "app" in found}
    assert importers <= {"commands.serve", "bench.path"}, "everybody else speaks HTTP to it"


def test_nothing_imports_the_command_line() -> None:
    assert {name for name, found in graph().items() if "main" in found} <= set()
