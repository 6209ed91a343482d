"""DeepSeek-R1 distilled into Qwen3 (and any causal language model that thinks between <think> tags)."""

from models_registry.families.base import Family

FAMILY = Family(
    name="deepseek",
    kind="text",
    inputs=frozenset({"text"}),
    keep_16bit={"lm_head": "its rounding errors go straight into the choice of the next token"},
    thinks=True,
    batch_size=16,
)
