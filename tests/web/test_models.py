"""The view of models in a browser: the catalog; a download watched to its end, cancelled, refused; freeing the disk.

The weights come from a hub on loopback, which stops in their middle where a test wants to look at that.
"""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import APIResponse, Browser, Locator, Page, Route, expect

from tests.checkpoints.hub_server import Hub, Repo
from tests.conftest import Start
from tests.support.gateway import CHECKPOINT, GatewayProcess, only, reasoner_at
from tests.web.conftest import NARROW, UNASKED, Visitor, axe, passes, visiting

WEIGHTS = "model.safetensors"
HELD = 650_000


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    files = {file.name: file.read_bytes() for file in CHECKPOINT.iterdir()}
    with Hub() as server:
        server.repos = {
            "acme/sums": Repo(files, hold={WEIGHTS: HELD}),
            "acme/more": Repo(dict(files)),
            "acme/gated": Repo(files, token="secret"),
        }
        yield server


@pytest.fixture(scope="module")
def gateway(hub: Hub, start_for_module: Start) -> GatewayProcess:
    """A gateway of one model that is here and three that are on the hub, one of which is closed."""

    def on_hub(name: str) -> dict[str, object]:
        return reasoner_at("") | {"source": {"hub": f"acme/{name}"}, "folder": name, "cpu_quant_bits": 16}

    models = only("reasoner", sums=on_hub("sums") | {"aliases": ["adder"]}, more=on_hub("more"), gated=on_hub("gated"))
    started = start_for_module(launch=False, models=models)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        started.environment.pop(name, None)
    started.environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(started.home), "HF_TOKEN_PATH": "/nowhere"}
    return started.start()


@pytest.fixture
def visitor(chromium: Browser, gateway: GatewayProcess) -> Iterator[Visitor]:
    with visiting(chromium, gateway) as found:
        yield found


@pytest.fixture
def page(visitor: Visitor) -> Page:
    page = visitor.page()
    page.goto("/ui/models")
    return page


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("listitem", name=name, exact=True)


def test_every_model_with_what_is_here_and_what_fits(page: Page, gateway: GatewayProcess) -> None:
    expect(page.locator(".model")).to_have_count(4)
    reasoner, sums = row(page, "reasoner"), row(page, "sums")
    expect(reasoner).to_contain_text("Local")
    expect(reasoner).to_contain_text(re.compile(r"about \d+ MB"))
    expect(reasoner.get_by_role("button", name="Free disk")).to_have_count(0)  # not a download's to delete
    expect(sums).to_contain_text("Not here")
    expect(sums).to_contain_text("also adder")
    expect(page.get_by_role("region", name="Disk")).to_contain_text(re.compile(r"GB free of \d"))
    expect(page.get_by_role("list", name="Sets of models that fit on cpu at once")).to_contain_text("reasoner")
    expect(page.get_by_text("Profile pocket: 1 of 4 can be served")).to_be_visible()

    details = reasoner.get_by_role("button", name="Details of reasoner")
    details.press("Enter")
    expect(details).to_have_attribute("aria-expanded", "true")
    expect(reasoner.get_by_role("row", name="Set aside for it")).to_contain_text("MB")
    expect(reasoner.get_by_role("table")).to_contain_text("While it answers")
    assert axe(page) == []


def test_a_download_is_cancelled_and_goes_on_to_its_end(page: Page, hub: Hub, gateway: GatewayProcess) -> None:
    sums, more = row(page, "sums"), row(page, "more")
    sums.get_by_role("button", name="Download sums").click()
    hub.wait_held(1, 60)
    bar = sums.get_by_role("progressbar", name="Download of sums")
    expect(bar).to_have_attribute("aria-valuenow", re.compile(r"^[45]\d$"))
    expect(sums).to_contain_text(re.compile(r"\d{3} kB of 1\.\d+ MB"))
    more.get_by_role("button", name="Download more").click()
    expect(more).to_contain_text("Waits: first in line")
    assert axe(page) == []
    more.get_by_role("button", name="Cancel more").click()
    expect(more).to_contain_text("Not here")

    sums.get_by_role("button", name="Cancel sums").focus()
    page.keyboard.press("Enter")
    expect(sums).to_contain_text("Half here")
    resume = sums.get_by_role("button", name="Resume sums")
    expect(resume).to_be_focused()
    passes(page, "stay on the disk, to go on from")
    hub.release.set()
    page.keyboard.press("Enter")
    expect(sums).to_contain_text("Downloaded")
    expect(sums).to_contain_text(re.compile(r"about \d+ MB"))  # what it takes is known now
    passes(page, r"sums is downloaded: 1\.\d+ MB")
    assert [entry.start for entry in hub.log if entry.path == WEIGHTS][1] >= HELD


