"""Pages of one browser that share one line to the server: who holds it, who takes over, and that nothing is lost.

The pages of a context are those of one browser; all are taken for visible there, so a test says which are not.
"""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from tests.conftest import Start
from tests.support.gateway import GatewayProcess, only
from tests.web.conftest import UNASKED, Visitor, visiting

HEAR = """async () => {
    const at = [...document.scripts].find((one) => one.src.includes("shell.js")).src;
    const { live } = await import(at.replace("shell.js", "live.js"));
    window.heard = [];
    window.live = live;
    live.on("journal", (entry) => heard.push(entry.id));
}"""
KEEP = """window.EventSource = class extends EventSource {
    constructor(...all) { super(...all); (window.lines ??= []).push(this); }
};"""
HIDE = """(hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


class Tabs:
    """Pages of one browser, at the overview; which of them asked for a line, in order."""

    def __init__(self, visitor: Visitor, count: int, before: str = "") -> None:
        self.lines: list[Page] = []
        first = visitor.page()
        first.context.add_init_script(KEEP + before)
        self.pages = [first, *(first.context.new_page() for _ in range(count - 1))]
        for page in self.pages:
            if page is not first:
                visitor.watch.follow(page)
            page.on("request", lambda request, page=page: self._asked(request, page))
            page.goto("/ui/")
            expect(page.locator("#connection-text")).to_have_text("Live")
            page.evaluate(HEAR)

    def _asked(self, request: Request, page: Page) -> None:
        if "/ui/live" in request.url and "probe" not in request.url:
            self.lines.append(page)


def happens(gateway: GatewayProcess) -> int:
    """Have something happen that the journal tells, and return its number there."""
    for pinned in (True, False):
        assert gateway.post("/admin/models/reasoner/pin", pinned=pinned).status_code == 200
    return int(gateway.get("/admin/events")["last"])


def shows(page: Page, number: int) -> None:
    """Wait until a page was told an entry, and hold it to having been told each once, in order, and none too few."""
    page.wait_for_function("(number) => heard.includes(number)", arg=number)
    heard = page.evaluate("heard")
    assert heard == list(range(heard[0], heard[0] + len(heard)))  # more may have happened since


@pytest.fixture
def visitor(chromium: Browser, pocket: GatewayProcess) -> Iterator[Visitor]:
    with visiting(chromium, pocket) as found:
        yield found


def test_eight_pages_share_one_line(visitor: Visitor, pocket: GatewayProcess) -> None:
    """More than a browser has connections for."""
    tabs = Tabs(visitor, 8)
    assert tabs.lines == tabs.pages[:1]
    told = happens(pocket)
    for page in tabs.pages:
        shows(page, told)
        assert page.evaluate("fetch('/health').then((answer) => answer.status)") == 200, "a connection is left"
    tabs.pages.pop(0).close()
    told = happens(pocket)
    for page in tabs.pages:
        shows(page, told)
        expect(page.locator("#connection-text")).to_have_text("Live")
    assert len(tabs.lines) == 2 and tabs.lines[1] in tabs.pages


def test_a_page_in_the_background_lets_another_hold_the_line(visitor: Visitor, pocket: GatewayProcess) -> None:
    """And is told what it missed when it is looked at again, though it is another page that hears the server now."""
    tabs = Tabs(visitor, 3)
    first = tabs.pages[0]
    with first.expect_event("requestfailed", lambda request: "/ui/live" in request.url):
        first.evaluate(HIDE, True)
    told = happens(pocket)
    for page in tabs.pages[1:]:
        shows(page, told)
    assert len(tabs.lines) == 2 and first is not tabs.lines[-1]
    assert told not in first.evaluate("heard")
    first.evaluate(HIDE, False)
    shows(first, told)
    expect(first.locator("#connection-text")).to_have_text("Live")
    shows(first, happens(pocket))
    assert len(tabs.lines) == 2


def test_a_page_that_missed_more_than_others_keep_is_told_all(visitor: Visitor, pocket: GatewayProcess) -> None:
    tabs = Tabs(visitor, 1)
    first = tabs.pages[0]
    shows(first, happens(pocket))
    with first.expect_event("requestfailed", lambda request: "/ui/live" in request.url):
        first.evaluate(HIDE, True)
    for _ in range(60):
        told = happens(pocket)
    second = first.context.new_page()
    visitor.watch.follow(second)
    second.goto("/ui/")
    expect(second.locator("#connection-text")).to_have_text("Live")
    first.evaluate(HIDE, False)
    shows(first, told)
    second.evaluate(HEAR)
    assert len(second.evaluate("heard")) == 100, "it is told fewer at first than the other lacked"
    shows(second, happens(pocket))


def test_a_line_that_was_lost_goes_on_where_it_stopped(visitor: Visitor, pocket: GatewayProcess) -> None:
    """Nothing that happened meanwhile is lost, on any of the pages, and nothing is told twice."""
    visitor.expect("net::ERR_", "/ui/live")
    tabs = Tabs(visitor, 2)
    first, second = tabs.pages
    shows(second, happens(pocket))
    first.route("**/ui/live*", lambda route: route.abort())
    first.evaluate(UNASKED)
    first.evaluate("lines.at(-1).dispatchEvent(new Event('error'))")
    for page in tabs.pages:
        expect(page.locator("#connection-text")).to_have_text("Disconnected")
    told = happens(pocket)
    first.unroute("**/ui/live*")
    second.get_by_role("button", name="Try now").click()
    for page in tabs.pages:
        expect(page.locator("#connection-text")).to_have_text("Live")
        shows(page, told)


def test_a_line_that_hangs_is_tried_again_by_who_holds_it(visitor: Visitor, pocket: GatewayProcess) -> None:
    """And the others are told, so that none takes it only to hang in its place. On its page, time passes quickly."""
    tabs = Tabs(visitor, 2)
    first, second = tabs.pages
    first.evaluate(
        "() => { window.hurry = 20; setTimeout = ((set) => (call, wait) => set(call, wait / hurry))(setTimeout); }"
    )
    first.route("**/ui/live*", lambda route: None)
    first.evaluate("lines.at(-1).dispatchEvent(new Event('error'))")
    expect(second.locator("#connection-text")).to_have_text("Disconnected")
    for _ in range(2):
        with first.expect_event(
            "request", lambda request: request.url.partition("?")[0].endswith("/ui/live") and "probe" not in request.url
        ):
            pass
    told = happens(pocket)
    first.evaluate("() => { hurry = 1; }")
    first.unroute("**/ui/live*")
    for page in tabs.pages:
        expect(page.locator("#connection-text")).to_have_text("Live")
        shows(page, told)
    assert second not in tabs.lines


def test_after_a_restart_nothing_is_told_twice(chromium: Browser, start: Start) -> None:
    """A page that is looked at again has heard what the server told that was there before, whose ids are others."""
    gateway = start(models=only("reasoner"))
    with visiting(chromium, gateway) as visitor:
        visitor.expect("net::ERR_", "/ui/live", "Failed to load resource")
        tabs = Tabs(visitor, 2)
        before = happens(gateway)
        for page in tabs.pages:
            shows(page, before)
        gateway.kill()
        gateway.start()
        for page in tabs.pages:
            page.evaluate("live.retry()")
            expect(page.locator("#connection-text")).to_have_text("Live")
        first, second = tabs.pages
        with first.expect_event("requestfailed", lambda request: "/ui/live" in request.url):
            first.evaluate(HIDE, True)
        first.evaluate(HIDE, False)
        told = happens(gateway)
        for page in tabs.pages:
            page.wait_for_function("(count) => heard.length >= count", arg=before + told)
            assert page.evaluate("heard") == [*range(1, before + 1), *range(1, told + 1)]


def test_a_page_that_is_stopped_leads_nobody(visitor: Visitor, pocket: GatewayProcess) -> None:
    """Another takes the line when it has heard nothing for long; the first one listens when it goes on."""
    tabs = Tabs(visitor, 2)
    first, second = tabs.pages
    debugger = first.context.new_cdp_session(first)
    debugger.send("Debugger.enable")
    debugger.send("Debugger.pause")
    with second.expect_event("request", lambda request: "/ui/live" in request.url):
        second.evaluate("Date.now = ((now) => () => now() + 30_000)(Date.now)")
    told = happens(pocket)
    shows(second, told)
    debugger.detach()
    shows(first, happens(pocket))
    assert tabs.lines == [first, second]


def test_where_a_browser_has_no_locks_each_page_has_a_line_of_its_own(visitor: Visitor, pocket: GatewayProcess) -> None:
    """As by plain HTTP from another machine."""
    tabs = Tabs(visitor, 2, "Object.defineProperty(Navigator.prototype, 'locks', { value: undefined });")
    told = happens(pocket)
    for page in tabs.pages:
        shows(page, told)
    assert tabs.lines == tabs.pages
