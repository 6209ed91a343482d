"""Videos of shapes judged by the pocket vision model behind a real gateway: the command, the route, the result.

One gateway and one load for all of them. What forbids red circles is ``policies/shapes.yaml``.
"""

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import Start
from tests.gateway.access.conftest import Keys
from tests.media.samples import audio_only_mp4
from tests.support.gateway import PATIENCE, ROOT, GatewayProcess, only
from tests.worker import videos

EXAMPLE = ROOT / "examples" / "shapes.mp4"
SHAPES = ROOT / "policies" / "shapes.yaml"
ROUTE = "/v1/moderations/video"
WHAT = {"ask": "What shape is it?", "answers": ["circle", "square", "triangle", "star"], "violates": ["star"]}
INLINE = {
    "name": "own",
    "version": "2026-11",
    "ask": "each",
    "categories": [{"id": "star", "title": "Star", "questions": [WHAT]}],
}


@pytest.fixture(scope="module")
def eyes(start_for_module: Start) -> Iterator[GatewayProcess]:
    gateway = start_for_module(
        models=only("qwen_vl", "blip_vqa", "reasoner", qwen_vl={"pinned": True}),
        moderation_seconds="1m",
        queue_per_model=8,
    )
    gateway.load("qwen_vl")
    yield gateway


def stretches(result: dict[str, Any], category: str) -> list[tuple[float, float]]:
    (found,) = [one for one in result["categories"] if one["id"] == category]
    return [(round(one["start"], 1), round(one["end"], 1)) for one in found["intervals"]]


