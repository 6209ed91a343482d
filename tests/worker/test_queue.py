"""Tests a worker process against a local AWS: each job is done once, or its item says why not.

The moderator is the stand-in (see ``stand_in.py``), so that a test can hold a job; everything else is real.
"""

import json
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.children import free_port
from tests.support.gateway import PATIENCE, ROOT
from tests.worker.aws import Aws, Place, place, until
from worker import health_file
from worker.aws.clients import ServiceClock
from worker.aws.jobs import MARGIN, Conflict, Finished, Held, Jobs, Lease, LeaseLost
from worker.aws.messages import Job
from worker.aws.results import Results
from worker.moderator import Judgement

pytestmark = pytest.mark.long


@pytest.fixture
def here(aws: Aws, tmp_path: Path) -> Iterator[Place]:
    with place(aws, tmp_path) as made:
        yield made


# -- one worker --------------------------------------------------------------------------------------------------------


def test_a_job_is_done_once_whatever_is_sent_again(here: Place) -> None:
    here.keep_versions()
    here.job("clip-1")
    port = free_port()
    worker = here.worker(WORKER_METRICS_PORT=port)
    item = here.became("clip-1", "completed")
    location = f"s3://{here.settings.result_bucket}/moderation-results/clip-1/image_llm_safety_result.json"
    assert item["result_location"] == location
    report = location.replace("result.json", f"report-{item['lease'][:12]}.html")
    assert item["report_location"] == report
    assert {f"s3://{here.settings.result_bucket}/{name}" for name in here.results()} == {location, report}
    assert (item["attempts"], item["decision"], item["lease_until"]) == (1, "allow", 0) and "error" not in item
    assert item["started_at"] <= item["finished_at"] == item["updated_at"]
    here.send("clip-1", item["video_s3_url"])
    here.empty()
    # The item is lost, with its table for example; the result in the bucket suffices.
    here.aws.dynamodb.delete_item(TableName=here.settings.jobs_table, Key={"job_id": {"S": "clip-1"}})
    here.send("clip-1", item["video_s3_url"])
    again = here.became("clip-1", "completed")
    here.empty()
    assert again["decision"] == "allow" and again["result_location"] == location
    assert again["report_location"] == report, "of the try that was done, not of the one that found it"
    assert here.judged() == ["clip-1"] and set(here.results().values()) == {1} and here.dead_letters() == []

    def figures() -> str:
        return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=PATIENCE).text

    counted = {
        name: f'moderation_worker_messages_total{{outcome="{name}"}} {count}.0'
        for name, count in (("completed", 1), ("duplicate", 1), ("adopted", 1), ("retried", 0), ("dead_lettered", 0))
    }
    until(lambda: counted["adopted"] in figures(), "the last to be counted", here.story)  # once its message is deleted
    told = figures()
    assert all(line in told for line in counted.values()), told
    assert "moderation_worker_model_server_ready 1.0" in told and "moderation_worker_jobs_running 0.0" in told
    assert worker.stop() == 0


def test_messages_that_ask_for_nothing_are_buried_with_the_reason(here: Place) -> None:
    url = here.video("a.mp4", {"do": "judge"})
    bad: dict[str, str] = {
        "nonsense": "is not JSON",
        "[1]": "is a list, not an object",
        '{"job_id": "x"}': "lacks video_s3_url",
        '{"Type": "Notification", "TopicArn": "a"}': "raw message delivery",
        json.dumps({"job_id": "../up", "video_s3_url": url}): "job_id must be a string of 1 to 128 letters",
        json.dumps({"job_id": "y", "video_s3_url": "https://example.org/a.mp4"}): "must be s3://bucket/key",
        json.dumps({"job_id": "z", "video_s3_url": "s3://bucket"}): "no key",
    }
    for body in bad:
        here.send_raw(body)
    # A producer's own item, with values that no worker writes.
    here.aws.dynamodb.put_item(
        TableName=here.settings.jobs_table,
        Item={"job_id": {"S": "odd"}, "attempts": {"S": "1"}, "video_s3_url": {"S": url}},
    )
    here.send("odd", url)
    bad[json.dumps({"job_id": "odd", "video_s3_url": url})] = "the item of job odd cannot be changed"
    here.worker()
    here.empty()
    dead = {one["body"]: one for one in here.dead_letters()}
    assert dead.keys() == bad.keys()
    for body, words in bad.items():
        assert words in dead[body]["reason"], dead[body]
    assert here.item("y")["status"] == "failed" and "s3://" in here.item("y")["error"]
    assert here.item("y")["dead_lettered"] is True and here.begun() == []
    here.send("y", url)  # the producer has fixed it
    assert here.became("y", "completed")["attempts"] == 1


