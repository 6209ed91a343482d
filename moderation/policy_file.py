"""Reads policies from YAML and reports errors by line and field.

Unlike in plain YAML, ``yes``, ``no`` and dates are texts here, because answers use these words. Must not know what a
policy is for.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from moderation.policy import Policy

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
FieldPath = tuple[str | int, ...]
_MOST_BYTES = 2**20
_MOST_NODES = 20_000
_SHOWN = 5
_WORDS = {
    "missing": "is needed",
    "extra_forbidden": "no such field",
    "string_type": "must be a text; put it in quotes",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "tuple_type": "must be a list",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
}


@dataclass(frozen=True)
class Problem:
    """One error. ``line`` counts from 1; None if the policy is no file."""

    field: str
    what: str
    line: int | None = None

    def __str__(self) -> str:
        told = f"{self.field}: {self.what}" if self.field else self.what
        return f"line {self.line}: {told}" if self.line is not None else told


class PolicyError(ValueError):
    """The policy cannot be used. The message names file, lines and fields; ``problems`` lists them."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        more = len(problems) - _SHOWN
        shown = [str(problem) for problem in problems[:_SHOWN]] + ([f"and {more} more"] if more > 0 else [])
        super().__init__(f"{source}: " + "; ".join(shown))
        self.problems = problems


def load_policy(path: Path) -> Policy:
    """Return the policy in a YAML file. :raises PolicyError: if it is missing or invalid."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise PolicyError(str(path), [Problem("", f"is larger than {_MOST_BYTES} bytes")])
        return parse_policy(raw.decode("utf-8-sig"), str(path))
    except OSError as error:
        raise PolicyError(str(path), [Problem("", f"cannot be read: {error.strerror or error}")]) from None
    except UnicodeDecodeError:
        raise PolicyError(str(path), [Problem("", "is no text in UTF-8")]) from None


def find_policy(said: str, folder: Path, only_names: bool = False) -> Policy:
    """Return the policy of a file, or of this name in the folder. :raises PolicyError: if it is missing or invalid."""
    if not only_names and (Path(said).is_file() or not _NAME.fullmatch(said)):
        return load_policy(Path(said))
    found = folder / f"{said}.yaml"
    if not _NAME.fullmatch(said) or not found.is_file():
        what = "there is no such policy" if only_names else "there is no such file, nor such a policy"
        raise PolicyError(said, [Problem("", f"{what}; {list_policies(folder)}")])
    return load_policy(found)


def list_policies(folder: Path) -> str:
    """Return the names of the policies in a folder, for a message."""
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    return f"there are {', '.join(known)}" if known else f"there are none in {folder}"


def parse_policy(text: str, source: str = "policy") -> Policy:
    """Return the policy of a YAML text. :raises PolicyError: if it is invalid."""
    lines: dict[FieldPath, int] = {}
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = _Reader(lines).value(root, ()) if root is not None else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise PolicyError(source, [Problem("", f"is not YAML: {error.problem}", line)]) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise PolicyError(source, [Problem("", f"is not YAML: {error}")]) from None
    except _Wrong as error:
        raise PolicyError(source, [error.problem]) from None
    return check_policy(data, source, lines)


def check_policy(data: Any, source: str = "policy", lines: Mapping[FieldPath, int] | None = None) -> Policy:
    """Return the policy of parsed data, such as a JSON object. :raises PolicyError: if it is invalid."""
    if not isinstance(data, dict):
        raise PolicyError(source, [Problem("", "must be a mapping with name, version and categories")])
    try:
        return Policy.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
        paths = {tuple(one["loc"][:size]) for one in found for size in range(len(one["loc"]))}
        # pydantic also reports a list with invalid items as too short.
        told = [one for one in found if not (one["type"] == "too_short" and tuple(one["loc"]) in paths)]
        raise PolicyError(source, [_problem(one, lines or {}) for one in told]) from None


def _problem(found: Any, lines: Mapping[FieldPath, int]) -> Problem:
    path: FieldPath = tuple(found["loc"])
    what = _WORDS.get(found["type"], found["msg"].removeprefix("Value error, "))
    if found["type"] == "literal_error":
        what = f"must be one of {found['ctx']['expected'].replace(' or ', ', ')}"
    if found["type"] in ("too_short", "too_long"):
        least, most = found["ctx"].get("min_length"), found["ctx"].get("max_length")
        what = f"needs {least} or more" if least is not None else f"may have {most} at most"
    if found["type"] == "string_pattern_mismatch":
        what = "must be small letters, digits and underscores, beginning with a letter, 40 at most"
    line = next((lines[path[:size]] for size in range(len(path), -1, -1) if path[:size] in lines), None)
    return Problem(_spelled(path), what, line)


def _spelled(path: FieldPath) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


class _Wrong(Exception):
    def __init__(self, path: FieldPath, what: str, node: yaml.Node) -> None:
        self.problem = Problem(_spelled(path), what, node.start_mark.line + 1)


class _Reader:
    """Makes values from YAML nodes and records their lines."""

    def __init__(self, lines: dict[FieldPath, int]) -> None:
        self._lines = lines
        self._left = _MOST_NODES

    def value(self, node: yaml.Node, path: FieldPath) -> Any:
        """Return the node's value. :raises _Wrong: if no policy can have it."""
        self._left -= 1
        if self._left < 0:  # nested anchors expand a few lines to very many values
            raise _Wrong(path, f"has more than {_MOST_NODES} values", node)
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, number)) for number, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: FieldPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Wrong(path, "a field's name must be a text", key)
            if key.value in result:
                raise _Wrong((*path, key.value), "comes twice", key)
            self._lines[(*path, key.value)] = key.start_mark.line + 1
            result[key.value] = self.value(item, (*path, key.value))
        return result


def _scalar(node: yaml.ScalarNode) -> Any:
    text, kind = str(node.value), node.tag.rpartition(":")[2]
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in ("int", "float"):
        made = yaml.SafeLoader("")
        return made.construct_yaml_int(node) if kind == "int" else made.construct_yaml_float(node)
    return text
