"""Put small faults into pure modules and count which the modules' own tests notice: ``python -m tests.mutants``.

A fault is one changed comparison, sign, ``and``/``or``, ``not`` or constant. Each is tried in a copy of the tree: the
tree itself is never broken. A fault that changes nothing is listed in ``mutants_alike.txt`` by its name, with the
reason. Ends with status 1 if fewer than ``--least`` of a hundred are noticed. Takes long; not part of ``make test``.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from utils.settings import ROOT

TARGETS = {
    "gateway/scheduler/*.py": ["tests/gateway/scheduler", "tests/unit/gateway/scheduler"],
    "gateway/memory/**/*.py": ["tests/unit/gateway/memory"],
    "runner/generation/sampler.py": ["tests/unit/runner/generation/test_sampler.py"],
    "runner/generation/tool_calls.py": ["tests/unit/runner/generation/test_tool_calls.py"],
    "utils/tmp_manage.py": ["tests/unit/utils/test_tmp_manage.py"],
}
"""Modules, and the tests that are theirs."""
ALIKE = Path(__file__).with_name("mutants_alike.txt")
PATIENCE = 300
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
    """One fault: ``name`` tells it from others whatever line it is on."""

    module: str
    line: int
    name: str
    source: str
    tests: tuple[str, ...]


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


def mutants(module: Path, tests: list[str]) -> Iterator[Mutant]:
    """Yield every fault of a module. Annotations, defaults of dataclasses and docstrings are left alone."""
    tree = ast.parse(module.read_text())
    name = str(module.relative_to(ROOT))
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        seen: dict[str, int] = {}
        for statement in function.body:
            for node in ast.walk(statement):
                for fault in faults(node):
                    change = f"{ast.unparse(node)} -> {ast.unparse(fault)}"  # type: ignore[arg-type]
                    seen[change] = seen.get(change, 0) + 1
                    title = f"{name} {function.name}: {change}" + (f" #{seen[change]}" if seen[change] > 1 else "")
                    yield Mutant(name, getattr(node, "lineno", 0), title, _replaced(tree, node, fault), tuple(tests))


def _replaced(tree: ast.Module, node: ast.AST, fault: ast.AST) -> str:
    """Return the module's source with one node replaced. The tree itself is left as it is."""
    whole = copy.deepcopy(tree, {id(node): fault})
    return ast.unparse(ast.fix_missing_locations(whole))


def noticed(mutant: Mutant, home: Path) -> bool:
    """Whether the tests fail with the fault in place, in the copy of the tree at ``home``."""
    file = home / mutant.module
    whole = file.read_text()
    file.write_text(mutant.source)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *mutant.tests]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ran = subprocess.run(command, cwd=home, env=environment, capture_output=True, timeout=PATIENCE)
        return ran.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        file.write_text(whole)


def copied(folder: Path) -> Path:
    """Copy what the tests need of the tree."""
    for entry in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        target = folder / entry
        if (ROOT / entry).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / entry, target)
    return folder


def chosen(words: list[str], most: int, seed: int) -> list[Mutant]:
    """Return at most ``most`` faults a target, those known to change nothing left out."""
    alike = {line.partition("  #")[0] for line in ALIKE.read_text().splitlines()} if ALIKE.exists() else set()
    found: list[Mutant] = []
    for pattern, tests in TARGETS.items():
        if words and not any(word in pattern for word in words):
            continue
        every = [
            one for module in sorted(ROOT.glob(pattern)) for one in mutants(module, tests) if one.name not in alike
        ]
        found += random.Random(seed).sample(every, min(most, len(every)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only targets that contain one of these words")
    parser.add_argument("--most", type=int, default=40, help="faults tried of each target (default 40)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--least", type=float, default=90.0, help="percent that must be noticed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    tried = chosen(options.words, options.most, options.seed)
    homes: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(options.jobs) as pool:
        for number in range(options.jobs):
            homes.put(copied(Path(folder) / str(number)))

        def attempt(mutant: Mutant) -> tuple[Mutant, bool]:
            home = homes.get()
            try:
                return mutant, noticed(mutant, home)
            finally:
                homes.put(home)

        survivors = []
        for done, (mutant, caught) in enumerate(pool.map(attempt, tried), 1):
            if not caught:
                survivors.append(mutant)
                print(f"not noticed: {mutant.name}  (line {mutant.line})", flush=True)
            if sys.stderr.isatty():
                print(f"\r{done} of {len(tried)}", end="", file=sys.stderr)
    share = 100 * (1 - len(survivors) / max(1, len(tried)))
    print(f"{len(tried) - len(survivors)} of {len(tried)} faults noticed ({share:.0f} %)")
    return int(share < options.least)


if __name__ == "__main__":
    sys.exit(main())
