"""A page's stream of ``/ui/live``: visible pages hold one each, hidden pages none, and no journal entry is lost.

Playwright takes all pages of a context for visible, so a test says which page is hidden.
"""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from tests.conftest import Start
from tests.support.gateway import GatewayProcess, only
from tests.web.conftest import UNASKED, Visitor, axe, visiting

RECORD_JOURNAL = """async () => {
    const at = [...document.scripts].find((one) => one.src.includes("shell.js")).src;
    const { live } = await import(at.replace("shell.js", "live.js"));
    window.entries = [];
    window.live = live;
    live.on("journal", (entry) => entries.push(entry.id));
}"""
KEEP_STREAMS = """window.EventSource = class extends EventSource {
    constructor(...all) { super(...all); (window.streams ??= []).push(this); }
};"""
SET_HIDDEN = """(hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    document.dispatchEvent(new Event("visibilitychange"));
}"""
BREAK_STREAM = "streams.at(-1).dispatchEvent(new Event('error'))"


def is_stream(request: Request) -> bool:
    return request.url.partition("?")[0].endswith("/ui/live") and "probe" not in request.url


class Tabs:
    """Pages of one browser at the overview, and the page of each stream that was requested, in order."""

    def __init__(self, visitor: Visitor, count: int) -> None:
        self.requested: list[Page] = []
        first = visitor.page()
        first.context.add_init_script(KEEP_STREAMS)
        self.pages = [first, *(first.context.new_page() for _ in range(count - 1))]
        for page in self.pages:
            if page is not first:
                visitor.watch.follow(page)
            page.on("request", lambda request, page=page: self.requested.append(page) if is_stream(request) else None)
            page.goto("/ui/")
            is_live(page)
            page.evaluate(RECORD_JOURNAL)


def is_live(page: Page) -> None:
    expect(page.locator("#connection-text")).to_have_text("Live")


def hide(page: Page) -> None:
    """Hide a page and wait until its stream is closed."""
    with page.expect_event("requestfailed", is_stream):
        page.evaluate(SET_HIDDEN, True)


def write_entry(gateway: GatewayProcess) -> int:
    """Cause journal entries and return the id of the last one."""
    for pinned in (True, False):
        assert gateway.post("/admin/models/reasoner/pin", pinned=pinned).status_code == 200
    return int(gateway.get("/admin/events")["last"])


def receives(page: Page, entry: int) -> None:
    """Wait until a page has received an entry; it must have received each entry once, in order, without a gap."""
    page.wait_for_function("(entry) => entries.includes(entry)", arg=entry)
    received = page.evaluate("entries")
    assert received == list(range(received[0], received[0] + len(received)))  # later ones may have come too


@pytest.fixture
def visitor(chromium: Browser, pocket: GatewayProcess) -> Iterator[Visitor]:
    with visiting(chromium, pocket) as found:
        yield found


def test_two_visible_pages_have_a_stream_each(visitor: Visitor, pocket: GatewayProcess) -> None:
    tabs = Tabs(visitor, 2)
    assert tabs.requested == tabs.pages
    entry = write_entry(pocket)
    for page in tabs.pages:
        receives(page, entry)
        assert page.evaluate("fetch('/health').then((answer) => answer.status)") == 200, "connections are left"


def test_a_hidden_page_holds_no_stream_and_catches_up_when_visible(visitor: Visitor, pocket: GatewayProcess) -> None:
    """It is sent the current state, and the entries that it missed."""
    pocket.load("reasoner")
    tabs = Tabs(visitor, 1)
    (page,) = tabs.pages
    receives(page, write_entry(pocket))
    row = page.locator(".resident[data-model=reasoner]")
    expect(row).to_be_visible()
    hide(page)
    page.evaluate("dispatchEvent(new Event('online'))")
    pocket.unload("reasoner")
    entry = write_entry(pocket)
    assert page.evaluate("streams.every((stream) => stream.readyState === EventSource.CLOSED)")
    assert len(tabs.requested) == 1 and entry not in page.evaluate("entries")
    expect(row).to_be_visible()
    page.evaluate(SET_HIDDEN, False)
    receives(page, entry)
    is_live(page)
    expect(row).to_have_count(0)
    assert len(tabs.requested) == 2


