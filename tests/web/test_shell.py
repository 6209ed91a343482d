"""The frame of the dashboard: every view opens and is light, the menu, the theme, the lost server, and the login."""

import re
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, Response, expect

from tests.gateway.access.conftest import Keys
from tests.support.gateway import GatewayProcess
from tests.web.conftest import LONG, NARROW, VIEWS, Visitor, axe, keep_copies, passes, visiting
from tests.web.playground.conftest import answered, ask

HEAVIEST = 150_000
DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""Waits until changes are painted: axe-core reads colours, and a new colour scheme takes a frame."""

PAINTED = """new Promise((done) => new PerformanceObserver((list) => {
    if (list.getEntriesByName("first-contentful-paint").length) done(true);
}).observe({type: "paint", buffered: true}))"""

ASKED = """async ([path, body]) => (await fetch(path, {method: "POST", body: JSON.stringify(body),
    headers: {"Content-Type": "application/json"}})).status"""


def is_data(request: Request) -> bool:
    return request.resource_type in ("fetch", "xhr", "eventsource")


@pytest.mark.parametrize("view", [*VIEWS, "benchmarks/swap", "nothing/here"])
def test_a_view_opens_for_everybody(visitor: Visitor, view: str) -> None:
    """No errors, no findings of axe-core in light and dark, and no sideways scrolling at 360 pixels."""
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
    if view == "playground":
        page.select_option("#model-0", LONG)
        expect(page.get_by_role("heading", name=f"Ask {LONG}")).to_be_visible()
    page.evaluate(DRAWN)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert axe(page) == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_light_and_waits_for_nobody(visitor: Visitor, view: str) -> None:
    """All files of a first load are counted, unpacked. It is painted before any request for data is answered."""
    page, loaded = visitor.page(), list[Response]()
    page.on("response", lambda response: None if is_data(response.request) else loaded.append(response))
    page.route("**/*", lambda route: None if is_data(route.request) else route.continue_())
    with page.expect_request(lambda request: urlsplit(request.url).path == "/ui/live"):
        page.goto(f"/ui/{view}")
    expect(page.locator("h1")).to_be_visible()
    expect(page.locator("nav [aria-current=page]")).to_be_visible()
    assert page.evaluate(PAINTED)
    sizes = {response.url: len(response.body()) for response in loaded}
    assert 0 < sum(sizes.values()) < HEAVIEST, sizes
    assert len({urlsplit(url).path for url in sizes if "/static/" in url}) > 5
    page.unroute_all(behavior="ignoreErrors")


def test_files_are_kept_for_good_under_their_hash_alone(gateway: GatewayProcess) -> None:
    address = re.findall(r'href="(/ui/static/\w+/css/base.css)"', gateway.client.get("/ui/").text)[0]
    today = gateway.client.get(address)
    assert "immutable" in today.headers["cache-control"] and today.headers["content-encoding"] == "gzip"
    other = gateway.client.get(re.sub(r"static/\w+", "static/yesterday", address))
    assert other.text == today.text and other.headers["cache-control"] == "no-cache"
    again = gateway.client.get(address, headers={"If-None-Match": today.headers["etag"]})
    assert again.status_code == 304
    for name in ("css/none.css", "../templates/base.html", "..%2ftemplates%2fbase.html", "", "css"):
        assert gateway.client.get(f"/ui/static/x/{name}").status_code == 404, name


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
    button.click()
    expect(button).to_have_text("System theme")
    assert page.evaluate(ground) == "light"


def test_without_keys_strangers_are_told_what_to_do(visitor: Visitor) -> None:
    """They see an explanation instead of data. A proxy's header makes any client a stranger."""
    visitor.expect("403")
    page = visitor.page(extra_http_headers={"X-Forwarded-For": "203.0.113.7"})
    page.goto("/ui/")
    expect(page.locator("#banner")).to_contain_text("only on its own machine")
    expect(page.get_by_role("navigation").get_by_role("link")).to_have_text(["Overview", "Playground", "Benchmarks"])
    assert axe(page) == []
    page.goto("/ui/models")
    expect(page.get_by_role("heading", level=1)).to_have_text("Models: on its own machine only")


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
    passes(page, "2 removed, 300 kB freed")
    expect(page.locator("#temporary")).to_contain_text("Nothing lies about")
    assert not list(gateway.tmp.glob("*.bin"))


LOOK = """document.dispatchEvent(new Event("visibilitychange"))"""
"""Makes a page refresh its data, as when it becomes visible."""


