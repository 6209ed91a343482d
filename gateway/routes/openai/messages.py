"""``messages`` of a chat: every message checked and turned into a turn, its parts in their order. Gateway process.

Media stay as they were sent; nothing is decoded or fetched here.
"""

import json

from gateway.conversation import Turn
from gateway.errors import BadRequest
from gateway.routes.uploads import require
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from protocol.messages import ToolCall
from utils.media.incoming import Sent

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_KEYS = {
    "system": {"name"}, "user": {"name"}, "tool": {"tool_call_id", "name"},
    "assistant": {"name", "tool_calls", "refusal", "reasoning_content", "reasoning"},
}  # fmt: skip
_EMPTY = {"audio", "function_call", "annotations", "refusal"}
"""What clients send back of an answer of ours, empty."""
_MEDIA = {"image_url": "image", "image": "image", "input_audio": "audio", "audio_url": "audio", "audio": "audio",
          "video_url": "video", "video": "video"}  # fmt: skip
_SOUNDS = ("wav", "mp3", "flac", "ogg", "opus", "m4a", "aac", "webm")
_DETAILS = ("auto", "high")
_EXAMPLE = '[{"role": "user", "content": "Hello"}]'


def parse_messages(given: object, spec: ModelSpec) -> list[Turn]:
    """Return the conversation. :raises BadRequest: naming the message or part that is wrong, as ``messages[0]…``."""
    if not isinstance(given, list) or not given:
        raise BadRequest(f"field 'messages': must be a list such as {_EXAMPLE}", param="messages")
    turns: list[Turn] = []
    called: set[str] = set()
    for place, message in enumerate(given):
        turns.append(_turn(message, f"messages[{place}]", spec, called))
        called |= {call.id for call in turns[-1].tool_calls}
    require(spec, [medium for turn in turns for medium in turn.media])
    return turns


def _turn(message: object, at: str, spec: ModelSpec, called: set[str]) -> Turn:
    if not isinstance(message, dict):
        raise _wrong(at, "must be an object with 'role' and 'content'")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _wrong(f"{at}.role", f"must be one of {', '.join(_ROLES)}")
    role = _ROLES[role]
    for key, value in message.items():
        if key not in {"role", "content"} | _KEYS[role] and not (key in _EMPTY and not value):
            raise _wrong(f"{at}.{key}", f"a message of {role} has no such key")
    calls = _calls(message.get("tool_calls"), f"{at}.tool_calls")
    parts = _parts(message.get("content"), f"{at}.content", role, spec, optional=bool(calls))
    name, call_id = message.get("name"), message.get("tool_call_id")
    if name is not None and not isinstance(name, str):
        raise _wrong(f"{at}.name", "must be a string")
    if role == "tool" and (not isinstance(call_id, str) or call_id not in called):
        raise _wrong(f"{at}.tool_call_id", "must be the id of a call in 'tool_calls' of an earlier message")
    return Turn(role, parts, calls, call_id or "", name or "")


def _parts(content: object, at: str, role: str, spec: ModelSpec, optional: bool) -> tuple[str | Sent, ...]:
    if isinstance(content, str):
        return (content,)
    if content is None and optional:
        return ()
    if not isinstance(content, list) or not (content or optional):
        raise _wrong(at, "must be a string or a list of parts")
    return tuple(_part(part, f"{at}[{place}]", role, spec) for place, part in enumerate(content))


def _part(part: object, at: str, role: str, spec: ModelSpec) -> str | Sent:
    if not isinstance(part, dict):
        raise _wrong(at, "must be an object with 'type'")
    kind = part.get("type")
    if kind in ("text", "refusal"):
        text = part.get(kind)
        if not isinstance(text, str):
            raise _wrong(f"{at}.{kind}", "must be a string")
        return text
    if not isinstance(kind, str) or kind not in _MEDIA:
        raise _wrong(f"{at}.type", f"must be one of text, {', '.join(_MEDIA)}")
    if role != "user":
        raise _wrong(at, f"only messages of the user may have media, not those of {role}")
    if _MEDIA[kind] not in Catalog.inputs(spec):
        raise _wrong(at, f"{spec.name} takes {', '.join(Catalog.inputs(spec))}; it cannot take {_MEDIA[kind]}")
    return Sent(_MEDIA[kind], _source(part.get(kind), kind, at), at)  # type: ignore[arg-type]


def _source(value: object, kind: str, at: str) -> str:
    """Return the base64 text or URL of a media part: a string, or an object around one."""
    if isinstance(value, str):
        return value
    key = "data" if kind == "input_audio" else "url"
    source = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(source, str):
        raise _wrong(f"{at}.{kind}", f'must be {{"{key}": …}} with base64 or an address')
    known = {"format": _SOUNDS} if kind == "input_audio" else {"detail": _DETAILS} if kind == "image_url" else {}
    for name, said in value.items():
        if name == key or said is None:
            continue
        if name not in known:
            raise _wrong(f"{at}.{kind}.{name}", "no such key")
        if said not in known[name]:
            why = "; images are shown to the model whole" if name == "detail" else ""
            raise _wrong(f"{at}.{kind}.{name}", f"must be one of {', '.join(known[name])}{why}")
    return source


def _calls(given: object, at: str) -> tuple[ToolCall, ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        raise _wrong(at, "must be a list")
    return tuple(_call(call, f"{at}[{place}]") for place, call in enumerate(given))


def _call(given: object, at: str) -> ToolCall:
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(function, dict) or given.get("type", "function") != "function":
        raise _wrong(at, 'must be {"id": …, "type": "function", "function": {"name": …, "arguments": …}}')
    call_id, name, arguments = given.get("id"), function.get("name"), function.get("arguments")
    for key, value in (("id", call_id), ("function.name", name), ("function.arguments", arguments)):
        if not isinstance(value, str):
            raise _wrong(f"{at}.{key}", "must be a string")
    try:
        whole = isinstance(json.loads(str(arguments)), dict)
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise _wrong(f"{at}.function.arguments", "must be the text of a JSON object")
    return ToolCall(str(call_id), str(name), str(arguments))


def _wrong(at: str, what: str) -> BadRequest:
    return BadRequest(f"{at}: {what}", param=at)


