"""What ``/v1`` answers, in OpenAI's shapes with our own fields beside them. Gateway process; pydantic."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from gateway.routes.schemas import CODE, Shape, Swap, Timings, Usage
from moderation.result import Result

FinishReason = Literal["stop", "length", "tool_calls"]


class ErrorBody(Shape):
    """Why a request was not answered."""

    message: str
    type: str
    param: Annotated[str | None, Field(description="Which field or header was wrong.")]
    code: Annotated[str | None, Field(description=CODE)]


class ErrorEnvelope(Shape):
    """OpenAI's envelope of an error."""

    error: ErrorBody


class _Answer(Shape):
    """What every answer that a model generates has."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Any]
    usage: Usage
    device: str
    timings: Timings
    swap: Swap


class _Chunk(Shape):
    """What every event of a generated answer has. The last with a finish reason brings ``device``, ``timings``,
    ``swap`` and the family's fields."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Any]
    usage: Usage | None = None
    device: str = ""
    timings: Timings | None = None
    swap: Swap | None = None


# -- chat --------------------------------------------------------------------------------------------------------------


class TokenScore(Shape):
    """A token, its bytes and its log probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenScore(TokenScore):
    """A token that was chosen, with the likeliest in its place."""

    top_logprobs: list[TokenScore]


class ChatScores(Shape):
    """Log probabilities of the tokens of an answer."""

    content: list[ChosenScore]
    refusal: None


class CalledName(Shape):
    """The function to call, with the text of a JSON object."""

    name: str
    arguments: str


class ToolCall(Shape):
    """A call of a function that the model asks for."""

    id: str
    type: Literal["function"]
    function: CalledName


class ToolCallDelta(ToolCall):
    """A whole call, with its place among the answer's calls."""

    index: int


class AnswerMessage(Shape):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: Annotated[str | None, Field(description="Of models that may think.")] = None
    tool_calls: list[ToolCall] = []


class ChatChoice(Shape):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatScores | None
    finish_reason: FinishReason


class ChatCompletion(_Answer):
    """Answers to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class Delta(Shape):
    """More of an answer: its role, its text, its reasoning or calls."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    refusal: None = None
    reasoning_content: str = ""
    tool_calls: list[ToolCallDelta] = []


class ChunkChoice(Shape):
    """More of one answer."""

    index: int
    delta: Delta
    logprobs: ChatScores | None
    finish_reason: FinishReason | None


class ChatChunk(_Chunk):
    """An event of a stream. The last with a finish reason brings ``device``, ``timings``,
    ``swap`` and the family's fields."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]


# -- completions -------------------------------------------------------------------------------------------------------


class TextScores(Shape):
    """Log probabilities of the tokens of a text, and where each begins."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Shape):
    """One continued text."""

    index: int
    text: str
    logprobs: TextScores | None
    finish_reason: FinishReason


class Completion(_Answer):
    """Continued texts."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class TextPiece(Shape):
    """More of one text."""

    index: int
    text: str
    logprobs: TextScores | None
    finish_reason: FinishReason | None


class CompletionChunk(_Chunk):
    """An event of a stream."""

    object: Literal["text_completion"]
    choices: list[TextPiece]


# -- transcriptions ----------------------------------------------------------------------------------------------------


class TranscriptUsage(Shape):
    """Tokens of a transcription."""

    type: Literal["tokens"]
    input_tokens: int
    output_tokens: int
    total_tokens: int


class Transcript(Shape):
    """What was said in a recording."""

    text: str
    usage: TranscriptUsage
    model: str
    device: str
    timings: Timings


class TranscriptDelta(Shape):
    """More of it."""

    type: Literal["transcript.text.delta"]
    delta: str


class TranscriptDone(Transcript):
    """All of it, at the end of a stream."""

    type: Literal["transcript.text.done"]


# -- our own -----------------------------------------------------------------------------------------------------------


class Model(Shape):
    """A model of the catalog."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    label: str
    family: str
    aliases: list[str]
    inputs: list[str]
    abilities: list[str]
    state: str
    device: str
    context: Annotated[int | None, Field(description="Its window in tokens; null until it is known.")]
    max_batch_size: int
    quant_bits: int
    requires: Annotated[list[str], Field(description="Media of which each question must have one.")]
    parameters: Annotated[list[str], Field(description="Fields of POST /v1/chat/completions that it honours.")]
    defaults: Annotated[dict[str, Any], Field(description="How it samples unless a request says otherwise.")]
    downloaded: Annotated[bool, Field(description="Whether its weights are here.")]


class ModelList(Shape):
    """Every model of the catalog."""

    object: Literal["list"]
    data: list[Model]


class Request(Shape):
    """A request that waits or runs."""

    id: str
    object: Literal["request"]
    model: str
    state: Literal["running", "waiting"]
    priority: Literal["interactive", "batch"]
    age: float
    tokens: int


class RequestList(Shape):
    """Every request that waits or runs, the oldest first."""

    object: Literal["list"]
    data: list[Request]


class CancelledRequest(Shape):
    """A request that was cancelled."""

    id: str
    object: Literal["request"]
    cancelled: bool


class RenderedPrompt(Shape):
    """What a model is shown of a conversation."""

    object: Literal["rendered_prompt"]
    model: str
    prompt: str
    tokens: list[int]
    token_count: int


# -- moderation --------------------------------------------------------------------------------------------------------


class ModerationProgress(Shape):
    """How far the moderation of a video is: an event named ``progress``."""

    planned: Annotated[int, Field(description="Frames to look at; 0 while nobody knows.")]
    decoded: int
    judged: Annotated[int, Field(description="Frames of which every question is answered.")]
    violations: Annotated[int, Field(description="Frames that violate, as far as is known.")]


class VideoModeration(Result, Shape):
    """What a policy says of a video. Times are seconds from its first frame."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    object: Literal["video.moderation"]
    report: Annotated[str | None, Field(description="A page of HTML for people, where it was asked for.")] = None
