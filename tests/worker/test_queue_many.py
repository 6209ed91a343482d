"""Tests everything together: twenty films in S3, three workers of which one is killed, the pocket vision model behind a
gateway."""

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocket import drawings
from pocket.drawings import Clip
from tests.conftest import Start
from tests.families.questions import video
from tests.support.gateway import ROOT, GatewayProcess, only
from tests.support.pages import blocks
from tests.worker.aws import Aws, FaultProxy, Place, WorkerProcess, place, until

pytestmark = pytest.mark.long

_RATE = 4


def film(*shown: tuple[str, str, int]) -> bytes:
    """Return an MP4 that shows a shape of a colour for some seconds, then the next."""
    rng, frames = random.Random(11), []
    for color, kind, seconds in shown:
        image = drawings.draw(rng, kind=kind, color=color, size=(112, 112)).image
        frames += [image] * (seconds * _RATE)
    return video(Clip(frames, _RATE, "", "", "", ()))


FILMS = {
    "harmless": (film(("blue", "square", 1)), "allow"),
    "forbidden": (film(("green", "star", 1), ("red", "circle", 2)), "block"),
    "doubtful": (film(("yellow", "triangle", 1)), "review"),
}
LONG = film(("blue", "square", 10))
"""A job of ten frames; its worker is killed in the middle, before it writes the result."""


@pytest.fixture(scope="module")
def gateway(start_for_module: Start) -> GatewayProcess:
    return start_for_module(models=only("qwen_vl"))


@pytest.fixture
def here(aws: Aws, gateway: GatewayProcess, tmp_path: Path) -> Iterator[Place]:
    settings = {
        "VLLM_URL": gateway.url,
        "WORKER_POLICY": "policies/shapes.yaml",
        "WORKER_VISIBILITY": 15,
        "WORKER_CONCURRENCY": 2,
        "WORKER_FRAME_SIDE": 112,
        "WORKER_GRACE": 60,
    }
    with place(aws, tmp_path, **settings) as made:
        yield made


def owner(here: Place, job_id: str) -> WorkerProcess | None:
    """Return the worker that runs the job."""
    item = here.item(job_id)
    if item.get("status") != "processing" or item["lease_until"] == 0:
        return None
    pid = int(item["worker"].rpartition("-")[2])
    return next(worker for worker in here.workers if worker.process.pid == pid)


@pytest.fixture
def proxy(aws: Aws) -> Iterator[FaultProxy]:
    proxy = FaultProxy(aws.port)
    yield proxy
    proxy.close()


def test_twenty_jobs_over_three_workers_of_which_one_is_killed(here: Place, proxy: FaultProxy) -> None:
    here.keep_versions()
    here.environment["AWS_ENDPOINT_URL_S3"] = proxy.url
    proxy.fail("hold", "/long/image_llm_safety_report", 1)
    urls = {name: here.video(f"{name}.mp4", data) for name, (data, _) in FILMS.items()}
    counts = {"harmless": 8, "forbidden": 4, "doubtful": 7}
    wanted = {f"{name}-{number}": name for name, count in counts.items() for number in range(count)}
    here.send("long", here.video("long.mp4", LONG))
    for job_id, name in wanted.items():
        here.send(job_id, urls[name])
    assert len(wanted) + 1 == 20
    for _ in range(3):
        here.worker("main.py", "worker")
    victim: WorkerProcess = until(lambda: owner(here, "long"), "the long job to be begun", here.story)
    victim.kill()
    proxy.mend()
    assert here.item("long")["status"] == "processing", "killed too late to prove anything"
    for job_id, name in wanted.items():
        assert here.became(job_id, "completed")["decision"] == FILMS[name][1], job_id
    long = here.became("long", "completed")
    # On a busy machine a worker may lose its lease; one more try is no fault.
    assert long["decision"] == "allow" and 2 <= long["attempts"] <= 3
    here.empty()
    for worker in here.workers:
        assert worker is victim or worker.stop() == 0
    assert here.dead_letters() == []
    # Each result was written once, and no job was completed twice. A killed worker may not have logged its completion.
    written = {name.split("/")[1]: count for name, count in here.results().items() if name.endswith("_result.json")}
    assert written == dict.fromkeys([*wanted, "long"], 1)
    logs = "\n".join(worker.log() for worker in here.workers)
    completed = re.findall(r": (\S+): (?:completed|adopted) in ", logs)
    assert len(completed) == len(set(completed)) and "long" in completed
    assert len(completed) >= len(wanted), "the killed worker had at most one other job"
    result = here.result("forbidden-0")
    (red,) = [category for category in result["categories"] if category["id"] == "red_circle"]
    assert [(one["start"], one["end"]) for one in red["intervals"]] == [(1.0, 3.0)]


def test_what_is_no_video_is_told_so(here: Place) -> None:
    here.send("text", here.video("text.mp4", b"these are words, not pictures" * 100))
    worker = here.worker("main.py", "worker")
    assert "text.mp4: it is" in here.became("text", "failed")["error"]
    (dead,) = until(here.dead_letters, "the dead letter", here.story)
    assert dead["reason"] == here.item("text")["error"] and dead["attempts"] == "1"
    assert worker.stop() == 0


def test_the_page_s_commands(here: Place, aws: Aws, gateway: GatewayProcess) -> None:
    (block,) = [block for block in blocks(ROOT / "docs" / "worker.md") if "worker.aws.create" in block.text]
    script = block.text.replace("localhost:5566", f"127.0.0.1:{aws.port}").replace(
        "localhost:5000", f"127.0.0.1:{gateway.port}"
    )
    script = re.sub(r"\bpython (?=main|-m)", f"{sys.executable} ", script)
    script = script.replace("examples/shapes.mp4", str(ROOT / "examples/moves-left.mp4"))
    # The health file is written at intervals and may still show the finished job.
    check = f"{sys.executable} main.py worker --check"
    assert check in script
    script = script.replace(check, f"until {check} | grep 'jobs 0'; do sleep 0.2; done")
    environment = {name: value for name, value in here.environment.items() if name not in ("QUEUE_NAME", "VLLM_URL")}
    done = subprocess.run(
        ["bash", "-eu"],
        input=script,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "there are ai-chaperone-image-processing-queue, " in done.stdout
    assert '"status": "completed"' in done.stdout
    assert re.search(r"^well \d+ seconds ago: state working, jobs 0$", done.stdout, re.MULTILINE)
