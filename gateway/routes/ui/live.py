"""``GET /ui/live``: how things stand and what happens, as server-sent events, for the pages of the dashboard.

Each stream holds a thread of the worker, which has as many more as there may be streams. One ends when its client has
left, when the gateway stops, when its key is not what it was or its session is over. Gateway process.
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
from gateway.observe import snapshot
from gateway.routes import gateway, sse
from gateway.routes.openapi.document import VERSION
from gateway.routes.ui.page_headers import blueprint

_BEAT = 10.0  # seconds between comments on a line with nothing to say
_RETRY = "retry: 2000\n\n"
_BACKLOG = 100  # entries of the journal for a page that has seen none
_LISTED = 200  # requests that a state names, the oldest; of more it has the number
_ASK = "ask whoever runs this server"
_STUCK = 3.0  # seconds for which a client has taken nothing, when its place is another's
_AGAIN = 5.0  # seconds until another try where too many watch


class TooManyPages(GatewayError):
    """As many pages watch as may."""

    status, error = 429, "Too many pages"


@dataclass(eq=False, frozen=True, slots=True)
class _Place:
    """One open stream, and whose it is."""

    whose: str
    client: Client


class Streams:
    """Has the streams that are open. No key takes more than half of the places, and a client that does not read keeps
    none that another wants."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[_Place] = []  # the oldest first

    def enter(self, most: int, key: Key | None, client: Client) -> Callable[[], None]:
        """Take a place; return what gives it back, and may be called again. :raises TooManyPages: if there is none."""
        place = _Place(key.id if key else "", client)
        share = most if key is None else (most + 1) // 2
        with self._lock:
            own = [one for one in self._open if one.whose == place.whose]
            if len(own) >= share and key is not None and most:
                self._end_one(
                    own,
                    f"the key {key.name} has {share} dashboard pages open already, half of all that "
                    f"may watch (live_streams: {most}); close one",
                )
            elif len(self._open) >= most:
                what = f"{most} dashboard pages watch already" if most else "live figures are turned off"
                self._end_one(self._open, f"{what} (live_streams: {most}); close one, or raise the setting")
            self._open.append(place)

        def leave() -> None:
            with self._lock:
                if place in self._open:
                    self._open.remove(place)

        return leave

    def _end_one(self, places: list[_Place], words: str) -> None:
        """End the stream whose client has read nothing for longest. Those that read stay: they would come back."""
        stuck = max(places, key=lambda one: one.client.stuck(), default=None)
        if stuck is None or stuck.client.stuck() < _STUCK:
            raise TooManyPages(words, retry_after=_AGAIN)
        stuck.client.end()
        self._open.remove(stuck)


@blueprint.get("/live")
def live() -> Response:
    """The last minutes at once, then a sample each second, the state whenever it changes, and the journal after the
    entry that ``Last-Event-ID`` or ``after`` names. With ``probe`` only whether there would be any of it: a browser
    does not tell a page why its stream was refused."""
    service = gateway()
    if service.stopping:
        raise Unavailable("the server is stopping", retry_after=_AGAIN)
    streams: Streams = current_app.extensions.setdefault("live_streams", Streams())
    client = Client(request.environ)
    leave = streams.enter(service.settings.live_streams, g.key, client)
    if "probe" in request.args:
        leave()
        return Response(status=204)
    token = request.cookies.get(access().cookie) if g.by_cookie else None
    stream = Stream(service, g.key, token, client.gone, _seen(service))

    def text() -> Iterator[str]:
        try:
            yield from stream.run()
        finally:
            leave()

    response = Response(
        text(), mimetype="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    response.call_on_close(leave)  # also when the client left before the first event
    return response


def _seen(service: Gateway) -> int | None:
    """Return the id of the last entry that the page has, if it had it from this very server."""
    said = request.headers.get("Last-Event-ID") or request.args.get("after") or ""
    server, _, number = said.partition("-")
    if server != _server(service) or not number.isascii() or not number.isdigit() or len(number) > 15:
        return None
    return int(number)


def _server(service: Gateway) -> str:
    """Return what tells this server's entries from those of one before it."""
    return f"{int(service.started * 1000):x}"


class Stream:
    """What one page is told. ``key`` is its key, None where none are asked for, ``token`` that of its session if it has
    one, and ``seen`` the entry it has already."""

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

    def run(self) -> Iterator[str]:
        """Yield events until there is nobody to tell them to, or the gateway stops."""
        self._sample, history = self._service.sampler.history()
        yield _RETRY + self._id(self._entry) + sse.event(history, "history")
        due = 0.0
        while True:
            said = ""
            if (now := time.monotonic()) >= due:
                due = now + snapshot.LEAST
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
            self._service.journal.wait(self._entry, max(0.0, due - time.monotonic()))

    def _allowed(self) -> bool:
        """Whether the key is what it was when the page asked, and it is still logged in. If not, it asks again."""
        if self._key is None:
            return not self._ring.keyed
        if self._token is not None:
            return self._sessions.find(self._token, touch=False) == self._key
        return self._ring.still(self._key) == self._key

    # -- what is told --------------------------------------------------------------------------------------------------

    def _samples(self) -> str:
        self._sample, samples = self._service.sampler.after(self._sample)
        return "".join(sse.event(sample, "sample") for sample in samples)

    def _state(self, fresh: bool = False) -> str:
        try:
            number, found = self._service.snapshot.take(fresh, self._service.journal.last)
        except Unavailable:
            return ""  # the page sees that nothing changes, and the next look may succeed
        if number == self._number:
            return ""
        self._number = number
        shown = self._seen_by(found)
        if self._shown is not None and not self._admin and _lasting(shown) == _lasting(self._shown):
            return ""
        self._shown = shown
        return sse.event(shown, "state")

    def _seen_by(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return of a picture what the page's key may see."""
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
        for entry in self._service.journal.after(self._entry):
            self._entry = entry.id
            told = entry.as_dict() if self._admin else entry.for_user(self._may)
            # The id of one that is not for the page comes by itself: so the page knows how far it was told all.
            yield self._id(entry.id) + (sse.event(told, "journal") if told is not None else "\n")

    def _id(self, entry: int) -> str:
        return f"id: {_server(self._service)}-{entry}\n"


def _for_user(model: dict[str, Any]) -> dict[str, Any]:
    """Return of a model's state what is not for administrators alone, who see causes, files and processes."""
    kept = model | {"pid": None, "last_failure": model["last_failure"] and _ASK}
    if "weights_missing" in kept:
        kept["weights_missing"] = model["weights_missing"] and _ASK
    if "replicas" in kept:
        kept["replicas"] = [_for_user(replica) for replica in model["replicas"]]
    return kept


def _lasting(shown: dict[str, Any]) -> dict[str, Any]:
    """Return of a state what is not time that passes."""
    requests = [{**request, "age": None} for request in shown["requests"]]
    return shown | {"time": None, "requests": requests}
