"""``GET /ui/live``: the server's state, samples and journal as server-sent events for the dashboard's pages.

Gateway process. Each stream holds one thread of the gunicorn worker, which has ``live_streams`` additional threads for
them. A stream ends when its client disconnects, the gateway stops, its key changes or its session ends.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flask import Response, current_app, g, request

from gateway.access.control import access
from gateway.access.keys import Key
from gateway.errors import GatewayError, Unavailable
from gateway.gateway import Gateway
from gateway.http.client_gone import Client
from gateway.observe.snapshot import INTERVAL
from gateway.routes import gateway, sse
from gateway.routes.openapi.document import VERSION
from gateway.routes.ui.page_headers import blueprint

_BEAT = 10.0  # seconds without an event after which a comment is sent
_RETRY = "retry: 2000\n\n"
_BACKLOG = 100  # journal entries for a page that has received none
_LISTED = 200  # requests listed in a state, the oldest first; the others are counted
_ASK = "ask whoever runs this server"
_STUCK = 3.0  # seconds without reading after which a client may lose its stream to another
_AGAIN = 5.0  # Retry-After at the limit of streams


class TooManyPages(GatewayError):
    """The limit of open dashboard streams is reached."""

    status, error = 429, "Too many pages"


@dataclass(eq=False, frozen=True, slots=True)
class _OpenStream:
    """An open stream: the id of its key, and its client."""

    key_id: str
    client: Client


class Streams:
    """The open streams, and their limit. One key may open half of them. At the limit, the client that has not read for
    longest loses its stream to a new one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[_OpenStream] = []  # the oldest first

    def claim_stream(self, most: int, key: Key | None, client: Client) -> Callable[[], None]:
        """Count a stream; return what ends it, which may be called twice. :raises TooManyPages: at the limit."""
        opened = _OpenStream(key.id if key else "", client)
        share = most if key is None else (most + 1) // 2
        with self._lock:
            own = [one for one in self._open if one.key_id == opened.key_id]
            if len(own) >= share and key is not None and most:
                self._end_one(
                    own,
                    f"the key {key.name} has {share} dashboard pages open already, half of all that "
                    f"may watch (live_streams: {most}); close one",
                )
            elif len(self._open) >= most:
                what = f"{most} dashboard pages watch already" if most else "live figures are turned off"
                self._end_one(self._open, f"{what} (live_streams: {most}); close one, or raise the setting")
            self._open.append(opened)

        def leave() -> None:
            with self._lock:
                if opened in self._open:
                    self._open.remove(opened)

        return leave

    def _end_one(self, streams: list[_OpenStream], words: str) -> None:
        """End the stream whose client has not read for longest. Reading clients would reconnect at once."""
        stuck = max(streams, key=lambda one: one.client.stuck(), default=None)
        if stuck is None or stuck.client.stuck() < _STUCK:
            raise TooManyPages(words, retry_after=_AGAIN)
        stuck.client.cut_connection()
        self._open.remove(stuck)


