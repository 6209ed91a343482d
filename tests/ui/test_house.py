"""The house of the dashboard: every view opens and is light, the menu, the theme, the lost server, and logging in."""

from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, Route, expect

from tests.access.conftest import Keys
from tests.support.gateway import GatewayProcess
from tests.ui.conftest import NARROW, VIEWS, Visitor, axe, visiting

HEAVIEST = 150_000
DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""Waits until what was changed is drawn: axe-core reads colours, and those of the other scheme come with a frame."""


def is_data(request: Request) -> bool:
    return request.resource_type in ("fetch", "xhr", "eventsource")


@pytest.mark.parametrize("view", [*VIEWS, "benchmarks/swap", "nothing/here"])
def test_a_view_opens_for_everybody(visitor: Visitor, view: str) -> None:
    """Without errors, by the rules of axe-core in light and dark, and in 360 pixels without scrolling sideways."""
    if view.startswith("nothing"):
        visitor.expect("404")
    page = visitor.page(color_scheme="light")
    page.goto(f"/ui/{view}")
    expect(page.locator("h1")).to_be_visible()
    expect(page.locator("#connection-text")).to_have_text("Live")
    expect(page.locator("[aria-busy=true]")).to_have_count(0)
    assert axe(page) == []
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 360, "height": 740})
    page.evaluate(DRAWN)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert axe(page) == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_light_and_waits_for_nobody(visitor: Visitor, view: str) -> None:
    """What it loads is counted, unpacked; and it is painted while every question for data is left unanswered."""
    page, sizes, held = visitor.page(), {}, list[str]()
    page.on("response", lambda response: None if is_data(response.request) else sizes.update(
        {response.url: len(response.body())}))  # fmt: skip

    def hold(route: Route) -> None:
        if is_data(route.request):
            held.append(urlsplit(route.request.url).path)
        else:
            route.continue_()

    page.route("**/*", hold)
    page.goto(f"/ui/{view}")
    expect(page.locator("h1")).to_be_visible()
    expect(page.locator("nav [aria-current=page]")).to_be_visible()
    assert page.evaluate("performance.getEntriesByType('paint').map((one) => one.name)").count("first-contentful-paint")
    assert "/ui/live" in held
    assert 0 < sum(sizes.values()) < HEAVIEST, sizes
    assert len({urlsplit(url).path for url in sizes if "/static/" in url}) > 5
    page.unroute_all(behavior="ignoreErrors")


def test_a_person_with_a_keyboard(browser_page: Page) -> None:
    browser_page.goto("/ui/benchmarks")
    browser_page.keyboard.press("Tab")
    expect(browser_page.get_by_text("Skip to the content")).to_be_focused()
    browser_page.keyboard.press("Enter")
    expect(browser_page.locator("main")).to_be_focused()
    browser_page.keyboard.press("Tab")
    expect(browser_page.locator("main a").first).to_be_focused()


def test_the_menu_where_it_is_narrow(visitor: Visitor) -> None:
    page = visitor.page(viewport=NARROW)
    page.goto("/ui/benchmarks")
    menu, button = page.get_by_role("navigation"), page.get_by_role("button", name="Menu")
    expect(menu).to_be_hidden()
    button.click()
    expect(menu).to_be_visible()
    assert axe(page) == []
    page.keyboard.press("Escape")
    expect(menu).to_be_hidden()
    expect(button).to_be_focused()
    button.click()
    menu.get_by_role("link", name="Files").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Files")


def test_the_theme_is_kept(visitor: Visitor) -> None:
    page = visitor.page(color_scheme="light")
    page.goto("/ui/benchmarks")
    ground = "getComputedStyle(document.documentElement).colorScheme"
    button = page.locator("#theme-button")
    expect(button).to_have_text("System theme")
    for says, scheme in (("Light theme", "light"), ("Dark theme", "dark")):
        button.click()
        expect(button).to_have_text(says)
        assert page.evaluate(ground) == scheme
    page.goto("/ui/files")
    assert page.evaluate(ground) == "dark"
    page.locator("#theme-button").click()
    assert page.evaluate(ground) == "light"


# -- files -------------------------------------------------------------------------------------------------------------


def test_temporary_files_are_listed_and_removed(gateway: GatewayProcess, browser_page: Page) -> None:
    page = browser_page
    page.goto("/ui/files")
    expect(page.locator("#temporary")).to_contain_text("Nothing lies about")
    for name, size in (("left-a.bin", 300_000), ("<b>left.bin", 5)):
        (gateway.tmp / name).write_bytes(b"x" * size)
    page.reload()
    rows = page.locator("#temporary-table tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("300 kB")
    expect(rows.last).to_contain_text("<b>left.bin")
    page.get_by_role("button", name="Clean up…").click()
    dialog = page.get_by_role("dialog", name="Remove temporary files?")
    assert axe(page) == []
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="Clean up…").click()
    dialog.get_by_role("button", name="Remove").click()
    expect(page.locator("#toasts")).to_contain_text("2 removed, 300 kB freed")
    expect(page.locator("#temporary")).to_contain_text("Nothing lies about")
    assert not list(gateway.tmp.glob("*.bin"))


def test_benchmarks_are_those_of_the_folder(browser_page: Page) -> None:
    browser_page.goto("/ui/benchmarks")
    cards = browser_page.locator("#benchmarks > li")
    expect(cards).to_have_count(7)
    asked: list[str] = []
    browser_page.on("request", lambda request: asked.append(request.url))
    cards.get_by_role("link", name="Swaps", exact=True).click()
    plot = browser_page.get_by_role("img", name="Plot")
    expect(plot).to_be_visible()
    assert plot.evaluate("image => image.decode().then(() => image.naturalWidth)") > 800
    assert sum(url.endswith(".png") for url in asked) == 1
    expect(browser_page.get_by_role("table").first).to_contain_text("swap, median")


# -- the server goes and comes -----------------------------------------------------------------------------------------


def test_a_lost_server_is_told_and_found_again(gateway: GatewayProcess, visitor: Visitor) -> None:
    visitor.expect("net::ERR_", "/ui/live")
    page = visitor.page()
    page.goto("/ui/files")
    expect(page.locator("#connection-text")).to_have_text("Live")
    expect(page.locator("#temporary")).to_contain_text("Nothing lies about")
    gateway.process.terminate()
    assert gateway.wait() == 0
    expect(page.locator("#banner")).to_contain_text("The server does not answer")
    expect(page.locator("#connection-text")).to_have_text("Disconnected")
    assert axe(page) == []
    expect(page.locator("#temporary")).to_contain_text("Nothing lies about")
    gateway.start()
    page.get_by_role("button", name="Try now").click()
    expect(page.locator("#connection-text")).to_have_text("Live")
    expect(page.locator("#banner")).to_be_hidden()


# -- with keys: these come last, since from the first key on the gateway asks for one ----------------------------------


@pytest.fixture(scope="module")
def keys(gateway: GatewayProcess) -> Keys:
    made = Keys(gateway)
    gateway.client.headers["Authorization"] = f"Bearer {made.create('root', '--role', 'admin')}"
    return made


def sign_in(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()


def test_signing_in_and_out(keys: Keys, visitor: Visitor) -> None:
    visitor.expect("401")
    page = visitor.page()
    addresses: list[Any] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.goto("/ui/files")
    assert urlsplit(page.url).path == "/ui/login" and axe(page) == []
    sign_in(page, "sy-000000000000-" + "x" * 43)
    expect(page.get_by_role("alert")).to_contain_text("unknown, revoked or expired")
    assert axe(page) == []
    sign_in(page, keys.tokens[0])
    expect(page.get_by_role("heading", level=1)).to_have_text("Files")
    expect(page.locator("#temporary")).to_contain_text("Nothing lies about")
    expect(page.locator("#connection-text")).to_have_text("Live")
    assert page.evaluate("document.cookie") == ""
    assert not [url for url in addresses if "sy-" in url]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    page.goto("/ui/files")
    assert urlsplit(page.url).path == "/ui/login"


def test_a_user_s_house_has_fewer_rooms(keys: Keys, visitor: Visitor) -> None:
    visitor.expect("403")
    page = visitor.page()
    page.goto("/ui/")
    sign_in(page, keys.create("alice"))
    expect(page.get_by_role("navigation").get_by_role("link")).to_have_text(["Overview", "Playground", "Benchmarks"])
    expect(page.locator("#connection-text")).to_have_text("Live")
    page.goto("/ui/files")
    expect(page.get_by_role("heading", level=1)).to_have_text("Files: for administrators")
    assert axe(page) == []


def test_a_key_that_ends_takes_its_pages_along(keys: Keys, chromium: Browser, gateway: GatewayProcess) -> None:
    with visiting(chromium, gateway) as visitor:
        visitor.expect("401")
        page = visitor.page()
        page.goto("/ui/files")
        sign_in(page, keys.create("brief", "--role", "admin"))
        expect(page.locator("#temporary")).to_contain_text("Nothing lies about")
        keys.done("revoke", "brief")
        page.wait_for_url("**/ui/login?next=%2Fui%2Ffiles")
        expect(page.get_by_label("API key")).to_be_visible()
