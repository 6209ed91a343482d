"""One gateway for all tests of the playground, and what a visitor does there.

Real models, in a slot that holds the text model alone or some of the others together, so that swaps are seen.
"""

import base64
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.conftest import _starter
from tests.support.gateway import ONE_AT_ONCE, SMOLLM2, GatewayProcess
from tests.web.conftest import Visitor

KINDS = {"image": ("shape.png", "image/png"), "video": ("clip.mp4", "video/mp4"), "audio": ("sound.flac", "audio/flac")}
DROP = """(area, {data, name, type}) => {
    const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0)), carried = new DataTransfer();
    carried.items.add(new File([bytes], name, {type}));
    for (const kind of ["dragenter", "dragover", "drop"])
        area.dispatchEvent(new DragEvent(kind, {dataTransfer: carried, bubbles: true, cancelable: true}));
}"""


@pytest.fixture(scope="package")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    copy = tmp_path_factory.mktemp("weights") / SMOLLM2.name
    shutil.copyfile(SMOLLM2, copy)  # what others have mapped would make it seem to take less
    source = {"path": str(copy.parent), "file": copy.name}
    models = {"deepseek": ONE_AT_ONCE | {"source": source}}
    starting = _starter(lambda: tmp_path_factory.mktemp("gateway"))
    yield next(starting)(
        models=models, slot_budget="300MB", zygote_memory=0, quantum="1s", queue_per_model=1, max_body="300kB"
    ).preloaded()
    next(starting, None)
    copy.unlink()


@pytest.fixture
def page(visitor: Visitor) -> Page:
    return opened(visitor.page())


def opened(page: Page) -> Page:
    """Return the page once it knows the models."""
    page.goto("/ui/playground")
    expect(page.locator("#model-0")).to_be_enabled()
    return page


def ask(page: Page, text: str, model: str = "") -> Locator:
    """Ask and return the newest answer, which may still be coming."""
    before = page.locator(".pg-answer").count()
    if model:
        page.select_option("#model-0", model)
    page.fill("#draft", text)
    page.press("#draft", "Control+Enter")
    expect(page.locator(".pg-answer")).to_have_count(before + 1)
    return page.locator(".pg-answer").last


def answered(answer: Locator, text: str) -> None:
    """Wait for the answer's end and hold it to its text."""
    expect(answer).to_have_attribute("data-state", "done")
    expect(answer.locator(".pg-text")).to_have_text(text)


def drop(page: Page, kind: str, data: bytes, name: str = "") -> None:
    """Drop a file on the page."""
    own, mime = KINDS[kind]
    sent = {"data": base64.b64encode(data).decode(), "name": name or own, "type": mime}
    page.locator("#playground").evaluate(DROP, sent)


def attached(page: Page) -> Locator:
    return page.locator("#attached .pg-medium")


def sure(page: Page, action: str) -> None:
    """Say yes to a question that comes before something is gone."""
    page.get_by_role("dialog").get_by_role("button", name=action).click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def shown(page: Page) -> str:
    """Return the code as it is copied: its text, not as a page would lay it out."""
    return str(page.locator("#code-text").evaluate("(code) => code.textContent"))