def test_a_job_that_fails_is_tried_and_then_buried_and_may_be_sent_anew(here: Place) -> None:
    here.job("late", do="fail", times=1)
    here.job("never", do="fail")
    here.job("text", do="reject")
    here.job("mistake", do="break")
    here.send("gone", f"s3://{here.videos}/nobody.mp4")
    here.worker(WORKER_TRIES=2, WORKER_RETRY_DELAY=0, WORKER_CONCURRENCY=4)
    assert here.became("late", "completed")["attempts"] == 2
    item = here.became("never", "failed")
    assert item["attempts"] == 2 and item["error"] == "it fails as it was told"
    assert here.became("text", "failed")["error"] == "Unsupported media: it is no video"
    assert here.became("mistake", "failed")["error"] == "RuntimeError: a mistake"
    assert "is not there" in here.became("gone", "failed")["error"]
    here.empty()
    assert [here.begun().count(name) for name in ("late", "never", "text", "gone", "mistake")] == [2, 2, 1, 0, 2]
    dead = {one["job_id"]: one for one in here.dead_letters()}
    assert dead.keys() == {"never", "text", "gone", "mistake"}
    assert dead["never"]["attempts"] == "2" and dead["never"]["reason"] == item["error"]
    assert here.item("never")["dead_lettered"] is True
    # The cause is fixed, and a redrive sends the message again as a new one.
    here.video("in/never.mp4", {"do": "judge"})
    here.send_raw(dead["never"]["body"])
    item = here.became("never", "completed")
    assert item["attempts"] == 1 and "error" not in item and "dead_lettered" not in item


def test_a_worker_that_died_while_it_buried_a_job_is_made_good(here: Place) -> None:
    """The item says that the job is given up; its message is still in the queue, not in the dead-letter queue."""
    message = here.send("half", f"s3://{here.videos}/half.mp4")
    here.aws.dynamodb.put_item(
        TableName=here.settings.jobs_table,
        Item={
            "job_id": {"S": "half"},
            "status": {"S": "failed"},
            "error": {"S": "it was no video"},
            "message_id": {"S": message},
            "attempts": {"N": "3"},
            "lease_until": {"N": "0"},
            "video_s3_url": {"S": f"s3://{here.videos}/half.mp4"},
        },
    )
    here.worker()
    here.empty()
    (dead,) = here.dead_letters()
    assert dead["reason"] == "it was no video" and here.item("half")["dead_lettered"] is True
    assert here.begun() == [] and here.item("half")["status"] == "failed"


def test_one_id_for_two_videos_is_refused(here: Place) -> None:
    here.job("same")
    here.worker()
    first = here.became("same", "completed")
    other = here.video("other.mp4", {"do": "judge"})
    here.send("same", other)
    here.empty()
    (dead,) = here.dead_letters()
    assert first["video_s3_url"] in dead["reason"] and json.loads(dead["body"])["video_s3_url"] == other
    here.aws.dynamodb.delete_item(TableName=here.settings.jobs_table, Key={"job_id": {"S": "same"}})
    here.send("same", other)  # nor if only the result tells
    assert "result of another video" in here.became("same", "failed")["error"]
    assert here.item("same")["video_s3_url"] == other and here.result("same") and here.judged() == ["same"]


def test_a_queue_that_keeps_the_order_does_as_well(aws: Aws, tmp_path: Path) -> None:
    with place(aws, tmp_path, fifo=True) as here:
        jobs = [here.job(f"n{number}") for number in range(3)]
        here.send_raw("nonsense")
        here.worker()
        for job_id in jobs:
            here.became(job_id, "completed")
        here.empty()
        assert here.judged() == jobs and [one["body"] for one in here.dead_letters()] == ["nonsense"]


