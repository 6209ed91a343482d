"""Reads the Dockerfile as a build does: its stages, their copies, and the last stage's entry point.

Lays out the image's folder from the files that ``.dockerignore`` admits. Needs no container engine.
"""

import json
import shutil
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from docker.utils import exclude_paths
from dockerfile_parse import DockerfileParser

from tests.support.gateway import ROOT

_ALWAYS_SENT = {"Dockerfile", ".dockerignore"}
"""Files that a build always receives, but may not copy if .dockerignore names them."""


@dataclass
class Stage:
    """One stage: its parsed instructions in order."""

    name: str
    base: str
    steps: list[dict[str, Any]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [step["value"] for step in self.steps if step["instruction"] == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]

    @property
    def environment(self) -> dict[str, str]:
        """The variables of its ENV lines; no value has blanks."""
        pairs = [word for value in self.all("ENV") for word in value.split()]
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def stages() -> dict[str, Stage]:
    """Return the Dockerfile's stages by name, in order."""
    parser = DockerfileParser(fileobj=BytesIO((ROOT / "Dockerfile").read_bytes()))
    found: dict[str, Stage] = {}
    for step in parser.structure:
        if step["instruction"] == "FROM":
            base, _, name = step["value"].partition(" AS ")
            found[name] = Stage(name, base)
        elif found and step["instruction"] != "COMMENT":
            next(reversed(found.values())).steps.append(step)
    return found


def context() -> set[str]:
    """Return the files, relative to the project, that a build may copy."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    sent = {path for path in exclude_paths(str(ROOT), patterns) if (ROOT / path).is_file()}
    return sent - (_ALWAYS_SENT & set(patterns))


def copy(stage: Stage, root: Path) -> None:
    """Apply the stage's WORKDIR and COPY lines under ``root``.

    :raises AssertionError: if a line copies nothing.
    """
    files, workdir = context(), PurePosixPath("/")
    for step in stage.steps:
        if step["instruction"] == "WORKDIR":
            workdir /= step["value"]
        if step["instruction"] != "COPY" or "--from" in step["value"]:
            continue
        *sources, target = step["value"].split()
        copied = 0
        for source in sources:
            place = PurePosixPath(source)
            for file in files:
                if place == PurePosixPath(".") or PurePosixPath(file) == place or place in PurePosixPath(file).parents:
                    within = file if (ROOT / source).is_dir() else place.name
                    to = root / str(workdir / target / within).lstrip("/")
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / file, to)
                    copied += 1
        assert copied, f"{step['content']!r} copies nothing"


def words(value: str) -> list[str]:
    """Return the exec form's words of an ENTRYPOINT, a HEALTHCHECK's CMD or a VOLUME."""
    found: list[str] = json.loads(value[value.index("[") :])
    return found
