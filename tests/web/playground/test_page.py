"""What the playground's page keeps and shows: drafts, parameters, code that runs, Markdown; and its accessibility."""

import json
import os
import random
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from playwright.sync_api import Page, expect

from pocket import drawings
from tests.families import questions
from tests.support.gateway import ROOT
from tests.web.conftest import NARROW, Visitor, axe
from tests.web.playground.conftest import answered, ask, attached, drop, opened, shown, sure

EXAMPLES = ROOT / "examples"


def test_the_draft_and_the_parameters_are_kept(page: Page) -> None:
    page.select_option("#model-0", "qwen_omni")
    page.fill("#draft", "Half a question")
    page.fill("#system", "Be brief.")
    page.fill("#parameter-seed", "7")
    page.locator("#parameter-stop").fill("one\ntwo")
    expect(page.locator("#changed")).to_have_text("3 changed")
    opened(page)
    expect(page.locator("#draft")).to_have_value("Half a question")
    expect(page.locator("#system")).to_have_value("Be brief.")
    expect(page.locator("#parameter-seed")).to_have_value("7")
    expect(page.locator("#model-0")).to_have_value("qwen_omni")
    page.click("#code")
    expect(page.locator("#code-text")).to_contain_text('"seed": 7')
    text = shown(page)
    assert '"one",' in text and "Be brief." in text and "temperature" not in text
    page.press("#code-close", "Enter")
    page.locator("summary", has_text="Shape and serving").click()
    page.fill("#parameter-keep_alive", "soon")
    page.press("#draft", "Control+Enter")
    expect(page.locator(".pg-turn")).to_have_count(0)
    page.fill("#parameter-keep_alive", "-1")
    page.check("#parameter-response_format")
    page.click("#code")
    expect(page.locator("#code-text")).to_contain_text('"keep_alive": -1')
    expect(page.locator("#code-text")).to_contain_text('"json_object"')
    page.press("#code-close", "Enter")
    page.click("#reset")
    expect(page.locator("#changed")).to_be_hidden()
    expect(page.locator("#system")).to_have_value("")
    page.fill("#parameter-temperature", "9")
    page.press("#draft", "Control+Enter")
    expect(page.locator(".pg-turn")).to_have_count(0)


NASTY = "It's \"quoted\", costs $5 `echo no` and \\n ends; what color is the circle?\nSay it — 'now'."


def test_the_code_shown_runs_and_answers_the_same(page: Page, tmp_path: Path) -> None:
    """With a text and a name that shells and Python must not read as anything else."""
    name = "it's $a `file`.png"
    page.select_option("#model-0", "qwen_vl")
    image = (EXAMPLES / "red-circle.png").read_bytes()
    drop(page, "image", image, name)
    expect(attached(page)).to_have_count(1)
    page.locator("summary", has_text="More sampling").click()
    page.fill("#parameter-min_p", "0.01")
    answer = ask(page, NASTY)
    expect(answer).to_have_attribute("data-state", "done")
    said = answer.locator(".pg-text").inner_text()
    assert said
    (tmp_path / name).write_bytes(image)
    answer.get_by_role("button", name="Show as code").click()
    for streamed in (False, True):
        page.set_checked("#code-stream", streamed)
        page.click("#code-tab-curl")
        printed = run(["bash"], shown(page), tmp_path)
        assert _text(printed, streamed) == said
        page.press("#code-tab-curl", "ArrowRight")
        assert run([sys.executable, "-"], shown(page), tmp_path).strip() == said
    page.press("#code-tab-python", "Escape")
    page.click("#clear")
    sure(page, "Clear")
    page.fill("#draft", NASTY)
    page.click("#code")
    page.click("#code-tab-curl")
    body = re.search(r"-d '(.*)'", shown(page), re.DOTALL)
    assert body and json.loads(body[1].replace("'\\''", "'"))["messages"][0]["content"] == NASTY
    assert run(["bash"], shown(page).replace("curl -sN", "echo"), tmp_path)


