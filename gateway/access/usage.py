"""Usage: one record for each request that reached a model, gathered while it is answered.

Records go to ``usage.db`` (SQLite, WAL) by one thread, a batch at a time, so that no request waits for a disk. A
request may have several tickets, one for each of several prompts, whose pieces are taken in threads of their own; the
figures are those of the tickets' timelines. Gateway process; knows nothing of HTTP.
"""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

from gateway.access.keys import Key
from gateway.access.quotas import Quotas, day_of
from gateway.errors import Forbidden, GatewayError
from gateway.requests import timeline
from gateway.requests.pieces import Finished, Piece, Waiting
from gateway.requests.ticket import Ticket
from models_registry.spec import ModelSpec
from utils.settings import SettingsError

log = logging.getLogger(__name__)
_WAITING = 100_000  # records; more are lost, and the log says so
_BATCH = 1000
_PAUSE = 0.2  # seconds in which records gather to a batch
_SWEEP = 3600.0
_PATIENCE = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    at REAL NOT NULL, day TEXT NOT NULL, key_id TEXT, key TEXT, model TEXT NOT NULL, route TEXT NOT NULL,
    status INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL, request_id TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS usage_by_day ON usage (day, key_id, model);
"""


@dataclass(frozen=True, slots=True)
class Used:
    """One request. ``at`` is when it came, in seconds since the epoch, ``day`` that day in UTC, ``status`` how it
    ended: the response's status, 499 when its client left."""

    at: float
    day: str
    key_id: str | None
    key: str | None
    model: str
    route: str
    status: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    request_id: str


COLUMNS = tuple(column.name for column in fields(Used))
RECORDS = tuple(name for name in COLUMNS if name != "key_id")
SUMS = ("day", "key", "model", "requests", "failed", "prompt_tokens", "completion_tokens", "seconds")
FILTERS = ("key", "model", "day")


def path(data_dir: Path) -> Path:
    """Return where the records are kept."""
    return data_dir / "usage.db"


def prepare(file: Path) -> list[tuple[str, str, int, int]]:
    """Make the records' file where there is none; return (key id, day, requests, tokens) of the month so far.

    :raises SettingsError: if it cannot be used.
    """
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(file, timeout=_PATIENCE)) as database:
            if database.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                log.warning("%s: no write-ahead log on this file system", file)
            database.executescript(_SCHEMA)
            month = day_of(time.time())[:7]
            return database.execute(
                "SELECT key_id, day, COUNT(*), SUM(prompt_tokens + completion_tokens) FROM usage"
                " WHERE day >= ? AND key_id IS NOT NULL GROUP BY key_id, day",
                (month,),
            ).fetchall()
    except (OSError, sqlite3.Error) as error:
        raise SettingsError(f"usage cannot be recorded in {file}: {error}") from error


