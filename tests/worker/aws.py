"""A local AWS for tests of the worker: moto's server in its own process, with separate names for each test.

Also starts workers as processes, and a proxy between the two that fails requests on demand. Nothing leaves this
machine; the credentials are invented.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from tests.support.children import free_port
from tests.support.gateway import PATIENCE, ROOT
from worker.aws import create
from worker.aws.clients import Clients, ServiceClock
from worker.settings import WorkerSettings

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}
STAND_IN = Path(__file__).with_name("stand_in.py")


def until(condition: Callable[[], Any], what: str, story: Callable[[], str] = lambda: "") -> Any:
    """Return the first true value of ``condition``. :raises AssertionError: if it stays false."""
    start = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() - start < PATIENCE, f"waited in vain for {what}:\n{story()}"
        time.sleep(0.05)
    return value


class Aws:
    """One server for all tests of a module; ``names`` makes a queue, a bucket and a table for one of them."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = home / "moto.txt"
        environment = os.environ | {"MOTO_PORT": str(self.port), "MOTO_S3_DEFAULT_MAX_KEYS": "1000"}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.sqs, self.s3, self.dynamodb = (self.client(name) for name in ("sqs", "s3", "dynamodb"))
        until(self._answers, "moto's server", lambda: self.output.read_text(errors="replace")[-2000:])

    def client(self, name: str) -> Any:
        return boto3.session.Session().client(
            name,
            endpoint_url=self.url,
            region_name="us-east-2",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            config=Config(s3={"addressing_style": "path"}, connect_timeout=5),
        )

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.output.read_text(errors="replace")
        with suppress(BotoCoreError):
            self.dynamodb.list_tables()
            return True
        return False

    def held_to_rights(self, wanted: bool) -> None:
        """Make the server enforce the callers' policies, or allow everything, as at its start."""
        body = b"0" if wanted else b"inf"
        request = urllib.request.Request(f"{self.url}/moto-api/reset-auth", body, {"Content-Type": "text/plain"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            assert answer.status == 200

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
        for client in (self.sqs, self.s3, self.dynamodb):
            client.close()

    def clients(self) -> Clients:
        return Clients(self.sqs, self.s3, self.dynamodb, ServiceClock())


@contextmanager
def aws_server(home: Path) -> Iterator[Aws]:
    server = Aws(home)
    try:
        yield server
    finally:
        server.stop()


class Place:
    """A queue, a dead-letter queue, a bucket and a table of one test, and the workers that use them."""

    def __init__(self, aws: Aws, home: Path, *, fifo: bool = False, **settings: object) -> None:
        self.aws, self.home = aws, home
        self.name = f"t{uuid.uuid4().hex[:12]}"
        queue = f"{self.name}.fifo" if fifo else self.name
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SWITCHYARD_", "WORKER_"))
        }
        self.environment |= (
            CREDENTIALS
            | {
                "AWS_ENDPOINT_URL": aws.url,
                "AWS_REGION": "us-east-2",
                "QUEUE_NAME": queue,
                "RESULT_BUCKET": f"{self.name}-results",
                "JOBS_TABLE": f"{self.name}-jobs",
                "PYTHONUNBUFFERED": "1",
                "PYTHONPATH": str(ROOT),
                "WORKER_METRICS_PORT": "0",
                "WORKER_POLL_WAIT": "1",
                "WORKER_RETRY_DELAY": "1",
                "WORKER_HEALTH_FILE": str(home / "health.json"),
                "WORKER_GRACE": "0",
                "STAND_IN_HOME": str(home),
            }
            | {name: str(value) for name, value in settings.items()}
        )
        with self._environment():
            self.settings = WorkerSettings()
            create.create_resources(self.settings, aws.clients())
        self.videos = f"{self.name}-videos"
        aws.s3.create_bucket(Bucket=self.videos, CreateBucketConfiguration={"LocationConstraint": "us-east-2"})
        self.queue = aws.sqs.get_queue_url(QueueName=queue)["QueueUrl"]
        self.dead = aws.sqs.get_queue_url(QueueName=queue.replace(self.name, f"{self.name}-dead"))["QueueUrl"]
        self.workers: list[WorkerProcess] = []

    @contextmanager
    def _environment(self) -> Iterator[None]:
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def video(self, key: str, data: bytes | dict[str, Any]) -> str:
        """Upload a video, real or a command for the stand-in; return its address."""
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.aws.s3.put_object(Bucket=self.videos, Key=key, Body=body)
        return f"s3://{self.videos}/{key}"

    def send(self, job_id: str, url: str) -> str:
        """Send a job; return the message's id."""
        return self.send_raw(json.dumps({"job_id": job_id, "video_s3_url": url}))

    def send_raw(self, body: str) -> str:
        fifo = {"MessageGroupId": "g", "MessageDeduplicationId": uuid.uuid4().hex} if ".fifo" in self.queue else {}
        answer: dict[str, str] = self.aws.sqs.send_message(QueueUrl=self.queue, MessageBody=body, **fifo)
        return answer["MessageId"]

    def job(self, job_id: str, **do: Any) -> str:
        """Make a video for the stand-in and send the job; return its id."""
        self.send(job_id, self.video(f"in/{job_id}.mp4", do))
        return job_id

    def item(self, job_id: str) -> dict[str, Any]:
        """Return the job's item with plain values; empty if there is none."""
        answer = self.aws.dynamodb.get_item(
            TableName=self.settings.jobs_table, Key={"job_id": {"S": job_id}}, ConsistentRead=True
        )
        return {
            name: float(value["N"]) if "N" in value else next(iter(value.values()))
            for name, value in answer.get("Item", {}).items()
        }

    def became(self, job_id: str, status: str) -> dict[str, Any]:
        """Wait for the job's status; return the item."""
        found: dict[str, Any] = until(
            lambda: item if (item := self.item(job_id)).get("status") == status else None,
            f"{job_id} to be {status}; it is {self.item(job_id)}",
            self.story,
        )
        return found

    def results(self) -> dict[str, int]:
        """Return the files in the bucket of results, and how often each was written if versions are kept."""
        found: dict[str, int] = {}
        for page in self.aws.s3.get_paginator("list_object_versions").paginate(Bucket=self.settings.result_bucket):
            for version in page.get("Versions", []):
                found[version["Key"]] = found.get(version["Key"], 0) + 1
        return found

    def keep_versions(self) -> None:
        self.aws.s3.put_bucket_versioning(
            Bucket=self.settings.result_bucket, VersioningConfiguration={"Status": "Enabled"}
        )

    def result(self, job_id: str) -> Any:
        key = f"moderation-results/{job_id}/image_llm_safety_result.json"
        with self.aws.s3.get_object(Bucket=self.settings.result_bucket, Key=key)["Body"] as body:
            return json.loads(body.read())

    def waiting(self) -> tuple[int, int]:
        """Return how many messages wait, and how many are hidden."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        got = self.aws.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)["Attributes"]
        return int(got[names[0]]), int(got[names[1]])

    def empty(self) -> None:
        """Wait until the queue is empty. It asks twice, because a message given back during a count is in neither."""
        until(lambda: self.waiting() == (0, 0) == self.waiting(), "the queue to be empty", self.story)

    def dead_letters(self) -> list[dict[str, Any]]:
        """Take the messages out of the dead-letter queue; return ``body`` and attributes of each."""
        found = []
        while got := self.aws.sqs.receive_message(
            QueueUrl=self.dead, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages"):
            for one in got:
                told = {name: value["StringValue"] for name, value in one["MessageAttributes"].items()}
                found.append({"body": one["Body"]} | told)
                self.aws.sqs.delete_message(QueueUrl=self.dead, ReceiptHandle=one["ReceiptHandle"])
        return found

    # -- workers -------------------------------------------------------------------------------------------------------

    def worker(self, *command: str, **settings: object) -> "WorkerProcess":
        """Start a worker: the stand-in, or the given arguments of ``python``."""
        worker = WorkerProcess(
            self, list(command) or [str(STAND_IN)], {name: str(value) for name, value in settings.items()}
        )
        self.workers.append(worker)
        return worker

    def begun(self) -> list[str]:
        """Return the ids of all jobs that the stand-in began to judge, in order, with repetitions."""
        return self._ledger("begun")

    def judged(self) -> list[str]:
        """Return the ids of all jobs that the stand-in finished judging."""
        return self._ledger("judged")

    def _ledger(self, what: str) -> list[str]:
        with suppress(FileNotFoundError):
            lines = [line.split() for line in (self.home / "ledger").read_text().splitlines()]
            return [job_id for said, job_id, _ in lines if said == what]
        return []

    def go(self) -> None:
        """Let the stand-in's waiting jobs continue."""
        (self.home / "go").touch()

    def story(self) -> str:
        return "\n".join(f"{worker.output.name}:\n{worker.log()[-3000:]}" for worker in self.workers)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


@contextmanager
def place(aws: Aws, home: Path, *, fifo: bool = False, **settings: object) -> Iterator[Place]:
    made = Place(aws, home, fifo=fifo, **settings)
    try:
        yield made
    finally:
        made.close()


class WorkerProcess:
    """A worker process."""

    def __init__(self, place: Place, command: list[str], settings: dict[str, str]) -> None:
        self.place = place
        self.output = place.home / f"worker-{len(place.workers)}.txt"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", *command],
                cwd=ROOT,
                env=place.environment | settings,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self) -> str:
        return self.output.read_text(errors="replace")

    def logged(self, words: str) -> "WorkerProcess":
        """Wait for words in its output."""

        def said() -> bool:
            ended = self.process.poll() is not None
            found = words in self.log()
            assert found or not ended, f"it ended without saying {words!r}:\n{self.log()}"
            return found

        until(said, repr(words), self.place.story)
        return self

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it with SIGTERM; return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)