@blueprint.get("/live")
def live() -> Response:
    """Stream the history at once, then a sample each second, each change of the state, and the journal after the entry
    in ``Last-Event-ID`` or ``after``. ``probe`` only asks whether a stream would be accepted: a browser does not tell a
    page why its stream was refused."""
    service = gateway()
    if service.stopping:
        raise Unavailable("the server is stopping", retry_after=_AGAIN)
    streams: Streams = current_app.extensions.setdefault("live_streams", Streams())
    client = Client(request.environ)
    leave = streams.claim_stream(service.settings.live_streams, g.key, client)
    if "probe" in request.args:
        leave()
        return Response(status=204)
    token = request.cookies.get(access().cookie) if g.by_cookie else None
    stream = Stream(service, g.key, token, client.gone, _seen(service))

    def text() -> Iterator[str]:
        try:
            yield from stream.yield_events()
        finally:
            leave()

    response = Response(
        text(), mimetype="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    response.call_on_close(leave)  # also when the client left before the first event
    return response


def _seen(service: Gateway) -> int | None:
    """Return the id of the last entry that the page received from this server process, or None."""
    said = request.headers.get("Last-Event-ID") or request.args.get("after") or ""
    server, _, number = said.partition("-")
    if server != _server(service) or not number.isascii() or not number.isdigit() or len(number) > 15:
        return None
    return int(number)


def _server(service: Gateway) -> str:
    """Return the prefix of entry ids, which differs for each start of the server."""
    return f"{int(service.started * 1000):x}"


class Stream:
    """The events of one page. ``key`` is its key, None on a server without keys; ``token`` is its session's, if any;
    ``seen`` is the last journal entry it has received."""

    def __init__(
        self, service: Gateway, key: Key | None, token: str | None, gone: Callable[[], bool], seen: int | None
    ) -> None:
        self._service = service
        self._ring, self._sessions = access().ring, access().sessions
        self._token = token
        self._key = key
        self._gone = gone
        self._admin = key is None or key.role == "admin"
        latest = service.journal.last
        self._entry = max(0, latest - _BACKLOG) if seen is None else min(seen, latest)
        self._sample = self._number = 0
        self._shown: dict[str, Any] | None = None
        self._spoke = time.monotonic()

    def yield_events(self) -> Iterator[str]:
        """Yield events until the client disconnects, loses its access, or the gateway stops."""
        self._sample, history = self._service.history.all_samples()
        yield _RETRY + self._id(self._entry) + sse.event(history, "history")
        due = 0.0
        while True:
            said = ""
            if (now := time.monotonic()) >= due:
                due = now + INTERVAL
                said = self._state() + self._samples()
                if self._gone() or not self._allowed():
                    return
            elif self._service.journal.last > self._entry:
                said = self._state()
            said += "".join(self._journal())
            if said or now - self._spoke >= _BEAT:
                self._spoke = now
                yield said or ": nothing new\n\n"
            if self._service.stopping:
                yield self._state(fresh=True) + "".join(self._journal())
                return
            self._service.journal.wait_for_entry(self._entry, max(0.0, due - time.monotonic()))

    def _allowed(self) -> bool:
        """Whether key and session are still valid and unchanged. If not, the stream ends and the page reconnects."""
        if self._key is None:
            return not self._ring.keyed
        if self._token is not None:
            return self._sessions.find_session(self._token, touch=False) == self._key
        return self._ring.still(self._key) == self._key

    # -- events --------------------------------------------------------------------------------------------------------

    def _samples(self) -> str:
        self._sample, samples = self._service.history.samples_after(self._sample)
        return "".join(sse.event(sample, "sample") for sample in samples)

    def _state(self, fresh: bool = False) -> str:
        try:
            number, found = self._service.snapshots.latest_snapshot(fresh, self._service.journal.last)
        except Unavailable:
            return ""  # the page keeps its last state, and the next attempt may succeed
        if number == self._number:
            return ""
        self._number = number
        shown = self._seen_by(found)
        if self._shown is not None and not self._admin and _lasting(shown) == _lasting(self._shown):
            return ""
        self._shown = shown
        return sse.event(shown, "state")

    def _seen_by(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return the part of a snapshot that the page's key may see."""
        requests = [
            self._request(request)
            for request in found["requests"]
            if self._admin or (self._key is not None and request["owner"] == self._key.id)
        ]
        models = [model if self._admin else _for_user(model) for model in found["models"] if self._may(model["name"])]
        slots = [
            slot | {"models": [name for name in slot["models"] if self._may(name.partition("#")[0])]}
            for slot in found["slots"]
        ]
        role = self._key.role if self._key else None
        return found | {
            "version": VERSION,
            "role": role,
            "slots": slots,
            "models": models,
            "requests": requests[:_LISTED],
            "requests_in_all": len(requests),
        }

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        shown = {name: value for name, value in request.items() if name != "owner"}
        return shown | {"key": self._ring.name(request["owner"]) if self._admin and request["owner"] else None}

    def _may(self, model: str) -> bool:
        return self._key is None or self._key.may_use(model)

    def _journal(self) -> Iterator[str]:
        for entry in self._service.journal.entries_after(self._entry):
            self._entry = entry.id
            told = entry.as_dict() if self._admin else entry.for_user(self._may)
            # An entry that the page may not see is sent as its id alone, so that the page resumes after it.
            yield self._id(entry.id) + (sse.event(told, "journal") if told is not None else "\n")

    def _id(self, entry: int) -> str:
        return f"id: {_server(self._service)}-{entry}\n"


def _for_user(model: dict[str, Any]) -> dict[str, Any]:
    """Return a model's state without the causes, files and processes that only administrators see."""
    kept = model | {"pid": None, "last_failure": model["last_failure"] and _ASK}
    if "weights_missing" in kept:
        kept["weights_missing"] = model["weights_missing"] and _ASK
    if "replicas" in kept:
        kept["replicas"] = [_for_user(replica) for replica in model["replicas"]]
    return kept


def _lasting(shown: dict[str, Any]) -> dict[str, Any]:
    """Return a state without its times and ages."""
    requests = [{**request, "age": None} for request in shown["requests"]]
    return shown | {"time": None, "requests": requests}
