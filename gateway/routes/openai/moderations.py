"""``POST /v1/moderations/video``: a video held to a policy by a model of the catalog. Gateway process.

Its frames are decoded by a process of their own, and each question about one is a request of its own to the model:
queued, cancelled and counted as any other. How that goes is :mod:`moderation`'s.
"""

import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import Annotated, Any, ClassVar

from flask import Blueprint, Response, g, request
from pydantic import BeforeValidator, Field, Tag
from pydantic import Discriminator as By

from gateway.access.limits import TooManyAtOnce, UnderWay
from gateway.access.usage import Record
from gateway.errors import BadRequest, ClientGone, QueueFull, UnsupportedType
from gateway.http.client_gone import is_gone
from gateway.requests.moderation_asker import GatewayAsker
from gateway.requests.ticket import Ticket
from gateway.routes import gateway
from gateway.routes.generate import default_vision_model
from gateway.routes.generation import admit_request
from gateway.routes.openai import schemas
from gateway.routes.openai.envelope import failed
from gateway.routes.openai.wire import DONE, find_model
from gateway.routes.openapi.operation import GENERATES, describe
from gateway.routes.request_body import FORM, MULTIPART, check_length, read_json, says_json
from gateway.routes.sampling_fields import ALWAYS, BodySchema, Fields, parse
from gateway.routes.schemas import dumped, reply
from gateway.routes.sse import event, respond
from gateway.routes.validation_errors import tag_of, wrong
from media.client import limits_from_settings
from media.errors import MediaError
from media.incoming import Sent, read_one
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec
from moderation.asking import Cancelled
from moderation.frame_source import DecodeLimits, FrameSampling, Source
from moderation.pipeline import Outcome, Progress, moderate_video
from moderation.policy import Identifier, Policy
from moderation.policy_file import PolicyError, find_policy
from moderation.report import render_report
from utils import request_ids
from utils.settings import ROOT, Settings

blueprint = Blueprint("moderations", __name__, url_prefix="/v1/moderations")
_OWN = frozenset({"model", "policy", "video", "fps", "max_frames", "longest_side", "report"})
_EXAMPLE = '{"video": "<base64>", "policy": "default"}'
_BEAT = 1.0  # seconds between comments in a stream that has nothing to say
_MOST = 2 * (os.cpu_count() or 1)
_VIDEOS = threading.BoundedSemaphore(_MOST)  # each may take a decoder's memory
_OF_KEYS = UnderWay()
_LATER = 5.0


def _object(value: Any) -> Any:
    """Parse an object sent in a form, which has only texts."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("is neither the name of a policy nor a JSON object") from None
    return value


Held = Annotated[
    Annotated[Identifier, Tag("~name")] | Annotated[Policy, Tag("~policy")],
    By(
        tag_of({str: "~name", dict: "~policy"}),
        custom_error_type="policy",
        custom_error_message="must be the name of a policy, or a policy as an object",
    ),
    BeforeValidator(_object),
]


class ModerationFields(Fields):
    """The fields of ``POST /v1/moderations/video``."""

    in_brackets: ClassVar[bool] = True

    model: Annotated[str, Field(description="The first of the catalog that sees, by default.")] | None = None
    policy: Annotated[Held, Field(description="The name of one of the server's policies, or one as an object.")] = (
        "default"
    )
    video: Annotated[
        str, Field(min_length=1, description="Base64 with or without data:…;base64, or a URL where those are on.")
    ]
    fps: Annotated[float, Field(ge=0.001, le=60, description="Frames a second to look at.")] = 1.0
    max_frames: Annotated[int, Field(ge=1, le=1000, description="The most frames to look at.")] = 50
    longest_side: Annotated[int, Field(ge=56, le=2048, description="Pixels that frames are scaled down to.")] = 768
    report: Annotated[bool, Field(description="Send the report for people too, as HTML.")] = False

    @property
    def most(self) -> tuple[str, int | None]:
        return "max_tokens", None


TAKES = BodySchema(
    ModerationFields,
    ALWAYS | _OWN,
    without=frozenset(ModerationFields.model_fields) - ALWAYS - _OWN,
    serves=lambda spec: _why_not(spec) is None,
)
_FORM = {
    "video": {"type": "string", "format": "binary", "description": "The video, as a file."},
    "policy": {
        "type": "string",
        "pattern": r"^([a-z][a-z0-9_]{0,39}$|\s*\{)",
        "description": "The name of a policy, or one as a JSON object.",
    },
}


@blueprint.post("/video")
@describe(
    tag="openai",
    answer=schemas.VideoModeration,
    statuses=GENERATES,
    body=TAKES,
    media_types=("application/json", MULTIPART),
    form=_FORM,
    events={"message": (schemas.VideoModeration, schemas.ErrorEnvelope), "progress": (schemas.ModerationProgress,)},
)
def video() -> Response:
    """Say what a policy says of a video.

    Frames are taken all over it, and a model that sees is asked the policy's questions about each."""
    service = gateway()
    spec, fields, source, name = _read(service.settings)
    policy = _policy(fields.policy, service.settings)
    with ExitStack() as stack:
        stack.enter_context(_turn())
        run = _Run(stack, spec, fields, source, name, policy)
        if not fields.stream:
            return reply(schemas.VideoModeration, **run.answer(run.moderate_video(lambda _: None)))
        live = stack.enter_context(_Live(run))
        live.prime()
        kept = stack.pop_all()
    return respond(live.events(), kept.close, failed)


