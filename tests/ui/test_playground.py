"""The playground in a browser, with real models: asking each family with real files, stopping, comparing, refusing.

One gateway, whose slot holds the text model alone or some of the others together, so that swaps are seen.
"""

import base64
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from pocket import drawings
from tests.access.conftest import Keys
from tests.conftest import Start
from tests.families import questions
from tests.support.gateway import ONE_AT_ONCE, ROOT, SMOLLM2, STORY, GatewayProcess
from tests.ui.conftest import NARROW, Visitor, axe, visiting

EXAMPLES = ROOT / "examples"
KINDS = {"image": ("shape.png", "image/png"), "video": ("clip.mp4", "video/mp4"), "audio": ("sound.flac", "audio/flac")}

# A microphone that hears a tone rise, as an oscillator makes it: Chromium's own fake one beeps.
RISING = """navigator.mediaDevices.getUserMedia = async () => {
    const context = new AudioContext(), tone = context.createOscillator(), end = context.createMediaStreamDestination();
    tone.connect(end);
    tone.frequency.setValueAtTime(300, context.currentTime);
    tone.frequency.exponentialRampToValueAtTime(2400, context.currentTime + 2);
    tone.start();
    return end.stream;
}"""
CAMERA = """navigator.mediaDevices.getUserMedia = async () => {
    const canvas = document.createElement("canvas"), context = canvas.getContext("2d"), image = new Image();
    image.src = "PICTURE";
    await image.decode();
    [canvas.width, canvas.height] = [image.width, image.height];
    setInterval(() => context.drawImage(image, 0, 0), 50);
    return canvas.captureStream(20);
}"""
LENGTH = """(player) => new Promise((found) => {
    if (player.duration) found(player.duration);
    player.addEventListener("loadedmetadata", () => found(player.duration));
})"""
DROP = """(area, {data, name, type}) => {
    const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0)), carried = new DataTransfer();
    carried.items.add(new File([bytes], name, {type}));
    for (const kind of ["dragenter", "dragover", "drop"])
        area.dispatchEvent(new DragEvent(kind, {dataTransfer: carried, bubbles: true, cancelable: true}));
}"""


