"""Unit tests see no setting of the machine they run on, and no models.yaml of the folder they start in."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.upper().startswith("SWITCHYARD_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
