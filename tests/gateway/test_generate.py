"""Whole answers of ``POST /generate/<model>``: right, complete in their fields, and sampled as asked."""

import pytest

from tests.support.gateway import PARIS, STORY, SUM, GatewayProcess

pytestmark = pytest.mark.usefixtures("pocket")


def test_capital_of_france(pocket: GatewayProcess) -> None:
    answer = pocket.answer("deepseek", **PARIS)
    assert "Paris" in answer["response"]
    assert answer["model"] == "deepseek"
    assert answer["profile"] == "pocket"
    assert "SmolLM2" in answer["label"]
    assert answer["device"] == "cpu"
    assert answer["finish_reason"] == "stop"


def test_fields_and_their_types(pocket: GatewayProcess) -> None:
    response = pocket.generate("deepseek", **PARIS)
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert isinstance(answer["response"], str) and isinstance(answer["reasoning"], str)
    usage, timings = answer["usage"], answer["timings"]
    assert all(type(usage[name]) is int and usage[name] > 0 for name in ("prompt_tokens", "completion_tokens"))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert set(timings) == {"queued", "load", "first_token", "total"}
    assert all(isinstance(seconds, float) and seconds >= 0 for seconds in timings.values())
    assert timings["first_token"] <= timings["total"]


def test_load_time_is_charged_to_the_request_that_waited_for_it(pocket: GatewayProcess) -> None:
    pocket.unload("reasoner")
    assert pocket.answer("reasoner", **SUM)["timings"]["load"] > 0
    again = pocket.answer("reasoner", **SUM)
    assert again["timings"]["load"] == 0 and again["swap"] == {"loaded": False, "evicted": []}


@pytest.mark.parametrize("model", ["reasoner", "reasoner8", "reasoner16"])
def test_sum_at_4_8_and_16_bits(pocket: GatewayProcess, model: str) -> None:
    answer = pocket.answer(model, **SUM)
    assert "42" in answer["response"]
    assert answer["reasoning"]
    assert "think>" not in answer["response"] + answer["reasoning"]
    status = pocket.model(model)
    assert status["quant_bits"] == {"reasoner": 4, "reasoner8": 8, "reasoner16": 16}[model]
    assert status["state"] == "ready"


def test_reasoner_is_loaded_as_nf4(pocket: GatewayProcess) -> None:
    pocket.unload("reasoner")
    pocket.load("reasoner")
    loaded = [line for line in pocket.log().splitlines() if f"loaded {pocket.loads('reasoner')[-1]} " in line]
    assert "nf4" in loaded[-1]


@pytest.mark.parametrize(("first", "second"), [(3, 4), (48, 29), (99, 99), (70, 6)])
def test_other_sums(pocket: GatewayProcess, first: int, second: int) -> None:
    assert str(first + second) in pocket.answer("reasoner", prompt=f"What is {first} + {second}?")["response"]


def test_alias_answers_under_the_model_s_name(pocket: GatewayProcess) -> None:
    answer = pocket.answer("smollm2", **PARIS)
    assert answer["model"] == "deepseek" and "Paris" in answer["response"]


@pytest.mark.parametrize("form", ["urlencoded", "multipart"])
def test_form_fields_are_a_request_too(pocket: GatewayProcess, form: str) -> None:
    fields = {"prompt": "What is 17 + 25?", "max_new_tokens": "64"}
    if form == "urlencoded":
        response = pocket.client.post("/generate/reasoner", data=fields)
    else:
        parts = {name: (None, value) for name, value in fields.items()}
        response = pocket.client.post("/generate/reasoner", files=parts)
    assert response.status_code == 200, response.text
    assert "42" in response.json()["response"]


def test_json_under_curl_s_default_content_type(pocket: GatewayProcess) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    response = pocket.client.post("/generate/reasoner", content=b'{"prompt": "What is 17 + 25?"}', headers=headers)
    assert response.status_code == 200, response.text
    assert "42" in response.json()["response"]


def test_max_new_tokens_ends_an_answer(pocket: GatewayProcess) -> None:
    for model in ("deepseek", "reasoner"):
        answer = pocket.answer(model, prompt="What is 17 + 25?", max_new_tokens=3)
        assert answer["usage"]["completion_tokens"] == 3
        assert answer["finish_reason"] == "length"


