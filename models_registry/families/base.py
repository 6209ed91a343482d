"""What a family declares about itself. Pure data, no torch."""

from dataclasses import dataclass, field

SAMPLING = frozenset(
    {"max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop"}
)
"""Sampling options that every family built on ``generate`` takes."""


@dataclass(frozen=True)
class Family:
    """A family's declaration.

    ``kind`` is the ``type`` clients see in ``/admin/model_status``. ``inputs`` is what a request may carry, and
    ``requires`` what it must carry besides the prompt (one of them is enough). ``options`` are the sampling fields and
    ``switches`` the family's own fields; any other is refused by name. ``keep_16bit`` maps the module names that
    quantization leaves alone to the reason. ``sampling_rate`` is what its audio encoder was trained on, in Hz.
    """

    name: str
    kind: str
    inputs: frozenset[str]
    requires: frozenset[str] = frozenset()
    options: frozenset[str] = SAMPLING
    switches: frozenset[str] = frozenset()
    keep_16bit: dict[str, str] = field(default_factory=dict)
    sampling_rate: int = 16000
    thinks: bool = False
