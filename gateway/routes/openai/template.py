"""``POST /v1/apply_template``: what a model is shown of a conversation, as text and as tokens. Gateway process."""

import json
from contextlib import closing
from typing import Annotated, Literal

from flask import Blueprint, Response, request
from pydantic import Field

from gateway.requests.ticket import fold
from gateway.routes import gateway
from gateway.routes.generation import GenerationRequest
from gateway.routes.openai import schemas
from gateway.routes.openai.chat import ChatFields
from gateway.routes.openai.messages import parse_messages
from gateway.routes.openai.tools import parse_tools
from gateway.routes.openai.wire import find_model
from gateway.routes.openapi.operation import GENERATES, describe
from gateway.routes.request_body import read_json
from gateway.routes.sampling_fields import ALWAYS, BodySchema, Fields, parse
from gateway.routes.schemas import reply
from models_registry.families.base import SAMPLING

blueprint = Blueprint("template", __name__, url_prefix="/v1")
_ALWAYS = ALWAYS | {"model", "messages", "add_generation_prompt"}
_NEEDS = {"tool_choice": "tools", "chat_template_kwargs": "tools"}
_KEPT = {"messages", "model", "tools", "tool_choice", "chat_template_kwargs"}
_WITHOUT = (
    SAMPLING | {"response_format", "speech", "stream"} | set(ChatFields.model_fields) - _KEPT - set(Fields.model_fields)
) & set(ChatFields.model_fields)
"""What changes the answer and not the prompt."""
_EXAMPLE = {"model": "deepseek", "messages": [{"role": "user", "content": "Hello"}]}


class TemplateFields(ChatFields):
    """The fields of ``POST /v1/apply_template``: those of a chat that change its prompt."""

    add_generation_prompt: Annotated[Literal[True], Field(description="A prompt ends where the answer begins.")] = True


TAKES = BodySchema(TemplateFields, _ALWAYS, _NEEDS, _WITHOUT)


@blueprint.post("/apply_template")
@describe(tag="openai", answer=schemas.RenderedPrompt, statuses=GENERATES, body=TAKES, example=_EXAMPLE)
def apply_template() -> Response:
    """Render a conversation and generate nothing. Loads the model: its runner has the template and the tokenizer."""
    settings = gateway().settings
    data = read_json(request, settings.max_body, json.dumps(_EXAMPLE))
    spec = find_model(data.get("model"))
    fields = parse(TAKES, data, spec, settings)
    turns = parse_messages(fields.messages)
    tools, choice = parse_tools(fields.tools, fields.tool_choice)
    options = fields.chat_template_kwargs or {}
    generation = GenerationRequest(
        spec, fields, turns, tools=tools, tool_choice=choice, template_options=options, render_only=True
    )
    with closing(generation):
        extras = fold(generation.pieces).finished.extras
    tokens = extras["token_ids"]
    return reply(
        schemas.RenderedPrompt,
        object="rendered_prompt",
        model=spec.name,
        prompt=extras["prompt"],
        tokens=tokens,
        token_count=len(tokens),
    )
