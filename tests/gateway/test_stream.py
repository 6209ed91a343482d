"""Streamed answers: the same text piece by piece, one final event, errors as events."""

import pytest

from tests.support.gateway import PARIS, STORY, SUM, GatewayProcess


@pytest.mark.parametrize(("model", "prompt"), [("deepseek", PARIS), ("reasoner", SUM)])
def test_pieces_join_to_the_whole_answer(pocket: GatewayProcess, model: str, prompt: dict[str, object]) -> None:
    whole = pocket.answer(model, **prompt)
    with pocket.stream(model, **prompt) as events:
        seen = list(events)
    *pieces, last = [event.data for event in seen if event.name != "progress"]
    assert {event.name for event in seen} <= {"message", "progress"}
    assert "".join(piece.get("response", "") for piece in pieces).strip() == whole["response"]
    assert "".join(piece.get("reasoning", "") for piece in pieces).strip() == whole["reasoning"]
    assert sum("response" in piece for piece in pieces) > 1
    assert all(len(piece) == 1 for piece in pieces)
    assert last["done"] is True
    assert last["usage"] == whole["usage"]
    assert set(last["timings"]) == set(whole["timings"])
    assert last["finish_reason"] == whole["finish_reason"]
    assert last["model"] == model


def test_what_it_waits_for_is_told(pocket: GatewayProcess) -> None:
    """While a model loads: events named progress, each with something new, before the first piece."""
    pocket.unload_wholly("reasoner")
    with pocket.stream("reasoner", **SUM) as events:
        seen = list(events)
    names = [event.name for event in seen]
    news = [event.data for event in seen if event.name == "progress"]
    assert news and names == ["progress"] * len(news) + ["message"] * (len(seen) - len(news))
    assert all(set(one) == {"model", "state", "phase", "fraction", "position"} for one in news)
    assert {one["model"] for one in news} == {"reasoner"}
    assert news[-1]["state"] in ("loading", "waiting") and news[-1]["phase"]
    assert all(one != other for one, other in zip(news, news[1:], strict=False))


def test_headers_of_a_stream(pocket: GatewayProcess) -> None:
    body = PARIS | {"stream": True}
    headers = {"accept-encoding": "gzip"}
    with pocket.client.stream("POST", "/generate/deepseek", json=body, headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        assert "content-encoding" not in response.headers
        assert response.headers["x-request-id"]
        response.read()


def test_pieces_come_while_the_answer_is_made(pocket: GatewayProcess) -> None:
    with pocket.stream("deepseek", **STORY, max_new_tokens=3500) as events:
        assert next(event for event in events if event.name == "message").data["response"]
        assert pocket.model("deepseek")["leases"] == 1


def test_a_stop_string_is_in_no_piece(pocket: GatewayProcess) -> None:
    with pocket.stream("reasoner", **SUM, stop=[" = "]) as events:
        said = "".join(event.data.get("response", "") for event in events)
    assert said.strip() == "17 + 25"


def test_a_refusal_before_the_stream_is_plain_http(pocket: GatewayProcess) -> None:
    assert pocket.generate("nobody", prompt="Hello", stream=True).status_code == 404
    assert pocket.generate("deepseek", stream=True).status_code == 400


def test_an_error_in_the_stream_is_an_event(pocket: GatewayProcess) -> None:
    with pocket.stream("deepseek", prompt="word " * 6000) as events:
        (event,) = (event for event in events if event.name != "progress")
    assert event.name == "error"
    assert event.data["status"] == 400
    assert event.data["error"] and "4096" in event.data["details"]


def test_a_deadline_in_the_stream_is_an_event(pocket: GatewayProcess) -> None:
    pocket.load("deepseek")
    with pocket.stream("deepseek", **STORY, max_new_tokens=3500, timeout=0.5) as events:
        *pieces, last = (event for event in events if event.name != "progress")
    assert last.name == "error" and last.data["status"] == 504
    assert all("response" in event.data for event in pieces)
