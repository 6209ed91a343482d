"""From what a client sent to bytes: base64 text, an uploaded file, or a URL when those are on.

Runs in the gateway process, in the thread of the request. Must not know Flask, nor decode anything.
"""

import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

from media.errors import MediaError, bad_request, too_large
from media.fetch import fetch
from media.limits import MediaLimits
from media.sniff import Kind
from utils.units import format_bytes

_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_WHITE = b" \t\r\n\v\f"
_FOREIGN = re.compile(rb"[^A-Za-z0-9+/]")
_FILE_NAME = re.compile(r"[^\n]{1,255}\.[A-Za-z0-9]{2,5}")


@dataclass(frozen=True)
class RawMedia:
    """Bytes of one medium as they came, unchecked. ``field`` names it in messages (``image``,
    ``images[2]``)."""

    kind: Kind
    data: bytes
    field: str


@dataclass(frozen=True)
class Sent:
    """What a request carried for one medium: base64 text or a URL (str), or an uploaded file's bytes."""

    kind: Kind
    value: object
    field: str


def read_all(sent: Sequence[Sent], limits: MediaLimits) -> list[RawMedia]:
    """Return the bytes of every medium of one request, in order, fetching URLs where that is on.

    :raises MediaError: as :func:`read_one`, and 413 for too many items or too many bytes in all.
    """
    check_count(len(sent), limits)
    result: list[RawMedia] = []
    left = limits.max_bytes
    for item in sent:
        result.append(read_one(item, limits, left))
        left -= len(result[-1].data)
    return result


def read_one(sent: Sent, limits: MediaLimits, left: int | None = None) -> RawMedia:
    """Return the bytes of one medium; ``left`` is how many bytes the request may still bring.

    :raises MediaError: 400 for text that is no base64, a URL while URLs are off, or one that cannot be
        fetched; 413 past the limit on bytes.
    """
    left = limits.max_bytes if left is None else left
    value, field = sent.value, sent.field
    if isinstance(value, bytes):
        data = value
    elif not isinstance(value, str):
        raise bad_request(field, f"expected a base64 string, not {_json_name(value)}")
    elif (scheme := re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]*)://", value)) is not None:
        data = _from_url(value.strip(), scheme[1].lower(), field, limits, left)
    else:
        data = _from_base64(value, field, limits, left)
    if len(data) > left:
        raise _too_many_bytes(field, limits, left, len(data))
    return RawMedia(sent.kind, data, field)


def check_count(count: int, limits: MediaLimits) -> None:
    """:raises MediaError: 413 if a request has more media than ``limits.max_items``."""
    if count > limits.max_items:
        details = f"the request has {count} media; the limit is {limits.max_items}"
        raise MediaError(413, "Too many media", details)


def _from_url(url: str, scheme: str, field: str, limits: MediaLimits, left: int) -> bytes:
    if scheme not in ("http", "https"):
        raise bad_request(field, f"a {scheme}:// address is not taken; http and https are, when URLs are on")
    if not limits.urls:
        raise bad_request(field, "URLs are off here; send base64, or set SWITCHYARD_MEDIA_URLS=true at start")
    return fetch(url, field=field, max_bytes=left, timeout=limits.url_timeout)


def _from_base64(text: str, field: str, limits: MediaLimits, left: int) -> bytes:
    if (start := re.match(r"\s*data:", text, re.IGNORECASE)) is not None:
        prefix, comma, body = text[start.end() :].partition(",")
        if not comma or not prefix.lower().rstrip().endswith("base64"):
            raise bad_request(field, "a data: address must read data:<type>;base64,<text>")
        text = body
    try:
        raw = text.encode("ascii")
    except UnicodeEncodeError as error:
        raise bad_request(field, f"not base64: character {text[error.start]!r} at {error.start}") from None
    raw = raw.translate(_TO_STANDARD, delete=_WHITE).rstrip(b"=")
    if (foreign := _FOREIGN.search(raw)) is not None:
        hint = "; it looks like a file name, send what is in the file" if _FILE_NAME.fullmatch(text) else ""
        character, at = chr(raw[foreign.start()]), foreign.start()
        raise bad_request(field, f"not base64: character {character!r} at {at}{hint}")
    if len(raw) % 4 == 1:
        raise bad_request(field, f"not base64: {len(raw)} characters are no whole bytes; was it cut?")
    if (size := len(raw) * 3 // 4) > left:
        raise _too_many_bytes(field, limits, left, size)
    return binascii.a2b_base64(raw + b"=" * (-len(raw) % 4))


def _too_many_bytes(field: str, limits: MediaLimits, left: int, size: int) -> MediaError:
    total = format_bytes(limits.max_bytes - left + size)
    return too_large(field, "the request's media come to", total, format_bytes(limits.max_bytes))


def _json_name(value: object) -> str:
    names = {dict: "an object", list: "an array", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
