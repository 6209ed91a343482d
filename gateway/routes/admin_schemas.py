"""What the routes of ``/admin`` and ``/health`` take and answer. Gateway process; pydantic."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gateway.observe.journal import Kind
from gateway.routes.sampling_fields import Age, either
from gateway.routes.schemas import Shape
from models_registry.spec import QuantBits
from utils.units import parse_bytes

Size = Annotated[
    int,
    BeforeValidator(parse_bytes),
    Field(
        json_schema_extra=either(
            {"type": "number", "minimum": 0, "exclusiveMaximum": 1e30},
            {"type": "string", "pattern": r"^\s*[0-9]{1,30}(\.[0-9]{1,30})?\s*([kKmMgGtT][iI]?)?[bB]?\s*$"},
        )
    ),
]


# -- bodies of requests ------------------------------------------------------------------------------------------------


class Options(BaseModel):
    """Options of a route whose body may be absent."""

    model_config = ConfigDict(extra="forbid")


class Force(Options):
    """``force`` ends models that answer requests too."""

    force: bool = False


class LoadOptions(Options):
    """``pinned`` keeps a model from eviction until it is unloaded by name; ``quant_bits`` replaces the catalog's until
    another load chooses others or the server restarts."""

    pinned: bool | None = None
    quant_bits: QuantBits | None = None


class PinOptions(Options):
    """Whether the model is kept from eviction."""

    pinned: bool


class CleanupOptions(Options):
    """``older_than`` spares younger files: seconds, or a text such as 10m."""

    older_than: Age = 0.0


class PruneOptions(Options):
    """How much to keep: bytes, or a text such as 10GB; 0 for nothing, the limit by default."""

    to: Size | None = None


# -- answers -----------------------------------------------------------------------------------------------------------


class Slot(Shape):
    """A device with a budget of bytes."""

    device: str
    budget_bytes: int
    used_bytes: int
    free_bytes: int
    models: list[str]


class MemorySlot(Slot):
    """A slot with three figures of its models: the charge predicted before their loads, the bytes measured now, and the
    bytes that evicting the idle ones would free."""

    predicted_bytes: int | None
    measured_bytes: int | None
    offloaded_bytes: Annotated[int, Field(description="Charged to it for what models on GPUs have in RAM.")]
    evictable_bytes: int


class Freed(Shape):
    """What an unload would free: of the slot's budget, of the CPU's budget for offloaded bytes, and as measured on the
    device and in RAM."""

    budget_bytes: int | None
    offloaded_bytes: int | None
    device_bytes: int | None
    host_bytes: int | None
    needs_force: bool


class Resident(Shape):
    """What a model takes that is not cold. The charged and the predicted bytes include the reserve for its cache and
    answers; the bytes measured at its load and now do not."""

    state: str
    bytes: int
    offloaded_bytes: int | None
    predicted_bytes: int | None
    measured_at_load_bytes: int | None
    measured_bytes: int | None
    host_bytes: int | None
    unload: Freed
    replicas: list[dict[str, Any]]


class HostProcess(Shape):
    """One process of this gateway."""

    pid: int
    role: Annotated[
        str, Field(description="supervisor, gateway, forkserver, zygote, spare, runner, decoders or helper")
    ]
    model: str | None
    private_bytes: int
    proportional_bytes: int


class Host(Shape):
    """The machine's memory, and what the processes of this gateway have of it."""

    total_bytes: int
    available_bytes: int
    product_bytes: int
    by_role_bytes: dict[str, int]
    processes: list[HostProcess]


class MemoryStatus(Shape):
    """GPU, slot and host memory. ``gpu_*`` are in GiB, everything else in bytes."""

    timestamp: int
    gpu_available: bool
    gpu_total_gb: float
    gpu_allocated_gb: float
    gpu_free_gb: float
    memory_warning: bool
    multimodal_safe: bool
    slot: MemorySlot
    slots: list[MemorySlot]
    models: dict[str, Resident]
    gpus: Annotated[list[dict[str, Any]], Field(description="The driver's own view of each GPU and its processes.")]
    host: Host
    gateway_bytes: int
    measured_in_seconds: float


class LoadProgress(Shape):
    """How far a load is."""

    phase: str
    fraction: float | None


