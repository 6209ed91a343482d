"""Makes the clients of AWS with their timeouts and retries, and sorts their errors.

The worker's process, any thread. Clients are thread-safe and sessions are not, so all clients are made at once. boto3
finds credentials as usual: environment, ``~/.aws``, the container's or the instance's role.
"""

import threading
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
    SSOError,
)

from worker.settings import WorkerSettings

_ATTEMPTS = 4
"""Tries per call, by botocore's own rules and pauses."""
_PASSING_CODES = {
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "ServiceUnavailable",
    "SlowDown",
    "RequestTimeout",
    "RequestTimeoutException",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequestsException",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestLimitExceeded",
    "ProvisionedThroughputExceededException",
    "LimitExceededException",
    "BandwidthLimitExceeded",
    "TransactionInProgressException",
    "OperationAborted",
    "ConditionalRequestConflict",
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
}
_REFUSED_CODES = {
    "AccessDenied",
    "AccessDeniedException",
    "ResourceNotFoundException",
    "UnrecognizedClientException",
    "MissingAuthenticationTokenException",
    "MissingAuthenticationToken",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "IncompleteSignature",
    "SubscriptionRequiredException",
    "OptInRequired",
    "QueueDoesNotExist",
    "AWS.SimpleQueueService.NonExistentQueue",
    "PermanentRedirect",
}
AwsError = (ClientError, BotoCoreError)
"""The errors that a call of AWS may raise."""


@dataclass(frozen=True)
class Clients:
    """One client per service, and the services' clock."""

    sqs: Any
    s3: Any
    dynamodb: Any
    clock: "ServiceClock"


class ServiceClock:
    """The time from the ``Date`` header of DynamoDB's answers, so that workers agree on when a lease ends.

    The header has whole seconds, so two workers may differ by a second and the time of an answer. Before the first
    answer this is the machine's time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Monotonic, because somebody may set the machine's clock between two answers.
        self._start = time.time() - time.monotonic()

    def now(self) -> float:
        """Return seconds since 1970."""
        with self._lock:
            return time.monotonic() + self._start

    def learn_time(self, parsed: dict[str, Any], **_: Any) -> None:
        """Set the clock from an answer; ignore an answer without a date."""
        date = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        try:
            told = parsedate_to_datetime(date).timestamp() if date else None
        except ValueError:
            return
        if told is not None:
            with self._lock:
                self._start = told - time.monotonic()


def connect(settings: WorkerSettings) -> Clients:
    """Return the clients. Makes no call yet.

    :raises BotoCoreError: if the configuration of AWS on this machine cannot be used.
    """
    retries = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
    common = Config(
        retries=retries,
        connect_timeout=5,
        read_timeout=20,
        user_agent_extra="switchyard-worker",
        max_pool_connections=4 * settings.concurrency + 8,
    )
    # SQS holds a poll open; the loop repeats it.
    polling = common.merge(Config(read_timeout=settings.poll_wait + 15))
    # A local stand-in has no host name per bucket.
    paths = common.merge(Config(s3={"addressing_style": "path"})) if settings.aws_endpoint_url else common
    session = boto3.session.Session(region_name=settings.aws_region)
    dynamodb, clock = session.client("dynamodb", config=common), ServiceClock()
    dynamodb.meta.events.register("after-call.dynamodb", clock.learn_time)
    return Clients(session.client("sqs", config=polling), session.client("s3", config=paths), dynamodb, clock)


def is_transient(error: Exception) -> bool:
    """Return whether the error is likely to go away: an outage, throttling, a broken connection."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or error_code(error) in _PASSING_CODES
    # ConnectionError: failures to connect, proxy and TLS included. HTTPClientError: later failures.
    return isinstance(error, ConnectionError | HTTPClientError | IncompleteReadError | ResponseStreamingError)


def is_refusal(error: Exception) -> bool:
    """Return whether the service refuses this worker for every job: a right, a bucket, a table or a key is missing.

    Use it only for the worker's own resources; a video's bucket belongs to the job.
    """
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        said = error_code(error).rpartition("#")[2]
        return not is_transient(error) and (
            status in (401, 403, 404) or said in _REFUSED_CODES or "KMS" in said.upper()
        )
    return isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError | SSOError)


def error_code(error: Exception) -> str:
    """Return the service's error code, such as ``NoSuchKey``, or an empty string."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def describe_error(error: Exception) -> str:
    """Return the error as one line for logs and items, without possible secrets."""
    if isinstance(error, ClientError):
        said = error.response.get("Error", {}).get("Message") or ""
        return f"{error.operation_name}: {error_code(error)}" + (f": {said}" if said else "")
    return f"{type(error).__name__}: {error}"
