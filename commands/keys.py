"""``python main.py keys …``: make, show, change and revoke API keys. A running gateway applies a change at once.

Runs in the command line's process and writes the gateway's file of keys: write access to that file is administration.
"""

import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from commands.verb import VerbGroup, pass_settings
from gateway.access import usage
from gateway.access.keys import Key, KeyChangeError, changing, new_token, path, read
from models_registry.catalog import Catalog, load_catalog
from utils.settings import Settings
from utils.units import parse_seconds

LIMITS = ("requests_per_day", "requests_per_month", "tokens_per_day", "tokens_per_month", "concurrent")
NONE = "none"
_COUNTED = {"concurrent": "requests at once"}


@click.group("keys", cls=VerbGroup)
def keys_command() -> None:
    """Make, list and revoke API keys."""


_ALLOWANCES = [
    click.Option(["--role"], type=click.Choice(["user", "admin"]), help="admin may use /admin too (default user)"),
    click.Option(["--models"], metavar="A,B", help="the models it may use (default all)"),
    *(
        click.Option(
            [f"--{name.replace('_', '-')}"], metavar="N", help="at most N " + _COUNTED.get(name, name.replace("_", " "))
        )
        for name in LIMITS
    ),
    click.Option(["--rate"], help="requests it may make, such as 60/minute or 5/second;1000/day"),
    click.Option(["--expires"], metavar="TIME", help="when it ends: in, say, 90d, or on a day such as 2030-12-31"),
]
_NAME = click.Argument(["name"], help="its name: letters, digits and . _ - @")
_JSON = click.Option(["--json", "as_json"], is_flag=True, help="print JSON")


@keys_command.command("create", params=[_NAME, *_ALLOWANCES, _JSON], epilog=f"Any of these may be '{NONE}'.")
@pass_settings
def create_key(settings: Settings, name: str, as_json: bool, **allowance: str | None) -> None:
    """Make a key and show it, this once."""
    given = _check_allowance(allowance, load_catalog(settings))
    with _changing_keys(settings) as keys:
        if any(key.name == name for key in keys):
            raise KeyChangeError(f"there is a key {name} already; change, rotate or remove it")
        key_id, token, digest = new_token()
        key = Key(id=key_id, name=name, digest=digest, created=round(time.time(), 3), **given)
        keys.append(key)
    _show_token(key, token, as_json)


@keys_command.command("list", params=[_JSON])
@pass_settings
def list_keys(settings: Settings, as_json: bool) -> None:
    """Show the keys, not their secrets."""
    _print_keys(read(path(settings.data_dir)), _last_used(usage.path(settings.data_dir)), as_json)


@keys_command.command("change", params=[_NAME, *_ALLOWANCES, _JSON], epilog=f"Any of these may be '{NONE}'.")
@pass_settings
def change_key(settings: Settings, name: str, as_json: bool, **allowance: str | None) -> None:
    """Change what a key may do."""
    given = _check_allowance(allowance, load_catalog(settings))
    with _changing_keys(settings) as keys:
        key = _replace_key(keys, name, **given)
    _show_change(key, "changed", as_json)


@keys_command.command("rotate", params=[_NAME, _JSON])
@pass_settings
def rotate_key(settings: Settings, name: str, as_json: bool) -> None:
    """Give a key a new secret; the old one ends at once."""
    with _changing_keys(settings) as keys:
        key = _find_key(keys, name)
        if key.revoked is not None:
            raise KeyChangeError(f"the key {key.name} is revoked; remove it and create another")
        _, token, digest = new_token(key.id)
        key = _replace_key(keys, key.name, digest=digest)
    _show_token(key, token, as_json)


@keys_command.command("revoke", params=[_NAME, _JSON])
@pass_settings
def revoke_key(settings: Settings, name: str, as_json: bool) -> None:
    """End a key; its name and its usage stay."""
    with _changing_keys(settings) as keys:
        key = _replace_key(keys, name, revoked=round(time.time(), 3))
    _show_change(key, "revoked", as_json)


@keys_command.command("remove", params=[_NAME, _JSON])
@pass_settings
def remove_key(settings: Settings, name: str, as_json: bool) -> None:
    """Forget a revoked key; its name is free again."""
    with _changing_keys(settings) as keys:
        key = _find_key(keys, name)
        if key.revoked is None:
            raise KeyChangeError(f"the key {key.name} is in force; revoke it first")
        if len(keys) == 1:
            raise KeyChangeError(
                f"{key.name} is the last key, and without any the gateway asks for none; "
                f"to want that, stop the gateway and delete {path(settings.data_dir)}"
            )
        keys.remove(key)
    _show_change(key, "removed", as_json)