class UsageLog:
    """The records, kept for ``retention`` seconds.

    :raises SettingsError: if they cannot be kept there.
    """

    def __init__(self, file: Path, retention: float) -> None:
        self._file, self._retention = file, retention
        self._queue: Queue[Used | threading.Event | None] = Queue(_WAITING)
        self._lost = 0
        self.quotas = Quotas(prepare(file))
        self._thread = threading.Thread(target=self._write, name="usage", daemon=True)
        self._thread.start()

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._file, timeout=_PATIENCE)

    def add_record(self, used: Used) -> None:
        """Keep a record. Never waits."""
        try:
            self._queue.put_nowait(used)
        except Full:
            self._lost += 1
            if self._lost == 1:
                log.error("usage is recorded too slowly; records are lost")

    def flush(self) -> None:
        """Wait until all added records are written, a few seconds at most."""
        if self._thread.is_alive():
            done = threading.Event()
            try:
                self._queue.put(done, timeout=_PATIENCE)
            except Full:
                return
            done.wait(_PATIENCE)

    def close(self) -> None:
        """Write all added records and end the thread. May be called again."""
        if self._thread.is_alive():
            try:
                self._queue.put(None, timeout=_PATIENCE)
            except Full:
                return
            self._thread.join(_PATIENCE)

    # -- the writing thread --------------------------------------------------------------------------------------------

    def _write(self) -> None:
        swept, going = 0.0, True
        while going:
            batch: list[Used] = []
            waiting: list[threading.Event] = []
            try:
                item = self._queue.get(timeout=_SWEEP)
                until = time.monotonic() + _PAUSE
                while True:
                    if item is None:
                        going = False
                        break
                    if isinstance(item, Used):
                        batch.append(item)
                    else:
                        waiting.append(item)
                        break
                    if len(batch) >= _BATCH:
                        break
                    item = self._queue.get(timeout=max(0.0, until - time.monotonic()) or 0.001)
            except Empty:
                pass  # the batch is complete
            try:
                with closing(self._open()) as database, database:
                    database.execute("PRAGMA synchronous = NORMAL")
                    if time.monotonic() - swept > _SWEEP or not swept:
                        swept = time.monotonic()
                        database.execute("DELETE FROM usage WHERE at < ?", (time.time() - self._retention,))
                    database.executemany(
                        f"INSERT INTO usage ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})",
                        map(astuple, batch),
                    )
            except sqlite3.Error as error:
                log.error("%d records of usage are lost: %s", len(batch), error)
            for event in waiting:
                event.set()

    # -- reading -------------------------------------------------------------------------------------------------------

    def sums(
        self, filters: Mapping[str, str], since: str | None = None, until: str | None = None
    ) -> list[dict[str, Any]]:
        """Return sums by day, key and model, the latest day first."""
        where, values = _where(filters, since, until)
        return self._select(
            SUMS,
            "SELECT day, key, model, COUNT(*), SUM(status >= 400), SUM(prompt_tokens), SUM(completion_tokens),"
            f" ROUND(SUM(seconds), 3) FROM usage {where} GROUP BY day, key_id, key, model"
            " ORDER BY day DESC, key, model",
            values,
        )

    def records(
        self, filters: Mapping[str, str], limit: int, since: str | None = None, until: str | None = None
    ) -> list[dict[str, Any]]:
        """Return single records, the latest first."""
        where, values = _where(filters, since, until)
        return self._select(
            RECORDS, f"SELECT {', '.join(RECORDS)} FROM usage {where} ORDER BY at DESC LIMIT ?", [*values, limit]
        )

    def _select(self, names: tuple[str, ...], statement: str, values: list[Any]) -> list[dict[str, Any]]:
        self.flush()
        with closing(self._open()) as database:
            return [dict(zip(names, row, strict=True)) for row in database.execute(statement, values)]


def _where(filters: Mapping[str, str], since: str | None, until: str | None) -> tuple[str, list[Any]]:
    """``filters`` are columns of :data:`FILTERS`; an empty key stands for requests without one."""
    terms: list[str] = []
    values: list[Any] = []
    for name, value in filters.items():
        if name == "key" and not value:
            terms.append("key IS NULL")
            continue
        terms.append(f"{name} = ?")
        values.append(value)
    for bound, operator in ((since, ">="), (until, "<=")):
        if bound is not None:
            terms.append(f"day {operator} ?")
            values.append(bound)
    return ("WHERE " + " AND ".join(terms) if terms else ""), values


def last_used(file: Path) -> dict[str, float]:
    """Return when each key was last used, by its id, as far as records say."""
    if not file.exists():
        return {}
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=_PATIENCE)) as database:
        return dict(database.execute("SELECT key_id, MAX(at) FROM usage WHERE key_id IS NOT NULL GROUP BY key_id"))


# -- one request -------------------------------------------------------------------------------------------------------

CLIENT_GONE = 499
_STATUSES = {
    timeline.TOO_LATE: 504,
    timeline.BAD_REQUEST: 400,
    timeline.REFUSED: 503,
    timeline.OUT_OF_MEMORY: 503,
    timeline.FAILED: 503,
}
"""The status a stream would have had, by how its ticket ended; 499 for any other end."""


