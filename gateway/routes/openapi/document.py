"""The API's description by OpenAPI 3.1, made of the routes and of the models that check what they take and answer.

It describes this server: the models of its catalog, its settings' limits. Gateway process.
"""

import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from flask import Flask
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from werkzeug.routing import Rule

from gateway.routes.openai.schemas import ErrorEnvelope
from gateway.routes.openapi import statuses
from gateway.routes.openapi.bodies import as_form, narrowed
from gateway.routes.openapi.operation import Operation, operation_of
from gateway.routes.request_body import MULTIPART, requires_body
from gateway.routes.sampling_fields import BodySchema
from gateway.routes.schemas import Error, Shape
from models_registry.spec import ModelSpec
from utils.settings import Settings

VERSION = "0.1.0"
_REF = "#/components/schemas/{model}"
_ABOUT = (
    "Many models, one GPU: models are loaded on demand, and the least recently used makes room. This page is of one "
    "server: it names the models of its catalog and its own limits. A field that a model cannot honour is refused by "
    "name, never ignored; an optional field that is null is as if it were not there. Errors are "
    '`{"error", "details"}`, and under `/v1` OpenAI\'s envelope.'
)
_TAGS = {
    "generate": "One prompt, one answer.",
    "openai": "For any client of OpenAI's API; and our own routes beside it.",
    "admin": "Memory, models and temporary files.",
    "health": "For whoever watches the process: people, probes, Prometheus.",
    "description": "This description.",
}
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where keys are asked for."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same in a header of its own."},
}
_PRIORITY = {
    "name": "X-Priority",
    "in": "header",
    "description": "As the field `priority`, which beats it.",
    "schema": {"enum": ["interactive", "batch"]},
}


def routes(app: Flask) -> Iterator[tuple[Rule, str, Operation]]:
    """Yield every described route with its method."""
    for rule in app.url_map.iter_rules():
        if operation := operation_of(app.view_functions[rule.endpoint]):
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                yield rule, method.lower(), operation