class FaultProxy:
    """Forwards requests and fails some on demand.

    ``fail(how, matching, times)`` fails the next ``times`` requests whose first line or target has the words. ``how``
    is "503" (an error of the service), "403" (a missing right), "reset" (the connection breaks before the request is
    forwarded), "lost" (it breaks afterwards and the answer is lost), "cut" (the answer's body breaks off) or "hold"
    (nothing happens until ``mend``, then the connection breaks).
    """

    def __init__(self, target: int) -> None:
        self.failed: list[str] = []
        self.mended = threading.Event()
        self._rules: list[tuple[str, str, int]] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self, target))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def fail(self, how: str, matching: str, times: int) -> None:
        with self._lock:
            self._rules.append((how, matching, times))

    def mend(self) -> None:
        with self._lock:
            self._rules.clear()
        self.mended.set()

    def verdict(self, request: str) -> str:
        with self._lock:
            for index, (how, matching, times) in enumerate(self._rules):
                if times and matching in request:
                    self._rules[index] = (how, matching, times - 1)
                    self.failed.append(f"{how} {request}")
                    return how
        return ""

    def close(self) -> None:
        self.mend()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE)
        assert not self._server.mistakes, self._server.mistakes


class _Server(ThreadingHTTPServer):
    """Records its errors, except broken connections of killed workers."""

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.mistakes: list[str] = []
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError | http.client.HTTPException):
            self.mistakes.append(traceback.format_exc())


def _handler(proxy: FaultProxy, target: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self._body()
            how = proxy.verdict(f"{self.command} {self.path} {self.headers.get('X-Amz-Target', '')}")
            if how == "hold":
                proxy.mended.wait(PATIENCE)
            if how in ("hold", "reset"):
                self.close_connection = True
                return
            if how in ("503", "403"):
                self._answer(int(how), [], b"")
                return
            connection = http.client.HTTPConnection("127.0.0.1", target, timeout=PATIENCE)
            # The signature is for another host; moto does not check it.
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if how == "lost":
                self.close_connection = True
                return
            kept = [
                (name, value)
                for name, value in answer.getheaders()
                if name.lower() not in ("content-length", "transfer-encoding", "connection")
            ]
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(answer.status, kept, data, cut=how == "cut", length=length)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

        def _body(self) -> bytes:
            assert "Transfer-Encoding" not in self.headers, "a chunked request, which this proxy does not pass on"
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _answer(
            self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False, length: str | None = None
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = self.close_connection or cut

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
