"""``POST /generate`` without a model: text, perhaps with an image, to the model set for it or the first to fit."""

import base64

import httpx
import pytest

from tests.conftest import Start
from tests.support.gateway import ROOT, GatewayProcess, only

pytestmark = pytest.mark.long

CIRCLE = (ROOT / "examples" / "red-circle.png").read_bytes()
COLOR = "What color is the circle?"


@pytest.fixture(scope="module")
def seeing(start_for_module: Start) -> GatewayProcess:
    return start_for_module(models=only("reasoner", "blip_vqa", "qwen_vl")).preloaded()


def post(gateway: GatewayProcess, **fields: str) -> httpx.Response:
    return gateway.client.post("/generate", files={name: (None, value) for name, value in fields.items()})


def test_a_form_with_a_picture(seeing: GatewayProcess) -> None:
    form = {"text": (None, COLOR), "image": ("circle.png", CIRCLE)}
    response = seeing.client.post("/generate", files=form)
    assert response.status_code == 200, response.text
    assert response.json()["response"] == "red" and response.json()["model"] == "qwen_vl"
    assert response.headers["x-request-id"]


def test_text_alone(seeing: GatewayProcess) -> None:
    response = post(seeing, text="Hello")
    assert response.status_code == 200 and response.json()["response"]


def test_json_and_the_other_name(seeing: GatewayProcess) -> None:
    sent = base64.b64encode(CIRCLE).decode()
    for name in ("text", "prompt"):
        response = seeing.post("/generate", image=sent, **{name: COLOR})
        assert response.status_code == 200 and response.json()["response"] == "red", response.text


def test_the_setting_chooses(start: Start) -> None:
    chosen = start(models=only("reasoner", "qwen_vl"), default_vision_model="reasoner")
    response = post(chosen, text="What is 17 + 25?")
    assert response.status_code == 200 and response.json()["response"] == "17 + 25 = 42"


def test_refusals(seeing: GatewayProcess) -> None:
    for fields, word in (
        ({}, "text"),
        ({"text": "x", "prompt": "y"}, "both"),
        ({"text": "x", "tune": "y"}, "tune"),
        ({"text": "x", "image_url": "http://localhost/x.png"}, "URLs are off"),
    ):
        response = post(seeing, **fields) if fields else seeing.post("/generate", max_new_tokens=1)
        assert response.status_code == 400 and word in response.json()["details"], response.text
