"""Turns a line of a batch into the path and body of one request. Part of ``main.py batch``.

Runs in the command line's process. Knows the three forms of a line and their media fields; ``batch_files`` reads the
files. Must not know HTTP.
"""

import base64
import hashlib
import json
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from commands.batch_files import FileError, Files

_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_OPENAI = {"custom_id", "method", "url", "body"}
_URL_PARTS = ("image_url", "video_url", "audio_url")


class LineError(Exception):
    """The line cannot be sent. The message says why."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input. ``number`` counts all lines from 1; ``digest`` is of text and model."""

    number: int
    text: bytes
    digest: str


@dataclass(frozen=True, slots=True)
class Call:
    """One request: ``POST path`` with ``body``. ``openai``: the line has the form of OpenAI's batches."""

    path: str
    body: dict[str, Any]
    model: str
    custom_id: str | None
    openai: bool


def read_lines(path: Path, model: str | None) -> Iterator[Line]:
    """Yield the lines that are not blank. :raises OSError: if it cannot be read."""
    with path.open("rb") as source:
        for number, raw in enumerate(source, 1):
            if text := raw.strip():
                digest = hashlib.sha256(text + b"\0" + (model or "").encode()).hexdigest()[:16]
                yield Line(number, text, digest)


def parse_line(line: Line, model: str | None, files: Files, timeout: str | None = None) -> Call:
    """Return the line's request, with its files read.

    :raises LineError: if the line is no request, or a file is not allowed or not readable.
    """
    try:
        return _request(_decode(line), model, files, timeout)
    except FileError as error:
        raise LineError(str(error)) from None


def _request(data: Any, model: str | None, files: Files, timeout: str | None) -> Call:
    if isinstance(data, str):
        data = {"prompt": data}
    if not isinstance(data, dict):
        raise LineError(f"a line is a string or an object, not {json.dumps(data)[:80]}")
    if "url" in data or "body" in data:
        return _openai(data, model, files, timeout)
    custom_id = _custom_id(data)
    name = data.pop("model", model)
    if not isinstance(name, str) or not name:
        raise LineError("no model: give --model, or 'model' in the line")
    if data.get("stream"):
        raise LineError("field 'stream': a batch takes whole answers")
    for field in _MEDIA:
        if field in data:
            value = data[field]
            many = isinstance(value, list)
            data[field] = [_medium(item, files) for item in value] if many else _medium(value, files)
    if timeout is not None:
        data.setdefault("timeout", timeout)
    return Call(f"/generate/{quote(name, safe='')}", data, name, custom_id, False)


def names_no_model(line: Line) -> bool:
    """Return whether a line has the plain form and no model. False for an unreadable line."""
    try:
        data = _decode(line)
    except LineError:
        return False
    return isinstance(data, str) or (isinstance(data, dict) and not {"model", "url", "body"} & set(data))


def describe_line(line: Line) -> tuple[dict[str, str], bool]:
    """Return an invalid line's ``custom_id``, if any, and whether it has OpenAI's form."""
    try:
        data = _decode(line)
    except LineError:
        return {}, False
    if not isinstance(data, dict):
        return {}, False
    name = data.get("custom_id")
    return {"custom_id": name} if isinstance(name, str) else {}, "url" in data or "body" in data


def _decode(line: Line) -> Any:
    try:
        return json.loads(line.text)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise LineError(f"no JSON: {error}") from None


def _custom_id(data: dict[str, Any]) -> str | None:
    custom_id = data.pop("custom_id", None)
    if custom_id is not None and not isinstance(custom_id, str):
        raise LineError("field 'custom_id': must be a string")
    return custom_id


def _openai(data: dict[str, Any], model: str | None, files: Files, timeout: str | None) -> Call:
    if unknown := set(data) - _OPENAI:
        raise LineError(f"unknown field {sorted(unknown)[0]!r}; an OpenAI line has custom_id, method, url and body")
    custom_id = _custom_id(data)
    url, body = data.get("url"), data.get("body")
    if data.get("method", "POST") != "POST":
        raise LineError("field 'method': must be POST")
    if not isinstance(url, str) or not url.startswith("/v1/"):
        raise LineError("field 'url': must begin with /v1/, say /v1/chat/completions")
    if not isinstance(body, dict):
        raise LineError("field 'body': must be an object")
    if body.get("stream"):
        raise LineError("field 'body.stream': a batch takes whole answers")
    if model is not None:
        body.setdefault("model", model)
    if timeout is not None:
        body.setdefault("timeout", timeout)
    return Call(url, _with_files(body, files), str(body.get("model")), custom_id, True)


def _with_files(value: Any, files: Files) -> Any:
    """Return an OpenAI body with the content of files in place of their names."""
    if isinstance(value, list):
        return [_with_files(item, files) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _with_files(item, files) for key, item in value.items()}
    for part in _URL_PARTS:
        holder = changed.get(part)
        if isinstance(holder, dict) and isinstance(url := holder.get("url"), str) and files.names_file(url):
            kind = mimetypes.guess_type(files.find_file(url).name)[0] or "application/octet-stream"
            holder["url"] = f"data:{kind};base64,{_base64(url, files)}"
    sound = changed.get("input_audio")
    if isinstance(sound, dict) and isinstance(named := sound.get("data"), str) and files.names_file(named):
        sound["data"] = _base64(named, files)
        sound.setdefault("format", files.find_file(named).suffix.removeprefix(".").lower())
    return changed


def _medium(value: Any, files: Files) -> Any:
    return _base64(value, files) if isinstance(value, str) and files.names_file(value) else value


def _base64(value: str, files: Files) -> str:
    return base64.b64encode(files.read_file(value)).decode()
