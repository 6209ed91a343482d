"""The declaration of a family. Pure data, no torch."""

from dataclasses import dataclass, field

SAMPLING = frozenset(
    {
        "max_new_tokens",
        "min_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "seed",
        "stop",
        "n",
        "logprobs",
    }
)
"""Options that every family supports, because sampling is the same for all."""

CHAT = SAMPLING | {"response_format", "tools"}
"""Options of families whose tokenizer and chat template support constrained answers and tool calls."""


@dataclass(frozen=True)
class Family:
    """A family's declaration.

    ``kind`` is the ``type`` in ``/admin/model_status``. ``inputs`` are the accepted inputs; ``requires`` are those of
    which one is needed besides the prompt. ``options`` are the sampling fields and ``switches`` the family's own
    fields; any other field is rejected by name. ``keep_16bit`` maps modules that are not quantized to the reason.
    ``sampling_rate`` is that of its audio encoder, in Hz. ``thinks``: the model may think between <think> tags.
    ``remembers``: it reads the conversation, not only the last question. ``batch_size`` is how many requests a runner
    answers at once unless the spec says otherwise. ``later`` maps parts of a checkpoint that a request may load after
    the load to the bytes of their numbers (0: as the other parts); ``later_needs`` are the files they need.
    """

    name: str
    kind: str
    inputs: frozenset[str]
    requires: frozenset[str] = frozenset()
    options: frozenset[str] = CHAT
    switches: frozenset[str] = frozenset()
    keep_16bit: dict[str, str] = field(default_factory=dict)
    sampling_rate: int = 16000
    thinks: bool = False
    remembers: bool = True
    batch_size: int = 8
    later: dict[str, int] = field(default_factory=dict)
    later_needs: tuple[str, ...] = ()
