"""A page that watches a gateway: reads ``/ui/live`` in a thread of its own and keeps what it was told."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx

from tests.support.gateway import GatewayProcess


class Page:
    """What came so far: ``events`` are pairs of a name and its data, ``ids`` those of the journal's entries, and
    ``told`` all ids: how far the journal was told, entries among it that are not for this page."""

    def __init__(self, gateway: GatewayProcess, response: httpx.Response) -> None:
        self.gateway = gateway
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.ids: list[str] = []
        self.told: list[str] = []
        self.ended = threading.Event()
        self._response = response
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        name = ""
        with suppress(httpx.TransportError, httpx.StreamError):
            for line in self._response.iter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("id: "):
                    self.told.append(line[4:])
                elif line.startswith("data: "):
                    if name == "journal":
                        self.ids.append(self.told[-1])
                    self.events.append((name, json.loads(line[6:])))
        self.ended.set()

    def of(self, name: str) -> list[dict[str, Any]]:
        """The data of all events of this name."""
        return [data for found, data in list(self.events) if found == name]

    def first(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.gateway.until(lambda: self.of(name), f"an event {name}")[0]
        return found

    def state(self) -> dict[str, Any]:
        """The latest state."""
        self.first("state")
        return self.of("state")[-1]

    def model(self, name: str) -> dict[str, Any]:
        return next(model for model in self.state()["models"] if model["name"] == name)

    def entry(self, kind: str, model: str | None = None, after: int = 0) -> dict[str, Any]:
        """The first entry of the journal of this kind, about this model, after another one."""

        def found() -> list[dict[str, Any]]:
            return [
                entry
                for entry in self.of("journal")
                if entry["kind"] == kind and entry["model"] == model and entry["id"] > after
            ]

        entries: list[dict[str, Any]] = self.gateway.until(found, f"{kind} of {model}")
        return entries[0]

    def last(self) -> int:
        """The id of the latest entry."""
        return max((entry["id"] for entry in self.of("journal")), default=0)

    def close(self) -> None:
        self._response.close()
        self._thread.join(10)


@contextmanager
def watching(gateway: GatewayProcess, token: str | None = None, last: str | None = None) -> Iterator[Page]:
    """Open a page; ``token`` is its key, ``last`` the id of the last entry that it has."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    headers |= {"Last-Event-ID": last} if last else {}
    with gateway.client.stream("GET", "/ui/live", headers=headers) as response:
        if response.status_code != 200:
            response.read()
            raise AssertionError(response.text)
        page = Page(gateway, response)
        try:
            yield page
        finally:
            page.close()
