"""``POST /v1/audio/transcriptions``: what is said in a recording, by a model that hears. Gateway process.

The model is asked in a chat, as it was trained to be; it gives text and no times.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Annotated, Any, ClassVar

from flask import Blueprint, Response, request
from pydantic import Field

from gateway.errors import BadRequest, UnknownModel, UnsupportedType
from gateway.requests.conversation import Turn
from gateway.requests.pieces import Finished, Text, Waiting
from gateway.requests.ticket import fold
from gateway.routes import gateway
from gateway.routes.generation import GenerationRequest
from gateway.routes.openai import schemas
from gateway.routes.openai.envelope import failed
from gateway.routes.openai.wire import DONE, find_model, reasons, usage
from gateway.routes.openapi.operation import GENERATES, describe
from gateway.routes.request_body import MULTIPART, check_length
from gateway.routes.sampling_fields import ALWAYS, BodySchema, Fields, parse
from gateway.routes.schemas import reply
from gateway.routes.sse import Heartbeat, event, respond
from gateway.routes.validation_errors import wrong
from media.incoming import Sent
from models_registry.catalog import Catalog
from models_registry.spec import ModelSpec

blueprint = Blueprint("transcriptions", __name__, url_prefix="/v1/audio")
_FORMATS = ("json", "text")
_UNTIMED = {
    "timestamp_granularities",
    "timestamp_granularities[]",
    "include",
    "include[]",
    "chunking_strategy",
    "known_speaker_names",
    "known_speaker_names[]",
    "known_speaker_references",
    "known_speaker_references[]",
}
_WITHOUT = frozenset({"fps", "frames", "use_audio_in_video", "speech", "logit_bias", "response_format"})
_ALWAYS = ALWAYS | {"model", "language", "prompt", "max_tokens"}


Language = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z -]{0,31}$", description="Such as de or German.")]


class TranscriptionFields(Fields):
    """The form of ``POST /v1/audio/transcriptions``, but for its file and its ``response_format``."""

    in_brackets: ClassVar[bool] = True

    model: Annotated[str, Field(description="The first of the catalog that hears, by default.")] | None = None
    language: Language | None = None
    prompt: Annotated[str, Field(description="What else to tell the model.")] | None = None
    max_tokens: Annotated[int, Field(ge=1, description="The most tokens to make.")] | None = None

    @property
    def most(self) -> tuple[str, int | None]:
        return "max_tokens", self.max_tokens

    @property
    def instruction(self) -> str:
        """What the model is asked to do."""
        said = "Transcribe the speech."
        if self.language:
            said += f" It is in {_LANGUAGES.get(self.language.lower(), self.language)}."
        return f"{said} {self.prompt}" if self.prompt else said


_LANGUAGES = {
    "ar": "Arabic",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "zh": "Chinese",
}


TAKES = BodySchema(TranscriptionFields, _ALWAYS, without=_WITHOUT, serves=lambda spec: "audio" in Catalog.inputs(spec))
_FORM = {
    "file": {"type": "string", "format": "binary", "description": "The recording."},
    "response_format": {"enum": list(_FORMATS), "description": "The model gives no times."},
}


@blueprint.post("/transcriptions")
@describe(
    tag="openai",
    answer=schemas.Transcript,
    statuses=GENERATES,
    body=TAKES,
    media_types=(MULTIPART,),
    form=_FORM,
    needed=("file",),
    others={"text/plain": {"type": "string"}},
    events={"message": (schemas.TranscriptDelta, schemas.TranscriptDone, schemas.ErrorEnvelope)},
)
def transcriptions() -> Response:
    """Transcribe one uploaded file."""
    settings = gateway().settings
    check_length(request, settings.max_body)
    if request.mimetype != MULTIPART:
        kind = UnsupportedType if request.mimetype else BadRequest
        raise kind("send a form (multipart/form-data) with 'file', the recording", param="file")
    data: dict[str, Any] = dict(request.form.items())
    wanted = data.pop("response_format", "json")
    if wanted not in _FORMATS:
        raise BadRequest(
            f"cannot honour 'response_format' {wanted!r}: the model gives no times; ask for {' or '.join(_FORMATS)}",
            param="response_format",
        )
    if refused := [name for name in data if name in _UNTIMED]:
        raise BadRequest(
            f"cannot honour {refused[0]!r}: the model gives one text, without times or speakers", param=refused[0]
        )
    spec = find_model(data["model"]) if data.get("model") else _default()
    if not TAKES.serves(spec):
        raise BadRequest(f"{spec.name} takes {', '.join(Catalog.inputs(spec))}; it cannot take audio", param="model")
    data.setdefault("temperature", "0")
    fields = parse(TAKES, data, spec, settings, strict=False)
    turn = Turn("user", (_file(), fields.instruction))
    generation = GenerationRequest(spec, fields, [turn])
    if fields.stream:
        generation.prime()
        return respond(_events(generation), generation.close, failed)
    with closing(generation):
        answer = fold(generation.pieces)
    list(reasons(answer.finished))
    if wanted == "text":
        return Response(answer.choices[0].text + "\n", mimetype="text/plain")
    return reply(
        schemas.Transcript,
        text=answer.choices[0].text,
        usage=_usage(answer.finished),
        model=spec.name,
        device=answer.finished.device,
        timings=answer.finished.timings,
    )


def _default() -> ModelSpec:
    """Return the catalog's first model that hears. :raises UnknownModel: if there is none."""
    service = gateway()
    for spec in service.catalog:
        if TAKES.serves(spec):
            return service.spec(spec.name)
    raise UnknownModel("no model of the catalog takes audio", available_models=service.catalog.names)


def _file() -> Sent:
    """Return the one file of the form. :raises BadRequest: if there is none, or another."""
    files = list(request.files.items(multi=True))
    if other := [name for name, _ in files if name != "file"]:
        raise wrong(other[0], "unknown file field; send 'file'")
    if len(files) != 1:
        raise wrong("file", f"one recording is needed, as a file of the form; {len(files)} came")
    return Sent("audio", files[0][1].read(), "file")


def _usage(finished: Finished) -> dict[str, Any]:
    counted = usage([finished])
    return {
        "type": "tokens",
        "input_tokens": counted["prompt_tokens"],
        "output_tokens": counted["completion_tokens"],
        "total_tokens": counted["total_tokens"],
    }


def _events(generation: GenerationRequest) -> Iterator[str]:
    heartbeat, whole = Heartbeat(generation.spec.name, progress=False), ""
    for piece in generation.pieces:
        match piece:
            case Waiting():
                if said := heartbeat(piece):
                    yield said
            case Text(text, False) if text:
                whole += text
                yield event(schemas.TranscriptDelta(type="transcript.text.delta", delta=text))
            case Finished():
                list(reasons(piece))
                beside = {"model": generation.spec.name, "device": piece.device, "timings": piece.timings}
                done: dict[str, Any] = {"type": "transcript.text.done", "text": whole, "usage": _usage(piece)}
                yield event(schemas.TranscriptDone(**done, **beside))
                yield DONE