class Unauthorized(GatewayError):
    """No key, or none that is valid."""

    status, error = 401, "Unauthorized"

    def __init__(self, details: str) -> None:
        super().__init__(details, code="invalid_api_key")


class Record:
    """What the current request has used so far. ``still`` returns a key as it is now, if it is still valid."""

    def __init__(
        self, usage: UsageLog, key: Key | None, route: str, request_id: str, still: Callable[[Key], Key | None]
    ) -> None:
        self._usage, self._key, self._route, self._request_id, self._still = usage, key, route, request_id, still
        self._at, self._began = time.time(), time.monotonic()
        self._tickets: list[Ticket] = []
        self._unspent: set[Ticket] = set()
        self._taken = self._revoked = False

    def take(self, spec: ModelSpec) -> None:
        """Count the request for its key's quotas, once.

        :raises Forbidden: if the key may not use the model. :raises InsufficientQuota: if there is none left.
        """
        if self._key is not None:
            allow(self._key, spec)
            if not self._taken:
                self._usage.quotas.take(self._key, self._at)
                self._taken = True

    def refused(self) -> None:
        """Uncount the request, which got no place in the queue, unless another of its prompts got one."""
        if self._key is not None and self._taken and not self._tickets:
            self._usage.quotas.give_back(self._key, self._at)
            self._taken = False

    def watch(self, ticket: Ticket, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Pass on the pieces of an answer, and spend what it took of its key's quotas.

        :raises Unauthorized: if the key was revoked before the answer began.
        """
        self._tickets.append(ticket)
        return pieces if self._key is None else self._watched(self._key, ticket, pieces)

    def _watched(self, key: Key, ticket: Ticket, pieces: Iterator[Piece]) -> Iterator[Piece]:
        self._unspent.add(ticket)
        begun = False
        for piece in pieces:
            if not begun:
                begun = not isinstance(piece, Waiting)
                if self._still(key) is None:
                    self._revoked = True
                    raise Unauthorized("the API key was revoked")
            if isinstance(piece, Finished):
                self._spend(key, ticket)
            yield piece

    def _spend(self, key: Key, ticket: Ticket) -> None:
        try:
            self._unspent.remove(ticket)
        except KeyError:
            return  # at the end of the request already, by another thread
        over = ticket.timeline
        self._usage.quotas.spend(key.id, over.prompt_tokens + over.completion_tokens, time.time())

    def write(self, status: int) -> None:
        """Keep the record of a request that reached a model. ``status`` is its response's, which for a stream is known
        before the answer."""
        if not self._tickets:
            return
        key, over = self._key, [ticket.timeline for ticket in self._tickets]
        if key is not None:
            for ticket in list(self._unspent):
                self._spend(key, ticket)
        ends = [
            None
            if ticket.over and ticket.timeline.outcome == timeline.ANSWERED
            else _STATUSES.get(ticket.timeline.outcome or "", CLIENT_GONE)
            for ticket in self._tickets
        ]
        failed = 401 if self._revoked else next((end for end in ends if end is not None), None)
        self._usage.add_record(
            Used(
                round(self._at, 3),
                time.strftime("%Y-%m-%d", time.gmtime(self._at)),
                key.id if key else None,
                key.name if key else None,
                over[0].model,
                self._route,
                status if status >= 400 or failed is None else failed,
                sum(one.prompt_tokens for one in over),
                sum(one.completion_tokens for one in over),
                round(time.monotonic() - self._began, 3),
                self._request_id,
            )
        )


def allow(key: Key | None, spec: ModelSpec) -> None:
    """:raises Forbidden: if the key may not use the model."""
    if key is not None and not key.may_use(spec.name):
        raise Forbidden(
            f"the key {key.name} may not use {spec.name}; it may use {', '.join(key.models or ())}",
            param="model",
            code="model_not_allowed",
        )