def test_a_busy_model_server_costs_no_try(here: Place) -> None:
    """Nor does a server that is not set up; such receipts do not count."""
    here.job("patient", do="busy", times=3, retry_after=1)
    here.job("patient-too", do="unset", times=2)
    here.worker(WORKER_TRIES=1, WORKER_MAX_RECEIVES=1)
    item = here.became("patient", "completed")
    assert (item["attempts"], item["receives"]) == (1, 4)
    other = here.became("patient-too", "completed")
    assert (other["attempts"], other["receives"], other["excused"]) == (1, 3, 2)
    assert here.begun().count("patient") == 4 and sorted(here.judged()) == ["patient", "patient-too"]
    assert here.dead_letters() == []


def test_a_model_server_that_says_when_is_left_alone_until_then(here: Place) -> None:
    here.job("refused", do="busy", retry_after=5_000)
    worker = here.worker().logged("refused: given back for 5000 seconds, which does not count as a try")
    worker.logged("no job is taken for 5000 seconds: the model server is busy: it is full")
    here.job("next")
    path = here.settings.health_file
    until(lambda: path.exists() and "it is full" in path.read_text(), "the health file to tell", here.story)
    assert worker.stop() == 0
    assert here.begun() == ["refused"] and here.item("next") == {} and here.waiting() == (1, 1)


def test_while_the_model_server_is_not_ready_no_job_is_taken(here: Place) -> None:
    (here.home / "not-ready").touch()
    here.job("later")
    worker = here.worker().logged("no job is taken: the model server is not ready: the test says so")
    path = here.settings.health_file
    until(lambda: path.exists() and "the test says so" in path.read_text(), "the health file to tell", here.story)
    assert here.waiting() == (1, 0) and here.item("later") == {}
    assert health_file.check_health(path, 60)[0] and not health_file.check_health(path, -1)[0]
    (here.home / "not-ready").unlink()
    assert here.became("later", "completed")["receives"] == 1
    worker.logged("the model server is ready")


