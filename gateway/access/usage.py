"""What was used: one record for each request that reached a model, and the sums by which quotas are held.

The sums are in memory, so that no request waits for a disk; records go to ``usage.db`` (SQLite, WAL) by one thread, a
batch at a time. Gateway process; knows nothing of HTTP.
"""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

from gateway.access.keys import Key
from gateway.errors import GatewayError
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
COLUMNS = (
    "at",
    "day",
    "key_id",
    "key",
    "model",
    "route",
    "status",
    "prompt_tokens",
    "completion_tokens",
    "seconds",
    "request_id",
)
RECORDS = tuple(name for name in COLUMNS if name != "key_id")
SUMS = ("day", "key", "model", "requests", "failed", "prompt_tokens", "completion_tokens", "seconds")
FILTERS = ("key", "model", "day")


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


class InsufficientQuota(GatewayError):
    """A quota is used up until its day or month is over."""

    status, error = 429, "Quota exceeded"

    def __init__(self, details: str, retry_after: float) -> None:
        super().__init__(details, retry_after=retry_after, type="insufficient_quota", code="insufficient_quota")


def day_of(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


class Quotas:
    """Requests and tokens of each key in this day and this month, both in UTC."""

    def __init__(self, earlier: Iterable[tuple[str, str, int, int]] = ()) -> None:
        """``earlier`` are (key id, day, requests, tokens) of the month so far."""
        self._lock = threading.Lock()
        self._used: dict[tuple[str, str], list[int]] = {}
        for key_id, day, requests, tokens in earlier:
            self._add(key_id, day, requests, tokens)

    def _add(self, key_id: str, day: str, requests: int, tokens: int) -> None:
        for period in (day, day[:7]):
            used = self._used.setdefault((key_id, period), [0, 0])
            used[0] += requests
            used[1] += tokens

    def check(self, key: Key, now: float) -> None:
        """:raises InsufficientQuota: if one of the key's quotas is used up."""
        with self._lock:
            self._check(key, now)

    def take(self, key: Key, now: float) -> None:
        """Count one request. :raises InsufficientQuota: if there is none left."""
        with self._lock:
            self._check(key, now)
            self._add(key.id, day_of(now), 1, 0)

    def give_back(self, key: Key, taken: float) -> None:
        """Uncount a request that was refused after all."""
        with self._lock:
            self._add(key.id, day_of(taken), -1, 0)

    def spend(self, key_id: str, tokens: int, now: float) -> None:
        with self._lock:
            self._add(key_id, day_of(now), 0, tokens)
            if len(self._used) > 10_000:
                kept = (day_of(now), day_of(now)[:7])
                self._used = {which: used for which, used in self._used.items() if which[1] in kept}

    def used(self, key: Key, now: float) -> dict[str, int]:
        day = day_of(now)
        with self._lock:
            today, month = (self._used.get((key.id, period), [0, 0]) for period in (day, day[:7]))
        return {
            "requests_today": today[0],
            "tokens_today": today[1],
            "requests_this_month": month[0],
            "tokens_this_month": month[1],
        }

    def _check(self, key: Key, now: float) -> None:
        day = day_of(now)
        for period, word, limits in (
            (day, "day", (key.requests_per_day, key.tokens_per_day)),
            (day[:7], "month", (key.requests_per_month, key.tokens_per_month)),
        ):
            used = self._used.get((key.id, period), (0, 0))
            for count, limit, what in zip(used, limits, ("requests", "tokens"), strict=True):
                if limit is not None and count >= limit:
                    raise InsufficientQuota(
                        f"the key {key.name} has used {count} of its {limit} {what} per {word}",
                        _end_of(word, now) - now,
                    )


def _end_of(period: str, now: float) -> float:
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return (today + timedelta(days=1)).timestamp()
    return (today.replace(day=1) + timedelta(days=32)).replace(day=1).timestamp()


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

    def add(self, used: Used) -> None:
        """Keep a record. Never waits."""
        try:
            self._queue.put_nowait(used)
        except Full:
            self._lost += 1
            if self._lost == 1:
                log.error("usage is recorded too slowly; records are lost")

    def flush(self) -> None:
        """Return when what was added is written, or after a few seconds."""
        if self._thread.is_alive():
            done = threading.Event()
            try:
                self._queue.put(done, timeout=_PATIENCE)
            except Full:
                return
            done.wait(_PATIENCE)

    def close(self) -> None:
        """Write what was added and end. May be called again."""
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
                pass  # the batch is as long as it gets
            try:
                with closing(self._open()) as database, database:
                    database.execute("PRAGMA synchronous = NORMAL")
                    if time.monotonic() - swept > _SWEEP or not swept:
                        swept = time.monotonic()
                        database.execute("DELETE FROM usage WHERE at < ?", (time.time() - self._retention,))
                    database.executemany(
                        f"INSERT INTO usage ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * 11)})", map(astuple, batch)
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
    """Return when each key was used last, by its id, as far as it is recorded."""
    if not file.exists():
        return {}
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=_PATIENCE)) as database:
        return dict(database.execute("SELECT key_id, MAX(at) FROM usage WHERE key_id IS NOT NULL GROUP BY key_id"))
