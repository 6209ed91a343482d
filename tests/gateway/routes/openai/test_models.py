"""``/v1/models`` and ``/v1/apply_template``: what there is, and what a model would be shown."""

from typing import Any

import openai
import pytest

from tests.gateway.routes.openai.asking import CIRCLE, PARIS, user
from tests.gateway.routes.openai.test_tools import WEATHER
from tests.support.gateway import GatewayProcess


def test_the_catalog(client: openai.OpenAI, served: GatewayProcess) -> None:
    found = {model.id: model for model in client.models.list()}
    assert list(found) == served.get("/admin/model_status")["available_models"]
    for model in found.values():
        assert model.object == "model" and model.created > 1_700_000_000 and model.owned_by
        extra = model.model_extra or {}
        assert extra["state"] in ("cold", "loading", "ready") and extra["device"] == "cpu"
        assert extra["label"] and extra["family"] and "text" in extra["inputs"] and extra["max_batch_size"] >= 1
    can = {name: set((model.model_extra or {})["abilities"]) for name, model in found.items()}
    assert {"chat", "completion", "thinking", "tools", "json_schema"} <= can["deepseek"]
    assert {"vision", "video"} <= can["qwen_vl"] and "audio" not in can["qwen_vl"]
    assert {"audio", "transcription"} <= can["qwen_audio"]
    assert {"vision", "audio", "video", "speech"} <= can["qwen_omni"]
    assert can["blip_vqa"] == {"chat", "vision"}, "it has no memory of a conversation"
    assert "conversation" in can["qwen_vl"] & can["deepseek"]
    assert "tools" not in can["reasoner"] | can["qwen_vl"], "their templates have no place for them"


def test_one_model(client: openai.OpenAI, served: GatewayProcess) -> None:
    served.load("reasoner")
    reasoner = client.models.retrieve("reasoner").model_extra or {}
    assert reasoner["state"] == "ready" and reasoner["context"] == 2048
    assert reasoner["downloaded"] and reasoner["requires"] == []
    assert reasoner["defaults"]["max_new_tokens"] == 128 and reasoner["defaults"]["temperature"] == 0
    assert {"temperature", "seed", "stop"} <= set(reasoner["parameters"]) and "speech" not in reasoner["parameters"]
    assert "speech" in (client.models.retrieve("qwen_omni").model_extra or {})["parameters"]
    assert (client.models.retrieve("blip_vqa").model_extra or {})["requires"] == ["image"]
    assert client.models.retrieve("smollm2").id == "deepseek"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found" and "deepseek" in caught.value.message


def rendered(served: GatewayProcess, **body: Any) -> dict[str, Any]:
    response = served.post("/v1/apply_template", **body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("model", ["deepseek", "reasoner"])
def test_a_template_is_applied(client: openai.OpenAI, served: GatewayProcess, model: str) -> None:
    made = rendered(served, model=model, messages=PARIS)
    assert "<|im_start|>user\nWhat is the capital of France?<|im_end|>" in made["prompt"]
    assert made["prompt"].rstrip().endswith("<|im_start|>assistant")
    assert made["token_count"] == len(made["tokens"]) > 0 and all(type(token) is int for token in made["tokens"])
    answer = client.chat.completions.create(model=model, messages=PARIS, max_tokens=1)
    assert answer.usage is not None and answer.usage.prompt_tokens == made["token_count"]


def test_tools_and_media_are_rendered(served: GatewayProcess) -> None:
    assert "get_weather" in rendered(served, model="deepseek", messages=PARIS, tools=[WEATHER])["prompt"]
    seen = rendered(served, model="qwen_vl", messages=user(CIRCLE, "What is it?"))
    bare = rendered(served, model="qwen_vl", messages=user("What is it?"))
    assert seen["token_count"] > bare["token_count"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 1), ("stream", True), ("max_tokens", 5), ("add_generation_prompt", False), ("prompt", "x")],
)
def test_what_has_no_place_in_a_prompt(served: GatewayProcess, field: str, value: object) -> None:
    response = served.post("/v1/apply_template", model="deepseek", messages=PARIS, **{field: value})
    assert response.status_code == 400 and response.json()["error"]["param"] == field
