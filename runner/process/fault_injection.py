"""A hook for tests: makes engine calls run out of memory, hang or die. Runner process.

Rules come from ``SWITCHYARD_INJECT_FAULT``; without it, engines are not wrapped. Rules are separated by ``;``. A rule
is a point and its conditions:

    load model=a times=1; decode above=2 kind=cpu; prefill level=normal times=3; decode after=5 kind=kill

Points are ``load``, ``prepare``, ``prefill``, ``fork``, ``decode`` and ``generate``. All conditions must hold:
``model`` and ``level`` are those of the load (several levels with ``,``); ``above``: more sequences than that;
``after``: that many calls passed before; ``times``: it happened less often in this process; ``once``: a file that does
not exist yet, and is then made, so that it happens in one process only.

``kind`` is what happens: ``cuda`` and ``cpu`` raise torch's errors, ``memory`` (the default) raises MemoryError,
``kill`` sends SIGKILL, ``grow:300MB`` allocates that much and continues, ``hang:FILE`` waits while the file exists.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from protocol.messages import Load
from utils.units import parse_bytes

VARIABLE = "SWITCHYARD_INJECT_FAULT"
_POINTS = {
    "load_model": "load",
    "prepare_sequences": "prepare",
    "prefill": "prefill",
    "fork_sequence": "fork",
    "decode_step": "decode",
    "run_generate": "generate",
}
"""The points of rules, by the engine's method."""
_POLL_SECONDS = 0.05
_hoard: list[Any] = []


@dataclass
class Rule:
    """One rule, and how often it applied."""

    point: str
    model: str = ""
    level: tuple[str, ...] = ()
    above: int = 0
    after: int = 0
    times: int | None = None
    once: str = ""
    kind: str = "memory"
    passed: int = field(default=0, init=False)
    happened: int = field(default=0, init=False)

    def apply_to(self, load: Load, count: int) -> None:
        """Cause the fault if the rule applies to this call, which concerns ``count`` sequences."""
        if self.model not in ("", load.name) or (self.level and load.level not in self.level) or count <= self.above:
            return
        if self.times is not None and self.happened >= self.times:
            return
        self.passed += 1
        if self.passed <= self.after or (self.once and Path(self.once).exists()):
            return
        self.happened += 1
        if self.once:
            Path(self.once).touch()
        _cause(self.kind)


def _cause(kind: str) -> None:
    kind, _, size = kind.partition(":")
    if kind == "grow":
        _hoard.append(np.ones(int(parse_bytes(size)), dtype=np.uint8))
    elif kind == "hang":
        while Path(size).exists():
            time.sleep(_POLL_SECONDS)
    elif kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "cuda":
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (injected)")
    elif kind == "cpu":
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes (injected)")
    else:
        raise MemoryError("injected")


def parse_rules(text: str) -> list[Rule]:
    """:raises ValueError: for an invalid rule, so that a test's mistake does not look like enough memory."""
    found = []
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        point, *conditions = entry.split()
        values: dict[str, Any] = dict(condition.split("=", 1) for condition in conditions)
        if point not in _POINTS.values():
            raise ValueError(f"{VARIABLE}: there is no point {point!r}")
        if "level" in values:
            values["level"] = tuple(values["level"].split(","))
        values |= {name: int(values[name]) for name in ("above", "after", "times") if name in values}
        found.append(Rule(point, **values))
    return found


def with_faults(engine: Any, load: Load) -> Any:
    """Return the engine, wrapped if a test injects faults."""
    text = os.environ.get(VARIABLE, "")
    return _FaultyEngine(engine, load, parse_rules(text)) if text else engine


class _FaultyEngine:
    """An engine whose calls fail by rules."""

    def __init__(self, engine: Any, load: Load, given: list[Rule]) -> None:
        self.__dict__.update(_engine=engine, _load=load, _rules=given)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._engine, name)
        return partial(self._call, _POINTS[name], method) if name in _POINTS else method

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._engine, name, value)

    def _call(self, point: str, method: Callable[..., Any], *arguments: Any) -> Any:
        count = len(arguments[0]) if arguments and isinstance(arguments[0], list) else 1
        for rule in self._rules:
            if rule.point == point:
                rule.apply_to(self._load, count)
        return method(*arguments)