def test_a_list_keeps_still_under_a_hand(gateway: GatewayProcess, browser_page: Page) -> None:
    """It is polled every few seconds. A pressed button stays until its release, and the focus stays after a dialog."""
    page = browser_page

    def another(name: str) -> None:
        (gateway.tmp / name).write_bytes(b"x")
        with page.expect_response("**/admin/temp_status") as answer:
            page.evaluate(LOOK)
        answer.value.finished()
        page.evaluate(DRAWN)

    page.goto("/ui/files")
    expect(page.locator("#temporary")).to_contain_text("Nothing lies about")
    another("one.bin")
    clean = page.get_by_role("button", name="Clean up…")
    clean.hover()
    page.mouse.down()
    another("two.bin")
    page.mouse.up()
    dialog = page.get_by_role("dialog", name="Remove temporary files?")
    expect(dialog).to_be_visible()
    another("three.bin")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(clean).to_be_focused()
    another("four.bin")
    expect(page.locator("#temporary-table tbody tr")).to_have_count(4)
    expect(clean).to_be_focused()
    page.keyboard.press("Enter")
    dialog.get_by_role("button", name="Remove").click()
    passes(page, "4 removed")


def test_quantized_copies_are_listed_and_removed(gateway: GatewayProcess, browser_page: Page) -> None:
    keep_copies(gateway.home / "models", {"reasoner": 1_300_000, "qwen_vl": 40_000})
    browser_page.goto("/ui/files")
    rows = browser_page.locator("#quantized-table tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.filter(has_text="reasoner")).to_contain_text("1.30 MB")
    assert axe(browser_page) == []
    browser_page.get_by_role("button", name="Remove all…").click()
    browser_page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    passes(browser_page, "2 removed, 1.34 MB freed")
    expect(browser_page.locator("#quantized")).to_contain_text("No copies are kept")


def test_what_scripts_share(browser_page: Page) -> None:
    """Figures are formatted for people, and text from the server is never parsed as HTML."""
    browser_page.goto("/ui/benchmarks")
    said = browser_page.evaluate("""async () => {
        const at = document.querySelector("script[type=module]").src;
        const [f, { h }] = await Promise.all(["format.js", "dom.js"].map((name) =>
            import(at.replace("shell.js", name))));
        const now = Date.now() / 1000;
        return [f.bytes(0), f.bytes(999), f.bytes(999_600), f.bytes(18_640_000_000), f.bytes(null), f.bytes(-1500),
            f.duration(0.045), f.duration(3.21), f.duration(59.6), f.duration(250), f.duration(7500),
            f.duration(273_600),
            f.number(1234), f.number(1234567), f.number(0.256, 2), f.number(undefined), f.percent(0.256),
            f.ago(now), f.ago(now - 7500), f.ago(null), f.clock(null), f.clock(now).length,
            h("p", { title: "<b>" }, "<i>", ["a", [1, null, false]], h("b", null, 0)).outerHTML];
    }""")
    assert said == [
        "0 B",
        "999 B",
        "1.00 MB",
        "18.6 GB",
        "–",
        "−1.50 kB",
        "45 ms",
        "3.2 s",
        "1 min",
        "4 min 10 s",
        "2 h 5 min",
        "3 d 4 h",
        "1234",
        "1\u202f234\u202f567",
        "0.26",
        "–",
        "26 %",
        "just now",
        "2 h ago",
        "never",
        "–",
        8,
        '<p title="&lt;b&gt;">&lt;i&gt;a1<b>0</b></p>',
    ]


def test_figures_follow_the_server_s_clock_and_slots(browser_page: Page) -> None:
    """A clock that is set back restarts the plots; a model lacks room only in the slots it may use; and the part of a
    model that a GPU offloads to RAM is shown without the part on the GPU."""
    browser_page.goto("/ui/benchmarks")
    said = browser_page.evaluate("""async () => {
        const at = document.querySelector("script[type=module]").src;
        const [{ Samples }, { lacking, residents }] = await Promise.all(
            ["samples.js", "snapshot.js"].map((name) => import(at.replace("shell.js", name))));
        const samples = new Samples(), kept = [];
        for (const [time, swaps] of [[1000, 1], [1001, 1], [1001.1, 9], [1000.5, 9], [400, 4], [401, 2]]) {
            samples.add({ time, series: { swaps }, slots: {} });
            kept.push(samples.over("swaps", "sum", 0, samples.end));
        }
        const slots = [{ device: "cpu", free_bytes: 50 }, { device: "cuda:0", free_bytes: 5 }];
        const lack = (names) => lacking({ slots }, { slots: names, predicted_bytes: 20 });
        const one = { state: "ready", device: "cuda:0", bytes: 9, predicted_bytes: 8, cache_bytes: 3,
            measured_at_load_bytes: 6, offloaded: { cpu: 5 }, offloaded_predicted_bytes: 4 };
        const figures = (slot) => residents({ models: [{ replicas: [one] }] }, slot).map((it) =>
            [it.bytes, it.predicted_bytes, it.cache_bytes, it.measured_at_load_bytes]);
        return [kept, samples.times, lack(["cuda:0"]), lack(["cuda:0", "cpu"]),
            figures("cuda:0"), figures("cpu"), figures("cuda:1")];
    }""")
    assert said == [[1, 2, 2, 2, 4, 6], [400, 401], 15, 0, [[9, 8, 3, 6]], [[5, 4, 0, None]], []]


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
    assert browser_page.request.get("/ui/benchmarks/swap.json").ok
    for name in ("none", "none.png", "README", "..%2f..%2fapp.py"):
        assert browser_page.request.get(f"/ui/benchmarks/{name}").status == 404, name
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
    expect(page.get_by_role("button", name="Try now")).to_be_visible()  # and nobody clicks it
    gateway.start()
    expect(page.locator("#connection-text")).to_have_text("Live")
    expect(page.locator("#banner")).to_be_hidden()


# -- with keys: last, because the gateway requires a key once one exists -----------------------------------------------


@pytest.fixture(scope="module")
def keys(gateway: GatewayProcess) -> Keys:
    made = Keys(gateway)
    gateway.client.headers["Authorization"] = f"Bearer {made.create('root', '--role', 'admin')}"
    return made


def sign_in(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()


def test_signing_in_and_out(keys: Keys, visitor: Visitor) -> None:
    visitor.expect("401", "/v1/chat/completions")
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
    assert page.evaluate(ASKED, ["/v1/chat/completions", {"model": "nobody", "messages": []}]) in (400, 404)
    assert page.evaluate(ASKED, ["/admin/cleanup_temp", {}]) == 200
    assert not [url for url in addresses if "sy-" in url]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    page.goto("/ui/files")
    assert urlsplit(page.url).path == "/ui/login"


def test_a_user_sees_fewer_views(keys: Keys, visitor: Visitor) -> None:
    visitor.expect("403", "404")
    page = visitor.page()
    page.goto("/ui/")
    sign_in(page, keys.create("alice"))
    expect(page.get_by_role("navigation").get_by_role("link")).to_have_text(["Overview", "Playground", "Benchmarks"])
    expect(page.locator("#connection-text")).to_have_text("Live")
    page.goto("/ui/files")
    expect(page.get_by_role("heading", level=1)).to_have_text("Files: for administrators")
    assert axe(page) == []
    page.goto("/ui/static/x/none.css")
    expect(page.get_by_role("heading", level=1)).to_have_text("Not Found")
    expect(page.locator("#connection-text")).to_have_text("Live")
    assert axe(page) == []


def test_a_key_that_may_ask_one_model(keys: Keys, visitor: Visitor) -> None:
    """The playground offers only that model, and its code contains no key."""
    page = visitor.page()
    page.goto("/ui/playground")
    sign_in(page, keys.create("guest", "--models", "reasoner"))
    expect(page.locator("#model-0 option")).to_have_text(["reasoner · text"])
    expect(page.locator("#compare")).to_be_disabled()
    answered(ask(page, "What is 17 + 25?"), "17 + 25 = 42")
    page.get_by_role("button", name="Show as code").click()
    expect(page.locator("#code-text")).to_contain_text("$SWITCHYARD_API_KEY")
    assert "sy-" not in page.content()


def test_a_key_that_ends_takes_its_pages_along(keys: Keys, chromium: Browser, gateway: GatewayProcess) -> None:
    with visiting(chromium, gateway) as visitor:
        visitor.expect("401")
        page = visitor.page()
        page.goto("/ui/files")
        sign_in(page, keys.create("brief", "--role", "admin"))
        expect(page.locator("#temporary")).to_contain_text("Nothing lies about")
        keys.done("revoke", "brief")
        banner = page.locator("#banner")
        expect(banner).to_contain_text("Signed out")
        expect(page.locator("#connection-text")).to_have_text("Signed out")
        expect(page.locator("#temporary")).to_contain_text("Nothing lies about"), "what was there stays"
        assert axe(page) == []
        with page.expect_popup() as opened:
            banner.get_by_role("link", name="Sign in").click()
        visitor.watch.follow(opened.value)
        expect(opened.value).to_have_url(re.compile("/ui/login\\?next=%2Fui%2Ffiles$"))
        sign_in(opened.value, keys.tokens[0])
        expect(opened.value.get_by_role("heading", level=1)).to_have_text("Files")
        expect(page.locator("#connection-text")).to_have_text("Live")
        expect(banner).to_be_hidden()