def test_a_lost_stream_resumes_after_its_last_entry(visitor: Visitor, pocket: GatewayProcess) -> None:
    """Entries of the meantime are not lost, and none is received twice. Another page is not affected."""
    visitor.expect("net::ERR_", "/ui/live")
    first, second = Tabs(visitor, 2).pages
    receives(first, write_entry(pocket))
    first.route("**/ui/live*", lambda route: route.abort())
    first.evaluate(UNASKED)
    first.evaluate(BREAK_STREAM)
    expect(first.locator("#connection-text")).to_have_text("Disconnected")
    entry = write_entry(pocket)
    receives(second, entry)
    is_live(second)
    first.unroute("**/ui/live*")
    first.get_by_role("button", name="Try now").click()
    is_live(first)
    receives(first, entry)


def test_a_stream_that_hangs_is_tried_again(visitor: Visitor, pocket: GatewayProcess) -> None:
    """On this page time passes quickly."""
    (page,) = Tabs(visitor, 1).pages
    page.evaluate(
        "() => { window.hurry = 20; setTimeout = ((set) => (call, wait) => set(call, wait / hurry))(setTimeout); }"
    )
    page.route("**/ui/live*", lambda route: None)
    page.evaluate(BREAK_STREAM)
    expect(page.locator("#connection-text")).to_have_text("Disconnected")
    for _ in range(2):
        with page.expect_event("request", is_stream):
            pass
    entry = write_entry(pocket)
    page.evaluate("() => { hurry = 1; }")
    page.unroute("**/ui/live*")
    is_live(page)
    receives(page, entry)


def test_a_silent_stream_is_lost(visitor: Visitor) -> None:
    """Its connection may be gone without a word, as after a laptop's sleep."""
    page = visitor.page()
    page.add_init_script(KEEP_STREAMS)
    page.add_init_script("setTimeout = ((set) => (call, wait) => set(call, wait === 10_000 ? 50 : wait))(setTimeout);")
    page.goto("/ui/benchmarks")
    expect(page.locator("#connection-text")).to_have_text("Disconnected")
    page.wait_for_function("() => streams.length > 1")


def test_after_a_restart_nothing_is_received_twice(chromium: Browser, start: Start) -> None:
    """The new server's journal begins anew; the ids of the last one mean nothing to it."""
    gateway = start(models=only("reasoner"))
    with visiting(chromium, gateway) as visitor:
        visitor.expect("net::ERR_", "/ui/live", "Failed to load resource")
        (page,) = Tabs(visitor, 1).pages
        receives(page, write_entry(gateway))
        before = page.evaluate("entries")
        gateway.kill()
        gateway.start()
        page.evaluate("live.retry()")
        is_live(page)
        hide(page)
        page.evaluate(SET_HIDDEN, False)
        after = write_entry(gateway)
        page.wait_for_function("(count) => entries.length >= count", arg=len(before) + after)
        assert page.evaluate("entries") == [*before, *range(1, after + 1)]


def test_the_limit_of_streams_is_told_and_tried_again(chromium: Browser, start: Start) -> None:
    gateway = start(models=only("reasoner"), live_streams=1)
    with visiting(chromium, gateway) as visitor:
        visitor.expect("429")
        (first,) = Tabs(visitor, 1).pages
        second = visitor.page()
        second.goto("/ui/")
        banner = second.locator("#banner")
        expect(banner).to_contain_text("No live figures for now")
        expect(banner).to_contain_text("live_streams: 1")
        expect(second.get_by_role("button", name="Try now")).to_be_visible()  # and nobody clicks it
        assert axe(second) == []
        hide(first)
        is_live(second)
        expect(banner).to_be_hidden()


def test_the_last_word_of_a_stopping_server(chromium: Browser, start: Start) -> None:
    gateway = start(models=only("deepseek"), drain_timeout="2s")
    with visiting(chromium, gateway) as visitor:
        visitor.expect("net::ERR_", "/ui/live", "503")
        (page,) = Tabs(visitor, 1).pages
        with gateway.answering():
            gateway.process.terminate()
            expect(page.locator("#stopping")).to_be_visible()
            expect(page.locator("#connection-text")).to_have_text("Disconnected")
            assert gateway.wait() == 0
