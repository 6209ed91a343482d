"""The table of jobs: each job's worker, state and result. Every change is conditional on the lease.

The worker's process, any thread. A *lease* is a token and a time. The worker that wrote the token may change the item,
and until that time no other worker may write its own. The time is DynamoDB's (see ``ServiceClock``), with a margin for
differences. Must not know queues or what a job does.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from worker.aws.clients import Clients, describe_error, error_code
from worker.aws.messages import Job

MARGIN = 3.0
"""Seconds after a lease's end before another worker may take it; two workers' times differ by about a second."""
_LONGEST_TEXT = 2_000
PROCESSING, RETRYING, COMPLETED, FAILED = "processing", "retrying", "completed", "failed"


class WrongTable(ValueError):
    """The table cannot be used for jobs. The message says why."""


class OddItem(Exception):
    """No worker wrote the job's item like this. The message says what is wrong."""


class LeaseLost(Exception):
    """Another worker has the job now. Nothing may be written about it."""


@dataclass(frozen=True)
class Lease:
    """A job that this worker owns. ``attempts`` includes this try; ``error`` is the previous try's.

    ``excused`` counts the receipts of this message that failed without the job's fault.
    """

    job: Job
    token: str
    attempts: int
    error: str | None
    started: float
    """Seconds since 1970, by the services' clock."""
    message_id: str = ""
    excused: int = 0


@dataclass(frozen=True)
class Held:
    """Another worker has the job. Try again after ``seconds``."""

    seconds: float


@dataclass(frozen=True)
class Finished:
    """The job is done; only its message remains to be deleted."""


@dataclass(frozen=True)
class GivenUp:
    """This message was given up before. ``dead_lettered``: it has reached the dead-letter queue."""

    reason: str
    dead_lettered: bool


@dataclass(frozen=True)
class Conflict:
    """The ``job_id`` belongs to another video."""

    url: str


Claim = Lease | Held | Finished | GivenUp | Conflict


