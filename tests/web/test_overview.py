"""The overview and the events in a browser: a swap is shown, requests are cancelled, models are loaded by keyboard."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import Start
from tests.support.gateway import ONE_AT_ONCE, PARIS, SUM, GatewayProcess, only
from tests.web.conftest import NARROW, UNASKED, WIDE, Visitor, axe, passes, visiting

NARROW_SLOT: dict[str, object] = {"slot_budget": "275MB", "zygote_memory": 0, "quantum": "1s"}
"""Only one of the two models fits at a time."""


@pytest.fixture(scope="module")
def gateway(start_for_module: Start) -> GatewayProcess:
    return start_for_module(models=only("deepseek", "reasoner", deepseek=ONE_AT_ONCE), **NARROW_SLOT)


@pytest.fixture(scope="module")
def watched(chromium: Browser, gateway: GatewayProcess) -> Iterator[Visitor]:
    with visiting(chromium, gateway) as found:
        yield found


@pytest.fixture(scope="module")
def overview(watched: Visitor) -> Page:
    """One page for all tests that only look and click."""
    page = watched.page()
    page.goto("/ui/")
    expect(page.locator("#overview")).to_have_attribute("aria-busy", "false")
    return page


def test_a_swap_is_seen_on_the_slot_bar(overview: Page, gateway: GatewayProcess) -> None:
    page = overview
    gateway.answer("deepseek", **PARIS)
    block = page.locator(".block[data-name=deepseek]")
    expect(block).to_contain_text("deepseek")
    expect(page.locator(".track")).to_have_attribute("aria-label", re.compile(r"^cpu: .* used\. deepseek .*idle\.$"))
    expect(page.locator(".cold[data-model=reasoner]")).to_be_visible()
    # An observer in the page sees states that last for a moment only.
    page.evaluate("""() => {
        window.seen = new Set();
        const look = () => { for (const one of document.querySelectorAll(".block"))
            for (const word of one.classList) window.seen.add(`${one.dataset.name} ${word}`); };
        window.looking = new MutationObserver(look);
        window.looking.observe(document.querySelector("#slots"), {subtree: true, childList: true, attributes: true});
    }""")
    gateway.answer("reasoner", **SUM)
    expect(page.locator(".block")).to_have_count(1)
    expect(page.locator(".block[data-name=reasoner]")).to_have_class(re.compile("idle"))
    seen = set(page.evaluate("[...window.seen]"))
    page.evaluate("window.looking.disconnect()")
    assert {"deepseek gone", "reasoner loading"} <= seen, seen
    passes(page, "deepseek was evicted to make room for reasoner")
    expect(page.locator("#latest")).to_contain_text("deepseek was evicted to make room for reasoner")
    expect(page.locator(".cold[data-model=deepseek]")).to_be_visible()
    row = page.locator(".resident[data-model=reasoner]")
    expect(row.locator(".fact.memory")).to_contain_text("MB")
    expect(row.locator(".fact.stays")).to_contain_text("until it is unloaded")
    expect(page.locator("#figure-loaded")).to_have_text("1 of 2")
    expect(page.locator("#figure-swaps")).to_have_text("1")


def test_the_plots_show_it_and_are_a_table_too(overview: Page) -> None:
    page = overview
    expect(page.locator(".plot")).to_have_count(6)
    loads = page.locator(".plot", has_text="of them swaps")
    expect(loads.locator(".plot-bars rect").first).to_be_attached()
    expect(loads.locator(".plot-at")).to_have_text("in 5 min")
    expect(loads.locator(".plot-value b").first).to_have_text("2")
    tokens = page.get_by_role("img", name="Tokens per second")
    expect(tokens).to_have_attribute("aria-label", re.compile("the last 5 minutes: now .*; the axis ends at"))
    tokens.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".plot-at").first).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
    assert page.locator(".plot-cursor").count() == 6, "the cursor is on all of them"
    page.keyboard.press("Escape")
    expect(page.locator(".plot-cursor")).to_have_count(0)
    page.get_by_role("button", name="1 min").click()
    expect(page.get_by_role("button", name="1 min")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="10 min").click()
    page.get_by_text("As a table").click()
    rows = page.locator("#traffic-table tbody tr")
    expect(rows).to_have_count(10)
    swaps = page.locator("#traffic-table thead th").all_inner_texts().index("Swaps")
    counted = [int(row.locator("th, td").nth(swaps).inner_text()) for row in rows.all()]
    assert sum(counted) >= 1
    page.get_by_text("As a table").click()


def test_a_request_is_cancelled_from_the_page(overview: Page, gateway: GatewayProcess) -> None:
    page = overview
    expect(page.locator("#queue-empty")).to_be_visible()
    with gateway.answering() as running:
        waiting = gateway.later(gateway.generate, "deepseek", **PARIS)
        rows = page.locator("#queue tbody tr")
        expect(rows).to_have_count(2)
        first = rows.filter(has_text="running")
        expect(first).to_contain_text("deepseek")
        expect(rows.filter(has_text="waiting")).to_have_count(1)
        expect(page.locator("#queue-sum")).to_have_text("1 running, 1 waiting")
        expect(page.locator(".resident[data-model=deepseek] .fact.activity")).to_contain_text("1 running, 1 waiting")
        first.get_by_role("button", name="Cancel").click()
        assert running.result().status_code == 499
        assert "Paris" in waiting.result().json()["response"]
    expect(page.locator("#queue-empty")).to_be_visible()
    passes(page, "was cancelled")


def test_models_are_loaded_pinned_and_unloaded_by_keyboard(overview: Page, gateway: GatewayProcess) -> None:
    page = overview
    gateway.load("deepseek")
    expect(page.locator(".resident[data-model=deepseek]")).to_contain_text("idle")
    page.locator(".cold[data-model=reasoner] [data-act=load]").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("more than is free")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert gateway.model("reasoner")["state"] == "cold"
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("more than is free")
    page.keyboard.press("Enter")  # "Load it" has the focus: nothing is destroyed that is in use
    row = page.locator(".resident[data-model=reasoner]")
    expect(row).to_contain_text("idle")
    pin = row.get_by_role("button", name="Pin reasoner")
    expect(pin).to_have_attribute("aria-pressed", "false")
    pin.focus()
    page.keyboard.press("Space")
    expect(pin).to_have_attribute("aria-pressed", "true")
    expect(pin).to_be_focused()
    expect(row.locator(".fact.stays")).to_contain_text("pinned")
    assert gateway.model("reasoner")["pinned"] is True
    expect(pin).not_to_have_attribute("aria-busy", "true")  # its state may be told before the press is answered
    page.keyboard.press("Space")
    expect(pin).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("are given back")
    page.keyboard.press("Enter")  # Cancel has the focus
    expect(dialog).to_have_count(0)
    assert gateway.model("reasoner")["state"] == "ready"
    expect(row.get_by_role("button", name="Unload reasoner")).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("are given back")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".slot-empty")).to_be_visible()
    assert gateway.model("reasoner")["state"] == "cold"


ANSWERED = """async (way) => {
    const dialog = document.querySelector("dialog[open]");
    ({ button: () => dialog.querySelector("button").click(), escape: () => dialog.requestClose(),
       backdrop: () => dialog.click() })[way]();
    for (let turn = 0; turn < 20; turn += 1) await null; // who waits for the answer goes on, and not the browser
    const focused = document.activeElement;
    focused.click();
    return [focused.ariaLabel, document.querySelectorAll("dialog").length, document.querySelectorAll("[open]").length];
}"""


@pytest.mark.parametrize("way", ["button", "escape", "backdrop"])
def test_a_key_right_after_no_asks_again(overview: Page, gateway: GatewayProcess, way: str) -> None:
    """The question is over and its button is free before the browser reports the dialog as closed."""
    gateway.load("reasoner")
    expect(overview.locator(".resident[data-model=reasoner]")).to_contain_text("idle")
    overview.get_by_role("button", name="Unload reasoner").press("Enter")
    expect(overview.get_by_role("dialog")).to_contain_text("are given back")
    assert overview.evaluate(ANSWERED, way) == ["Unload reasoner", 1, 1]
    expect(overview.get_by_role("dialog")).to_contain_text("are given back")
    overview.keyboard.press("Escape")
    expect(overview.get_by_role("dialog")).to_have_count(0)
    assert gateway.model("reasoner")["state"] == "ready"


def test_cleaning_up_says_what_it_will_do(overview: Page, gateway: GatewayProcess) -> None:
    gateway.load("reasoner")
    expect(overview.locator(".resident[data-model=reasoner]")).to_contain_text("idle")
    dialog = overview.get_by_role("dialog")

    def offers_to_unload() -> bool:  # not while the page's last state is of the moment in which the load was asked for
        overview.get_by_role("button", name="Clean up").click()
        offered = "Unloads reasoner" in dialog.inner_text()
        if not offered:
            overview.keyboard.press("Escape")
            expect(dialog).to_have_count(0)
        return offered

    gateway.until(offers_to_unload, "the page to offer to unload the idle model")
    dialog.get_by_role("button", name="Clean up").click()
    passes(overview, "1 model unloaded")
    expect(overview.locator(".slot-empty")).to_be_visible()


def test_events_are_told_with_reasons_and_can_be_chosen(watched: Visitor, gateway: GatewayProcess) -> None:
    gateway.load("deepseek")
    gateway.load("reasoner")
    page = watched.page()
    page.goto("/ui/events?group=Unloads")
    expect(page.locator("#events")).to_have_attribute("aria-busy", "false")
    kinds = set(page.locator(".entry").evaluate_all("all => all.map(one => one.dataset.kind)"))
    assert {"evicted"} <= kinds <= {"evicted", "expired", "unloaded", "cleanup", "moved"}
    page.get_by_label("Model").select_option("reasoner")
    evicted = page.locator(".entry").filter(has_text="deepseek was evicted to make room for reasoner")
    expect(evicted.first).to_be_visible()
    page.get_by_label("Exactly").select_option("evicted")
    expect(page).to_have_url(re.compile("group=Unloads&kind=evicted&model=reasoner"))
    page.get_by_label("Trouble").check()
    expect(page.get_by_role("heading", name="No such event")).to_be_visible()
    page.get_by_role("button", name="Show everything").click()
    before = page.locator(".entry").count()
    gateway.post("/admin/models/reasoner/pin", pinned=True)
    expect(page.locator(".entry").first).to_contain_text("reasoner is pinned")
    gateway.post("/admin/models/reasoner/pin", pinned=False)
    expect(page.locator(".entry")).to_have_count(before + 2)
    assert axe(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_nothing_is_cut_off_or_unreadable(watched: Visitor, gateway: GatewayProcess, scheme: str, size: object) -> None:
    gateway.load("reasoner")
    page = watched.page(color_scheme=scheme, viewport=size)
    for path, ready in (("/ui/", "#overview"), ("/ui/events", "#events")):
        page.goto(path)
        expect(page.locator(ready)).to_have_attribute("aria-busy", "false")
        expect(page.locator(".resident, .entry").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        assert axe(page) == []


def test_the_server_is_lost_and_comes_back(chromium: Browser, start: Start) -> None:
    gateway = start(models=only("reasoner"))
    with visiting(chromium, gateway) as visitor:
        visitor.expect(
            "ERR_CONNECTION_REFUSED",
            "ERR_INCOMPLETE_CHUNKED_ENCODING",
            "ERR_CONNECTION_RESET",
            "ERR_EMPTY_RESPONSE",
            "Failed to load resource",
        )
        page = visitor.page()
        page.goto("/ui/")
        gateway.load("reasoner")
        expect(page.locator(".resident[data-model=reasoner]")).to_be_visible()
        page.evaluate(UNASKED)
        gateway.kill()
        expect(page.locator("#as-of")).to_have_text(re.compile(r"^As of \d\d:\d\d:\d\d$"))
        expect(page.locator("#overview")).to_have_class(re.compile("stale"))
        expect(page.locator(".resident[data-model=reasoner]")).to_be_visible(), "it stays readable"
        unload = page.locator(".resident [data-act=unload]")
        expect(unload).to_have_attribute("aria-disabled", "true")
        assert axe(page) == []
        gateway.start()
        page.locator("#retry").click()
        expect(page.locator("#overview")).not_to_have_class(re.compile("stale"))
        expect(page.locator("#as-of")).to_be_hidden()
        expect(page.locator(".resident")).to_have_count(0)
        expect(page.locator("#latest .entry")).to_have_count(1)
        expect(page.locator("#latest")).to_contain_text("Switchyard has started")
