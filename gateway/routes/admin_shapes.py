"""What ``/admin`` and ``/health`` take and answer. Gateway process; pydantic.

The contract's fields are named; statuses may have further ones.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gateway.routes.fields import Duration, either
from gateway.routes.shapes import Shape
from models_registry.spec import QuantBits
from utils.units import parse_bytes

Size = Annotated[int, BeforeValidator(parse_bytes), Field(json_schema_extra=either(
    {"type": "number", "minimum": 0, "exclusiveMaximum": 1e30},
    {"type": "string", "pattern": r"^\s*[0-9]{1,30}(\.[0-9]{1,30})?\s*([kKmMgGtT][iI]?)?[bB]?\s*$"},
))]  # fmt: skip


# -- what is asked -----------------------------------------------------------------------------------------------------


class Options(BaseModel):
    """Options of a route whose body may be absent."""

    model_config = ConfigDict(extra="forbid")


class Force(Options):
    """Whether models that answer are ended too."""

    force: bool = False


class LoadOptions(Options):
    """``pinned`` keeps a model from eviction until it is unloaded by name; ``quant_bits`` replaces the catalog's until
    others are asked for or the server restarts."""

    pinned: bool | None = None
    quant_bits: QuantBits | None = None


class CleanupOptions(Options):
    """``older_than`` spares younger files: seconds, or a text such as 10m."""

    older_than: Duration = 0.0


class PruneOptions(Options):
    """How much to keep: bytes, or a text such as 10GB; 0 for nothing, the limit by default."""

    to: Size | None = None


# -- what is answered --------------------------------------------------------------------------------------------------


class Slot(Shape):
    """A device with a budget of bytes."""

    device: str
    budget_bytes: int
    used_bytes: int
    free_bytes: int
    models: list[str]


class Resident(Shape):
    """What a model that is not cold takes."""

    state: str
    bytes: int


class Host(Shape):
    """The machine's memory."""

    total_bytes: int
    available_bytes: int


class MemoryStatus(Shape):
    """GPU, slot and host memory. ``gpu_*`` are in GiB, everything else in bytes."""

    timestamp: int
    gpu_available: bool
    gpu_total_gb: float
    gpu_allocated_gb: float
    gpu_free_gb: float
    memory_warning: bool
    multimodal_safe: bool
    slot: Slot
    slots: list[Slot]
    models: dict[str, Resident]
    host: Host
    gateway_bytes: int


class LoadProgress(Shape):
    """How far a load is."""

    phase: str
    fraction: float | None


class ModelState(Shape):
    """What a model is doing. Times are seconds since 1970."""

    name: str
    state: Annotated[str, Field(description="cold, loading, ready or draining")]
    device: str | None
    bytes: int
    predicted_bytes: int
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
    freed_bytes: int
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
    freed_bytes: int


class Vision(Shape):
    """Which models see, and what a request may send them."""

    models: list[str]
    max_batch_size: dict[str, int]
    max_media_per_request: int
    max_image_pixels: int
    max_video_frames: int
    max_new_tokens: int
    media_urls: bool


class Health(Shape):
    """The process serves."""

    status: Literal["healthy", "stopping"]
    profile: str
    device: str
    uptime: float
    vlm_config: Vision


class Ready(Shape):
    """Requests can be served."""

    status: Literal["ready"]
    runners_preloaded: bool


