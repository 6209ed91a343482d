"""``POST /v1/chat/completions``: a conversation in, one or more answers out, whole or as chunks. Gateway process."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Annotated, Any

from flask import Blueprint, Response
from pydantic import Field

from gateway.errors import BadRequest
from gateway.requests.pieces import Again, Called, Choice, Finished, Piece, Text, Waiting
from gateway.requests.ticket import fold
from gateway.routes.generation import GenerationRequest
from gateway.routes.openai import schemas, unsupported, wire
from gateway.routes.openai.envelope import failed
from gateway.routes.openai.messages import Messages, parse_messages
from gateway.routes.openai.tools import Choice as ToolChoice
from gateway.routes.openai.tools import Tools, parse_tools
from gateway.routes.openapi.operation import GENERATES, describe
from gateway.routes.response_format import constraint
from gateway.routes.sampling_fields import BodySchema
from gateway.routes.schemas import Progress, reply
from gateway.routes.sse import Heartbeat, event, respond
from gateway.routes.validation_errors import wrong
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from protocol.messages import ToolCall
from utils.settings import Settings

blueprint = Blueprint("chat", __name__, url_prefix="/v1")
_NEEDS = {
    "top_logprobs": "logprobs",
    "tool_choice": "tools",
    "parallel_tool_calls": "tools",
    "chat_template_kwargs": "tools",
}
_EXAMPLE = {"model": "qwen_vl", "messages": [{"role": "user", "content": "Hello"}]}
_OWN_VARIABLES = frozenset(
    {
        "messages",
        "conversation",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "tokenize",
        "padding",
        "continue_final_message",
        "return_assistant_tokens_mask",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "tokenizer_kwargs",
        "processor_kwargs",
        "bos_token",
        "eos_token",
    }
)


TemplateOptions = Annotated[
    dict[str, Any],
    Field(
        description="Further variables of the chat template.",
        json_schema_extra={"propertyNames": {"not": {"enum": sorted(_OWN_VARIABLES)}}},
    ),
]


class ChatFields(wire.OpenAIFields):
    """The fields of ``POST /v1/chat/completions``."""

    messages: Messages
    logprobs: Annotated[bool, Field(description="Each token's log probability.")] = False
    top_logprobs: (
        Annotated[
            int,
            Field(
                ge=0,
                le=wire.MAX_LOGPROBS,
                description="How many of the likeliest beside each; only with logprobs: true.",
            ),
        ]
        | None
    ) = None
    tools: Annotated[Tools, Field(description="Functions that the model may call.")] | None = None
    tool_choice: Annotated[ToolChoice, Field(description="How they are to be used.")] | None = None
    parallel_tool_calls: Annotated[bool, Field(description="Whether an answer may have several calls.")] = True
    chat_template_kwargs: TemplateOptions | None = None

    def check(self, spec: ModelSpec, settings: Settings) -> None:
        super().check(spec, settings)
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("top_logprobs", "only with logprobs: true")
        if own := sorted(_OWN_VARIABLES & set(self.chat_template_kwargs or ())):
            raise BadRequest(
                f"field 'chat_template_kwargs': {own[0]!r} is set by the server", param=f"chat_template_kwargs.{own[0]}"
            )


TAKES = BodySchema(ChatFields, wire.ALWAYS_TAKEN | {"messages"}, _NEEDS)


@blueprint.post("/chat/completions")
@describe(
    tag="openai",
    answer=schemas.ChatCompletion,
    statuses=GENERATES,
    body=TAKES,
    example=_EXAMPLE,
    unsupported=unsupported.described(unsupported.CHAT),
    events={"message": (schemas.ChatChunk, schemas.ErrorEnvelope), "progress": (Progress,)},
)
def chat() -> Response:
    """Answer a conversation, loading the model first if need be."""
    spec, fields = wire.read(TAKES, unsupported.CHAT, _EXAMPLE)
    turns = parse_messages(fields.messages)
    tools, choice = parse_tools(fields.tools, fields.tool_choice)
    if tools and choice != "none" and constraint(fields.response_format) is not None:
        raise BadRequest(
            "cannot honour 'response_format' together with 'tools': an answer of that shape can call "
            "none; leave one out, or send tool_choice: none",
            param="response_format",
        )
    logprobs = (fields.top_logprobs or 0) if fields.logprobs else None
    generation = GenerationRequest(
        spec,
        fields,
        turns,
        logprobs,
        choices=fields.n,
        tools=tools,
        tool_choice=choice,
        template_options=fields.chat_template_kwargs or {},
    )
    if fields.stream:
        generation.prime()
    pieces = generation.pieces if fields.parallel_tool_calls else _one_call_each(generation.pieces)
    if fields.stream:
        return respond(_events(generation, fields, pieces), generation.close, failed)
    with closing(generation):
        return reply(schemas.ChatCompletion, **_whole(generation, fields, pieces))


def _one_call_each(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Let through the first call of each choice only."""
    called: set[int] = set()
    for piece in pieces:
        if isinstance(piece, Called):
            if piece.index in called:
                continue
            called.add(piece.index)
        elif isinstance(piece, Again):
            called.clear()
        yield piece


