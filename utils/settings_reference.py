"""Writes ``docs/settings.md`` and ``.env.example`` from the settings: ``python -m utils.settings_reference``.

A tool run by hand. Knows the order of the settings, but no single setting.
"""

from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from utils.settings import ROOT, Settings
from utils.units import parse_bytes

PAGE = ROOT / "docs" / "settings.md"
ENVIRONMENT = ROOT / ".env.example"
GROUPS = {
    "profile": "What is served, and where",
    "models_dir": "Folders",
    "device": "Device and memory",
    "keep_alive": "Loading, queues and deadlines",
    "usage_retention": "Keys, limits and who may ask",
    "max_body": "Limits of a request",
    "media_urls": "Images, audio and video",
    "skip_download": "Downloads",
}
"""The first setting of each subject, in the order of the settings. A new setting belongs to the subject above it."""
LIBRARIES = {
    "HF_TOKEN": ("", "Token of the hub, for weights that are not open to everybody. A secret."),
    "HF_ENDPOINT": ("", "Another hub, say a mirror in your network."),
    "CUDA_VISIBLE_DEVICES": ("", "Which GPUs the driver shows, by index or UUID. Default: all."),
}
"""Variables that libraries read; they are not settings of the gateway."""

_HEAD = """# Settings

Every setting is a line of the YAML file named by `--config`, and an environment variable; the common ones are also
flags (`python main.py --help`). A flag beats a variable, a variable beats the file, the file beats the default.
Durations take `90`, `90s`, `5m` or `1h`; sizes take bytes, `300MB` or `8GiB`. Anything unknown or out of range stops
the start with one line that names it, before the port is opened. `python main.py doctor` checks them, and the machine.

[`.env.example`](../.env.example) has all of them as variables, for Docker Compose and systemd.
"""
_TABLE = "| in the file | variable | default | meaning |\n| --- | --- | --- | --- |\n"
_ENVIRONMENT_HEAD = """\
# Every setting with its default. Copy this file to .env for Docker Compose, or to
# /etc/switchyard/switchyard.env for systemd, and take the # from the lines that you change.
# Made from the settings by: python -m utils.settings_reference
"""


def reference() -> str:
    """Return the page."""
    parts = [_HEAD]
    for title, fields in _groups():
        rows = [f"| `{name}` | `{_variable(name)}` | {_quoted(field)} | {_meaning(field)} |" for name, field in fields]
        parts.append(f"\n## {title}\n\n{_TABLE}" + "\n".join(rows) + "\n")
    rows = [f"| `{name}` | {meaning} |" for name, (_, meaning) in LIBRARIES.items()]
    parts.append("\n## Variables of the libraries\n\n| variable | meaning |\n| --- | --- |\n" + "\n".join(rows) + "\n")
    return "".join(parts)


def environment() -> str:
    """Return the file of variables: each with its meaning and, after a ``#``, its default."""
    parts = [_ENVIRONMENT_HEAD]
    for title, fields in _groups():
        parts.append(f"\n# -- {title} --\n")
        parts += [f"\n# {_meaning(field)}\n#{_variable(name)}={_plain(field)}\n" for name, field in fields]
    parts.append("\n# -- Variables of the libraries --\n")
    parts += [f"\n# {meaning}\n#{name}={value}\n" for name, (value, meaning) in LIBRARIES.items()]
    return "".join(parts)


def _groups() -> Iterator[tuple[str, list[tuple[str, FieldInfo]]]]:
    title, fields = "", list[tuple[str, FieldInfo]]()
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            if fields:
                yield title, fields
            title, fields = GROUPS[name], []
        fields.append((name, field))
    yield title, fields


def _variable(name: str) -> str:
    return f"SWITCHYARD_{name.upper()}"


def _plain(field: FieldInfo) -> str:
    """Return the default as written in a file of variables; "" if there is none."""
    value = field.default
    if value in (None, PydanticUndefined) or value in ([], {}):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if any(getattr(check, "func", None) is parse_bytes for check in field.metadata):
        return _size(value)
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return str(value)


def _quoted(field: FieldInfo) -> str:
    plain = _plain(field)
    return f"`{plain}`" if plain else ""


def _size(count: int) -> str:
    """Return bytes in the largest unit that is exact: ``64MiB``, ``100GB``."""
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (10**9, "GB"), (10**6, "MB")):
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)


def _meaning(field: FieldInfo) -> str:
    """Return the description, with the choices if they are a fixed set."""
    if get_origin(field.annotation) is Literal:
        return f"{field.description} One of {', '.join(map(str, get_args(field.annotation)))}."
    return str(field.description)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    ENVIRONMENT.write_text(environment(), encoding="utf-8")
