"""Tests the worker's settings, messages and rights without a worker."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ParamValidationError
from botocore.stub import Stubber

from tests.support.gateway import ROOT
from utils.settings import SettingsError
from worker import settings
from worker.aws.clients import Clients, ServiceClock, is_refusal, is_transient
from worker.aws.jobs import Jobs, Lease, OddItem, WrongTable
from worker.aws.messages import BadMessage, Job, parse_job
from worker.aws.queue import Message, _printable
from worker.lease_renewal import LeaseRenewal
from worker.metrics import OUTCOMES, Metrics

PAGE = settings.PAGE.read_text()


def test_the_page_has_every_setting_as_it_is() -> None:
    assert settings.page_with_table(PAGE) == PAGE, "run: python -m worker.settings"
    for name, field in settings.WorkerSettings.model_fields.items():
        assert field.description, name
        assert f"| `{settings.variable_name(name, field)}` |" in PAGE


def test_defaults_are_those_of_the_system_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_URL", "AWS_REGION", "QUEUE_NAME", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    found = settings.load_worker_settings()
    assert (found.vllm_url, found.aws_region) == ("http://vllm:8000", "us-east-2")
    assert found.queue_name == "ai-chaperone-image-processing-queue" and found.result_bucket == "ai-chaperone-dev"
    assert found.jobs_table == "ai-chaperone-video-moderation-jobs" and found.aws_endpoint_url is None
    assert (found.fps, found.max_frames) == (1, 50)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WORKER_CONCURENCY", "2", "WORKER_CONCURENCY is no setting of the worker; is it WORKER_CONCURRENCY?"),
        ("WORKER_VISIBILITY", "2", "WORKER_VISIBILITY: "),
        ("WORKER_VISIBILITY", "ten", "is not a duration"),
        ("VLLM_URL", "gpu:8000", "VLLM_URL: "),
        ("QUEUE_NAME", "a queue", "QUEUE_NAME: "),
        ("RESULT_PREFIX", "/up", "RESULT_PREFIX: "),
        ("WORKER_HEALTH_AGE", "5", "at least twice poll_wait"),
        ("WORKER_POLL_WAIT", "1.5", "whole seconds"),
        ("WORKER_POLL_WAIT", "0", "WORKER_POLL_WAIT: "),
    ],
)
def test_what_a_setting_cannot_be_is_said(name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=re.escape(words)):
        settings.load_worker_settings()


def test_variables_may_be_empty_and_names_may_be_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "",
        "QUEUE_NAME": "https://sqs.us-east-2.amazonaws.com/1/jobs",
        "VLLM_URL": "http://gpu:8000/v1/",
        "SWITCHYARD_API_KEY": "sk-1",
    }.items():
        monkeypatch.setenv(name, value)
    found = settings.load_worker_settings()
    assert (found.aws_endpoint_url, found.server_url, found.vllm_api_key) == (None, "http://gpu:8000", "sk-1")
    assert "sk-1" not in repr(found)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "not JSON"),
        ("[" * 5000, "not JSON"),
        ('"x"', "is a string"),
        ("null", "is null"),
        ("1", "is a number"),
        ("{}", "lacks job_id and video_s3_url"),
        ('{"job_id": "a"}', "lacks video_s3_url"),
        ('{"job_id": "", "video_s3_url": "s3://abc/d"}', "job_id must be"),
        ('{"job_id": "a/b", "video_s3_url": "s3://abc/d"}', "job_id must be"),
        ('{"job_id": "..", "video_s3_url": "s3://abc/d"}', "job_id must be"),
        ('{"job_id": "a\\n", "video_s3_url": "s3://abc/d"}', "job_id must be"),
        (json.dumps({"job_id": "a" * 129, "video_s3_url": "s3://abc/d"}), "job_id must be"),
        ('{"job_id": 7, "video_s3_url": "s3://abc/d"}', "it is 7"),
        ('{"job_id": "a", "video_s3_url": 7}', "must be a string, not a number"),
        ('{"job_id": "a", "video_s3_url": "S3://abc/d"}', "must be s3://bucket/key"),
        ('{"job_id": "a", "video_s3_url": "s3://a_b/d"}', "no name of a bucket"),
        ('{"job_id": "a", "video_s3_url": "s3://abc/"}', "no key"),
        ('{"job_id": "a", "video_s3_url": "s3://abc/\\u0000"}', "a key that S3 cannot have"),
        ('{"job_id": "a", "video_s3_url": "s3://abc/\\ud800"}', "a key that S3 cannot have"),
        (json.dumps({"job_id": "a", "video_s3_url": "s3://abc/" + "d" * 1025}), "a key that S3 cannot have"),
        (json.dumps({"job_id": "a", "more": "x" * 20_000}), "more than 16384 bytes"),
    ],
)
def test_a_message_that_cannot_be_done_says_why(body: str, words: str) -> None:
    with pytest.raises(BadMessage, match=re.escape(words)) as caught:
        parse_job(body)
    assert len(caught.value.reason) < 600 and caught.value.reason.isascii()


def test_a_message_is_taken_as_it_stands() -> None:
    url = "s3://my.bucket-1/a folder/película %20+?x=1#2.mp4"
    job = parse_job(json.dumps({"job_id": "A-1_b.c", "video_s3_url": url, "more": 1}))
    assert (job.job_id, job.bucket, job.key) == ("A-1_b.c", "my.bucket-1", "a folder/película %20+?x=1#2.mp4")


@pytest.mark.parametrize("until", [{"S": "soon"}, {"S": "5"}, {"L": []}, None])
def test_an_item_whose_lease_is_no_time_is_nobody_s(until: Any) -> None:
    """With stubbed answers: the local AWS compares values of different types differently."""
    item = {"status": {"S": "processing"}} | ({} if until is None else {"lease_until": until})
    with stubbed() as (jobs, answers):
        answers.add_client_error("update_item", "ConditionalCheckFailedException", modeled_fields={"Item": item})
        with pytest.raises(OddItem, match="the item of job a has a lease_until that is no number"):
            jobs.claim_job(Job("a", "s3://abc/d", "abc", "d"), "m", 1)


def test_an_item_that_cannot_be_changed_is_told_from_a_table_that_cannot_be_used() -> None:
    table = {
        "AttributeDefinitions": [{"AttributeName": "job_id", "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": "job_id", "KeyType": "HASH"}],
    }
    other = {
        "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
    }
    for found, kind in ((table, OddItem), (other, WrongTable)):
        with stubbed() as (jobs, answers):
            answers.add_client_error("update_item", "ValidationException", "it does not fit", 400)
            answers.add_response("describe_table", {"Table": found})
            with pytest.raises(kind):
                jobs.claim_job(Job("a", "s3://abc/d", "abc", "d"), "m", 1)


@contextmanager
def stubbed() -> Iterator[tuple[Jobs, Stubber]]:
    client = boto3.session.Session().client(
        "dynamodb", region_name="us-east-2", aws_access_key_id="testing", aws_secret_access_key="testing"
    )
    with Stubber(client) as answers:
        yield Jobs(Clients(None, None, client, ServiceClock()), "table", "worker", 30), answers
        answers.assert_no_pending_responses()
    client.close()


def refusal(code: str, status: int = 400) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (refusal("AccessDenied", 403), "ours"),
        (refusal("NoSuchBucket", 404), "ours"),
        (refusal("ResourceNotFoundException"), "ours"),
        (refusal("AccessDeniedException"), "ours"),
        (refusal("KMS.DisabledException"), "ours"),
        (NoCredentialsError(), "ours"),
        (refusal("ExpiredToken", 403), "passing"),
        (EndpointConnectionError(endpoint_url="x"), "passing"),
        (refusal("EntityTooLarge"), "the job's"),
        (refusal("ValidationException"), "the job's"),
        (ParamValidationError(report="wrong"), "the job's"),
    ],
)
def test_whose_fault_an_error_of_aws_is(error: Exception, whose: str) -> None:
    assert (is_refusal(error), is_transient(error)) == (whose == "ours", whose == "passing")


def test_what_goes_wrong_in_a_sign_of_life_does_not_end_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error is retried; the job stays the worker's, because this clock never ends its lease."""
    monkeypatch.setattr("worker.lease_renewal.time", SimpleNamespace(monotonic=lambda: 0.0))
    renewals: list[int] = []
    done = threading.Event()

    class Stores:
        def renew_lease(self, lease: Lease) -> None:
            renewals.append(len(renewals))
            if len(renewals) == 1:
                raise RuntimeError("a mistake")
            done.set()

        def hide_message(self, message: Message, seconds: float) -> bool:
            return True

    stores: Any = Stores()
    lease = Lease(Job("a", "s3://abc/d", "abc", "d"), "token", 1, None, 0)
    with LeaseRenewal(
        stores, stores, Message("m", "r", "", 1), lease, seconds=3, longest=60, metrics=Metrics()
    ) as renewal:
        assert done.wait(60) and not renewal.is_cancelled()