def run(command: list[str], program: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(
        command, input=program, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, (program, done.stderr)
    return done.stdout


def _text(printed: str, streamed: bool) -> str:
    if not streamed:
        return str(json.loads(printed)["choices"][0]["message"]["content"])
    said = ""
    for line in printed.splitlines():
        with suppress(ValueError):
            chunk = json.loads(line.removeprefix("data: "))
            said += "".join(choice["delta"].get("content", "") for choice in chunk["choices"])
    return said


MARKDOWN = """# Title
Some **bold**, *slanted*, 3*4 = 2*6, `code` and <img src=x onerror=a()> a [link](https://example.org/a)
and [not](javascript:x).

- one
  - inner
- two

3. third

> quoted

| a | b |
|---|---|
| 1 | 2 |

```python
print("<b>")
"""


def test_markdown_becomes_elements_and_nothing_else(page: Page) -> None:
    made = page.evaluate(
        """async (text) => {
        const own = [...document.scripts].find((one) => one.src.includes('playground.js')).src;
        const { render } = await import(own.replace('playground.js', 'playground/markdown.js'));
        const place = document.createElement('div');
        for (let length = 1; length <= text.length; length += 7) render(place, text.slice(0, length)); // as it streams
        render(place, text);
        const found = (what) => [...place.querySelectorAll(what)].map((one) => one.textContent);
        const links = [...place.querySelectorAll('a')].map((one) => one.href);
        const mad = (answer) => { const own = document.createElement('div'); render(own, answer); return own; };
        const quotes = mad('>'.repeat(3000)), ticks = mad('a' + '`'.repeat(5000));
        const list = mad(Array.from({ length: 60 }, (_, at) => ' '.repeat(2 * at) + '- x').join('\\n'));
        const nasty = [quotes.querySelectorAll('blockquote').length, 20 + quotes.textContent.length,
                       list.querySelectorAll('ul').length, ticks.textContent.length];
        return { nasty, html: place.innerHTML, title: found('h3'), bold: found('strong'), slanted: found('em'),
                 items: found('li'), links, start: place.querySelector('ol')?.start, cells: found('th, td'),
                 code: found('pre'), quote: found('blockquote'), images: found('img').length };
    }""",
        MARKDOWN,
    )
    assert made["title"] == ["Title"] and made["bold"] == ["bold"] and made["slanted"] == ["slanted"]
    assert made["items"] == ["oneinner", "inner", "two", "third"] and made["start"] == 3
    assert made["links"] == ["https://example.org/a"] and made["images"] == 0
    assert "&lt;img src=x onerror=a()&gt;" in made["html"] and "[not](javascript:x)" in made["html"]
    assert made["nasty"] == [20, 3000, 20, 5001], "endless repetition stays, but is not nested as deep"
    assert made["cells"] == ["a", "b", "1", "2"] and made["quote"] == ["quoted"]
    assert made["code"] == ['print("<b>")']


RENDERED = """async (texts) => {
    const own = [...document.scripts].find((one) => one.src.includes('playground.js')).src;
    const { render } = await import(own.replace('playground.js', 'playground/markdown.js'));
    return texts.map((text) => {
        const place = document.createElement('div');
        render(place, text);
        return place.innerHTML.replaceAll(' target="_blank" rel="noopener noreferrer nofollow"', '');
    });
}"""


def test_markdown_of_all_kinds(page: Page) -> None:
    """Only links to web and mail are links; an image is a link; HTML is text, line by line."""
    expected = {
        "a\nb": "<p>a<br>b</p>",
        "[m](mailto:a@b.org) ![i](https://x.org/i.png)": '<p><a href="mailto:a@b.org">m</a> '
        '<a href="https://x.org/i.png">i</a></p>',
        "[a](data:text/html,x) ![b](javascript:x) [c](/u)": "<p>[a](data:text/html,x) ![b](javascript:x) [c](/u)</p>",
        "<div onclick=a()>\n*b*\n</div>": "<p>&lt;div onclick=a()&gt;<br>*b*<br>&lt;/div&gt;</p>",
        "- a\n\n- b\n\n  c": "<ul><li>a</li><li>b<p>c</p></li></ul>",
        "- [x] done": "<ul><li>[x] done</li></ul>",
        "[t]\n\n[t]: https://x.org": '<p><a href="https://x.org">t</a></p>',
        "a\\*b &amp; ~~c~~": "<p>a*b &amp;amp; <s>c</s></p>",
    }
    assert dict(zip(expected, page.evaluate(RENDERED, list(expected)), strict=True)) == expected


def test_nothing_serious_is_found_by_axe(visitor: Visitor) -> None:
    """With an answer, a refusal, files and the code on it; wide and light, narrow and dark."""
    page = opened(visitor.page(color_scheme="light"))
    picture = questions.picture(drawings.draw(random.Random(3)).image)
    answered(ask(page, "What is 17 + 25?", "reasoner"), "17 + 25 = 42")
    drop(page, "image", picture)
    expect(page.locator("#refused")).to_be_visible()
    assert axe(page) == []
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size(NARROW)
    page.select_option("#model-0", "qwen_omni")
    drop(page, "image", picture)
    expect(attached(page)).to_have_count(1)
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
    page.click("#code")
    expect(page.locator("#code-text")).to_contain_text("curl")
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