def _read(settings: Settings) -> tuple[ModelSpec, ModerationFields, Source, str]:
    """Return the model, the fields, the video and its name. :raises BadRequest: naming what is wrong."""
    check_length(request, settings.max_body)
    form = request.mimetype == MULTIPART
    if form:
        data: dict[str, Any] = dict(request.form.items())
    elif request.mimetype.startswith("multipart/"):
        raise UnsupportedType(f"a body of type {request.mimetype!r} is not taken; send JSON or a form")
    elif request.mimetype == FORM and not says_json(request):
        raise UnsupportedType(f"a form of type {FORM} has no place for a video; send one of type {MULTIPART}, or JSON")
    else:
        data = read_json(request, settings.max_body, _EXAMPLE)
    said = data.get("model")
    spec = find_model(said) if said is not None else default_vision_model()
    if reason := _why_not(spec):
        raise BadRequest(f"{spec.name} {reason}", param="model")
    files = list(request.files.items(multi=True)) if form else []
    if other := [field for field, _ in files if field != "video"]:
        raise wrong(other[0], "unknown file field; send 'video'")
    if len(files) + (data.get("video") is not None) > 1:
        raise wrong("video", "one video at a time, as a file of a form or in base64")
    fields = parse(TAKES, data | ({"video": "its file"} if files else {}), spec, settings, strict=not form)
    if files:
        name = "".join(one for one in (files[0][1].filename or "") if one.isprintable()).rpartition("/")[2][:200]
        return spec, fields, files[0][1].stream, name or "video"
    limits = limits_from_settings(settings)
    return spec, fields, io.BytesIO(read_one(Sent("video", fields.video, "video"), limits).data), "video"


def _why_not(spec: ModelSpec) -> str | None:
    """Return why a model cannot be asked, if it cannot."""
    if "image" not in Catalog.inputs(spec):
        return f"takes {', '.join(Catalog.inputs(spec))}; it cannot look at frames"
    if "response_format" not in Catalog.family(spec).options:
        return "cannot answer by a schema"
    return None


def _policy(said: str | Policy, settings: Settings) -> Policy:
    """Return the policy. :raises BadRequest: if there is none of this name, or the server's file of it is broken."""
    if isinstance(said, Policy):
        return said
    try:
        return find_policy(said, settings.policies_dir or ROOT / "policies", only_names=True)
    except PolicyError as error:
        raise BadRequest(f"field 'policy': {error}", param="policy") from None


