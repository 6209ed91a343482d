"""What all measurements share: percentiles, the machine's description, and files in docs/benchmarks.

Must not know what is measured.
"""

import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support.gateway import ROOT

PAGES = ROOT / "docs" / "benchmarks"
_BEGIN, _END = "<!-- figures -->", "<!-- end of figures -->"
_PLACES = ("--to", "--peer", "--url")
_PACKAGES = ("torch", "transformers", "llama-cpp-python", "gunicorn")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the quantile ``share`` by linear interpolation; NaN without values."""
    if not values:
        return math.nan
    ordered, place = sorted(values), share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return count, mean, p50, p95, p99 and maximum; without values only the count."""
    if not values:
        return {"count": 0}
    shares = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
    return {"count": len(values), "mean": statistics.fmean(values), "max": max(values)} | {
        name: percentile(values, share) for name, share in shares.items()
    }


def machine() -> dict[str, Any]:
    """Describe the machine, the relevant versions, and the load before the measurement."""
    versions = {}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "processor": _processor(),
        "cpus": psutil.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "gpus": _gpus(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def in_words(found: dict[str, Any]) -> str:
    """Return one sentence about a machine."""
    gpus = ", ".join(found["gpus"]) or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['cpus']} CPUs ({found['processor']}), {found['memory'] / 2**30:.0f} GiB of memory, {gpus}; "
        f"{versions}; load average {found['load_before']:.1f} before the run."
    )


def save(name: str, found: dict[str, Any], to: Path, *, page: Iterable[str] = ()) -> None:
    """Write ``<name>.json`` and, if ``<name>.md`` exists, the lines of ``page`` between its two markers.

    ``found`` has the ``machine``; date and command are added. The text around the markers is written by hand.
    """
    to.mkdir(parents=True, exist_ok=True)
    report = {"date": time.strftime("%Y-%m-%d"), "command": _command(), **found}
    (to / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    path = to / f"{name}.md"
    if path.is_file() and (lines := list(page)):
        text = path.read_text()
        head, begin, rest = text.partition(_BEGIN)
        _, end, tail = rest.partition(_END)
        if not (begin and end):
            raise ValueError(f"{path} lacks the markers {_BEGIN} and {_END}")
        stamp = f"`{report['command']}`, {report['date']}: {in_words(found['machine'])}"
        path.write_text("\n".join([head + _BEGIN, stamp, "", *lines, _END + tail]))


def _command() -> str:
    """Return the command of this run, without options that name local paths."""
    words, skip = ["python", "-m", f"bench.{Path(sys.argv[0]).stem}"], False
    for word in sys.argv[1:]:
        if word in _PLACES:
            skip = True
        elif not skip and word.partition("=")[0] not in _PLACES:
            words.append(word)
        else:
            skip = False
    return " ".join(words)


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table; floats get three significant digits, NaN and None a dash."""
    lines = [heads, ["---"] * len(heads), *([_cell(value) for value in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def plain(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return the same table in columns for a terminal."""
    cells = [list(heads), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        return [str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index))) for index in range(count)]
    except pynvml.NVMLError:
        return []
