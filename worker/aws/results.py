"""Results in S3. The JSON is written last: where it exists, the report exists too and the job is done.

Each try's report has its own name, given in the JSON's metadata, so that a late worker overwrites no other's report.

The worker's process, any thread. The JSON is written only if there is none, so that the first of two workers wins. Must
not know the content of a result beyond its facts.
"""

import hashlib
from typing import Any

from botocore.exceptions import ClientError

from worker.aws.clients import Clients, error_code
from worker.aws.messages import Job
from worker.moderator import Judgement

JSON = "image_llm_safety_result.json"
_REPORT, _OLD_REPORT = "image_llm_safety_report-{}.html", "image_llm_safety_report.html"
_PROBE = "worker-check"
_FACT, _REPORTED = "fact-", "report"
_LONGEST_FACT = 200


class OtherVideo(Exception):
    """The existing result belongs to another video with the same ``job_id``."""


class Results:
    """Results in one bucket. Methods raise botocore's errors."""

    def __init__(self, clients: Clients, bucket: str, prefix: str) -> None:
        self._s3 = clients.s3
        self._bucket = bucket
        self._prefix = prefix

    def location(self, job_id: str, name: str = JSON) -> str:
        """Return the address of a job's result, or of another file beside it."""
        return f"s3://{self._bucket}/{self._key(job_id, name)}"

    def check_bucket(self) -> None:
        """:raises ClientError: if the bucket is missing or not ours."""
        self._s3.head_bucket(Bucket=self._bucket)

    def probe_bucket(self) -> None:
        """:raises ClientError: if writing fails. Leaves an empty object."""
        self._s3.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{_PROBE}", Body=b"")

    def find_result(self, job: Job) -> dict[str, str] | None:
        """Return the facts of the job's result and the addresses of result and report, or None.

        :raises OtherVideo: if the result belongs to another video.
        """
        try:
            answer = self._s3.head_object(Bucket=self._bucket, Key=self._key(job.job_id, JSON))
        except ClientError as error:
            # Without the right to list the bucket, S3 says 403 for a missing key.
            if answer_status(error) in (403, 404):
                return None
            raise
        metadata: dict[str, str] = answer.get("Metadata", {})
        if metadata.get("video") != _digest(job):
            raise OtherVideo(f"{self.location(job.job_id)} is the result of another video")
        facts = {name.removeprefix(_FACT): value for name, value in metadata.items() if name.startswith(_FACT)}
        return facts | self._located(job, metadata.get(_REPORTED, _OLD_REPORT))

    def write_result(self, job: Job, judgement: Judgement, token: str) -> dict[str, str] | None:
        """Write the report of the try named by ``token``, then the JSON with the facts as metadata.

        Return what :meth:`find_result` would return; None if a result already exists.
        """
        report = _REPORT.format(token[:12])
        self._s3.put_object(
            Bucket=self._bucket,
            Key=self._key(job.job_id, report),
            Body=judgement.report,
            ContentType="text/html; charset=utf-8",
        )
        facts = {f"{_FACT}{name}": _plain(value) for name, value in judgement.facts.items()}
        try:
            self._s3.put_object(
                Bucket=self._bucket,
                Key=self._key(job.job_id, JSON),
                Body=judgement.result,
                IfNoneMatch="*",
                ContentType="application/json",
                Metadata={"video": _digest(job), _REPORTED: report} | facts,
            )
        except ClientError as error:
            if error_code(error) != "PreconditionFailed":
                raise
            return None
        return dict(judgement.facts) | self._located(job, report)

    def _located(self, job: Job, report: str) -> dict[str, str]:
        return {"result_location": self.location(job.job_id), "report_location": self.location(job.job_id, report)}

    def _key(self, job_id: str, name: str) -> str:
        return f"{self._prefix}/{job_id}/{name}"


def answer_status(error: ClientError) -> int:
    """Return the HTTP status of S3's answer."""
    status: Any = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status)


def _digest(job: Job) -> str:
    return hashlib.sha256(job.url.encode(errors="surrogatepass")).hexdigest()


def _plain(value: str) -> str:
    """Replace the characters that a header cannot carry."""
    plain = "".join(sign if " " <= sign <= "~" else "?" for sign in value)
    return plain[:_LONGEST_FACT].strip()
