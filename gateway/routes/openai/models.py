"""``GET /v1/models``: the models, what each can do and what state it is in. Gateway process."""

import json
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, g

from gateway.access.control import allowed
from gateway.access.usage import allow
from gateway.processes.model_states import ModelState
from gateway.routes import gateway
from gateway.routes.openai import schemas
from gateway.routes.openai.chat import TAKES
from gateway.routes.openapi.operation import GUARDED, describe
from gateway.routes.schemas import reply
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec

blueprint = Blueprint("models", __name__, url_prefix="/v1")


@blueprint.get("/models")
@describe(tag="openai", answer=schemas.ModelList, statuses=GUARDED)
def models() -> Response:
    """Every model of the catalog that the request's key may use."""
    service = gateway()
    names = allowed(service.catalog)
    found = [_describe(model) for model in service.states.all_models() if model.name in names]
    return reply(schemas.ModelList, object="list", data=found)


@blueprint.get("/models/<path:name>")
@describe(tag="openai", answer=schemas.Model, statuses=GUARDED | {404})
def model(name: str) -> Response:
    """One model, by name or alias."""
    service = gateway()
    spec = service.spec(name)
    allow(g.key, spec)
    return reply(schemas.Model, **_describe(service.states.one_model(spec.name)))


def _describe(model: ModelState) -> dict[str, Any]:
    service, spec = gateway(), model.spec
    return model.description() | {
        "id": spec.name,
        "object": "model",
        "created": int(service.started),
        "owned_by": _owner(spec),
        "abilities": abilities(spec),
        "state": model.state,
        "device": model.device or model.expected_on,
        "context": model.context,
        "replicas": [{"state": replica.state, "device": replica.device} for replica in model.replicas],
        "max_batch_size": Catalog.batch_size(spec),
        "requires": sorted(Catalog.family(spec).requires),
        "parameters": sorted(TAKES.offers(spec)),
        "defaults": spec.generation.model_dump(),
        "downloaded": not spec.missing(service.settings.models_dir),
    }


def abilities(spec: ModelSpec) -> list[str]:
    """Return what a model can do, in words that a client can choose by."""
    family, inputs = Catalog.family(spec), Catalog.inputs(spec)
    found = {
        "chat": True,
        "conversation": family.remembers,
        "completion": not family.requires,
        "vision": "image" in inputs,
        "audio": "audio" in inputs,
        "video": "video" in inputs,
        "transcription": "audio" in inputs,
        "thinking": family.thinks,
        "tools": "tools" in family.options and _shows_tools(spec),
        "json_schema": "response_format" in family.options,
        "speech": "speech" in family.switches,
    }
    return [name for name, has in found.items() if has]


def _shows_tools(spec: ModelSpec) -> bool:
    """Return whether the model's chat template has a place for tools; true where it cannot be seen."""
    template = spec.chat_template or _template(spec.path(gateway().settings.models_dir))
    return template is None or "tools" in template


def _template(folder: Path) -> str | None:
    """Return the chat template of a checkpoint's folder. GGUF files keep theirs to themselves."""
    try:
        if (alone := folder / "chat_template.jinja").is_file():
            return alone.read_text(encoding="utf-8")
        if (config := folder / "tokenizer_config.json").is_file():
            found = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
            return found if isinstance(found, str) else None if found is None else json.dumps(found)
    except (OSError, ValueError, AttributeError):
        return None  # a damaged folder says so when it is loaded
    return None


def _owner(spec: ModelSpec) -> str:
    return (spec.source.hub or "").partition("/")[0] or spec.source.package or "local"
