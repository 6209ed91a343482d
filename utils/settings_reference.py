"""Writes ``docs/settings.md`` from the settings themselves: ``python -m utils.settings_reference``.

A tool run by hand; nothing in the gateway needs it.
"""

from pydantic_core import PydanticUndefined

from utils.settings import ROOT, Settings

PAGE = ROOT / "docs" / "settings.md"
_HEAD = """# Settings

Every setting is a line of the YAML file named by `--config`, and an environment variable; the common ones are also
flags (`python main.py --help`). A flag beats a variable, a variable beats the file, the file beats the default.
Durations take `90`, `90s`, `5m` or `1h`; sizes take bytes, `300MB` or `8GiB`. Anything unknown or out of range stops
the start with one line that names it.

| in the file | variable | default | meaning |
| --- | --- | --- | --- |
"""


def reference() -> str:
    """Return the page."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, PydanticUndefined) else _show(field.default)
        rows.append(f"| `{name}` | `SWITCHYARD_{name.upper()}` | {default} | {field.description} |")
    return _HEAD + "\n".join(rows) + "\n"


def _show(value: object) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return "" if value == [] else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