@contextmanager
def _turn() -> Iterator[None]:
    """Take one of the places for videos that are moderated at the same time, half of which one key may have.

    :raises QueueFull: if none is free."""
    key = g.get("key")
    caps = {} if key is None else {str(key.id): _MOST // 2}
    try:
        _OF_KEYS.take(caps)
    except TooManyAtOnce:
        raise QueueFull(
            f"{_MOST // 2} videos of this key are being looked at, as many as one may have at a time",
            retry_after=_LATER,
        ) from None
    try:
        if not _VIDEOS.acquire(blocking=False):
            raise QueueFull("as many videos as this machine can decode at once are being looked at", retry_after=_LATER)
        try:
            yield
        finally:
            _VIDEOS.release()
    finally:
        _OF_KEYS.give_back(caps)


class _Run:
    """One request's moderation. It reads Flask's request when it is made: questions are asked in other threads."""

    def __init__(
        self, stack: ExitStack, spec: ModelSpec, fields: ModerationFields, source: Source, name: str, policy: Policy
    ) -> None:
        service = gateway()
        settings = service.settings
        self.fields, self._source, self._name, self._policy = fields, source, name, policy
        self._settings = settings
        self.gone = partial(is_gone, request.environ)
        deadline = time.monotonic() + (fields.timeout or settings.request_timeout)
        record: Record = g.record
        record.take(spec)
        try:
            first = stack.enter_context(closing(admit_request(spec, fields)))
        except BaseException:
            record.refused()
            raise
        request_id, timelines, owner, priority = g.request_id, g.timelines, first.owner, first.priority
        self._refused = record.refused

        def more(left: float) -> Ticket:
            ticket = service.admit(
                service.spec(spec.name), timeout=left, priority=priority, request_id=request_ids.ticket_of(request_id)
            )
            ticket.owner = owner
            timelines.append(ticket.timeline)
            return ticket

        self._asker = GatewayAsker(
            spec, first, more, service.temp.request, record.watch, deadline, settings.max_media_items, fields.keep_alive
        )

    def moderate_video(self, progress: Callable[[Progress], None], stopped: Callable[[], bool] = bool) -> Outcome:
        """Moderate the video.

        :raises ClientGone: when the client has left. :raises GatewayError: if the model cannot be asked.
        :raises MediaError: if the video cannot be decoded.
        """
        settings, fields = self._settings, self.fields
        sampling = FrameSampling(fields.fps, fields.max_frames, fields.longest_side, raw=True)
        limits = DecodeLimits(
            settings.decode_timeout, settings.decode_memory, settings.max_pixels, settings.moderation_seconds
        )
        try:
            return moderate_video(
                self._source,
                self._policy,
                self._asker,
                name=self._name,
                sampling=sampling,
                limits=limits,
                concurrency=settings.moderation_concurrency,
                progress=progress,
                cancelled=lambda: stopped() or self.gone(),
            )
        except Cancelled:
            raise ClientGone from None
        except MediaError as error:
            self._refused()  # it counts for no quota, unless questions were asked
            if error.details.startswith("video: "):
                raise
            details = f"video: {error.details}"  # the field, before the client's own name of the file
            raise MediaError(error.status, error.error, details) from None

    def answer(self, outcome: Outcome) -> dict[str, Any]:
        """Return the answer's fields."""
        report = {"report": render_report(outcome.result, outcome.thumbnails)} if self.fields.report else {}
        return {"object": "video.moderation", **outcome.result.to_dict(), **report}


class _Live:
    """A moderation in a thread of its own that reports its progress. Leaving the context stops it."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._said: SimpleQueue[Progress | Outcome | BaseException] = SimpleQueue()
        self._stop = threading.Event()
        self._first: Progress | Outcome | None = None
        self._thread = threading.Thread(target=self._work, name=f"moderation-{g.request_id}", daemon=True)

    def __enter__(self) -> "_Live":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            self._said.put(self._run.moderate_video(self._said.put, self._stop.is_set))
        except BaseException as error:
            self._said.put(error)

    def prime(self) -> None:
        """Wait for the first progress, or for a refusal, which can still have a status of its own."""
        self._first = self._taken(self._said.get())

    def events(self) -> Iterator[str]:
        """Yield progress, then the result."""
        said = self._first
        while True:
            match said:
                case Progress():
                    yield event(schemas.ModerationProgress(**vars(said)), "progress")
                case Outcome():
                    yield event(dumped(schemas.VideoModeration, **self._run.answer(said)))
                    yield DONE
                    return
                case None:
                    yield ": looking\n\n"
            try:
                said = self._taken(self._said.get(timeout=_BEAT))
            except Empty:
                said = None

    @staticmethod
    def _taken(said: Progress | Outcome | BaseException) -> Progress | Outcome:
        if isinstance(said, BaseException):
            raise said
        return said
