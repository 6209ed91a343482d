"""Screenshots of every view, light and dark, wide and narrow: ``python -m tests.web.screenshots FOLDER [--url URL]``.

Without ``--url`` it starts a gateway on the pocket profile with a small slot, and sends requests before and during the
screenshots, so that the views have something to show.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.gateway import ROOT, GatewayProcess
from tests.web.conftest import NARROW, VIEWS, WIDE, axe, chromium_path, keep_copies

_SETTLED = 2.5  # seconds a view is given to fill
_QUESTIONS = ("deepseek", "reasoner", "qwen_vl", "deepseek", "qwen_audio", "reasoner")


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.web.screenshots", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the screenshots go")
    parser.add_argument("--url", help="a gateway that runs; without it one is started")
    parser.add_argument("--key", help="its API key, of the role admin, where it asks for one")
    parser.add_argument("--views", nargs="*", default=[*VIEWS, "benchmarks/swap"], help="which; all by default")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with _gateway(arguments.url) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=root)
        for scheme in ("light", "dark"):
            for size, viewport in (("wide", WIDE), ("narrow", NARROW)):
                _pictures(browser, url, arguments, scheme, size, viewport)
        browser.close()


def _pictures(browser: Browser, url: str, arguments: Any, scheme: Any, size: str, viewport: Any) -> None:
    context = browser.new_context(base_url=url, viewport=viewport, color_scheme=scheme, device_scale_factor=1)
    page = context.new_page()
    page.on("console", lambda message: print(f"{page.url}: {message.type}: {message.text}"))
    page.on("pageerror", lambda error: print(f"{page.url}: {error}"))
    if arguments.key:
        page.goto("/ui/login")
        page.screenshot(path=arguments.folder / f"login-{scheme}-{size}.png")
        page.get_by_label("API key").fill(arguments.key)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/ui/")
    for view in arguments.views:
        _picture(page, view, arguments.folder / f"{view.replace('/', '-') or 'overview'}-{scheme}-{size}.png")
    context.close()


def _picture(page: Page, view: str, path: Path) -> None:
    page.goto(f"/ui/{view}")
    if view == "playground":
        _converse(page)
    page.wait_for_timeout(_SETTLED * 1000)
    page.screenshot(path=path, full_page=view != "playground")
    width = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    print(path.name, *([f"{width} px too wide"] if width > 0 else []), *axe(page), sep="\n  ")


def _converse(page: Page) -> None:
    """Ask one model about an image, and another one a question of text."""
    for model, text in (("qwen_vl", "What color is the circle?"), ("deepseek", "What is the capital of France?")):
        page.locator("#model-0:enabled").select_option(model)
        if model == "qwen_vl":
            page.set_input_files("#file", ROOT / "examples" / "red-circle.png")
            page.locator("#attached .pg-medium").wait_for()
        page.fill("#draft", text)
        page.press("#draft", "Control+Enter")
        page.locator(".pg-answer[data-state=done]").last.wait_for(timeout=120_000)
        page.locator("#send").wait_for(timeout=120_000)


@contextmanager
def _gateway(url: str | None) -> Iterator[str]:
    if url:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="screenshots-") as home:
        gateway = GatewayProcess(Path(home), slot_budget="420MB", quantized_cache="4MB")
        gateway.start().preloaded()
        over = Event()
        with ThreadPoolExecutor(2) as pool:
            try:
                pool.submit(_work, gateway.url, over)
                time.sleep(15)
                keep_copies(Path(home) / "models", {"reasoner": 1_310_000, "qwen_vl": 1_420_000})
                (gateway.tmp / "upload-3f9c.mp4").write_bytes(b"\0" * 4_200_000)
                (gateway.tmp / "upload-81d2.wav").write_bytes(b"\0" * 610_000)
                yield gateway.url
            finally:
                over.set()
        gateway.stop()


def _work(url: str, over: Event) -> None:
    """Send requests to the models in turn until ``over`` is set."""
    with httpx.Client(base_url=url, timeout=120) as client:
        while not over.is_set():
            for model in _QUESTIONS:
                with suppress(httpx.TransportError):
                    body = {"prompt": "Tell me a story of a fox.", "max_new_tokens": 120, "temperature": 0.7}
                    client.post(f"/generate/{model}", json=body)
                if over.is_set():
                    return


if __name__ == "__main__":
    main()
