"""Pictures, clips and sounds in the playground, by every way in, to each family; and what is not taken."""

import base64
import random
import re

from PIL import Image
from playwright.sync_api import Page, expect

from pocket import drawings
from tests.families import questions
from tests.web.conftest import Visitor
from tests.web.playground.conftest import DROP, answered, ask, attached, drop, opened

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
    setTimeout(() => setInterval(() => context.drawImage(image, 0, 0), 50), 500); // as a real one, it takes a while
    return canvas.captureStream(20);
}"""
LENGTH = """(player) => new Promise((found) => {
    if (player.duration) found(player.duration);
    player.addEventListener("loadedmetadata", () => found(player.duration));
})"""


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
    page.locator("#draft").evaluate(
        DROP.replace('["dragenter", "dragover", "drop"]', "[]").replace(
            "for (const",
            "area.dispatchEvent(new ClipboardEvent('paste', "
            "{clipboardData: carried, bubbles: true, cancelable: true})); for (const",
        ),
        data,
    )
    expect(attached(page)).to_contain_text("pasted-")
    answered(ask(page, question.prompt), question.answer)


def test_a_recording_is_heard(visitor: Visitor) -> None:
    """WebM with Opus, as the browser's recorder makes it, without a length in its head."""
    page = visitor.page()
    page.add_init_script(RISING)
    opened(page)
    page.select_option("#model-0", "qwen_audio")
    page.click("#record")
    expect(page.locator(".pg-recording .pg-time")).to_have_text(re.compile(r"0:(0[2-9]|[1-5]\d)"))
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
    page.set_input_files(
        "#file",
        [{"name": name, "mimeType": "image/png", "buffer": picture} for name in ("one.png", "two.png", "three.png")],
    )
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