@contextmanager
def _changing_keys(settings: Settings) -> Iterator[list[Key]]:
    """Yield the keys to change, and write them. :raises ValueError: in one line, for a change that cannot be made."""
    try:
        with changing(path(settings.data_dir)) as keys:
            yield keys
    except KeyChangeError as error:
        raise ValueError(str(error)) from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        what = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{'.'.join(map(str, first['loc'])).replace('_', ' ')}: {what}") from None


def _last_used(file: Path) -> dict[str, float]:
    """Return when each key was used last. Without it the keys can still be listed."""
    try:
        return usage.last_used(file)
    except (OSError, sqlite3.Error) as error:
        print(f"when keys were used last is not known: {file} cannot be read: {error}", file=sys.stderr)
        return {}


def _find_key(keys: list[Key], name: str) -> Key:
    for key in keys:
        if key.name == name:
            return key
    raise KeyChangeError(f"there is no key {name!r}; there are {', '.join(key.name for key in keys) or 'none'}")


def _replace_key(keys: list[Key], name: str, **fields: Any) -> Key:
    old = _find_key(keys, name)
    new = Key.model_validate(old.model_dump() | fields)
    keys[keys.index(old)] = new
    return new


def _check_allowance(allowance: dict[str, str | None], catalog: Catalog) -> dict[str, Any]:
    """Return the given allowances as values. :raises ValueError: for one that cannot be used."""
    given = {name: text for name, text in allowance.items() if text is not None}
    return {name: None if text == NONE else _value(name, text, catalog) for name, text in given.items()}


def _value(name: str, text: str, catalog: Catalog) -> Any:
    if name in LIMITS:
        if not text.isascii() or not text.isdigit():
            raise ValueError(f"--{name.replace('_', '-')} takes a number or {NONE}, not {text!r}")
        return int(text)
    if name == "models":
        return _models([part.strip() for part in text.split(",") if part.strip()], catalog)
    return _moment(text) if name == "expires" else text


def _models(names: list[str], catalog: Catalog) -> list[str]:
    found = []
    for name in names:
        if (spec := catalog.get(name)) is None:
            raise ValueError(f"there is no model {name!r}; there are {', '.join(catalog.names)}")
        found.append(spec.name)
    if not found:
        raise ValueError(f"--models takes names, or {NONE} for no such limit")
    return found


def _moment(text: str) -> float:
    try:
        at = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        at = time.time() + parse_seconds(text)
    if at <= time.time():
        raise ValueError(f"--expires {text!r} is over already")
    return round(at, 3)


def _show_token(key: Key, token: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_shown(key) | {"key": token}))
    else:
        print(token)
        print(f"This is the key {key.name} ({key.role}). It is shown this once: keep it safe.", file=sys.stderr)


def _show_change(key: Key, change: str, as_json: bool) -> None:
    print(json.dumps(_shown(key)) if as_json else f"The key {key.name} is {change}.")


def _shown(key: Key) -> dict[str, Any]:
    return {"name": key.name, "id": key.id, "valid": key.valid} | key.model_dump(exclude={"name", "id", "digest"})


def _print_keys(keys: list[Key], used: dict[str, float], as_json: bool) -> None:
    if as_json:
        print(json.dumps([_shown(key) | {"last_used": used.get(key.id)} for key in keys]))
        return
    table = Table("name", "key", "role", "models", "limits", "made", "last used", "state")
    for key in keys:
        limits = [f"{value} {name.replace('_', ' ')}" for name in LIMITS if (value := getattr(key, name)) is not None]
        state = "revoked" if key.revoked else "valid" if key.valid else "expired"
        if key.valid and key.expires:
            state = f"until {_day(key.expires)}"
        table.add_row(
            key.name,
            f"sy-{key.id}-…",
            key.role,
            ", ".join(key.models) if key.models else "all",
            ", ".join(limits + ([key.rate] if key.rate else [])) or "-",
            _day(key.created),
            _day(used.get(key.id)),
            state,
        )
    console = Console()
    if keys:
        console.print(table)
    else:
        console.print("There are no keys: the gateway asks for none. Make one: python main.py keys create NAME")


def _day(at: float | None) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d") if at else "-"
