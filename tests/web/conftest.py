"""A browser that checks what a page must not do, gateways for whole modules, and axe-core.

This folder shares one Chromium; each test has a page with its own context. A page fails its test if its console has an
error, a script throws, its policy is violated, or it requests anything from another server.
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

expect.set_options(timeout=60_000)  # a loaded machine is slow; a result is taken as soon as it is there
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
"""Stops a page's long timers, such as the retry that a test wants to trigger by a click."""


def chromium_path() -> str:
    """Return the headless shell, which opens a page in less than half the processor time, or else Chromium."""
    shell = "chromium-headless-shell"
    return shutil.which(shell) or program("chromium", shell)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without its sandbox for root, where it does not start with it.

    Its scope is not the session: while Playwright runs, this thread has an event loop: other tests cannot start one.
    """
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(), args=[*arguments, "--disable-dev-shm-usage"], timeout=120_000
        )
        yield browser
        browser.close()


class Watch:
    """The problems of a page so far. Problems with one of the ``allowed`` words are expected."""

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
    """Opens pages of one gateway in contexts of their own, and checks them for problems at the end."""

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
        """Expect problems with one of these words, such as the console's message for each refused request."""
        self.watch.allowed += words

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@contextmanager
def visiting(browser: Browser, gateway: GatewayProcess) -> Iterator[Visitor]:
    """Give a visitor, and check it for problems afterwards. :raises AssertionError: if there are any."""
    visitor = Visitor(browser, gateway)
    try:
        yield visitor
    finally:
        visitor.close()
    assert not visitor.watch.wrong, visitor.watch.wrong


@pytest.fixture(scope="module")
def gateway(start_for_module: Start) -> GatewayProcess:
    """One gateway for a module's tests: two models of the pocket profile, and one with the longest name allowed.
    A module that needs other models overrides it."""
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
    """Wait for a message that the page shows for some seconds only. ``words`` is a regular expression."""
    page.wait_for_function("(words) => passed.some((one) => new RegExp(words).test(one))", arg=words)


def axe(page: Page) -> list[str]:
    """Return axe-core's serious findings on a page, by its rules for WCAG 2.2 AA and good practice."""
    only = {"resultTypes": ["violations"]}  # passed rules are not listed in detail
    found = Axe().run(page, options=only).response["violations"]
    return [
        f"{one['id']}: {one['help']}: {node['html'][:200]}: {node.get('failureSummary', '')}"
        for one in found
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]


def keep_copies(models_dir: Path, sizes: dict[str, int]) -> None:
    """Write quantized copies of models with the given sizes, as a runner keeps them."""
    root = kept_weights.root(models_dir)
    for model, size in sizes.items():
        place = kept_weights.folder(root, model, 4, "0123456789abcdef")
        unfinished = kept_weights.begin(place, size)
        (unfinished / "model.safetensors").write_bytes(b"\0" * size)
        kept_weights.finish(unfinished, place, model, 4, "cpu")