def moderate(gateway: GatewayProcess, home: Path, *arguments: str, stdin: bytes = b"") -> Any:
    """Run the command in a folder of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "moderate", *arguments],
        cwd=home,
        input=stdin,
        env=gateway.environment,
        capture_output=True,
        timeout=PATIENCE,
    )


def as_form(gateway: GatewayProcess, video: bytes, name: str = "v.mp4", **fields: str) -> httpx.Response:
    return gateway.client.post(ROUTE, files={"video": (name, video)}, data=fields)


def text(video: bytes) -> str:
    return base64.b64encode(video).decode()


# -- the command -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page loads, runs and shows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.alternatives: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        self.alternatives += [value or "" for name, value in attrs if name == "alt"]
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs)


def test_the_example_gives_the_documented_report(eyes: GatewayProcess, tmp_path: Path) -> None:
    ran = moderate(eyes, tmp_path, str(EXAMPLE), "--policy", str(SHAPES), "--out", "out")
    assert ran.returncode == 4, ran.stderr.decode()
    page = (ROOT / "docs" / "moderation.md").read_text()
    for line in ran.stdout.decode().splitlines()[:3]:
        assert line in page, line
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["decision"], result["severity"]) == ("block", "high")
    assert stretches(result, "red_circle") == [(3, 7)] and stretches(result, "triangle") == [(10, 12)]
    assert [round(frame["time"]) for frame in result["frames"]] and result["coverage"] == 1 and not result["not_seen"]
    assert result["counts"]["judged"] == 12 and result["counts"]["requests"] == 24  # a question that two ask, once
    assert result["policy"]["name"] == "shapes" and result["model"]["name"] == "qwen_vl"
    html = (tmp_path / "out" / "report.html").read_text()
    shown = Page(html)
    assert not {"script", "link", "iframe", "object"} & set(shown.tags)
    assert len(shown.sources) == 12 and all(one.startswith("data:image/jpeg;base64,/9j/") for one in shown.sources)
    assert all(alternative.startswith("Frame at 0:") for alternative in shown.alternatives)
    assert "0:03.0 to 0:07.0" in html and "Frames that violate (6)" in html
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "result.json"]


def test_standard_input_and_nothing_against_it(eyes: GatewayProcess, tmp_path: Path) -> None:
    video = videos.drawn(4, codec="libvpx", container="webm", size=(160, 120))
    ran = moderate(eyes, tmp_path, "-", "--policy", "shapes", "--url", f"{eyes.url}/v1", stdin=video)
    assert ran.returncode == 0, ran.stderr.decode()
    assert "allow: Nothing stands against it." in ran.stdout.decode()
    result = json.loads((tmp_path / "standard_input.moderation" / "result.json").read_text())
    assert result["video"]["name"] == "standard input" and result["video"]["codec"] == "vp8"


def test_what_is_missing_is_for_a_person(eyes: GatewayProcess, tmp_path: Path) -> None:
    whole = videos.drawn(8, container="matroska", size=(160, 120))
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    ran = moderate(eyes, tmp_path, "cut.mkv", "--policy", str(SHAPES), "--fps", "0.5")
    assert ran.returncode == 3, ran.stderr.decode()
    result = json.loads((tmp_path / "cut.moderation" / "result.json").read_text())
    assert result["decision"] == "review" and "bytes are missing" in result["not_seen"][-1]["reason"]
    assert "not seen: " in ran.stdout.decode() and result["not_seen"][-1]["end"] == pytest.approx(8, abs=0.2)
    assert "Not seen" in (tmp_path / "cut.moderation" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([str(EXAMPLE), "--out", "/dev/null/out"], 2, "/dev/null is no folder"),
        (["nothing.mp4"], 2, "it is not there"),
        (["."], 2, "it is no regular file"),
        ([str(EXAMPLE), "--policy", "nope"], 2, "there are default, shapes"),
        ([str(EXAMPLE), "--fps", "0"], 2, "--fps must be above 0"),
        ([str(ROOT / "README.md")], 1, "it is text; a video must be"),
        ([str(EXAMPLE), "--model", "no-such-model"], 1, "answered 404"),
        ([str(EXAMPLE), "--url", "http://127.0.0.1:9", "--patience", "0"], 1, "no answer from http://127.0.0.1:9"),
    ],
)
def test_what_cannot_be_done(
    eyes: GatewayProcess, tmp_path: Path, arguments: list[str], status: int, words: str
) -> None:
    ran = moderate(eyes, tmp_path, *arguments)
    assert ran.returncode == status and words in ran.stderr.decode(), ran.stderr.decode()
    assert "Traceback" not in ran.stderr.decode() and not ran.stdout
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing(eyes: GatewayProcess, tmp_path: Path) -> None:
    video = videos.repeated(videos.drawn(10, rate=5, bf="0"), tmp_path / "long.mp4", "mp4", 0.2)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "moderate", str(video), "--policy", str(SHAPES), "--max-frames", "700"],
        cwd=tmp_path,
        env=eyes.environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        assert "policy shapes 1, model qwen_vl" in line, line
        eyes.until(lambda: eyes.get("/v1/requests")["data"], "a question to be asked")
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        _, alive = psutil.wait_procs(children, PATIENCE)
        assert not alive and not list(tmp_path.glob("*.moderation"))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()


# -- the route ---------------------------------------------------------------------------------------------------------


def test_a_form(eyes: GatewayProcess) -> None:
    response = as_form(eyes, EXAMPLE.read_bytes(), "../../holiday.mp4", policy="shapes", report="true")
    assert response.status_code == 200, response.text
    result = response.json()
    assert result["object"] == "video.moderation" and result["decision"] == "block"
    assert stretches(result, "red_circle") == [(3, 7)] and stretches(result, "triangle") == [(10, 12)]
    assert result["model"] == {"name": "qwen_vl", "server": "gateway"} and result["video"]["name"] == "holiday.mp4"
    assert result["report"].startswith("<!doctype html>") and "holiday.mp4" in result["report"]
    assert len(Page(result["report"]).sources) == 12


def test_json_with_a_policy_of_its_own(eyes: GatewayProcess) -> None:
    body = {
        "video": "data:video/mp4;base64," + text(EXAMPLE.read_bytes()),
        "policy": INLINE,
        "max_frames": 6,
        "model": "qwen_vl",
        "timeout": "5m",
        "priority": "batch",
    }
    response = eyes.post(ROUTE, **body)
    assert response.status_code == 200, response.text
    result = response.json()
    assert result["decision"] == "review" and result["policy"]["version"] == "2026-11", result
    assert stretches(result, "star") == [(6, 8)] and len(result["frames"]) == 6 and "report" not in result
    assert result["policy"]["digest"].startswith("sha256:")
    form = as_form(eyes, EXAMPLE.read_bytes(), policy=json.dumps(INLINE), max_frames="6").json()
    assert form["policy"] == result["policy"] and form["categories"] == result["categories"]


def test_progress_as_it_goes(eyes: GatewayProcess) -> None:
    body = {"video": text(EXAMPLE.read_bytes()), "policy": "shapes", "stream": True, "fps": 2}
    with eyes.client.stream("POST", ROUTE, json=body) as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        events = response.read().decode().split("\n\n")
    told = [json.loads(one.partition("data: ")[2]) for one in events if one.startswith("event: progress")]
    assert told[0]["planned"] == 24 and told[-1]["judged"] == 24 and told[-1]["violations"] >= 8
    assert [one["judged"] for one in told] == sorted(one["judged"] for one in told)
    (result,) = [json.loads(one.partition("data: ")[2]) for one in events if one.startswith("data: {")]
    assert stretches(result, "red_circle") == [(3, 7)] and events[-2] == "data: [DONE]"


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"policy": "shapes"}, 400, "'video'"),
    ({"video": 5}, 400, "video"),
    ({"video": "!!"}, 400, "not base64"),
    ({"video": text(b"just some text")}, 400, "it is text"),
    ({"video": ""}, 400, "at least 1 character"),
    ({"video": text(b"PK\x03\x04" + bytes(99))}, 415, "a ZIP archive"),
    ({"video": text(audio_only_mp4())}, 400, "there is no video in it"),
    ({"video": text(videos.drawn()[:900])}, 400, "ends early"),
    ({"video": text(videos.drawn(70, rate=1))}, 413, "the video lasts 70.0 s; the limit is 60 s"),
    ({"video": "http://127.0.0.1/v.mp4"}, 400, "URLs are off"),
    ({"video": text(videos.drawn()), "policy": "nope"}, 400, "there are default, shapes"),
    ({"video": text(videos.drawn()), "policy": "../policies/default"}, 400, "policy"),
    ({"video": text(videos.drawn()), "policy": 5}, 400, "must be the name of a policy"),
    ({"video": text(videos.drawn()), "policy": INLINE | {"categories": []}}, 400, "policy.categories"),
    ({"video": text(videos.drawn()), "policy": INLINE | {"unseen": "x"}}, 400, "policy.unseen: must be one of"),
    ({"video": text(videos.drawn()), "model": "blip_vqa"}, 400, "cannot answer by a schema"),
    ({"video": text(videos.drawn()), "model": "reasoner"}, 400, "cannot look at frames"),
    ({"video": text(videos.drawn()), "model": "nobody"}, 404, "nobody"),
    ({"video": text(videos.drawn()), "max_frames": 0}, 400, "max_frames"),
    ({"video": text(videos.drawn()), "temperature": 1}, 400, "temperature"),
    ({"video": text(videos.drawn()), "timeout": -1}, 400, "timeout"),
]


@pytest.mark.parametrize(("body", "status", "words"), REFUSED, ids=[one[2] for one in REFUSED])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused(eyes: GatewayProcess, body: dict[str, Any], status: int, words: str, stream: bool) -> None:
    response = eyes.post(ROUTE, **body, **({"stream": True} if stream else {}))
    assert response.status_code == status, response.text
    assert words in response.json()["error"]["message"]


def test_forms_that_are_refused(eyes: GatewayProcess) -> None:
    video = videos.drawn(1)
    for response, words in (
        (eyes.client.post(ROUTE, files={"film": ("v.mp4", video)}), "send 'video'"),
        (eyes.client.post(ROUTE, files=[("video", ("a", video)), ("video", ("b", video))]), "one video at a time"),
        (eyes.client.post(ROUTE, files={"nothing": ("", b"")}, data={"policy": "shapes"}), "video"),
        (as_form(eyes, video, policy="{"), "policy"),
        (as_form(eyes, video, policy='{"name": 1}'), "policy."),
    ):
        assert response.status_code == 400 and words in response.text, response.text
    assert eyes.client.post(ROUTE, content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    refused = eyes.client.post(ROUTE, data={"video": text(video)})
    assert refused.status_code == 415 and "multipart/form-data" in refused.text
    error = as_form(eyes, b"just some text", "clip.mp4").json()["error"]
    assert error["param"] == "video" and "clip.mp4: it is text" in error["message"]


def begun(gateway: GatewayProcess, stop: Callable[[httpx.Response], object]) -> None:
    """Ask about a video of many frames, and call ``stop`` once its first question is asked."""
    body = {"video": text(videos.drawn(50, rate=4)), "policy": "shapes", "fps": 4, "max_frames": 200, "stream": True}
    with gateway.client.stream("POST", ROUTE, json=body, headers={"X-Request-ID": "watched"}) as response:
        assert response.status_code == 200, response.read()
        gateway.until(lambda: gateway.get("/v1/requests")["data"], "a question to be asked")
        stop(response)


def test_a_client_that_leaves_stops_it(eyes: GatewayProcess) -> None:
    begun(eyes, lambda response: response.close())
    eyes.until(lambda: not eyes.get("/v1/requests")["data"], "its questions to be withdrawn")


def test_it_is_cancelled_by_its_id(eyes: GatewayProcess) -> None:
    def cancel(response: httpx.Response) -> None:
        eyes.until(lambda: eyes.client.delete("/v1/requests/watched").status_code == 200, "one to be cancelled")
        assert "cancelled" in response.read().decode().split("\n\n")[-2]

    begun(eyes, cancel)


def test_only_so_many_are_looked_at_at_once(eyes: GatewayProcess) -> None:
    """Each may take a decoder's memory. One more is told to come again; when they are over, it may."""
    body = {"video": text(videos.drawn(50, rate=4)), "policy": "shapes", "fps": 4, "max_frames": 200, "stream": True}
    with contextlib.ExitStack() as stack:

        def began() -> bool:
            response = stack.enter_context(eyes.client.stream("POST", ROUTE, json=body))
            assert response.status_code in (200, 429), response.read()
            return response.status_code == 200

        for _ in range(2 * (os.cpu_count() or 1)):
            eyes.until(began, "the place of a video before to be free")
        refused = eyes.post(ROUTE, **body)
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1, refused.text
        assert "as many videos" in refused.json()["error"]["message"]
    eyes.until(lambda: not eyes.get("/v1/requests")["data"], "their questions to be withdrawn")
    small = {"video": text(videos.drawn(1)), "policy": "shapes"}
    eyes.until(lambda: eyes.post(ROUTE, **small).status_code == 200, "a place to be free")


