"""The messages on the pipe between the gateway and a runner: dataclasses, pickled one by one. Both processes.

Every message about a load or a request carries its id, so that a late message is recognized. Decoded media travel as
files in the request's scratch folder; a message holds their path. Standard library only.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

ErrorKind = Literal["bad_request", "out_of_memory", "damaged", "internal"]
Level = Literal["normal", "small_batch", "offload", "cpu"]
"""How a model is loaded: as its spec says, or after memory ran out, with less and less of the device."""
Step = Literal["retried", "smaller_batch", "smaller_piece", "larger_batch"]
"""What a runner does when memory runs out during an answer, and after a calm period."""


@dataclass(frozen=True, slots=True)
class Load:
    """Gateway to runner, first and once: load this model.

    ``threads`` are CPU threads; 0 is one per core. ``max_batch_size`` is how many answers may be generated at once.
    ``batch_wait`` is how many seconds the first request of an idle model waits for others. ``cache_tokens`` is the most
    tokens of KV cache for all answers together. Quantized weights are kept in ``quantized_dir``, at most
    ``quantized_limit`` bytes; with "" they are not kept. ``level`` says how much was reduced because memory ran out
    before; the other fields reflect it already.
    """

    load_id: str
    name: str
    family: str
    engine: str
    path: str
    quant_bits: int
    device: str
    context: int | None = None
    threads: int = 0
    max_memory: dict[str, str] | None = None
    chat_template: str | None = None
    max_batch_size: int = 1
    batch_wait: float = 0.0
    cache_tokens: int = 8192
    quantized_dir: str = ""
    quantized_limit: int = 0
    level: Level = "normal"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a message.

    Media parts name a ``.npy`` file: an image is uint8 (H, W, 3), audio float32 (N,), a video uint8 (T, H, W, 3).
    ``meta`` has ``sampling_rate`` in Hz, ``fps`` of the sampled frames, and ``audio_path``.
    """

    kind: Literal["text", "image", "audio", "video"]
    text: str = ""
    path: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of one of the client's tools. ``arguments`` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message. An assistant's may hold tool calls; a tool's answers the call ``tool_call_id``."""

    role: str
    parts: tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if part.kind == "text")


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form of the answer: any JSON object, a JSON schema, a regular expression or a Lark grammar.

    ``value`` is the schema as JSON text, the expression or the grammar; "" for ``json_object``.
    """

    kind: Literal["json_object", "json_schema", "regex", "lark"]
    value: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are sampled. Temperature 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off.

    ``repetition_penalty`` divides the scores of tokens in the prompt or the answer. ``presence_penalty`` and
    ``frequency_penalty`` are subtracted, once or per occurrence, for tokens of the answer. End tokens are excluded
    before ``min_tokens``. ``logprobs`` requests each token's log probability, and that many of the likeliest tokens.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Generate:
    """Gateway to runner: answer this, in ``choices`` independent ways, each with its own random numbers.

    ``switches`` are the family's own options. ``tools`` are function definitions in OpenAI's format; ``tool_choice`` is
    ``auto``, ``none``, ``required`` or a function's name. Without ``template`` the prompt is the messages' bare text.
    ``template_options`` are extra variables of the chat template. ``render_only`` requests only the rendered prompt,
    returned in Done's ``extras`` as ``prompt`` and ``token_ids``.
    """

    request_id: str
    messages: tuple[ChatMessage, ...]
    sampling: Sampling
    switches: dict[str, Any] = field(default_factory=dict)
    choices: int = 1
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str = "auto"
    template: bool = True
    template_options: dict[str, Any] = field(default_factory=dict)
    render_only: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Gateway to runner: stop this request within one step. The runner still sends Done or Failed."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Gateway to runner: end the process now. A closed pipe means the same."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Runner to gateway, about once a second: ``steps`` counts decoding steps since the start, ``batch`` the answers in
    the batch.
    """

    steps: int
    batch: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Runner to gateway: the load is in ``phase``; ``fraction`` of it is done, None if unknown."""

    load_id: str
    phase: str
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """Runner to gateway: the model is ready.

    ``weight_bytes`` is the sum over tensors; ``mapped_bytes`` are those used as mapped pages of their file;
    ``transient_bytes`` are freed by Settled. ``phases`` are seconds by phase. ``peak_bytes`` is the load's peak minus
    its use now. ``from_kept``: it read quantized weights of an earlier load, so its peak does not predict one that
    quantizes.
    """

    load_id: str
    device: str
    weight_bytes: int
    context: int | None
    phases: dict[str, float]
    quantization: str
    mapped_bytes: int = 0
    transient_bytes: int = 0
    peak_bytes: int = 0
    from_kept: bool = False


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """Runner to gateway: the load failed."""

    load_id: str
    kind: ErrorKind
    error: str


@dataclass(frozen=True, slots=True)
class Settled:
    """Runner to gateway: the work after the load is done too. ``mapped_bytes`` is as in Loaded, and may have
    changed.
    """

    load_id: str
    mapped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """Runner to gateway: the prompt is tokenized and generation begins."""

    request_id: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A sampled token with its natural log probability before sampling; ``top`` are the likeliest tokens as (bytes,
    logprob).
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """Runner to gateway: more of choice ``index``: text, or a whole tool call. ``tokens`` counts the tokens it was made
    from.
    """

    request_id: str
    text: str
    reasoning: bool
    tokens: int
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_call: ToolCall | None = None


FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True, slots=True)
class Done:
    """Runner to gateway: the request is finished.

    ``finish_reasons`` has one entry per choice, ``completion_tokens`` counts all of them. ``extras`` are the family's
    own fields, and ``relief`` the steps taken for lack of memory meanwhile.
    """

    request_id: str
    finish_reasons: tuple[FinishReason, ...]
    prompt_tokens: int
    completion_tokens: int
    extras: dict[str, Any] = field(default_factory=dict)
    relief: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """Runner to gateway: the request failed. ``alone``: it had the model to itself."""

    request_id: str
    kind: ErrorKind
    error: str
    alone: bool = True


@dataclass(frozen=True, slots=True)
class Relief:
    """Runner to gateway: memory ran out, and this step was taken. ``error`` is the library's message; ``batch`` is how
    many answers are generated at once from now on, of the ``most`` at load.
    """

    step: Step
    error: str
    batch: int
    most: int


RunnerMessage = Heartbeat | Progress | Loaded | LoadFailed | Settled | Started | Delta | Done | Failed | Relief
GatewayMessage = Load | Generate | Cancel | Stop