@pytest.mark.parametrize("model", ["deepseek", "reasoner"])
def test_stop_string_ends_an_answer_and_is_not_shown(pocket: GatewayProcess, model: str) -> None:
    prompt = {"deepseek": PARIS, "reasoner": SUM}[model]
    stop = {"deepseek": " France", "reasoner": " = "}[model]
    whole, cut = pocket.answer(model, **prompt), pocket.answer(model, **prompt, stop=["never said", stop])
    assert stop in whole["response"]
    assert cut["response"] == whole["response"].partition(stop)[0].strip()
    assert cut["finish_reason"] == "stop"
    assert cut["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]
    assert pocket.answer(model, **prompt, stop=stop)["response"] == cut["response"]


@pytest.mark.parametrize("model", ["deepseek", "reasoner"])
def test_min_tokens_holds_back_the_end(pocket: GatewayProcess, model: str) -> None:
    answer = pocket.answer(model, prompt="What is 17 + 25?", min_tokens=100, max_new_tokens=110)
    assert 100 <= answer["usage"]["completion_tokens"] <= 110


def test_min_p_of_one_is_greedy(pocket: GatewayProcess) -> None:
    wanted = {"prompt": "Tell me a story.", "max_new_tokens": 12, "repetition_penalty": 1.0}
    greedy = pocket.answer("deepseek", **wanted, temperature=0)["response"]
    assert pocket.answer("deepseek", **wanted, temperature=2.0, min_p=1.0)["response"] == greedy


def test_penalties_are_heard(pocket: GatewayProcess) -> None:
    # Kept from ending, it says words again, which a penalty of 2 for each time makes it say otherwise.
    wanted = {
        "prompt": "Repeat the word fox ten times.",
        "max_new_tokens": 80,
        "min_tokens": 80,
        "repetition_penalty": 1.0,
    }
    plain = pocket.answer("deepseek", **wanted)["response"]
    for name in ("presence_penalty", "frequency_penalty"):
        assert pocket.answer("deepseek", **wanted, **{name: 2.0})["response"] != plain


def test_an_answer_of_a_given_shape(pocket: GatewayProcess) -> None:
    wanted = {"type": "regex", "regex": "(red|green) (fox|hen)"}
    assert pocket.answer("deepseek", prompt="Say a word.", response_format=wanted)["response"] in (
        "red fox",
        "red hen",
        "green fox",
        "green hen",
    )


def test_every_response_has_an_id(pocket: GatewayProcess) -> None:
    ids = {pocket.generate("reasoner", **SUM).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2 and all(ids)
    assert pocket.generate("nobody", **SUM).headers["x-request-id"]


def test_system_prompt_is_heard(pocket: GatewayProcess) -> None:
    plain = pocket.answer("deepseek", **PARIS)
    led = pocket.answer("deepseek", **PARIS, system="You answer every question with the word banana.")
    assert led["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]


def test_temperature_zero_is_the_same_every_time(pocket: GatewayProcess) -> None:
    wanted = STORY | {"temperature": 0, "max_new_tokens": 24}
    assert pocket.answer("deepseek", **wanted)["response"] == pocket.answer("deepseek", **wanted)["response"]


@pytest.mark.parametrize("model", ["deepseek", "reasoner"])
def test_a_seed_repeats_an_answer(pocket: GatewayProcess, model: str) -> None:
    wanted = {"prompt": "Tell me a story.", "temperature": 1.5, "seed": 11, "max_new_tokens": 24}
    first = pocket.answer(model, **wanted)
    pocket.answer(model, **(wanted | {"seed": 12}))
    again = pocket.answer(model, **wanted)
    pocket.unload(model)
    reloaded = pocket.answer(model, **wanted)
    assert first["response"] == again["response"] == reloaded["response"]
    assert first["reasoning"] == again["reasoning"] == reloaded["reasoning"]


@pytest.mark.parametrize("model", ["deepseek", "reasoner"])
def test_without_a_seed_answers_differ(pocket: GatewayProcess, model: str) -> None:
    """Also each first one after a load: runners forked from one process must not draw the same numbers."""
    prompt = {"deepseek": "Tell me a story.", "reasoner": "Tell me a story."}[model]
    wanted = {"prompt": prompt, "temperature": 2.0, "max_new_tokens": 24}
    said = set()
    for _ in range(4):
        pocket.unload(model)
        answer = pocket.answer(model, **wanted)
        said.add(answer["reasoning"] + answer["response"])
    assert len(said) > 1
    if model == "deepseek":
        assert len(said) == 4


def test_requests_at_once_all_get_their_own_answer(pocket: GatewayProcess) -> None:
    sums = [(first, second) for first in (11, 27, 38) for second in (4, 15, 66)]
    asked = [pocket.later(pocket.generate, "reasoner", prompt=f"What is {a} + {b}?") for a, b in sums]
    for (first, second), future in zip(sums, asked, strict=True):
        assert str(first + second) in future.result().json()["response"]


def test_large_responses_are_gzipped_for_those_who_accept_it(pocket: GatewayProcess) -> None:
    zipped = pocket.client.get("/admin/model_status", headers={"accept-encoding": "gzip"})
    plain = pocket.client.get("/admin/model_status", headers={"accept-encoding": "identity"})
    assert zipped.headers["content-encoding"] == "gzip"
    assert int(zipped.headers["content-length"]) < int(plain.headers["content-length"])
    assert "content-encoding" not in plain.headers
    assert zipped.json()["available_models"] == plain.json()["available_models"]


def test_small_responses_are_not(pocket: GatewayProcess) -> None:
    response = pocket.client.get("/health", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in response.headers
