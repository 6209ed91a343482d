"""``python main.py keys …``: make, show, change and revoke API keys. A running gateway heeds a change at once.

Runs in the command line's process, and writes the gateway's file of keys itself: whoever may write that file may
administer the gateway.
"""

import json
import sqlite3
import sys
import time
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from commands.keys_arguments import LIMITS, NONE
from gateway.access import usage
from gateway.access.keys import Allowance, Key, KeyChangeError, changing, new_token, path, read
from models_registry.catalog import Catalog, load_catalog
from utils.settings import Settings
from utils.units import parse_seconds


def run(settings: Settings, arguments: Namespace) -> int:
    """Do what was asked; return the exit status.

    :raises SettingsError: if the file cannot be used.
    :raises ValueError: for a name or value that cannot be.
    """
    file = path(settings.data_dir)
    if arguments.action == "list":
        _list(read(file), _last_used(usage.path(settings.data_dir)), arguments.json)
        return 0
    token = None
    with changing(file) as keys:
        try:
            match arguments.action:
                case "create":
                    given = _given(arguments, load_catalog(settings))
                    if any(key.name == arguments.name for key in keys):
                        raise KeyChangeError(f"there is a key {arguments.name} already; change, rotate or remove it")
                    key_id, token, digest = new_token()
                    key = Key(id=key_id, name=arguments.name, digest=digest, created=round(time.time(), 3), **given)
                    keys.append(key)
                case "change":
                    given = _given(arguments, load_catalog(settings))
                    key = _replace(keys, arguments.name, **given)
                case "rotate":
                    key = _find(keys, arguments.name)
                    if key.revoked is not None:
                        raise KeyChangeError(f"the key {key.name} is revoked; remove it and create another")
                    _, token, digest = new_token(key.id)
                    key = _replace(keys, key.name, digest=digest)
                case "revoke":
                    key = _replace(keys, arguments.name, revoked=round(time.time(), 3))
                case _:
                    key = _find(keys, arguments.name)
                    if key.revoked is None:
                        raise KeyChangeError(f"the key {key.name} is in force; revoke it first")
                    if len(keys) == 1:
                        raise KeyChangeError(
                            f"{key.name} is the last key, and without any the gateway asks for none; "
                            f"to want that, stop the gateway and delete {file}"
                        )
                    keys.remove(key)
        except KeyChangeError as error:
            raise ValueError(str(error)) from None
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            what = first["msg"].removeprefix("Value error, ")
            raise ValueError(f"{'.'.join(map(str, first['loc'])).replace('_', ' ')}: {what}") from None
    _tell(key, arguments.action, token, arguments.json)
    return 0


def _last_used(file: Path) -> dict[str, float]:
    """Return when each key was used last. Without it the keys can still be listed."""
    try:
        return usage.last_used(file)
    except (OSError, sqlite3.Error) as error:
        print(f"when keys were used last is not known: {file} cannot be read: {error}", file=sys.stderr)
        return {}


def _find(keys: list[Key], name: str) -> Key:
    for key in keys:
        if key.name == name:
            return key
    raise KeyChangeError(f"there is no key {name!r}; there are {', '.join(key.name for key in keys) or 'none'}")


def _replace(keys: list[Key], name: str, **fields: Any) -> Key:
    old = _find(keys, name)
    new = Key.model_validate(old.model_dump() | fields)
    keys[keys.index(old)] = new
    return new


def _given(arguments: Namespace, catalog: Catalog) -> dict[str, Any]:
    """Return the allowances that were given, checked. :raises ValueError: for one that cannot be."""
    given: dict[str, Any] = {}
    for name in Allowance.model_fields:
        text = getattr(arguments, name)
        if text is None:
            continue
        given[name] = None if text == NONE else _value(name, text, catalog)
    return given


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


def _tell(key: Key, action: str, token: str | None, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_shown(key) | ({"key": token} if token else {})))
    elif token:
        print(token)
        print(f"This is the key {key.name} ({key.role}). It is shown this once: keep it safe.", file=sys.stderr)
    else:
        words = {"change": "changed", "revoke": "revoked", "remove": "removed"}
        print(f"The key {key.name} is {words[action]}.")


def _shown(key: Key) -> dict[str, Any]:
    return {"name": key.name, "id": key.id, "valid": key.valid} | key.model_dump(exclude={"name", "id", "digest"})


def _list(keys: list[Key], used: dict[str, float], as_json: bool) -> None:
    if as_json:
        print(json.dumps([_shown(key) | {"last_used": used.get(key.id)} for key in keys]))
        return
    table = Table("name", "key", "role", "models", "limits", "made", "last used", "state")
    for key in keys:
        limits = [f"{value} {name.replace('_', ' ')}" for name in LIMITS if (value := getattr(key, name)) is not None]
        state = (
            "revoked"
            if key.revoked
            else f"until {_day(key.expires)}"
            if key.expires and key.valid
            else ("valid" if key.valid else "expired")
        )
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