def test_sigterm_gives_the_job_back_at_once_and_it_counts_for_nothing(here: Place) -> None:
    here.job("held", do="wait")
    first = here.worker()
    until(here.begun, "the job to be begun", here.story)
    assert first.stop() == 0
    item = here.item("held")
    assert (item["status"], item["attempts"], item["lease_until"]) == ("retrying", 0, 0) and "error" not in item
    assert here.waiting() == (1, 0), "hidden no longer"
    assert not here.settings.health_file.exists()
    here.go()
    here.worker()
    assert here.became("held", "completed")["attempts"] == 1
    assert here.begun() == ["held"] * 2 and here.judged() == ["held"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_within_the_grace_a_stopping_worker_finishes_its_job_and_takes_no_other(
    here: Place, number: signal.Signals
) -> None:
    here.job("under-way", do="wait")
    worker = here.worker(WORKER_GRACE=100)
    until(here.begun, "the job to be begun", here.story)
    here.job("next")
    worker.process.send_signal(number)
    worker.logged("1 jobs under way have 100 seconds")
    here.go()
    assert worker.process.wait(PATIENCE) == 0
    assert here.item("under-way")["status"] == "completed" and here.item("next") == {}
    assert here.waiting() == (1, 0)


def test_a_job_that_heeds_nothing_is_given_back_in_its_stead(here: Place) -> None:
    here.job("deaf", do="deaf")
    worker = here.worker(STAND_IN_ENDING=2)
    until(here.begun, "the job to be begun", here.story)
    assert worker.stop() == 1
    assert here.item("deaf")["status"] == "retrying" and here.waiting() == (1, 0)


def test_a_try_that_takes_too_long_counts(here: Place) -> None:
    here.job("long", do="wait")
    here.worker(WORKER_JOB_TIMEOUT=1, WORKER_TRIES=1)
    assert "longer than WORKER_JOB_TIMEOUT, 1 seconds" in here.became("long", "failed")["error"]
    here.empty()
    assert len(here.dead_letters()) == 1


def test_a_long_job_stays_hidden_and_its_worker_s(here: Place) -> None:
    """Visibility and lease are 10 seconds; the job takes longer, by the lease's own times."""
    here.job("slow", do="wait")
    here.worker(WORKER_VISIBILITY=10)
    until(here.begun, "the job to be begun", here.story)
    until(lambda: here.item("slow").get("lease_until"), "the lease", here.story)
    first = here.item("slow")["lease_until"]
    other = here.worker(WORKER_VISIBILITY=10).logged("waiting for jobs")
    until(lambda: here.item("slow")["lease_until"] > first + 11, "the lease to be renewed", here.story)
    assert here.waiting() == (0, 1) and here.begun() == ["slow"]
    here.go()
    item = here.became("slow", "completed")
    assert (item["receives"], item["attempts"]) == (1, 1)
    assert other.stop() == 0 and here.judged() == ["slow"]


def test_a_worker_whose_job_was_taken_writes_nothing(here: Place) -> None:
    """As after a pause longer than the lease: another worker has begun, and this one returns with an answer."""
    here.job("taken", do="wait")
    worker = here.worker()
    until(here.begun, "the job to be begun", here.story)
    theirs = {":lease": {"S": "another's"}, ":until": {"N": "99999999999"}}
    here.aws.dynamodb.update_item(
        TableName=here.settings.jobs_table,
        Key={"job_id": {"S": "taken"}},
        UpdateExpression="SET lease = :lease, lease_until = :until",
        ExpressionAttributeValues=theirs,
    )
    here.go()
    worker.logged("taken: nothing is written: job taken was taken over by another worker")
    assert here.judged() == ["taken"] and here.results() == {} and here.waiting() == (0, 1)
    assert here.item("taken")["lease"] == "another's" and worker.stop() == 0


def test_what_stops_the_start_is_said_in_a_line(here: Place) -> None:
    wrong = {
        "QUEUE_NAME": ("nowhere", "there is no queue nowhere in us-east-2; see QUEUE_NAME and AWS_REGION"),
        "DEAD_LETTER_QUEUE": (here.name, "the queue is its own dead-letter queue"),
        "JOBS_TABLE": ("no-such-table", "DescribeTable: ResourceNotFoundException"),
        "WORKER_POLICY": ("nowhere.yaml", "nowhere.yaml"),
        "WORKER_TRYS": ("3", "WORKER_TRYS is no setting of the worker; is it WORKER_TRIES?"),
    }
    started = {name: here.worker("main.py", "worker", **{name: value}) for name, (value, _) in wrong.items()}
    for name, worker in started.items():
        assert worker.process.wait(PATIENCE) == 2, worker.log()
        assert wrong[name][1] in worker.log() and "Traceback" not in worker.log(), worker.log()


def test_a_worker_with_the_policy_s_rights_has_enough(here: Place) -> None:
    """The local AWS enforces allowed actions; it cannot check resources."""
    policy = json.loads((ROOT / "deploy" / "iam" / "worker.json").read_text())
    for statement in policy["Statement"]:
        statement["Resource"] = "*"
    # AWS has no such action and uses s3:ListBucket.
    policy["Statement"].append({"Effect": "Allow", "Action": "s3:HeadBucket", "Resource": "*"})
    iam = here.aws.client("iam")
    iam.create_user(UserName=here.name)
    key = iam.create_access_key(UserName=here.name)["AccessKey"]
    credentials = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    here.job("allowed")
    here.send_raw("nonsense")
    here.send("gone", f"s3://{here.videos}/nobody.mp4")
    here.aws.held_to_rights(True)
    try:
        refused = here.worker(**credentials)
        assert refused.process.wait(PATIENCE) == 2 and "is not authorized to perform: sqs:GetQueueUrl" in refused.log()
        here.aws.held_to_rights(False)
        iam.put_user_policy(UserName=here.name, PolicyName="worker", PolicyDocument=json.dumps(policy))
        here.aws.held_to_rights(True)
        worker = here.worker(**credentials, WORKER_TRIES="2", WORKER_RETRY_DELAY="0")
        worker.logged("allowed: completed").logged("gone: given back").logged("gone: to the dead-letter queue")
        worker.logged("the message is not JSON")
    finally:
        here.aws.held_to_rights(False)
    here.empty()
    assert "not authorized" not in worker.log() and "AccessDenied" not in worker.log()


# -- leases ------------------------------------------------------------------------------------------------------------


class _Shifted(ServiceClock):
    """The clock of a machine that is an hour wrong."""

    def __init__(self, ahead: float) -> None:
        super().__init__()
        self._start += ahead


@pytest.fixture
def table(here: Place) -> Any:
    def jobs(worker: str, ahead: float = 0) -> Jobs:
        clients = here.aws.clients()
        return Jobs(
            type(clients)(clients.sqs, clients.s3, clients.dynamodb, _Shifted(ahead)),
            here.settings.jobs_table,
            worker,
            30,
        )

    return jobs


def new_job() -> Job:
    return Job(uuid.uuid4().hex, "s3://bucket/video.mp4", "bucket", "video.mp4")


def test_a_lease_is_one_worker_s_until_it_is_over(table: Any) -> None:
    one, two, late = table("one"), table("two"), table("late", 30 + MARGIN + 1)
    job, begun = new_job(), time.monotonic()
    lease = one.claim_job(job, "m", 1)
    assert isinstance(lease, Lease) and lease.attempts == 1
    held = two.claim_job(job, "m", 2)
    passed = time.monotonic() - begun
    assert isinstance(held, Held) and 30 + MARGIN - passed - 0.01 <= held.seconds <= 30 + MARGIN
    taken = late.claim_job(job, "m", 3)  # the lease has expired
    assert isinstance(taken, Lease) and taken.attempts == 2
    for write in (
        one.renew_lease,
        lambda lease: one.complete_job(lease, {}),
        lambda lease: one.fail_job(lease, "why", "m"),
        lambda lease: one.release_job(lease, error=None, counts=True),
    ):
        with pytest.raises(LeaseLost):
            write(lease)
    late.complete_job(taken, {"decision": "allow"})
    late.complete_job(taken, {"decision": "allow"})  # as after a lost answer
    assert late.release_job(taken, error=None, counts=False) is False, "its own end, and nobody took it over"
    assert isinstance(one.claim_job(job, "m", 4), Finished)
    other = Job(job.job_id, "s3://bucket/other.mp4", "bucket", "other.mp4")
    assert one.claim_job(other, "m", 1) == Conflict(job.url)


def test_a_worker_that_comes_back_late_writes_over_nobody_s_report(here: Place) -> None:
    results = Results(here.aws.clients(), here.settings.result_bucket, "moderation-results")
    job = new_job()
    first = results.write_result(job, Judgement(b"{}", b"the first", {"decision": "allow"}), "1" * 32)
    assert first is not None and first == results.find_result(job) and first["decision"] == "allow"
    assert results.write_result(job, Judgement(b"{}", b"the late one", {"decision": "block"}), "2" * 32) is None
    assert results.find_result(job) == first
    key = first["report_location"].removeprefix(f"s3://{here.settings.result_bucket}/")
    with here.aws.s3.get_object(Bucket=here.settings.result_bucket, Key=key)["Body"] as body:
        assert body.read() == b"the first"


def test_a_job_given_back_is_to_be_had_and_what_does_not_count_is_taken_back(table: Any) -> None:
    one, job = table("one"), new_job()
    for counts, attempts in ((False, 1), (True, 1), (False, 2)):
        lease = one.claim_job(job, "m", 1)
        assert isinstance(lease, Lease) and lease.attempts == attempts
        one.release_job(lease, error="busy", counts=counts)
        one.release_job(lease, error="busy", counts=counts)  # as after a lost answer
    lease = one.claim_job(job, "m", 1)
    assert lease.attempts == 2 and lease.error == "busy"


def test_workers_agree_on_the_time_by_the_service_s(here: Place) -> None:
    """A machine that is an hour ahead takes no lease once it knows the service's time."""
    ahead = _Shifted(3600)
    here.aws.dynamodb.meta.events.register("after-call.dynamodb", ahead.learn_time)
    try:
        here.aws.dynamodb.list_tables()
        assert abs(ahead.now() - time.time()) < 60
    finally:
        here.aws.dynamodb.meta.events.unregister("after-call.dynamodb", ahead.learn_time)
    ahead.learn_time({"ResponseMetadata": {"HTTPHeaders": {"date": "yesterday"}}})
    ahead.learn_time({})
    assert abs(ahead.now() - time.time()) < 60