class Document:
    """The description of one application."""

    def __init__(self, app: Flask, specs: list[ModelSpec], settings: Settings) -> None:
        self._app, self._specs, self._settings = app, specs, settings
        found: set[type[BaseModel]] = {Error, ErrorEnvelope}
        for _, _, operation in routes(app):
            answers = (operation.answer, *operation.answers, *chain(*operation.events.values()))
            found |= {shape for shape in answers if shape}
            if operation.body:
                found.add(operation.body.model if isinstance(operation.body, BodySchema) else operation.body)
        keys, made = models_json_schema(
            [(model, "validation") for model in sorted(found, key=lambda model: model.__name__)], ref_template=_REF
        )
        self._refs = {model: ref["$ref"].rpartition("/")[2] for (model, _), ref in keys.items()}
        self._schemas: dict[str, Any] = _plain(made["$defs"])

    def render(self) -> dict[str, Any]:
        """Return the whole document."""
        paths: dict[str, Any] = {}
        for rule, method, operation in routes(self._app):
            path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
            paths.setdefault(path, {})[method] = self._operation(rule, operation)
        self._drop_bodies()
        return {
            "openapi": "3.1.0",
            "info": {"title": "Switchyard", "version": VERSION, "description": _ABOUT},
            "servers": [{"url": "/"}],
            "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
            "security": [{}, *({name: []} for name in _KEYS)],
            "paths": dict(sorted(paths.items())),
            "components": {"schemas": self._schemas, "securitySchemes": _KEYS},
        }

    def _drop_bodies(self) -> None:
        """Take out the models whose narrowed schemas are in the paths."""
        for _, _, operation in routes(self._app):
            if isinstance(operation.body, BodySchema):
                self._schemas.pop(self._refs[operation.body.model], None)

    def _operation(self, rule: Rule, operation: Operation) -> dict[str, Any]:
        view = self._app.view_functions[rule.endpoint]
        summary, _, more = _words(view).partition("\n\n")
        result: dict[str, Any] = {
            "operationId": rule.endpoint.replace(".", "_"),
            "tags": [operation.tag],
            "summary": summary,
        }
        if more:
            result["description"] = more
        if parameters := self._parameters(rule, operation):
            result["parameters"] = parameters
        if operation.body:
            result["requestBody"] = self._body(operation)
        result["responses"] = self._responses(rule, operation)
        return result

    def _event(self, name: str, shapes: tuple[type[Shape], ...]) -> dict[str, Any]:
        """Return the schema of an event of this name, whose data are JSON of one of these shapes."""
        found = {"anyOf": [{"$ref": _REF.format(model=self._refs[shape])} for shape in shapes]}
        data = {"type": "string", "contentMediaType": "application/json", "contentSchema": found}
        fields: dict[str, Any] = {"event": {"const": name}, "data": data}
        return {"title": name, "type": "object", "properties": fields} | (
            {"required": ["event"]} if name != "message" else {}
        )

    def _parameters(self, rule: Rule, operation: Operation) -> list[dict[str, Any]]:
        names = sorted({name for spec in self._specs for name in (spec.name, *spec.aliases)})
        found = []
        for argument in sorted(rule.arguments):
            schema: dict[str, Any] = {"type": "string", "minLength": 1}
            if argument in ("model", "name"):
                schema = {"type": "string", "enum": names}
            found.append({"name": argument, "in": "path", "required": True, "schema": schema})
        found += [{"name": name, "in": "query", "schema": schema} for name, schema in operation.query.items()]
        return [*found, _PRIORITY] if isinstance(operation.body, BodySchema) else found

    def _body(self, operation: Operation) -> dict[str, Any]:
        if not isinstance(operation.body, BodySchema):
            assert operation.body is not None
            schema: dict[str, Any] = {"$ref": _REF.format(model=self._refs[operation.body])}
            return {"required": requires_body(operation.body), "content": {"application/json": {"schema": schema}}}
        takes = operation.body
        specs = [spec for spec in self._specs if takes.serves(spec)] or self._specs
        schema = narrowed(self._schemas[self._refs[takes.model]], takes, specs, self._settings)
        schema["properties"] |= operation.unsupported
        content: dict[str, Any] = {}
        for kind in operation.media_types:
            content[kind] = {"schema": schema}
            if kind == "application/json" and (example := operation.example):
                content[kind]["example"] = {**example} | ({"model": specs[0].name} if "model" in example else {})
            elif kind != "application/json":
                files = dict(operation.form) if kind == MULTIPART else {}
                content[kind] = {"schema": as_form(schema, files, takes.flat, operation.needed)}
        return {"required": True, "content": content}

    def _responses(self, rule: Rule, operation: Operation) -> dict[str, Any]:
        openai = rule.rule.startswith("/v1/")
        content: dict[str, Any] = {}
        if operation.answer:
            found = [{"$ref": _REF.format(model=self._refs[shape])} for shape in (operation.answer, *operation.answers)]
            content["application/json"] = {"schema": {"anyOf": found} if operation.answers else found[0]}
        if operation.events:
            kinds = [self._event(name, shapes) for name, shapes in operation.events.items()]
            end = [{"title": "end", "type": "object", "properties": {"data": {"const": "[DONE]"}}}] if openai else []
            content["text/event-stream"] = {
                "schema": {
                    "description": "One server-sent event; comments between them keep the line open.",
                    "required": ["data"],
                    "anyOf": [*kinds, *end],
                }
            }
        content |= {kind: {"schema": schema} for kind, schema in operation.others.items()}
        answers = {
            str(operation.success): {"description": "The answer", "content": content, "headers": statuses.REQUEST_ID}
        }
        shape = self._refs[ErrorEnvelope if openai else Error]
        return answers | {str(status): statuses.error(status, shape) for status in sorted(operation.statuses)}


def _plain(schema: Any) -> Any:
    """Return a schema whose descriptions are Markdown, and that names nothing twice."""
    if isinstance(schema, dict):
        return {
            name: value.replace("``", "`") if name == "description" and isinstance(value, str) else _plain(value)
            for name, value in schema.items()
            if not (name == "title" and isinstance(value, str))
        }
    return [_plain(item) for item in schema] if isinstance(schema, list) else schema


def _words(view: Callable[..., Any]) -> str:
    """Return what a route's docstring tells its users: no fields of reStructuredText."""
    text = "\n".join(line.strip() for line in (view.__doc__ or "").strip().splitlines())
    return re.sub(r"``([^`]+)``", r"`\1`", text.partition("\n\n:")[0])
