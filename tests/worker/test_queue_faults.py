"""Tests failing services: a proxy before a local AWS fails every call, and the job is still done once.

Also tests which parts of a video are read and kept in memory.
"""

import io
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.aws import Aws, FaultProxy, Place, place, until
from worker import health_file
from worker.aws.messages import Job, parse_job
from worker.aws.videos import S3Video, VideoError, VideoTooLarge

pytestmark = pytest.mark.long

_UPDATE, _RECEIVE = "DynamoDB_20120810.UpdateItem", "AmazonSQS.ReceiveMessage"


@pytest.fixture
def proxy(aws: Aws) -> Iterator[FaultProxy]:
    proxy = FaultProxy(aws.port)
    yield proxy
    proxy.close()


@pytest.fixture
def here(aws: Aws, proxy: FaultProxy, tmp_path: Path) -> Iterator[Place]:
    """Tests use the server directly; workers go through the proxy."""
    with place(aws, tmp_path) as made:
        made.environment |= {f"AWS_ENDPOINT_URL_{name}": proxy.url for name in ("S3", "DYNAMODB", "SQS")}
        yield made


def once(here: Place, *job_ids: str) -> None:
    """Assert that the jobs were judged once and written once, and that no message remains."""
    here.empty()
    assert sorted(here.judged()) == sorted(job_ids)
    assert {name: count for name, count in here.results().items() if name.endswith(".json")} == {
        f"moderation-results/{job_id}/image_llm_safety_result.json": 1 for job_id in job_ids
    }
    assert here.dead_letters() == []


def test_every_call_may_fail_and_the_job_is_done_once(here: Place, proxy: FaultProxy) -> None:
    here.keep_versions()
    url = here.video("a.mp4", json.dumps({"do": "judge"}).encode() + b"\0" * 300_000)
    for how, matching, times in (
        ("503", "GET /", 5),  # the video: more failures than botocore's tries
        ("cut", "GET /", 2),  # its body breaks off
        ("reset", "HEAD /", 1),
        ("lost", "image_llm_safety_report", 1),
        ("503", "PUT /", 5),  # the result
        ("lost", "image_llm_safety_result.json", 1),  # written; the worker does not know
        ("lost", _UPDATE, 1),  # the claim: written, but the answer is lost
        ("503", _UPDATE, 1),
        ("503", _RECEIVE, 1),
        ("reset", _RECEIVE, 1),
        ("reset", "AmazonSQS.DeleteMessage", 1),
    ):
        proxy.fail(how, matching, times)
    here.send("faulty", url)
    worker = here.worker(WORKER_READ_BLOCK="64KiB")
    item = here.became("faulty", "completed")
    once(here, "faulty")
    assert (item["attempts"], item["decision"]) == (1, "allow") and here.result("faulty")["bytes"] > 300_000
    assert len(proxy.failed) == 20, proxy.failed
    assert worker.stop() == 0


def test_the_state_is_written_after_a_longer_failure(here: Place, proxy: FaultProxy) -> None:
    """The last write fails more often than botocore tries, then the deletion does."""
    here.keep_versions()
    here.job("stubborn", do="wait")
    here.worker()
    until(here.begun, "the job to be begun", here.story)
    proxy.fail("503", _UPDATE, 6)
    proxy.fail("503", "AmazonSQS.DeleteMessage", 5)
    here.go()
    assert here.became("stubborn", "completed")["attempts"] == 1
    once(here, "stubborn")
    assert len(proxy.failed) == 11


def test_what_is_refused_of_the_worker_costs_no_job_a_try(here: Place, proxy: FaultProxy) -> None:
    """The right to write is lost and returns; then the right to delete, after everything else is done."""
    here.keep_versions()
    proxy.fail("403", "image_llm_safety_report", 1)
    proxy.fail("403", "worker-check", 1)
    proxy.fail("403", "AmazonSQS.DeleteMessage", 1)
    here.job("refused")
    worker = here.worker(WORKER_TRIES=1, WORKER_VISIBILITY=8)
    worker.logged("no job is taken: what comes of a job cannot be stored: PutObject: 403")
    assert here.became("refused", "completed")["attempts"] == 1
    worker.logged("refused: its end is written; its message comes back, and is forgotten then")
    worker.logged("refused: completed in ").logged("refused: was done already")
    here.empty()
    assert here.begun() == ["refused"] * 2 and here.dead_letters() == [] and len(proxy.failed) == 3
    assert "another worker" not in worker.log() and worker.stop() == 0


