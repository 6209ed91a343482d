"""The catalog: every model this gateway serves, from a profile and the user's own ``models.yaml``.

Read and validated once at start, in the gateway process. Errors name the file, the entry and the field. Must not look
at weights, load anything or know about slots.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from models_registry.families import FAMILIES, Family
from models_registry.spec import ModelSpec
from utils.settings import Settings

_CACHE_TOKENS = 8192
PROFILES = Path(__file__).parent / "profiles"


class CatalogError(ValueError):
    """The catalog cannot be used. The message is one line naming file, entry and field."""


class Catalog:
    """The models of one gateway, by name and alias."""

    def __init__(self, profile: str, specs: list[ModelSpec]) -> None:
        self.profile = profile
        self._specs = {spec.name: spec for spec in specs}
        self._aliases = {alias: spec.name for spec in specs for alias in spec.aliases}

    def __iter__(self) -> Iterator[ModelSpec]:
        return iter(self._specs.values())

    def __len__(self) -> int:
        return len(self._specs)

    def __getitem__(self, name: str) -> ModelSpec:
        """Return the spec of a name, as the catalog has it."""
        return self._specs[name]

    @property
    def names(self) -> list[str]:
        return list(self._specs)

    def get(self, name: str) -> ModelSpec | None:
        """Return the spec of a name or alias, or None."""
        return self._specs.get(self._aliases.get(name, name))

    @staticmethod
    def family(spec: ModelSpec) -> Family:
        return FAMILIES[spec.family]

    @staticmethod
    def batch_size(spec: ModelSpec) -> int:
        """How many requests the model's runner answers at once."""
        return spec.max_batch_size or FAMILIES[spec.family].batch_size

    @staticmethod
    def cache_tokens(spec: ModelSpec) -> int:
        """How many tokens the requests of one batch may hold together, where there is memory for so many."""
        return max(spec.cache_tokens or _CACHE_TOKENS, spec.context or 0)

    @staticmethod
    def inputs(spec: ModelSpec) -> tuple[str, ...]:
        """What a request for this model may carry, in a fixed order."""
        allowed = set(spec.inputs or FAMILIES[spec.family].inputs)
        if spec.engine == "llama_cpp":
            allowed &= {"text"}
        return tuple(kind for kind in ("text", "image", "audio", "video") if kind in allowed)


def profile_names() -> list[str]:
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_catalog(settings: Settings) -> Catalog:
    """Read the profile, then the user's file over it: an entry of the same name replaces the fields it gives.

    A user's entry may be ``null`` to take a model out of the profile.

    :raises CatalogError: for an unknown profile, an unreadable file, a wrong entry or a name used twice.
    """
    path = PROFILES / f"{settings.profile}.yaml"
    if settings.profile not in profile_names():
        raise CatalogError(f"unknown profile {settings.profile!r}; there are {', '.join(profile_names())}")
    entries = _read(path)
    origin = dict.fromkeys(entries, path)
    own = settings.models_file or Path("models.yaml")
    if settings.models_file or own.is_file():
        for name, fields in _read(own).items():
            if fields is None:
                entries.pop(name, None)
                continue
            entries[name] = {**(entries.get(name) or {}), **fields} if isinstance(fields, dict) else fields
            origin[name] = own
    specs = [_validate(origin[name], name, fields) for name, fields in entries.items()]
    _check_names(specs, origin)
    return Catalog(settings.profile, specs)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CatalogError(f"cannot read {path}: {reason}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that cannot be
        mark = getattr(error, "problem_mark", None)
        raise CatalogError(f"{path}{f', line {mark.line + 1}' if mark else ''}: not valid YAML") from error
    models = data.get("models") if isinstance(data, dict) else None
    if not isinstance(models, dict) or set(data) != {"models"}:
        raise CatalogError(f"{path}: needs one top-level key, models, with an entry for each model")
    return {str(name): fields for name, fields in models.items()}


def _validate(path: Path, name: str, fields: Any) -> ModelSpec:
    if not isinstance(fields, dict):
        raise CatalogError(f"{path}: model {name!r}: must be a mapping of fields")
    if "name" in fields:
        raise CatalogError(f"{path}: model {name!r}: field name: the entry's key is the name")
    try:
        spec = ModelSpec.model_validate({**fields, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "entry"
        what = {"extra_forbidden": "no such field", "missing": "is needed"}.get(first["type"], first["msg"])
        raise CatalogError(f"{path}: model {name!r}: field {field}: {what.removeprefix('Value error, ')}") from None
    if spec.family not in FAMILIES:
        raise CatalogError(f"{path}: model {name!r}: field family: {spec.family!r} is none of {', '.join(FAMILIES)}")
    if surplus := set(spec.inputs or ()) - FAMILIES[spec.family].inputs:
        raise CatalogError(f"{path}: model {name!r}: field inputs: {spec.family} takes no {', '.join(sorted(surplus))}")
    if spec.engine == "llama_cpp" and not (spec.source.file or "").endswith(".gguf"):
        raise CatalogError(f"{path}: model {name!r}: field source.file: the llama_cpp engine needs a .gguf file")
    return spec


def _check_names(specs: list[ModelSpec], origin: dict[str, Path]) -> None:
    owner = {spec.name: spec.name for spec in specs}
    for spec in specs:
        for alias in spec.aliases:
            if alias in owner:
                raise CatalogError(
                    f"{origin[spec.name]}: model {spec.name!r}: field aliases: {alias!r} already names {owner[alias]!r}"
                )
            owner[alias] = spec.name
