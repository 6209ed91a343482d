"""A browser that is held to what a page must not do, gateways for whole modules, and axe-core.

One Chromium for this folder; a page, with a context of its own, for each test. A page fails its test if its
console says an error, a script throws, its policy is violated, or it asks for anything of another server.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from checkpoints import kept_weights
from tests.conftest import Start
from tests.support.gateway import CHECKPOINT, GatewayProcess, only, reasoner_at
from tests.support.programs import program

expect.set_options(timeout=60_000)  # a loaded machine is slow, and what comes is taken at once
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
LONG = "a_name_" + "w" * 57
SERIOUS = ("serious", "critical")
VIEWS = ("", "playground", "models", "events", "files", "benchmarks")
_REPORT_VIOLATIONS = """addEventListener("securitypolicyviolation", (event) =>
    console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`))"""

_KEEP_WHAT_PASSES = """window.passed = [];
new MutationObserver((changes) => {
    for (const one of changes.flatMap(({ addedNodes }) => [...addedNodes]))
        if (one.nodeType === Node.ELEMENT_NODE && one.matches(".toast, .slot-note"))
            passed.push(one.textContent.replace(/\\s+/g, " "));
}).observe(document, { subtree: true, childList: true });"""
UNASKED = """void (setTimeout = ((set) => (call, wait = 0) => set(call, wait < 1000 ? wait : 2e9))(setTimeout))"""
"""Has a page do nothing later by itself, such as try once more what a test's click is to try."""


def chromium_path() -> str:
    """The one without a window's surroundings, which opens a page in less than half the processor time; else
    the whole."""
    shell = "chromium-headless-shell"
    return shutil.which(shell) or program("chromium", shell)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium. As root it has no sandbox, which it would refuse to start with.

    Not for the whole session: while Playwright runs, this thread has an event loop, and other tests could start none.
    """
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(), args=[*arguments, "--disable-dev-shm-usage"], timeout=120_000
        )
        yield browser
        browser.close()


class Watch:
    """What went wrong on a page so far. ``allowed`` are words by which a test says what it expects."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self.allowed: list[str] = []
        self.found: list[str] = []

    def follow(self, page: Page) -> None:
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.found.append(f"thrown: {error}"))
        page.on("request", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.found.append(f"console: {message.text} ({message.location.get('url')})")

    def _asked(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and f"{parts.scheme}://{parts.netloc}" != self._origin:
            self.found.append(f"asked elsewhere: {request.url}")

    @property
    def wrong(self) -> list[str]:
        return [one for one in self.found if not any(word in one for word in self.allowed)]


class Visitor:
    """Opens pages of one gateway in contexts of their own, and holds all of them to the rules in the end."""

    def __init__(self, browser: Browser, gateway: GatewayProcess) -> None:
        self._browser, self.gateway = browser, gateway
        self.watch = Watch(gateway.url)
        self._contexts: list[BrowserContext] = []

    def page(self, **options: Any) -> Page:
        """Return a new page; ``options`` are those of a context, such as ``color_scheme`` or ``viewport``."""
        context = self._browser.new_context(
            **({"base_url": self.gateway.url, "viewport": WIDE, "reduced_motion": "reduce"} | options)
        )
        context.add_init_script(_REPORT_VIOLATIONS)
        context.add_init_script(_KEEP_WHAT_PASSES)
        context.set_default_timeout(60_000)
        self._contexts.append(context)
        page = context.new_page()
        self.watch.follow(page)
        return page

    def expect(self, *words: str) -> None:
        """Take what is said with one of these words as wanted: the console tells every refused request, say."""
        self.watch.allowed += words

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@contextmanager
def visiting(browser: Browser, gateway: GatewayProcess) -> Iterator[Visitor]:
    """Give a visitor, and hold what it saw to the rules. :raises AssertionError: if they were broken."""
    visitor = Visitor(browser, gateway)
    try:
        yield visitor
    finally:
        visitor.close()
    assert not visitor.watch.wrong, visitor.watch.wrong


@pytest.fixture(scope="module")
def gateway(start_for_module: Start) -> GatewayProcess:
    """One gateway for a module's tests: two models of the pocket profile, and one whose name is as long as one may be.
    A module that needs others has its own."""
    return start_for_module(models=only("deepseek", "reasoner", **{LONG: reasoner_at(CHECKPOINT)}))


@pytest.fixture
def visitor(chromium: Browser, gateway: GatewayProcess) -> Iterator[Visitor]:
    with visiting(chromium, gateway) as found:
        yield found


@pytest.fixture
def browser_page(visitor: Visitor) -> Page:
    """A wide page at the gateway's address, watched."""
    return visitor.page()


def passes(page: Page, words: str) -> None:
    """Wait until a page has said something that it shows for some seconds only. ``words`` are a regular expression."""
    page.wait_for_function("(words) => passed.some((one) => new RegExp(words).test(one))", arg=words)


def axe(page: Page) -> list[str]:
    """Return axe-core's serious findings on a page: its rules of WCAG 2.2 AA and of good practice."""
    only = {"resultTypes": ["violations"]}  # of what is well, no more is gathered than that it is
    found = Axe().run(page, options=only).response["violations"]
    return [
        f"{one['id']}: {one['help']}: {node['html'][:200]}: {node.get('failureSummary', '')}"
        for one in found
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]


def keep_copies(models_dir: Path, sizes: dict[str, int]) -> None:
    """Keep quantized copies of models, of so many bytes, as a runner keeps them."""
    root = kept_weights.root(models_dir)
    for model, size in sizes.items():
        place = kept_weights.folder(root, model, 4, "0123456789abcdef")
        unfinished = kept_weights.begin(place, size)
        (unfinished / "model.safetensors").write_bytes(b"\0" * size)
        kept_weights.finish(unfinished, place, model, 4, "cpu")