def test_a_claim_that_cannot_be_made_leaves_the_message(here: Place, proxy: FaultProxy) -> None:
    proxy.fail("503", _UPDATE, 4)
    here.job("again")
    worker = here.worker()
    worker.logged("comes back")
    item = here.became("again", "completed")
    assert (item["attempts"], item["receives"]) == (1, 2)
    once(here, "again")


def test_a_worker_starts_before_its_services(here: Place, proxy: FaultProxy) -> None:
    proxy.fail("503", "AmazonSQS.GetQueueUrl", 4)
    here.job("early")
    worker = here.worker().logged("AWS cannot be reached, again in 1 seconds")
    here.became("early", "completed")
    once(here, "early")
    # A worker that cannot poll its queue says so and is unhealthy.
    proxy.fail("503", _RECEIVE, 1_000)
    path = here.settings.health_file
    words = "the queue cannot be asked: ReceiveMessage"
    until(lambda: path.exists() and words in path.read_text(), "the health file to tell", here.story)
    until(lambda: not health_file.check_health(path, 3)[0], "it to be silent", here.story)
    proxy.mend()
    until(lambda: "working" in health_file.check_health(path, 60)[1], "it to be well again", here.story)
    assert worker.stop() == 0


# -- the video ---------------------------------------------------------------------------------------------------------

_BLOCK = 64 * 1024


def opened(here: Place, url: str, *, most: int = 10**9, blocks: int = 3, sleep: Any = None) -> S3Video:
    job: Job = parse_job(json.dumps({"job_id": "v", "video_s3_url": url}))
    return S3Video.open_video(
        here.aws.clients(), job, most=most, block=_BLOCK, blocks=blocks, sleep=sleep or time.sleep
    )


def test_a_video_is_read_as_a_file_of_which_little_is_held(here: Place) -> None:
    data = random.Random(7).randbytes(10 * _BLOCK + 123)
    video = opened(here, here.video("film with a space + ü.mp4", data))
    wanted = io.BytesIO(data)
    for offset, whence, size in (
        (-100, io.SEEK_END, 200),
        (0, io.SEEK_SET, 3 * _BLOCK),
        (-5, io.SEEK_CUR, 10),
        (10**7, io.SEEK_SET, 5),
        (9 * _BLOCK - 1, io.SEEK_SET, 2),
    ):
        for file in (video, wanted):
            file.seek(offset, whence)
        got = io.BufferedReader(video, 1).read(size) if size < 0 else read_all(video, size)
        assert got == wanted.read(size) and video.tell() == wanted.tell()
    assert len(video._cache) <= 3
    assert video.fetched <= 8 * _BLOCK, "nothing that was not asked for"
    video.seek(0)
    assert read_all(video, 1 << 30) == data


def read_all(video: S3Video, size: int) -> bytes:
    parts = b""
    while len(parts) < size and (part := video.read(size - len(parts))):
        parts += part
    return parts


def test_what_is_wrong_with_a_video_is_said(here: Place) -> None:
    with pytest.raises(VideoError, match="is empty"):
        opened(here, here.video("empty.mp4", b""))
    with pytest.raises(VideoTooLarge, match="has 11 bytes, more than the 10 of WORKER_MAX_VIDEO"):
        opened(here, here.video("large.mp4", b"x" * 11), most=10)
    with pytest.raises(VideoError, match="is not there"):
        opened(here, "s3://no-such-bucket-here/a.mp4")
    url = here.video("new.mp4", b"a" * 2 * _BLOCK)
    video = opened(here, url)
    assert video.read(1) == b"a"
    here.video("new.mp4", b"b" * 2 * _BLOCK)
    video.seek(_BLOCK)
    with pytest.raises(VideoError, match="was changed while it was read") as caught:
        video.read(1)
    assert caught.value.counts