class ModelState(Shape):
    """What a model is doing. Times are seconds since 1970.

    Both ``bytes`` and ``predicted_bytes`` have the room that its cache and its answers may come to need in them;
    ``measured_at_load_bytes`` has not."""

    name: str
    state: Annotated[str, Field(description="cold, loading, ready or draining")]
    device: str | None
    bytes: Annotated[int, Field(description="What its slot is charged: measured at the load, and the reserve.")]
    offloaded: Annotated[dict[str, int], Field(description="Bytes charged to other slots, by slot.")]
    offloaded_predicted_bytes: Annotated[int, Field(description="What these were expected to be charged.")]
    predicted_bytes: Annotated[
        int,
        Field(
            description="What it was expected to be charged once it is loaded, by a process of its own; of a cold "
            "model, what a load would be charged, its peak among it."
        ),
    ]
    from_zygote: Annotated[
        bool,
        Field(
            description="Whether its process shares memory with the one it was forked from; "
            "then it takes less than was predicted."
        ),
    ]
    leases: int
    waiting: int
    last_used: float | None
    expires_at: float | None
    pinned: bool
    pid: int | None
    steps: int
    progress: LoadProgress | None
    retry_at: float | None
    last_failure: str | None
    note: Annotated[str | None, Field(description="Why it is not where it prefers to be.")]
    level: Annotated[str, Field(description="How it is loaded: normal, small_batch, offload or cpu, as memory allows.")]
    level_for: float | None
    batch: int | None
    out_of_memory: Annotated[dict[str, int], Field(description="What was done when memory ran out, and how often.")]
    replicas: list[dict[str, Any]]


class ModelConfig(ModelState):
    """What a model is, whether its weights are there, and what it is doing."""

    type: str
    path: str
    path_exists: bool
    weights_missing: str | None
    quant_bits: int
    label: str
    family: str
    engine: str
    inputs: list[str]
    aliases: list[str]
    keep_alive: float


class ModelStatus(Shape):
    """Every model of the catalog."""

    timestamp: int
    available_models: list[str]
    profile: str
    slot: Slot
    slots: list[Slot]
    model_configs: dict[str, ModelConfig]


class Cleanup(Shape):
    """What was evicted and removed."""

    status: Literal["success"]
    message: str
    evicted: list[str]
    freed_bytes: Annotated[int, Field(description="What slots were charged for these, and are no longer.")]
    in_use: list[str]
    temp_entries_removed: int
    temp_bytes_removed: int


class TempEntry(Shape):
    """One entry of tmp/."""

    name: str
    bytes: int
    age_seconds: float
    in_use: bool


class TempStatus(Shape):
    """What lies in tmp/; at most 1000 entries are listed."""

    timestamp: int
    temp_dir: str
    file_count: int
    total_bytes: int
    files: list[TempEntry]


class TempCleanup(Shape):
    """What was removed of tmp/."""

    status: Literal["success"]
    removed: int
    freed_bytes: int


class QuantizedEntry(Shape):
    """Quantized weights of one model."""

    model: str
    quant_bits: int
    bytes: int
    last_used: float
    folder: str


class Quantized(Shape):
    """The quantized weights kept between loads."""

    limit_bytes: int
    total_bytes: int
    entries: list[QuantizedEntry]


class Pruned(Quantized):
    """What was removed of them, and what is left."""

    status: Literal["success"]
    removed: list[str]
    freed_bytes: int


class Loaded(ModelState):
    """A model that is ready, and how many seconds that took."""

    seconds: float


class Load(Shape):
    """A load that is done."""

    status: Literal["success"]
    model: Loaded


class Unload(Shape):
    """An unload that is done: its memory is back."""

    status: Literal["success"]
    model: str
    unloaded: bool
    freed_bytes: Annotated[int, Field(description="What slots were charged for it, and are no longer.")]


class Pinned(Shape):
    """A model that is pinned now, or is no longer."""

    status: Literal["success"]
    model: ModelState


class Event(Shape):
    """One entry of the journal."""

    id: int
    time: Annotated[float, Field(description="Seconds since 1970.")]
    kind: Kind
    model: str | None
    device: str | None
    text: Annotated[str, Field(description="What happened and why, in words.")]
    detail: Annotated[dict[str, Any], Field(description="Further facts, by kind.")]


class Events(Shape):
    """Entries of the journal, the oldest first. Ids begin anew when the server restarts; then ``started`` differs."""

    started: float
    last: Annotated[int, Field(description="The id of the latest entry, whether it is among these or not.")]
    data: list[Event]


class Vision(Shape):
    """Which models see, and what a request may send them."""

    models: list[str]
    max_batch_size: dict[str, int]
    max_media_per_request: int
    max_image_pixels: int
    max_video_frames: int
    max_new_tokens: int
    media_urls: bool
    max_body_bytes: int
    max_audio_seconds: float
    max_video_seconds: float


class Alive(Shape):
    """The process serves. If the server asks for keys, a request without one gets no more than this."""

    status: Literal["healthy", "stopping"]


class Health(Alive):
    """The process serves, and what it serves."""

    profile: str
    device: str
    devices: list[str]
    uptime: float
    vlm_config: Vision


class UsageReport(Shape):
    """What was used, summed up or request by request, and how much of each key's quotas is used."""

    data: list[dict[str, Any]]
    keys: dict[str, dict[str, Any]]


class Ready(Shape):
    """Requests can be served."""

    status: Literal["ready"]
    runners_preloaded: bool