def test_what_cannot_be_fetched_says_why(page: Page) -> None:
    row(page, "gated").get_by_role("button", name="Download gated").click()
    expect(row(page, "gated").get_by_role("alert")).to_contain_text("HF_TOKEN is not set")
    expect(row(page, "gated").get_by_role("button", name="Try again gated")).to_be_visible()
    assert axe(page) == []


def test_the_disk_is_freed_by_keyboard(page: Page, gateway: GatewayProcess) -> None:
    """Of a model that is loaded, which is seen as it comes."""
    sums = row(page, "sums")
    free = sums.get_by_role("button", name="Free disk… sums")
    expect(free).to_be_visible()
    gateway.load("sums")
    expect(sums.get_by_text("loaded", exact=True)).to_be_visible()
    free.press("Enter")
    dialog = page.get_by_role("dialog", name="Delete the weights of sums?")
    expect(dialog).to_contain_text(re.compile(r"1\.\d+ MB of weights"))
    expect(dialog).to_contain_text("will be unloaded")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    assert axe(page) == []
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(sums).to_contain_text("Downloaded")
    expect(free).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(dialog.get_by_role("button", name=re.compile(r"Free 1\.\d+ MB"))).to_be_focused()
    page.keyboard.press("Enter")
    expect(sums).to_contain_text("Not here")
    passes(page, "are free again")
    assert not (gateway.home / "models" / "sums").exists() and gateway.model("sums")["state"] == "cold"


def test_a_download_that_is_over_at_the_next_look_is_told(page: Page, gateway: GatewayProcess) -> None:
    def late(route: Route) -> None:
        response = route.fetch()
        gateway.until(lambda: gateway.get("/admin/downloads")["downloads"]["more"]["state"] == "done", "the download")
        route.fulfill(response=response)

    page.route("**/admin/models/more/download", late)
    row(page, "more").get_by_role("button", name="Download more").click()
    passes(page, r"more is downloaded: 1\.\d+ MB")
    assert gateway.client.delete("/admin/models/more/weights").status_code == 200


def test_what_is_told_meanwhile_is_not_undone_by_an_older_answer(page: Page, gateway: GatewayProcess) -> None:
    reasoner, held = row(page, "reasoner"), list[tuple[Route, APIResponse]]()
    expect(reasoner).to_contain_text("Local")
    page.route("**/admin/weights", lambda route: held.append((route, route.fetch())))
    with page.expect_request("**/admin/weights"):
        page.evaluate('document.dispatchEvent(new Event("visibilitychange"))')
    while not held:
        page.wait_for_timeout(20)
    gateway.load("reasoner")
    expect(reasoner.get_by_text("loaded", exact=True)).to_be_visible()
    ((route, old),) = held
    with page.expect_event("requestfinished", lambda request: request.url.endswith("/admin/weights")):
        route.fulfill(response=old)
    page.unroute("**/admin/weights")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert reasoner.get_by_text("loaded", exact=True).is_visible()
    gateway.unload("reasoner")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone(visitor: Visitor, theme: str) -> None:
    page = visitor.page(viewport=NARROW, color_scheme=theme)
    page.goto("/ui/models")
    row(page, "reasoner").get_by_role("button", name="Details of reasoner").click()
    expect(row(page, "gated")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    assert axe(page) == []


def test_a_server_that_does_not_answer(visitor: Visitor) -> None:
    """At the first question there is nothing to show but that; later what was shown stays."""
    visitor.expect("Failed to load resource", "net::")
    page = visitor.page()
    page.add_init_script(UNASKED)
    page.route("**/admin/weights", lambda route: route.abort())
    page.goto("/ui/models")
    expect(page.get_by_role("heading", name="The models cannot be shown")).to_be_visible()
    expect(page.locator("#connection-text")).to_have_text("Live")  # it asks again when that has come
    assert axe(page) == []
    page.unroute("**/admin/weights")
    page.get_by_role("button", name="Try again").click()
    expect(row(page, "reasoner")).to_be_visible()
    page.context.set_offline(True)
    row(page, "more").get_by_role("button", name="Download more").click()
    expect(page.get_by_text("Is it still running?")).to_be_visible()
    expect(row(page, "more").get_by_role("button", name="Download more")).to_be_enabled()