@pytest.fixture(scope="module")
def gateway(start_for_module: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    copy = tmp_path_factory.mktemp("weights") / SMOLLM2.name
    shutil.copyfile(SMOLLM2, copy)  # what others have mapped would make it seem to take less
    source = {"path": str(copy.parent), "file": copy.name}
    models = {"deepseek": ONE_AT_ONCE | {"source": source}}
    yield start_for_module(models=models, slot_budget="300MB", zygote_memory=0, quantum="1s", queue_per_model=1,
                           max_body="300kB").preloaded()  # fmt: skip
    copy.unlink()


@pytest.fixture
def visitor(chromium: Browser, gateway: GatewayProcess) -> Iterator[Visitor]:
    with visiting(chromium, gateway) as found:
        yield found


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


def test_a_text_model_s_reasoning_is_folded_away(page: Page) -> None:
    answer = ask(page, "What is 17 + 25?", "reasoner")
    answered(answer, "17 + 25 = 42")
    thinking = answer.locator(".pg-thinking")
    expect(thinking.locator("summary")).to_contain_text("Reasoned for")
    expect(thinking.locator(".pg-reasoning")).to_be_hidden()
    thinking.locator("summary").press("Enter")
    expect(thinking.locator(".pg-reasoning")).to_contain_text("Units")
    figures = answer.locator(".pg-stats")
    expect(figures).to_contain_text(re.compile(r"First token\s*\d"))
    expect(figures).to_contain_text(re.compile(r"Speed\s*[\d.]+ tokens/s"))
    expect(figures).to_contain_text(re.compile(r"Tokens\s*\d+ \+ \d+"))
    expect(figures).to_contain_text(re.compile(r"Swap\s*loaded in"))
    expect(page.locator("#about-0")).to_contain_text("Loaded")
    answered(ask(page, "What is 2 + 3?"), "2 + 3 = 5")
    expect(page.locator(".pg-answer").last.locator(".pg-stats")).to_contain_text(re.compile(r"Swap\s*none"))
    expect(page.locator("#spoken")).to_contain_text("reasoner has answered.")


def test_edit_and_ask_again(page: Page) -> None:
    answered(ask(page, "What is 17 + 25?", "reasoner"), "17 + 25 = 42")
    answered(ask(page, "What is 2 + 3?"), "2 + 3 = 5")
    page.locator(".pg-turn").first.get_by_role("button", name="Edit").click()
    expect(page.locator("#editing")).to_be_visible()
    page.fill("#draft", "What is 4 + 4?")
    page.press("#draft", "Control+Enter")
    expect(page.locator(".pg-turn")).to_have_count(1)
    answered(page.locator(".pg-answer"), "4 + 4 = 8")
    answered(ask(page, "What is 1 + 2?"), "1 + 2 = 3")
    again = page.get_by_role("button", name="Ask again")
    again.first.click()
    expect(page.get_by_role("dialog")).to_contain_text("the question after this one")
    page.keyboard.press("Escape")
    expect(page.locator(".pg-turn")).to_have_count(2)
    again.first.click()
    sure(page, "Ask again")
    expect(page.locator(".pg-turn")).to_have_count(1)
    answered(page.locator(".pg-answer"), "4 + 4 = 8")
    page.click("#clear")
    page.keyboard.press("Enter")  # Cancel has the focus
    expect(page.locator(".pg-turn")).to_have_count(1)
    page.click("#clear")
    sure(page, "Clear")
    expect(page.locator(".pg-turn")).to_have_count(0)
    expect(page.locator(".pg-empty")).to_contain_text("Ask reasoner")


def test_pictures_and_clips_are_seen(page: Page) -> None:
    rng = random.Random(questions.SEED)
    page.select_option("#model-0", "qwen_vl")
    shown = questions.about_pictures(rng)
    drop(page, "image", shown.files["image"])
    expect(attached(page).locator("img")).to_be_visible()
    answered(ask(page, shown.prompt), shown.answer)
    expect(page.locator(".pg-turn img")).to_be_visible()
    moving = questions.about_clips(rng)
    page.set_input_files("#file", {"name": "clip.mp4", "mimeType": "video/mp4", "buffer": moving.files["video"]})
    expect(attached(page).locator("video")).to_be_visible()
    answered(ask(page, moving.prompt), moving.answer)


def test_a_picture_is_pasted_into_a_question(page: Page) -> None:
    """To the model that takes exactly one, remembers nothing, and gives short answers."""
    page.select_option("#model-0", "blip_vqa")
    expect(page.locator("#forgetful")).to_be_visible()
    page.fill("#draft", "what is it?")
    page.click("#send")
    expect(page.locator("#refused")).to_contain_text("needs an image")
    question = questions.about_pictures(random.Random(questions.SEED))
    data = {"data": base64.b64encode(question.files["image"]).decode(), "name": "image.png", "type": "image/png"}
    page.locator("#draft").evaluate(DROP.replace('["dragenter", "dragover", "drop"]', "[]").replace(
        "for (const", "area.dispatchEvent(new ClipboardEvent('paste', "
        "{clipboardData: carried, bubbles: true, cancelable: true})); for (const"), data)  # fmt: skip
    expect(attached(page)).to_contain_text("pasted-")
    answered(ask(page, question.prompt), question.answer)


def test_a_recording_is_heard(visitor: Visitor) -> None:
    """WebM with Opus, as the browser's recorder makes it, without a length in its head."""
    page = visitor.page()
    page.add_init_script(RISING)
    opened(page)
    page.select_option("#model-0", "qwen_audio")
    page.click("#record")
    expect(page.locator(".pg-recording .pg-time")).to_have_text(re.compile("0:0[2-9]"))
    page.get_by_role("button", name="Stop and attach").click()
    expect(attached(page)).to_contain_text(".webm")
    answered(ask(page, "Is the pitch rising or falling?"), "rising")


def test_a_photo_and_a_video_are_taken(visitor: Visitor) -> None:
    question = questions.about_pictures(random.Random(questions.SEED))
    page = visitor.page()
    shot = base64.b64encode(question.files["image"]).decode()
    page.add_init_script(CAMERA.replace("PICTURE", f"data:;base64,{shot}"))
    opened(page)
    page.select_option("#model-0", "qwen_vl")
    page.click("#camera")
    page.get_by_role("button", name="Take a photo").click()
    expect(attached(page)).to_contain_text(".jpg")
    answered(ask(page, question.prompt), question.answer)
    page.click("#camera")
    page.get_by_role("button", name="Record a video").click()
    page.get_by_role("button", name=re.compile("Stop and attach · [1-9]")).click()
    expect(attached(page)).to_contain_text(".webm")
    expect(ask(page, question.prompt)).to_have_attribute("data-state", "done")
    expect(page.locator("video[autoplay]")).to_have_count(0)


def test_omni_hears_sees_and_speaks(page: Page) -> None:
    page.select_option("#model-0", "qwen_omni")
    page.check("#parameter-speech")
    question = questions.about_both(random.Random(6))
    drop(page, "image", question.files["image"])
    drop(page, "audio", question.files["audio"], "sound.wav")
    expect(attached(page)).to_have_count(2)
    answer = ask(page, question.prompt)
    answered(answer, question.answer)
    seconds = answer.locator("audio").evaluate(LENGTH)
    assert 0 < seconds < 60
    expect(answer.locator("audio")).to_have_attribute("src", re.compile("^blob:"))


def test_what_a_model_does_not_take_is_refused(page: Page) -> None:
    picture = questions.picture(drawings.draw(random.Random(3)).image)
    page.select_option("#model-0", "reasoner")
    drop(page, "image", picture)
    refused = page.locator("#refused")
    expect(refused).to_contain_text("reasoner does not take an image")
    expect(attached(page)).to_have_count(0)
    refused.get_by_role("button", name="Ask qwen_vl").click()
    expect(page.locator("#model-0")).to_have_value("qwen_vl")
    expect(attached(page)).to_have_count(1)
    page.select_option("#model-0", "qwen_audio")
    page.fill("#draft", "What is it?")
    page.click("#send")
    expect(refused).to_contain_text("qwen_audio does not take an image")
    expect(page.locator(".pg-turn")).to_have_count(0)
    page.get_by_role("button", name="Remove shape.png").click()
    expect(attached(page)).to_have_count(0)
    page.set_input_files("#file", {"name": "paper.pdf", "mimeType": "application/pdf", "buffer": b"%PDF"})
    expect(refused).to_contain_text("neither an image nor a sound nor a video")
    large = {"name": "large.wav", "mimeType": "audio/wav", "buffer": bytes(300_000)}
    page.set_input_files("#file", large)
    expect(refused).to_contain_text("large.wav is too large")
    expect(refused).to_contain_text("is the limit")


def test_of_several_files_none_is_lost(page: Page) -> None:
    page.select_option("#model-0", "reasoner")
    picture = questions.picture(drawings.draw(random.Random(3)).image)
    page.set_input_files("#file", [{"name": name, "mimeType": "image/png", "buffer": picture}
                                   for name in ("one.png", "two.png", "three.png")])  # fmt: skip
    refused = page.locator("#refused")
    expect(refused).to_contain_text("reasoner does not take an image")
    expect(refused.get_by_role("button", name="Ask qwen_vl")).to_have_count(1)
    refused.get_by_role("button", name="Ask qwen_vl").click()
    expect(attached(page).locator(".pg-name")).to_have_text(["one.png", "two.png", "three.png"])
    expect(refused).to_be_hidden()


def test_the_oldest_files_give_way_to_the_limit(page: Page) -> None:
    """Two pictures of which a request holds one: the second question is answered, and says what was left out."""
    page.select_option("#model-0", "qwen_vl")
    noise = Image.frombytes("RGB", (200, 200), random.Random(4).randbytes(200 * 200 * 3))
    for left, name in ((False, "first.png"), (True, "second.png")):
        drop(page, "image", questions.picture(noise), name)
        expect(attached(page)).to_have_count(1)
        answer = ask(page, "What color is the shape?")
        expect(answer).to_have_attribute("data-state", "done")
        expect(answer.locator("header + .pg-note")).to_have_count(int(left))
    expect(answer).to_contain_text("A file of an earlier question was left out")
    answer.get_by_role("button", name="Show as code").click()
    expect(page.locator("#code-text")).to_contain_text("second.png")
    expect(page.locator("#code-text")).not_to_contain_text("first.png")


def test_without_a_model_it_says_so(visitor: Visitor) -> None:
    page = visitor.page()
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": []}))
    page.goto("/ui/playground")
    expect(page.get_by_role("heading", name="No model to ask")).to_be_visible()
    for button in ("#send", "#code", "#compare", "#model-0"):
        expect(page.locator(button)).to_be_disabled()
    assert axe(page) == []


def test_stop(page: Page, gateway: GatewayProcess) -> None:
    page.select_option("#model-0", "deepseek")
    more = page.locator("summary", has_text="More sampling")
    more.click()
    page.fill("#parameter-repetition_penalty", "1")
    page.fill("#parameter-max_tokens", "3500")
    answer = ask(page, STORY["prompt"])
    expect(answer.locator(".pg-text")).to_contain_text("fox")
    page.keyboard.press("Escape")
    expect(answer).to_have_attribute("data-state", "stopped")
    gateway.until(lambda: not gateway.get("/v1/requests")["data"], "the request to go")
    expect(page.locator("#send")).to_be_visible()
    assert json.loads(page.evaluate("localStorage['switchyard.playground']"))["parameters"]["max_tokens"] == "3500"


def test_two_models_side_by_side(page: Page) -> None:
    """On a slot that holds one of them: the second waits, and the first is evicted for it."""
    page.select_option("#model-0", "reasoner")
    answered(ask(page, "What is 1 + 1?"), "1 + 1 = 2")
    page.click("#compare")
    expect(page.locator(".pg-turn")).to_have_count(1), "what was asked before stays"
    page.select_option("#model-0", "deepseek")
    page.select_option("#model-1", "reasoner")
    expect(page.locator("#sharing")).to_contain_text("deepseek and reasoner share the slot cpu")
    page.fill("#draft", "What is 17 + 25?")
    page.click("#send")
    columns = page.locator(".pg-turn").last.locator(".pg-answer")
    expect(columns).to_have_count(2)
    for place, name in enumerate(("deepseek", "reasoner")):
        expect(columns.nth(place).locator(".pg-who")).to_have_text(name)
        expect(columns.nth(place)).to_have_attribute("data-state", "done")
    expect(columns.nth(1).locator(".pg-text")).to_have_text("17 + 25 = 42")
    assert columns.nth(0).locator(".pg-text").inner_text().strip()
    expect(page.locator(".pg-answers").last).to_contain_text("evicted")
    page.click("#compare")
    expect(page.locator(".pg-answer")).to_have_count(3)


def test_what_went_wrong_is_said(page: Page, visitor: Visitor, gateway: GatewayProcess) -> None:
    """A full queue with the time to wait, a server that is gone, a request it refuses; and how each goes on."""
    visitor.expect("429", "400", "ERR_INTERNET_DISCONNECTED")
    page.select_option("#model-0", "deepseek")
    with gateway.answering(max_new_tokens=150):
        waiting = gateway.later(gateway.generate, "deepseek", prompt="Hello", max_new_tokens=1)
        gateway.until(lambda: gateway.model("deepseek")["waiting"], "the queue to be full")
        answer = ask(page, "Hello")
        expect(answer).to_have_attribute("data-state", "failed")
        expect(answer.get_by_role("button", name=re.compile(r"Try again in \d+ s"))).to_be_disabled()
    assert waiting.result().status_code == 200
    page.fill("#parameter-max_tokens", "1")
    page.context.set_offline(True)
    answer = ask(page, "Hello")
    expect(answer.locator(".pg-problem")).to_contain_text("The server does not answer")
    page.context.set_offline(False)
    answer.get_by_role("button", name="Try again").click()
    expect(page.locator(".pg-answer").last).to_have_attribute("data-state", "done")
    expect(page.locator(".pg-answer").last).to_contain_text("Cut at the limit of tokens")
    answer = ask(page, "word " * 5000)
    expect(answer.locator(".pg-problem")).to_contain_text("context")


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


def test_a_list_of_models_that_comes_late_is_asked_for_once(visitor: Visitor) -> None:
    """A second one would come after the visitor has picked a model, and pick another."""
    page, held = visitor.page(), []
    page.route("**/v1/models", lambda route: held.append(route))
    page.goto("/ui/playground")
    expect(page.locator("#connection-text")).to_have_text("Live")
    (late,) = held
    late.continue_()
    expect(page.locator("#model-0")).to_be_enabled()


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


def shown(page: Page) -> str:
    """Return the code as it is copied: its text, not as a page would lay it out."""
    return str(page.locator("#code-text").evaluate("(code) => code.textContent"))


def run(command: list[str], program: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(command, input=program, cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=120)  # fmt: skip
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
    made = page.evaluate("""async (text) => {
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
    }""", MARKDOWN)  # fmt: skip
    assert made["title"] == ["Title"] and made["bold"] == ["bold"] and made["slanted"] == ["slanted"]
    assert made["items"] == ["oneinner", "inner", "two", "third"] and made["start"] == 3
    assert made["links"] == ["https://example.org/a"] and made["images"] == 0
    assert "&lt;img src=x onerror=a()&gt;" in made["html"] and "[not](javascript:x)" in made["html"]
    assert made["nasty"] == [20, 3000, 21, 5001], "what models that went mad repeat: it stays, but not as deep"
    assert made["cells"] == ["a", "b", "1", "2"] and made["quote"] == ["quoted"]
    assert made["code"] == ['print("<b>")']


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


def test_a_key_that_may_use_one_model(visitor: Visitor, gateway: GatewayProcess) -> None:
    """The last test of the module: from here on the gateway wants keys."""
    keys = Keys(gateway)
    gateway.client.headers["Authorization"] = f"Bearer {keys.create('owner', '--role', 'admin')}"
    page = visitor.page()
    page.goto("/ui/playground")
    page.get_by_label("key").fill(keys.create("guest", "--models", "reasoner"))
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#model-0 option")).to_have_text(["reasoner · text"])
    expect(page.locator("#compare")).to_be_disabled()
    answered(ask(page, "What is 17 + 25?"), "17 + 25 = 42")
    page.get_by_role("button", name="Show as code").click()
    expect(page.locator("#code-text")).to_contain_text("$SWITCHYARD_API_KEY")
    assert "sy-" not in page.content()
