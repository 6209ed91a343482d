"""Every setting of the gateway, its default and its meaning: the one place they are written down.

Read once at start, in the gateway process, from (strongest first) command-line flags, environment variables
``SWITCHYARD_<NAME>``, a YAML file, and the defaults below. Must not know what reads it.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from utils.units import Bytes, Seconds

ROOT = Path(__file__).resolve().parent.parent
_SPARE_THREADS = 32


class SettingsError(Exception):
    """The configuration cannot be used. The message is one line, meant for the person who wrote it."""


class Settings(BaseSettings):
    """Settings of one gateway. Durations take ``90``, ``"90s"`` or ``"5m"``; sizes ``300000000`` or ``"300MB"``."""

    model_config = SettingsConfigDict(env_prefix="SWITCHYARD_", extra="forbid", validate_default=True)

    profile: str = Field("workstation", description="Which catalog of models to serve: workstation or pocket.")
    models_file: Path | None = Field(
        None, description="Your own models.yaml, added over the profile. Default: ./models.yaml if it is there.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(5000, ge=1, le=65535, description="Port to listen on.")
    debug: bool = Field(False, description="Serve by Flask's own server and log at debug level.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What to log.")

    models_dir: Path = Field(Path("models"), description="Where weights are kept.")
    logs_dir: Path = Field(Path("logs"), description="Where main.log is written.")
    tmp_dir: Path = Field(Path("tmp"), description="Scratch space of requests.")

    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="Where models run: auto (the first GPU, else the CPU), cpu, cuda or cuda:N.")
    slot_budget: Bytes | None = Field(
        None, description="Memory the slot may use. Default: from the GPU or from RAM, by the shares below.")
    gpu_utilization: float = Field(0.92, gt=0, le=1, description="Share of a GPU's memory a slot may use.")
    gpu_reserve: Bytes = Field(512 * 2**20, description="GPU memory left to the desktop and other programs.")
    cpu_utilization: float = Field(0.5, gt=0, le=1, description="Share of RAM a slot on the CPU may use.")
    cpu_threads: int = Field(0, ge=0, description="Threads of a runner on the CPU. 0: one per core.")

    keep_alive: Seconds = Field(300.0, description="How long an idle model stays loaded. 0: not at all, -1: forever.")
    preload: Annotated[list[str], NoDecode] = Field([], description="Models to load at start, comma-separated.")
    quantum: Seconds = Field(
        10.0, ge=0,
        description="How long a busy model may keep the slot while another waits; longer if its load took longer.")
    queue_per_model: int = Field(64, ge=1, description="Requests that may wait for one model before 429.")
    queue_total: int = Field(256, ge=1, description="Requests that may wait in all before 429.")
    threads: int = Field(
        0, ge=0, description="Request threads. 0: one for all that may wait or run at once, and some to spare.")
    request_timeout: Seconds = Field(300.0, gt=0, description="A request's deadline when it names none.")
    max_timeout: Seconds = Field(3600.0, gt=0, description="The longest deadline a request may ask for.")
    quantized_cache: Bytes = Field(
        100 * 10**9, description="Disk space for weights quantized once and read since. 0: quantize at every load.")
    zygote_memory: Bytes = Field(
        2 * 10**9, description="Memory of their own that processes kept ready for the next load of a model may have "
        "together. 0: open every model anew at each load.")
    load_timeout: Seconds = Field(600.0, gt=0, description="A load not done by then is ended.")
    heartbeat_timeout: Seconds = Field(60.0, gt=0, description="A runner silent for that long is ended.")
    send_timeout: Seconds = Field(
        60.0, gt=0, description="A client that reads nothing of its answer for that long is dropped.")
    drain_timeout: Seconds = Field(30.0, ge=0, description="How long a stopping gateway waits for running requests.")
    backoff_first: Seconds = Field(10.0, ge=0, description="Pause after a first failed load; doubles each time.")
    backoff_max: Seconds = Field(300.0, ge=0, description="The longest pause after failed loads.")

    max_body: Bytes = Field(64 * 2**20, description="Largest request body; larger ones get 413.")
    max_new_tokens: int = Field(32768, ge=1, description="The most tokens one request may ask for.")

    default_vision_model: str | None = Field(
        None, description="The model of POST /generate. Default: the catalog's first that takes text and images.")

    media_urls: bool = Field(False, description="Whether requests may name images, audio and video by URL.")
    max_media_items: int = Field(16, ge=1, description="Images, clips and videos in one request.")
    max_pixels: int = Field(50_000_000, ge=1, description="Pixels of an image, or of one video frame.")
    max_audio_seconds: Seconds = Field(600.0, gt=0, description="Length of an audio clip.")
    max_video_seconds: Seconds = Field(600.0, gt=0, description="Length of a video.")
    video_frames: int = Field(8, ge=1, description="Frames sampled from a video when the request does not say.")
    max_video_frames: int = Field(64, ge=1, description="The most frames a request may ask for.")
    url_timeout: Seconds = Field(20.0, gt=0, description="How long fetching one URL may take.")
    decode_timeout: Seconds = Field(60.0, gt=0, description="How long decoding one request's media may take.")
    decode_memory: Bytes = Field(2 * 2**30, description="Memory a media decoder may use.")
    temp_max_age: Seconds = Field(3600.0, gt=0, description="Scratch older than this is swept.")

    skip_download: bool = Field(False, description="Do not download missing weights at start.")

    @field_validator("preload", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags and environment only; the file is merged beneath them by :func:`load_settings`."""
        return init_settings, env_settings

    def thread_count(self, running: int) -> int:
        """Return the number of request threads where ``running`` requests may run at once: enough that a full queue
        behind them still leaves room for health checks and refusals."""
        return self.threads or self.queue_total + running + _SPARE_THREADS

    def make_folders(self) -> None:
        """Create models/, logs/ and tmp/.

        :raises SettingsError: if one cannot be made, or if tmp/ is a folder of others: what lies in it is cleaned away.
        """
        shared = {Path(place).resolve() for place in ("/", "/tmp", "/var/tmp", tempfile.gettempdir(), Path.home(), ".")}
        if self.tmp_dir.resolve() in shared:
            raise SettingsError(f"setting 'tmp_dir': {self.tmp_dir} is used by others too; name a folder of its own")
        for folder in (self.models_dir, self.logs_dir, self.tmp_dir):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SettingsError(f"cannot create {folder}: {error.strerror}") from error


def load_settings(config: Path | None = None, **flags: Any) -> Settings:
    """Return the settings from flags, the environment and an optional YAML file of ``name: value`` lines.

    :raises SettingsError: naming the file or variable, the setting and what is wrong with it.
    """
    from_file = _read(config) if config else {}
    try:
        given = Settings(**flags).model_fields_set  # flags and environment win over the file
    except ValidationError as error:
        raise SettingsError(_explain(error, "")) from None
    try:
        return Settings(**{**{key: value for key, value in from_file.items() if key not in given}, **flags})
    except ValidationError as error:
        raise SettingsError(_explain(error, f" (in {config})")) from None


def _explain(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    what = "no such setting" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    return f"setting {name!r}{where}: {what}"


def _read(config: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"cannot read the configuration {config}: {reason}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that cannot be
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        at = f", line {line + 1}" if line is not None else ""
        raise SettingsError(f"the configuration {config}{at} is not valid YAML") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsError(f"the configuration {config} must be a mapping of settings")
    return {str(key): value for key, value in data.items()}