def test_its_deadline(eyes: GatewayProcess) -> None:
    body = {"video": text(videos.drawn(50, rate=4)), "policy": "shapes", "fps": 4, "max_frames": 200, "timeout": 1}

    def answered() -> httpx.Response | None:
        return None if (response := eyes.post(ROUTE, **body)).status_code == 429 else response

    response = eyes.until(answered, "the place of a video before to be free")
    assert response.status_code == 504, response.text


def test_it_is_described(eyes: GatewayProcess) -> None:
    operation = eyes.get("/openapi.json")["paths"][ROUTE]["post"]
    body = operation["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    fields = body["application/json"]["schema"]
    assert fields["required"] == ["video"] and fields["properties"]["model"]["anyOf"][0]["enum"] == ["qwen_vl"]
    assert body["multipart/form-data"]["schema"]["properties"]["video"]["format"] == "binary"


def test_none_of_this_was_the_server_s_fault(eyes: GatewayProcess) -> None:
    log = eyes.log()
    assert "FileNotFoundError" not in log
    assert not re.findall(r"moderations/video 50[0-3]", log) and "a stream failed" not in log
    assert "frame process ended" not in log


def test_keys_are_asked_for_and_counted(eyes: GatewayProcess) -> None:
    """The last of all: from here on the gateway wants keys."""
    keys, video = Keys(eyes), text(videos.drawn(3, size=(160, 120)))
    user = keys.create("user", "--models", "qwen_vl")
    other = keys.create("other", "--models", "reasoner")
    admin = keys.create("admin", "--role", "admin")
    try:
        body = {"video": video, "policy": "shapes"}
        assert keys.ask(None, "POST", ROUTE, json=body).status_code == 401
        refused = keys.ask(other, "POST", ROUTE, json=body | {"model": "qwen_vl"})
        assert refused.status_code == 403 and "may not use qwen_vl" in refused.text
        assert keys.ask(user, "POST", ROUTE, json=body).json()["decision"] == "allow"

        def used() -> list[dict[str, Any]]:
            found = keys.ask(admin, "GET", "/admin/usage").json()
            return [one for one in found["data"] if one["key"] == "user"]

        (row,) = eyes.until(used, "the record of usage")
        assert row["requests"] == 1 and row["prompt_tokens"] > 60
        long = {"video": text(videos.drawn(50, rate=4)), "policy": "shapes", "fps": 4, "max_frames": 200}
        with contextlib.ExitStack() as stack:
            for _ in range(os.cpu_count() or 1):  # half of the places
                response = stack.enter_context(
                    eyes.client.stream(
                        "POST", ROUTE, json=long | {"stream": True}, headers={"Authorization": f"Bearer {user}"}
                    )
                )
                assert response.status_code == 200, response.read()
            refused = keys.ask(user, "POST", ROUTE, json=body)
            assert refused.status_code == 429 and "videos of this key" in refused.text
            assert keys.ask(admin, "POST", ROUTE, json=body).status_code == 200
    finally:
        eyes.client.headers["Authorization"] = f"Bearer {admin}"
