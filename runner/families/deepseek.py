"""DeepSeek-R1 distilled into Qwen3: a causal language model that thinks between <think> tags. Runner process."""

import transformers.models.qwen3.modeling_qwen3  # noqa: F401  (imported before the fork, or every runner pays for it)
from transformers import AutoModelForCausalLM

from runner.families.base import RunnerFamily


class DeepSeek(RunnerFamily):
    model_class = AutoModelForCausalLM


FAMILY = DeepSeek