def test_the_time_of_day_of_the_machine_does_not_matter_between_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ServiceClock()
    before = clock.now()
    monkeypatch.setattr("time.time", lambda: before + 86_400)
    assert abs(clock.now() - before) < 3_600


def test_an_attribute_has_no_character_that_sqs_refuses() -> None:
    assert _printable("a\0b\ud800c\n\U0001f600") == "a\ufffdb\ufffdc\n\U0001f600"


def test_the_metrics_of_the_page_are_the_worker_s() -> None:
    metrics = Metrics()
    there = {family.name + "_total" * (family.type == "counter") for family in metrics.registry.collect()}
    assert set(re.findall(r"^\| `(moderation_worker_\w+)", PAGE, re.MULTILINE)) == there
    (row,) = re.findall(r"^\| `moderation_worker_messages_total.*$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == set(OUTCOMES)


def test_the_rights_are_those_of_the_calls_that_are_made() -> None:
    """Each call in the source has an action in the policy, and each action a call."""
    actions = {"HeadBucket": "s3:ListBucket", "HeadObject": "s3:GetObject"}
    made = set()
    for file in Path(ROOT / "worker").rglob("*.py"):
        if file.name not in ("create.py", "send.py"):  # operators run these with their own rights
            for service, call in re.findall(r"\b_?(sqs|s3|dynamodb)\.([a-z_]+)\b(?=[(,])", file.read_text()):
                name = "".join(word.capitalize() for word in call.split("_"))
                made.add(actions.get(name, f"{service}:{name}"))
    policy = json.loads((ROOT / "deploy" / "iam" / "worker.json").read_text())
    allowed = [
        one
        for statement in policy["Statement"]
        for one in (statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]])
    ]
    assert set(allowed) == made and len(made) > 8
    assert not any("*" in one for one in allowed)
