"""Parses and checks messages of the queue. Plain Python, any process.

Messages come from outside: ``job_id`` becomes a part of an S3 key, and the worker reads the URL with its own rights.
"""

import json
import re
from dataclasses import dataclass

_MOST_BYTES = 16 * 1024
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MOST_KEY = 1024
_FIELDS = {"job_id", "video_s3_url"}


class BadMessage(Exception):
    """The message is invalid. The message says why; ``job_id`` is set if it is valid."""

    def __init__(self, reason: str, job_id: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.job_id = job_id


@dataclass(frozen=True)
class Job:
    """One video to judge. ``url`` is ``s3://bucket/key`` as given."""

    job_id: str
    url: str
    bucket: str
    key: str


def parse_job(body: str) -> Job:
    """Return the job of a message's body.

    :raises BadMessage: if it is not ``{"job_id": …, "video_s3_url": "s3://…"}``; other fields are ignored.
    """
    if len(body.encode(errors="replace")) > _MOST_BYTES:
        raise BadMessage(f"the message has more than {_MOST_BYTES} bytes")
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"the message is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise BadMessage(f"the message is {_kind(said)}, not an object with job_id and video_s3_url")
    if missing := sorted(_FIELDS - said.keys()):
        hint = "; it is an SNS envelope: switch on raw message delivery" if {"Type", "TopicArn"} <= said.keys() else ""
        raise BadMessage(f"the message lacks {' and '.join(missing)}{hint}", _job_id(said))
    job_id, url = _job_id(said), said["video_s3_url"]
    if job_id is None:
        raise BadMessage(
            "job_id must be a string of 1 to 128 letters, digits, '.', '_' and '-', "
            f"and begin with a letter or digit; it is {_shown(said['job_id'])}"
        )
    if not isinstance(url, str):
        raise BadMessage(f"video_s3_url must be a string, not {_kind(url)}", job_id)
    bucket, key = _split(url, job_id)
    return Job(job_id, url, bucket, key)


def _job_id(said: dict[str, object]) -> str | None:
    job_id = said.get("job_id")
    return job_id if isinstance(job_id, str) and _JOB_ID.fullmatch(job_id) else None


def _split(url: str, job_id: str) -> tuple[str, str]:
    """Return bucket and key, taken literally: no escapes, query or version."""
    if not url.startswith("s3://"):
        raise BadMessage(f"video_s3_url must be s3://bucket/key, not {_shown(url)}", job_id)
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise BadMessage(f"video_s3_url has no name of a bucket: {_shown(url)}", job_id)
    if not key:
        raise BadMessage(f"video_s3_url has a bucket but no key: {_shown(url)}", job_id)
    if len(key.encode(errors="replace")) > _MOST_KEY or any(
        ord(sign) < 0x20 or 0xD800 <= ord(sign) < 0xE000 or ord(sign) == 0x7F for sign in key
    ):
        raise BadMessage(f"video_s3_url has a key that S3 cannot have: {_shown(url)}", job_id)
    return bucket, key


def _shown(value: object) -> str:
    """Return a value as JSON in ASCII, short enough for a log line and an attribute."""
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _kind(value: object) -> str:
    names = {list: "a list", dict: "an object", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
