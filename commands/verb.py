"""What all verbs share: flags that may stand before or after a verb, and the settings loaded with them.

Runs in the command line's process. Must not know verbs. Imports only click at the top, because ``doctor`` starts where
other packages are missing.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click


def setting_option(*flags: str, **attributes: Any) -> click.Option:
    """Return an option that overrides a setting. Only given flags are kept; else environment and file apply."""
    return click.Option(flags, default=None, expose_value=False, callback=_keep_flag, **attributes)


def _keep_flag(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value is not None:  # a flag after the verb comes later and wins
        context.ensure_object(dict)[option.name] = value


_FILE = click.Path(path_type=Path)
COMMON_OPTIONS = [
    setting_option("--profile", help="catalog to serve: workstation (default) or pocket"),
    setting_option("--config", type=_FILE, metavar="FILE", help="YAML file of settings"),
    setting_option("--models-file", type=_FILE, metavar="FILE", help="your own models.yaml (default: ./models.yaml)"),
]
SERVING_OPTIONS = [
    setting_option("--host", help="address to listen on (default 127.0.0.1)"),
    setting_option("--port", type=int, help="port to listen on (default 5000)"),
    setting_option("--debug", is_flag=True, help="Flask's own server, debug log"),
    setting_option("--skip-download", is_flag=True, help="do not fetch missing weights at start"),
    click.Option(["--download-only"], is_flag=True, help="fetch missing weights, then exit"),
    click.Option(["--force-cleanup"], is_flag=True, help="clear temporary files before serving"),
]


def pass_settings(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """Pass the settings to a verb's function: file and environment, and the given flags over them."""

    @wraps(function)
    def load_and_call(*args: Any, **options: Any) -> int | None:
        from utils.settings import load_settings

        return function(load_settings(**click.get_current_context().ensure_object(dict)), *args, **options)

    return load_and_call


class Verb(click.Command):
    """A command with the flags of every verb."""

    def __init__(self, name: str | None, *, params: list[click.Parameter] | None = None, **attributes: Any) -> None:
        super().__init__(name, params=[*(params or []), *COMMON_OPTIONS], **attributes)


class VerbGroup(Verb, click.Group):
    """A group of such commands, itself with these flags."""

    command_class = Verb
