"""The health file. The worker's loop writes it; ``main.py worker --check`` reads it in another process."""

import json
import os
import time
from pathlib import Path
from typing import Any


def write_health(path: Path, facts: dict[str, Any]) -> None:
    """Replace the file atomically. :raises OSError: if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(json.dumps({"time": time.time(), "pid": os.getpid()} | facts) + "\n", encoding="utf-8")
    new.replace(path)


def check_health(path: Path, age: float) -> tuple[bool, str]:
    """Return whether the worker is well, and one line that says why."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        old = time.time() - float(facts["time"])
    except OSError as error:
        return False, f"cannot read {path}: {error.strerror}; no worker runs, or WORKER_HEALTH_FILE is another"
    except (ValueError, KeyError, TypeError):
        return False, f"{path} is no health file"
    state = ", ".join(f"{name} {value}" for name, value in facts.items() if name not in ("time", "pid"))
    if old > age:
        return False, f"the worker has been silent for {old:.0f} seconds: {state}"
    return True, f"well {old:.0f} seconds ago: {state}"
