"""Quotas: requests and tokens of each key in a day and a month.

The sums are in memory, so that no request waits for a disk. Gateway process, in any thread; knows nothing of HTTP.
"""

import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from gateway.access.keys import Key
from gateway.errors import GatewayError


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
