"""What a family declares about itself. Pure data, no torch."""

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
"""Options that every family takes: how a token is chosen is the same for all."""

CHAT = SAMPLING | {"response_format", "tools"}
"""What families whose tokenizer and chat template allow it take besides: constrained answers and tool calls."""


@dataclass(frozen=True)
class Family:
    """A family's declaration.

    ``kind`` is the ``type`` clients see in ``/admin/model_status``. ``inputs`` is what a request may carry, and
    ``requires`` what it must carry besides the prompt (one of them is enough). ``options`` are the sampling fields and
    ``switches`` the family's own fields; any other is refused by name. ``keep_16bit`` maps the module names that
    quantization leaves alone to the reason. ``sampling_rate`` is what its audio encoder was trained on, in Hz.
    ``remembers`` is whether it reads a conversation, and not its last question alone.
    ``batch_size`` is how many requests a runner answers at once unless the spec says otherwise. ``later`` names the
    parts of a checkpoint that a load leaves out and a request may have read, with the bytes of their numbers (0: as
    many as the others have), and ``later_needs`` the files without which they are not.
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
