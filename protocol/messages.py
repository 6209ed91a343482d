"""The messages on the pipe between the gateway and a runner: plain dataclasses, pickled one by one.

Every message about a load or a request carries its id, so that a late one can be told from a current one. Large things
(decoded media) travel as files in the request's scratch folder; a message holds their path. Standard library only.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

ErrorKind = Literal["bad_request", "out_of_memory", "damaged", "internal"]


@dataclass(frozen=True, slots=True)
class Load:
    """Gateway to runner, once, first: load this model. ``threads`` is for the CPU; 0 means one per core."""

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


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a message.

    Media parts name a ``.npy`` file: an image is uint8 (H, W, 3), audio float32 (N,), a video uint8 (T, H, W, 3).
    ``meta`` has ``sampling_rate`` in Hz, ``fps`` of the sampled frames, and ``audio_path``.
    """

    kind: Literal["text", "image", "audio", "video"]
    text: str = ""
    path: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if part.kind == "text")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. Temperature 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Generate:
    """Gateway to runner: answer this. ``switches`` are the family's own options."""

    request_id: str
    messages: tuple[ChatMessage, ...]
    sampling: Sampling
    switches: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cancel:
    """Gateway to runner: stop this request within one step. It is answered with Done or Failed like any other."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Gateway to runner: end the process now. A closed pipe means the same."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Runner to gateway, about once a second: alive, with the decoding steps made since the start."""

    steps: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Runner to gateway: the load has reached ``phase``; ``fraction`` of it is done, where that is known."""

    load_id: str
    phase: str
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """Runner to gateway: ready. ``weight_bytes`` is the sum over tensors; ``phases`` are seconds by phase."""

    load_id: str
    device: str
    weight_bytes: int
    context: int | None
    phases: dict[str, float]
    quantization: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    load_id: str
    kind: ErrorKind
    error: str


@dataclass(frozen=True, slots=True)
class Started:
    """Runner to gateway: the prompt is tokenized and generation begins."""

    request_id: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Runner to gateway: more of the answer. ``tokens`` counts those that made this text."""

    request_id: str
    text: str
    reasoning: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class Done:
    """Runner to gateway: finished. ``extras`` are fields the family adds to the answer."""

    request_id: str
    finish_reason: Literal["stop", "length", "cancelled"]
    prompt_tokens: int
    completion_tokens: int
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    request_id: str
    kind: ErrorKind
    error: str


RunnerMessage = Heartbeat | Progress | Loaded | LoadFailed | Started | Delta | Done | Failed
GatewayMessage = Load | Generate | Cancel | Stop