class Jobs:
    """The table. Methods raise botocore's errors, and :class:`LeaseLost` where documented."""

    def __init__(self, clients: Clients, table: str, worker: str, seconds: float) -> None:
        """``worker`` is this worker's name in items; a lease lasts ``seconds``."""
        self._dynamodb = clients.dynamodb
        self._clock = clients.clock
        self._table = table
        self._worker = worker
        self._seconds = seconds

    def check_table(self) -> None:
        """:raises ClientError: if the table is missing or not readable.
        :raises WrongTable: if its key is not the string ``job_id`` alone.
        """
        table = self._dynamodb.describe_table(TableName=self._table)["Table"]
        types = {one["AttributeName"]: one["AttributeType"] for one in table["AttributeDefinitions"]}
        keys = [(one["AttributeName"], types[one["AttributeName"]]) for one in table["KeySchema"]]
        if keys != [("job_id", "S")]:
            raise WrongTable(f"the table {self._table} has the key {keys}; it must be the string job_id alone")

    def claim_job(self, job: Job, message_id: str, receives: int) -> Claim:
        """Take the job if it is new, was given back, or its lease has expired.

        Checks in this order:

        1. The id belongs to another video: :class:`Conflict`.
        2. The job is completed: :class:`Finished`.
        3. It was given up with this message: :class:`GivenUp`.
        4. Another lease is valid: :class:`Held`.
        5. Else :class:`Lease`. A given-up job that is sent again starts with its first try.

        :raises OddItem: if another program wrote invalid values to the item.
        """
        token = uuid.uuid4().hex
        failure = self._take(job, token, message_id, receives, anew=False)
        if isinstance(failure, Lease):
            return failure
        status, url = failure.get("status"), failure.get("video_s3_url")
        if "attempts" in failure and url != job.url:
            return Conflict(str(url))
        if status == COMPLETED:
            return Finished()
        if status == FAILED:
            if failure.get("message_id") == message_id:
                return GivenUp(str(failure.get("error", "")), bool(failure.get("dead_lettered")))
            failure = self._take(job, token, message_id, receives, anew=True)
            if isinstance(failure, Lease):
                return failure
        until = failure.get("lease_until")
        if not isinstance(until, float):
            raise OddItem(f"the item of job {job.job_id} has a lease_until that is no number")
        left = until + MARGIN - self._clock.now()
        return Held(min(max(left, 1.0), self._seconds + MARGIN))

    def _take(self, job: Job, token: str, message_id: str, receives: int, *, anew: bool) -> Lease | dict[str, Any]:
        """Write the lease; return it, or the item that prevented it."""
        now = self._clock.now()
        free = "(attribute_not_exists(lease_until) OR lease_until < :over)"
        if anew:
            which, attempts = "#status = :failed AND message_id <> :message", ":one"
            which += " AND (attribute_not_exists(attempts) OR video_s3_url = :url)"
        else:
            which, attempts = (
                "(attribute_not_exists(#status) OR NOT #status IN (:completed, :failed))"
                " AND (attribute_not_exists(attempts) OR video_s3_url = :url)",
                "if_not_exists(attempts, :zero) + :one",
            )
        values = {
            ":url": job.url,
            ":over": now - MARGIN,
            ":token": token,
            ":until": now + self._seconds,
            ":one": 1,
            ":processing": PROCESSING,
            ":worker": self._worker,
            ":now": _time(now),
            ":receives": receives,
            ":failed": FAILED,
            ":message": message_id,
        }
        values |= {} if anew else {":zero": 0, ":completed": COMPLETED}
        try:
            answer = self._update(
                job.job_id,
                f"SET #status = :processing, lease = :token, lease_until = :until, worker = :worker, "
                f"video_s3_url = :url, started_at = :now, updated_at = :now, receives = :receives, "
                f"message_id = :message, attempts = {attempts} REMOVE dead_lettered, finished_at",
                f"{which} AND {free}",
                values,
                returns="ALL_NEW",
            )
        except _Refused as refusal:
            if refusal.item.get("lease") != token:
                return refusal.item
            answer = refusal.item  # the write succeeded and its answer got lost
        except ClientError as error:
            if error_code(error) != "ValidationException":
                raise
            self.check_table()  # raises if the table is wrong
            raise OddItem(f"the item of job {job.job_id} cannot be changed: {describe_error(error)}") from error
        excused = answer.get("excused") if answer.get("excused_message") == message_id else None
        said = answer.get("error")
        return Lease(
            job,
            token,
            int(answer["attempts"]),
            None if said is None else str(said),
            now,
            message_id,
            int(excused) if isinstance(excused, float) else 0,
        )

    def renew_lease(self, lease: Lease) -> None:
        """Extend the lease. :raises LeaseLost: if another worker has it."""
        values = {":until": self._clock.now() + self._seconds, ":processing": PROCESSING, ":token": lease.token}
        condition = "lease = :token AND #status = :processing"
        try:
            self._update(lease.job.job_id, "SET lease_until = :until", condition, values)
        except _Refused as refusal:
            if refusal.item.get("lease") != lease.token:
                raise _lost(lease) from None
            # This worker wrote the job's end at the same moment.

    def complete_job(self, lease: Lease, facts: Mapping[str, Any]) -> None:
        """Write the result; ``facts`` are attributes by name. :raises LeaseLost: if another worker has the job."""
        self._finish(lease, COMPLETED, dict(facts), ("error",))

    def fail_job(self, lease: Lease, reason: str, message_id: str) -> None:
        """Write that the job is given up. :raises LeaseLost: if another worker has it."""
        self._finish(lease, FAILED, {"error": reason[:_LONGEST_TEXT], "message_id": message_id}, ())

    def mark_dead_lettered(self, job_id: str, message_id: str) -> None:
        """Note that the job's message has reached the dead-letter queue."""
        values = {":yes": True, ":failed": FAILED, ":message": message_id}
        try:
            self._update(job_id, "SET dead_lettered = :yes", "#status = :failed AND message_id = :message", values)
        except _Refused:
            return  # it was sent again meanwhile, and a worker has it

    def release_job(self, lease: Lease, *, error: str | None, counts: bool, excused: bool = False) -> bool:
        """Give the job back. With ``counts`` False the try does not count, with ``excused`` the receipt neither.

        Return False if this worker already wrote the job's end. :raises LeaseLost: if another worker has the job.
        """
        now = _time(self._clock.now())
        values = {":retrying": RETRYING, ":zero": 0, ":now": now, ":attempts": lease.attempts - (not counts)}
        changes = "SET #status = :retrying, lease_until = :zero, updated_at = :now, attempts = :attempts"
        values |= {":processing": PROCESSING}
        if error is not None:
            changes, values = changes + ", #error = :error", values | {":error": error[:_LONGEST_TEXT]}
        if excused:
            changes += ", excused = :excused, excused_message = :message"
            values |= {":excused": lease.excused + 1, ":message": lease.message_id}
        try:
            self._update(
                lease.job.job_id,
                changes,
                "lease = :token AND #status IN (:processing, :retrying)",
                values | {":token": lease.token},
            )
        except _Refused as refusal:
            if refusal.item.get("lease") != lease.token:
                raise _lost(lease) from None
            return False
        return True

    def reject_job(self, job_id: str, reason: str, message_id: str) -> None:
        """Write what is wrong with a message of a new job. A known job stays as it is."""
        now = _time(self._clock.now())
        values = {":failed": FAILED, ":error": reason[:_LONGEST_TEXT], ":message": message_id, ":now": now}
        changes = "SET #status = :failed, #error = :error, message_id = :message, updated_at = :now, finished_at = :now"
        try:
            self._update(job_id, changes, "attribute_not_exists(attempts)", values)
        except _Refused:
            return

    def _finish(self, lease: Lease, status: str, facts: dict[str, Any], gone: tuple[str, ...]) -> None:
        now = self._clock.now()
        facts |= {"updated_at": _time(now), "finished_at": _time(now), "lease_until": 0, "status": status}
        names = {f"#{name}": name for name in (*facts, *gone)}
        changes = "SET " + ", ".join(f"#{name} = :{name}" for name in facts)
        changes += " REMOVE " + ", ".join(f"#{name}" for name in gone) if gone else ""
        values = {f":{name}": value for name, value in facts.items()} | {":token": lease.token}
        try:  # a repetition after a lost answer writes the same
            self._update(lease.job.job_id, changes, "lease = :token", values, names)
        except _Refused:
            raise _lost(lease) from None

    def _update(
        self,
        job_id: str,
        changes: str,
        condition: str,
        values: dict[str, Any],
        names: dict[str, str] | None = None,
        returns: str = "NONE",
    ) -> dict[str, Any]:
        if names is None:
            names = {f"#{name}": name for name in ("status", "error") if f"#{name}" in changes + condition}
        optional = {"ExpressionAttributeNames": names} if names else {}
        try:
            answer = self._dynamodb.update_item(
                TableName=self._table,
                Key={"job_id": {"S": job_id}},
                UpdateExpression=changes,
                ConditionExpression=condition,
                ReturnValues=returns,
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                ExpressionAttributeValues={name: _typed(value) for name, value in values.items()},
                **optional,
            )
        except self._dynamodb.exceptions.ConditionalCheckFailedException as error:
            raise _Refused(_plain(error.response.get("Item") or {})) from None
        return _plain(answer.get("Attributes", {}))


class _Refused(Exception):
    """The condition did not hold. ``item`` is the table's item, empty if there is none."""

    def __init__(self, item: dict[str, Any]) -> None:
        super().__init__("condition not met")
        self.item = item


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"job {lease.job.job_id} was taken over by another worker")


def _typed(value: object) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"BOOL": value}
    if isinstance(value, int | float):
        return {"N": f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)}
    return {"S": str(value)}


def _plain(item: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return an item's strings, booleans and numbers; skip other types."""
    found: dict[str, Any] = {}
    for name, typed in item.items():
        ((kind, value),) = typed.items()
        if kind in ("S", "BOOL"):
            found[name] = value
        elif kind == "N":
            found[name] = float(value)
    return found


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
