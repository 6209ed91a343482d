"""Asking models in a browser: answers, other answers, two side by side, none, and what goes wrong."""

import json
import re

from playwright.sync_api import Page, expect

from tests.support.gateway import STORY, GatewayProcess
from tests.web.conftest import Visitor, axe
from tests.web.playground.conftest import answered, ask, sure


def test_a_text_model_s_reasoning_is_folded_away(page: Page, gateway: GatewayProcess) -> None:
    gateway.unload("reasoner")  # others may have asked it before
    answer = ask(page, "What is 17 + 25?", "reasoner")
    answered(answer, "17 + 25 = 42")
    thinking = answer.locator(".pg-thinking")
    expect(thinking.locator("summary")).to_contain_text("Reasoned for")
    expect(thinking.locator(".pg-reasoning")).to_be_hidden()
    thinking.locator("summary").press("Enter")
    expect(thinking.locator(".pg-reasoning")).to_contain_text("Units")
    figures = answer.locator(".pg-stats")
    expect(figures).to_contain_text(re.compile(r"First token\s*\d"))
    expect(figures).to_contain_text(re.compile(r"Speed\s*[\d.]+ tokens/s"))
    expect(figures).to_contain_text(re.compile(r"Tokens\s*\d+ \+ \d+"))
    expect(figures).to_contain_text(re.compile(r"Swap\s*loaded in"))
    expect(page.locator("#about-0")).to_contain_text("Loaded")
    answered(ask(page, "What is 2 + 3?"), "2 + 3 = 5")
    expect(page.locator(".pg-answer").last.locator(".pg-stats")).to_contain_text(re.compile(r"Swap\s*none"))
    expect(page.locator("#spoken")).to_contain_text("reasoner has answered.")


def test_edit_and_ask_again(page: Page) -> None:
    answered(ask(page, "What is 17 + 25?", "reasoner"), "17 + 25 = 42")
    answered(ask(page, "What is 2 + 3?"), "2 + 3 = 5")
    page.locator(".pg-turn").first.get_by_role("button", name="Edit").click()
    expect(page.locator("#editing")).to_be_visible()
    page.fill("#draft", "What is 4 + 4?")
    page.press("#draft", "Control+Enter")
    expect(page.locator(".pg-turn")).to_have_count(1)
    answered(page.locator(".pg-answer"), "4 + 4 = 8")
    answered(ask(page, "What is 1 + 2?"), "1 + 2 = 3")
    again = page.get_by_role("button", name="Ask again")
    again.first.click()
    expect(page.get_by_role("dialog")).to_contain_text("the question after this one")
    page.keyboard.press("Escape")
    expect(page.locator(".pg-turn")).to_have_count(2)
    again.first.click()
    sure(page, "Ask again")
    expect(page.locator(".pg-turn")).to_have_count(1)
    answered(page.locator(".pg-answer"), "4 + 4 = 8")
    page.click("#clear")
    page.keyboard.press("Enter")  # Cancel has the focus
    expect(page.locator(".pg-turn")).to_have_count(1)
    page.click("#clear")
    sure(page, "Clear")
    expect(page.locator(".pg-turn")).to_have_count(0)
    expect(page.locator(".pg-empty")).to_contain_text("Ask reasoner")


def test_without_a_model_it_says_so(visitor: Visitor) -> None:
    page = visitor.page()
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": []}))
    page.goto("/ui/playground")
    expect(page.get_by_role("heading", name="No model to ask")).to_be_visible()
    for button in ("#send", "#code", "#compare", "#model-0"):
        expect(page.locator(button)).to_be_disabled()
    assert axe(page) == []


