"""What the routes of weights and downloads take and answer. Gateway process; pydantic. Sizes are in bytes."""

from typing import Annotated, Literal

from pydantic import Field

from gateway.routes.admin_schemas import Options
from gateway.routes.schemas import Shape


class DownloadOptions(Options):
    """``speech`` adds what a model needs to talk."""

    speech: bool = False


class DownloadFile(Shape):
    """How much of one file is here."""

    path: str
    size: int
    done: int
    stage: Annotated[str, Field(description="waiting, checking (what is here already), fetching or done")]


class Download(Shape):
    """A model's last download since the start. Times are seconds since 1970."""

    state: Annotated[str, Field(description="queued, running, done, failed or cancelled")]
    total: Annotated[int | None, Field(description="What the whole model has; null until the hub has said.")]
    done: Annotated[int, Field(description="What is here, from earlier downloads too.")]
    fetched: Annotated[int, Field(description="What this one took from the hub.")]
    bytes_per_second: Annotated[int, Field(description="Measured over the last seconds.")]
    seconds_left: Annotated[float | None, Field(description="At this speed; null while it is unknown.")]
    position: Annotated[int | None, Field(description="Place in the queue.")]
    files: list[DownloadFile]
    error: Annotated[str | None, Field(description="Why it failed and what to do.")]
    note: str
    queued: float
    started: float | None
    finished: float | None


class FitParts(Shape):
    """What a model's bytes consist of, see the page on memory. ``peak`` is the most a load takes on its way."""

    weights: int
    overhead: int
    cache: int
    cache_tokens: int
    answering: int
    later: int
    peak: int


class Fit(Shape):
    """What a model would be charged on the slot it is likely to use."""

    slot: str
    quant_bits: int
    bytes: int
    offloaded_bytes: Annotated[int, Field(description="What the CPU's slot would be charged besides.")]
    budget: int
    fits: Annotated[bool | None, Field(description="null where the weights are not here to tell.")]
    measured: Annotated[bool, Field(description="Whether a load was measured; else it is predicted.")]
    parts: FitParts | None
    reason: str


class WeightsSource(Shape):
    """Where weights come from. ``repo`` is null where that is no hub."""

    repo: str | None
    revision: str | None
    file: str | None
    package: str | None


class ModelWeights(Shape):
    """One model: what of its weights is here, what it takes on this machine, and its download."""

    name: str
    label: str
    family: str
    engine: str
    quant_bits: int
    inputs: list[str]
    aliases: list[str]
    source: WeightsSource
    path: str
    state: Annotated[
        str, Field(description="complete, partial or absent; of a model that is not from a hub, local or missing")
    ]
    reason: Annotated[str, Field(description="Why that is thought.")]
    bytes_here: int
    bytes_total: Annotated[int | None, Field(description="null until a download has asked the hub.")]
    deletable_bytes: Annotated[int, Field(description="What deleting them would give back.")]
    not_deletable: Annotated[str | None, Field(description="Why they cannot be deleted, or null.")]
    shared_with: Annotated[list[str], Field(description="Other models that read the same files.")]
    kept_bytes: Annotated[int, Field(description="Its quantized weights kept between loads.")]
    model_state: Annotated[str, Field(description="cold, loading, ready or draining")]
    loaded: bool
    fit: Fit
    download: Download | None


class FitSlot(Shape):
    """A slot with the sets of models that fit into it at once; ``more`` is true if there are further sets."""

    device: str
    budget_bytes: int
    used_bytes: int
    sets: list[list[str]]
    more: bool


class Disk(Shape):
    """The disk with the weights."""

    path: str
    total: int
    free: int
    models_bytes: int
    quantized_bytes: int
    quantized_limit: int


class Weights(Shape):
    """Every model's weights."""

    timestamp: float
    profile: str
    models: list[ModelWeights]
    slots: list[FitSlot]
    disk: Disk


class Downloads(Shape):
    """Each model's last download since the start, by its name."""

    timestamp: float
    downloads: dict[str, Download]


class DownloadAnswer(Shape):
    """A model's download as it is now; null if it had none."""

    status: Literal["success"]
    model: str
    download: Download | None


class Deleted(Shape):
    """What was deleted, and what that freed. ``models`` are those whose weights are gone."""

    status: Literal["success"]
    model: str
    models: list[str]
    unloaded: list[str]
    freed_bytes: int
    quantized_bytes: int
