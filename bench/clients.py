"""Clients that stream answers over plain HTTP and record when each piece arrives.

They use ``http.client`` and a thread per client. That costs a few dozen microseconds per piece, little beside the
server. Tokens are counted by the ``usage`` of the last event, because one event may carry several tokens or none (the
server holds back white space and incomplete characters). Gaps are timed between events, as a reader sees them.
"""

import http.client
import json
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 600.0
"""Seconds of silence after which a request counts as hung."""


@dataclass(frozen=True)
class Question:
    """One request: its path and body."""

    path: str
    body: dict[str, Any]


@dataclass
class Answer:
    """The answer to a request. Times are of ``time.perf_counter``; ``pieces`` are the times at which text arrived.

    ``status`` is the HTTP status, or that of an error in the stream; 0 if there was no answer.
    """

    started: float
    status: int = 0
    error: str = ""
    retry_after: float | None = None
    ended: float = 0.0
    tokens: int = 0
    pieces: list[float] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.status == 200

    @property
    def first(self) -> float:
        """Seconds to the first text (TTFT), or to the end if no text came."""
        return (self.pieces[0] if self.pieces else self.ended) - self.started

    @property
    def total(self) -> float:
        return self.ended - self.started

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.pieces, self.pieces[1:], strict=False)]


class Client:
    """One open connection to a server, for one thread."""

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=patience)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, question: Question) -> Answer:
        """Send a question and read its answer to the end, streamed or whole."""
        body = json.dumps(question.body).encode()
        answer = Answer(time.perf_counter())
        try:
            self._connection.request("POST", question.path, body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            answer.status = response.status
            if (after := response.headers.get("Retry-After")) is not None:
                answer.retry_after = float(after)
            if response.headers.get_content_type() == "text/event-stream":
                for line in response:
                    if line.startswith(b"data: ") and line[6] == 123:  # {: [DONE] is no object
                        _take(answer, json.loads(line[6:]))
            else:
                _take_whole(answer, json.loads(response.read()))
        except (OSError, http.client.HTTPException, ValueError) as error:
            answer.status, answer.error = 0, f"{type(error).__name__}: {error}"
            self.close()
        answer.ended = time.perf_counter()
        return answer

    def wake(self) -> None:
        """Reopen the connection if the server closed it after its idle time."""
        try:
            self._health()
        except (OSError, http.client.HTTPException):
            self.close()
            self._health()

    def _health(self) -> None:
        self._connection.request("GET", "/health")
        self._connection.getresponse().read()

    def close(self) -> None:
        self._connection.close()


def generate(model: str, prompt: str, tokens: int, **fields: Any) -> Question:
    """Return a greedy, streaming request to ``/generate`` for an exact number of tokens."""
    body = {
        "prompt": prompt,
        "max_new_tokens": tokens,
        "min_tokens": tokens,
        "temperature": 0,
        "repetition_penalty": 1.0,
        "stream": True,
    }
    return Question(f"/generate/{model}", body | fields)


def chat(model: str, prompt: str, tokens: int, **fields: Any) -> Question:
    """Return the same to ``/v1/chat/completions``."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return Question("/v1/chat/completions", body | fields)


def crowd(url: str, questions: Iterable[Question], clients: int) -> list[Answer]:
    """Ask all questions with this many clients in a closed loop: each asks again once it has an answer."""
    left: queue.SimpleQueue[Question] = queue.SimpleQueue()
    for question in questions:
        left.put(question)
    answers: list[Answer] = []

    def work() -> None:
        with Client(url) as client:
            while True:
                try:
                    question = left.get_nowait()
                except queue.Empty:
                    return
                answers.append(client.ask(question))

    together([work] * clients)
    return answers


def together(jobs: list[Callable[[], None]]) -> None:
    """Run all at the same time, each in a thread; return when all are done."""
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], None]) -> None:
        start.wait()
        job()

    threads = [threading.Thread(target=run, args=(job,), name=f"client-{number}") for number, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _take(answer: Answer, event: dict[str, Any]) -> None:
    """Record an event of either route."""
    now = time.perf_counter()
    if "error" in event:
        error = event["error"]
        nested = error if isinstance(error, dict) else {}
        answer.status = int(event.get("status") or nested.get("status") or 500)
        answer.error = str(event.get("details") or nested.get("message") or error)
        return
    if event.get("usage"):
        answer.tokens = int(event["usage"]["completion_tokens"])
    choices = event.get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    if event.get("response") or event.get("reasoning") or delta.get("content") or delta.get("reasoning_content"):
        answer.pieces.append(now)


def _take_whole(answer: Answer, body: Any) -> None:
    if answer.status != 200:
        error = body.get("error") if isinstance(body, dict) else body
        answer.error = str(error.get("message") if isinstance(error, dict) else f"{error}: {body.get('details')}")
        return
    answer.tokens = int(body["usage"]["completion_tokens"])
    answer.pieces.append(time.perf_counter())