def _whole(generation: GenerationRequest, fields: ChatFields, pieces: Iterator[Piece]) -> dict[str, Any]:
    answer = fold(pieces)
    finished = answer.finished
    choices = [
        {
            "index": index,
            "message": _message(answer.choices[index], generation.spec),
            "logprobs": wire.chat_logprobs(answer.choices[index].logprobs) if fields.logprobs else None,
            "finish_reason": reason,
        }
        for index, reason in wire.reasons(finished)
    ]
    head = wire.head(generation, f"chatcmpl-{generation.id}", "chat.completion")
    return head | {"choices": choices, "usage": wire.usage([finished]), **wire.tail(finished)}


def _message(choice: Choice, spec: ModelSpec) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.calls and not choice.text:
        message["content"] = None
    if Catalog.family(spec).thinks:
        message["reasoning_content"] = choice.reasoning or None
    if choice.calls:
        message["tool_calls"] = [_call(call) for call in choice.calls]
    return message


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _events(generation: GenerationRequest, fields: ChatFields, pieces: Iterator[Piece]) -> Iterator[str]:
    """Yield the answer as chunks: first each choice's role, then pieces, then each choice's finish reason."""
    head = wire.head(generation, f"chatcmpl-{generation.id}", "chat.completion.chunk")
    heartbeat = Heartbeat(generation.spec.name, fields.options.include_progress)
    calls: dict[int, int] = {}

    def chunk(index: int, delta: dict[str, Any], logprobs: Any = (), beside: Any = None, reason: Any = None) -> str:
        scores = wire.chat_logprobs(logprobs) if fields.logprobs and logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": scores, "finish_reason": reason}
        usage = {"usage": None} if fields.options.include_usage else {}
        return event(schemas.ChatChunk(**head, choices=[choice], **usage, **(beside or {})))

    for index in range(fields.n):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
    for piece in pieces:
        match piece:
            case Waiting():
                if said := heartbeat(piece):
                    yield said
            case Text(text, reasoning, index, logprobs):
                yield chunk(index, {"reasoning_content" if reasoning else "content": text}, logprobs)
            case Called(call, index, logprobs):
                place = calls[index] = calls.get(index, -1) + 1
                yield chunk(index, {"tool_calls": [{"index": place, **_call(call)}]}, logprobs)
            case Finished():
                last = len(piece.finish_reasons) - 1
                for index, reason in wire.reasons(piece):
                    beside = wire.tail(piece) if index == last else None
                    yield chunk(index, {}, beside=beside, reason=reason)
                if fields.options.include_usage:
                    yield event(schemas.ChatChunk(**head, choices=[], usage=wire.usage([piece])))
                yield wire.DONE