def test_stop(page: Page, gateway: GatewayProcess) -> None:
    page.select_option("#model-0", "deepseek")
    more = page.locator("summary", has_text="More sampling")
    more.click()
    page.fill("#parameter-repetition_penalty", "1")
    page.fill("#parameter-max_tokens", "3500")
    answer = ask(page, STORY["prompt"])
    expect(answer.locator(".pg-text")).to_contain_text("fox")
    page.keyboard.press("Escape")
    expect(answer).to_have_attribute("data-state", "stopped")
    gateway.until(lambda: not gateway.get("/v1/requests")["data"], "the request to go")
    expect(page.locator("#send")).to_be_visible()
    assert json.loads(page.evaluate("localStorage['switchyard.playground']"))["parameters"]["max_tokens"] == "3500"


def test_two_models_side_by_side(page: Page) -> None:
    """On a slot that holds one of them: the second waits, and the first is evicted for it."""
    page.select_option("#model-0", "reasoner")
    answered(ask(page, "What is 1 + 1?"), "1 + 1 = 2")
    page.click("#compare")
    expect(page.locator(".pg-turn")).to_have_count(1), "what was asked before stays"
    page.select_option("#model-0", "deepseek")
    page.select_option("#model-1", "reasoner")
    expect(page.locator("#sharing")).to_contain_text("deepseek and reasoner share the slot cpu")
    page.fill("#draft", "What is 17 + 25?")
    page.click("#send")
    columns = page.locator(".pg-turn").last.locator(".pg-answer")
    expect(columns).to_have_count(2)
    for place, name in enumerate(("deepseek", "reasoner")):
        expect(columns.nth(place).locator(".pg-who")).to_have_text(name)
        expect(columns.nth(place)).to_have_attribute("data-state", "done")
    expect(columns.nth(1).locator(".pg-text")).to_have_text("17 + 25 = 42")
    assert columns.nth(0).locator(".pg-text").inner_text().strip()
    expect(page.locator(".pg-answers").last).to_contain_text("evicted")
    page.click("#compare")
    expect(page.locator(".pg-answer")).to_have_count(3)


def test_what_went_wrong_is_said(page: Page, visitor: Visitor, gateway: GatewayProcess) -> None:
    """A full queue with the time to wait, a server that is gone, a request it refuses; and how each goes on."""
    visitor.expect("429", "400", "ERR_INTERNET_DISCONNECTED")
    page.select_option("#model-0", "deepseek")
    page.evaluate("() => { setInterval = () => 0; }")  # or what it counts down may be over when it is looked at
    with gateway.answering():
        waiting = gateway.later(gateway.generate, "deepseek", prompt="Hello", max_new_tokens=1)
        gateway.until(lambda: gateway.model("deepseek")["waiting"], "the queue to be full")
        answer = ask(page, "Hello")
        expect(answer).to_have_attribute("data-state", "failed")
        expect(answer.get_by_role("button", name=re.compile(r"Try again in \d+ s"))).to_be_disabled()
        (running,) = [one for one in gateway.get("/v1/requests")["data"] if one["state"] == "running"]
        assert gateway.client.delete(f"/v1/requests/{running['id']}").status_code == 200
    assert waiting.result().status_code == 200
    page.fill("#parameter-max_tokens", "1")
    page.context.set_offline(True)
    answer = ask(page, "Hello")
    expect(answer.locator(".pg-problem")).to_contain_text("The server does not answer")
    page.context.set_offline(False)
    answer.get_by_role("button", name="Try again").click()
    expect(page.locator(".pg-answer").last).to_have_attribute("data-state", "done")
    expect(page.locator(".pg-answer").last).to_contain_text("Cut at the limit of tokens")
    answer = ask(page, "word " * 5000)
    expect(answer.locator(".pg-problem")).to_contain_text("context")


def test_a_list_of_models_that_comes_late_is_asked_for_once(visitor: Visitor) -> None:
    """A second one would come after the visitor has picked a model, and pick another."""
    page, held = visitor.page(), []
    page.route("**/v1/models", lambda route: held.append(route))
    page.goto("/ui/playground")
    expect(page.locator("#connection-text")).to_have_text("Live")
    (late,) = held
    late.continue_()
    expect(page.locator("#model-0")).to_be_enabled()
