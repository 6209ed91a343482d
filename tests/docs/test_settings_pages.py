"""What is written of the settings is made from them, is up to date, and means what the settings' own defaults mean."""

import re

import pytest

from utils import settings_reference
from utils.settings import Settings


def test_pages_are_up_to_date() -> None:
    hint = "run: python -m utils.settings_reference"
    assert settings_reference.PAGE.read_text() == settings_reference.reference(), hint
    assert settings_reference.ENVIRONMENT.read_text() == settings_reference.environment(), hint


def test_every_setting_is_in_both_once() -> None:
    for text in (settings_reference.reference(), settings_reference.environment()):
        for name in Settings.model_fields:
            assert len(re.findall(rf"\bSWITCHYARD_{name.upper()}\b", text)) == 1, name


def test_subjects_begin_at_settings_that_there_are() -> None:
    assert set(settings_reference.GROUPS) <= set(Settings.model_fields)
    assert list(Settings.model_fields)[0] in settings_reference.GROUPS


def test_every_setting_says_what_it_means() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_defaults_of_the_example_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Settings()
    for name, value in re.findall(r"^#(SWITCHYARD_\w+)=(.+)$", settings_reference.environment(), re.MULTILINE):
        monkeypatch.setenv(name, value)
    given = Settings()
    assert given == wanted and len(given.model_fields_set) > 30
