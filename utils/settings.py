"""Every setting of the gateway, its default and its meaning. Gateway and command line; read once at start.

Sources, strongest first: command-line flags, environment variables ``SWITCHYARD_<NAME>``, a YAML file, the defaults
below. Knows no reader of the settings.
"""

import re
import tempfile
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from limits import parse_many
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from utils.units import Bytes, Seconds

ROOT = Path(__file__).resolve().parent.parent
_SPARE_THREADS = 32
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


class SettingsError(ValueError):
    """The configuration is invalid. The message is one line for the person who wrote it."""


class Settings(BaseSettings):
    """Settings of one gateway. Durations take ``90``, ``"90s"`` or ``"5m"``; sizes ``300000000`` or ``"300MB"``."""

    model_config = SettingsConfigDict(env_prefix="SWITCHYARD_", extra="forbid", validate_default=True)

    profile: str = Field("workstation", description="Which catalog of models to serve: workstation or pocket.")
    models_file: Path | None = Field(
        None, description="Your own models.yaml, added over the profile. Default: ./models.yaml if it is there."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(5000, ge=1, le=65535, description="Port to listen on.")
    debug: bool = Field(False, description="Serve by Flask's own server and log at debug level.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What to log.")
    log_format: Literal["text", "json"] = Field("text", description="Log lines of text, or each a JSON object.")
    log_file_size: Bytes = Field(20 * 2**20, ge=1, description="Size at which main.log is put aside and begun anew.")
    log_files: int = Field(5, ge=1, description="Older log files that are kept.")
    log_prompts: bool = Field(
        False, description="Log the text of prompts too. Off, no log line has anything a user wrote or sent."
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]+",
        description="Collector to send traces to by OTLP over HTTP, say "
        "http://localhost:4318. Default: OTEL_EXPORTER_OTLP_ENDPOINT; without either there are no traces.",
    )

    models_dir: Path = Field(Path("models"), description="Where weights are kept.")
    logs_dir: Path = Field(Path("logs"), description="Where main.log is written.")
    tmp_dir: Path = Field(Path("tmp"), description="Scratch space of requests.")
    data_dir: Path = Field(Path("data"), description="Where API keys, sessions and records of usage are kept.")

    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d{1,3})?)( *, *(cpu|cuda(:\d{1,3})?))*$",
        description="Where models run: auto (every GPU, else the CPU), cpu, cuda (every GPU), cuda:N, or several of "
        "them, comma-separated. Each GPU is a slot.",
    )
    slot_budget: Bytes | None = Field(
        None, description="Memory each slot may use. Default: from the GPU or from RAM, by the shares below."
    )
    slot_budgets: Annotated[dict[str, Bytes], NoDecode] = Field(
        {}, description="The same for single slots, such as cuda:1=20GB,cpu=8GB; in the file a mapping."
    )
    gpu_utilization: float = Field(0.92, gt=0, le=1, description="Share of a GPU's memory a slot may use.")
    gpu_reserve: Bytes = Field(512 * 2**20, description="GPU memory left to the desktop and other programs.")
    cpu_utilization: float = Field(0.5, gt=0, le=1, description="Share of RAM a slot on the CPU may use.")
    cpu_slots: int = Field(1, ge=1, le=64, description="Slots the CPU is divided into: cpu, or cpu:0, cpu:1 and so on.")
    cpu_threads: int = Field(
        0, ge=0, description="Threads of a runner on the CPU. 0: one per core, divided among the CPU's slots."
    )

    fallback: Literal["none", "offload", "cpu"] = Field(
        "cpu", description="Where a model may go when a GPU's memory runs out: nowhere, partly into RAM, to the CPU."
    )
    degraded_for: Seconds = Field(
        600.0, ge=0, description="How long a model that ran out of memory is loaded with less of it."
    )
    memory_margin: float = Field(
        0.25, ge=0, description="Share by which a runner on the CPU may pass what was set aside for it."
    )
    memory_floor: Bytes = Field(
        512 * 2**20, description="Memory of the machine that must stay available; else a runner on the CPU is ended."
    )

    keep_alive: Seconds = Field(300.0, description="How long an idle model stays loaded. 0: not at all, -1: forever.")
    preload: Annotated[list[str], NoDecode] = Field([], description="Models to load at start, comma-separated.")
    quantum: Seconds = Field(
        10.0,
        ge=0,
        description="How long a busy model may keep the slot while another waits; longer if its load took longer.",
    )
    queue_per_model: int = Field(64, ge=1, description="Requests that may wait for one model before 429.")
    queue_total: int = Field(256, ge=1, description="Requests that may wait in all before 429.")
    threads: int = Field(
        0, ge=0, description="Request threads. 0: one for all that may wait or run at once, and some to spare."
    )
    live_streams: int = Field(
        8,
        ge=0,
        le=1000,
        description="Dashboard pages that may be visible at once; each has a thread of its own besides.",
    )
    request_timeout: Seconds = Field(300.0, gt=0, description="A request's deadline when it names none.")
    max_timeout: Seconds = Field(3600.0, gt=0, description="The longest deadline a request may ask for.")
    quantized_cache: Bytes = Field(
        100 * 10**9, description="Disk space for weights quantized once and read since. 0: quantize at every load."
    )
    zygote_memory: Bytes = Field(
        2 * 10**9,
        description="Memory of their own that processes kept ready for the next load of a model may have "
        "together. 0: open every model anew at each load.",
    )
    load_timeout: Seconds = Field(600.0, gt=0, description="A load not done by then is ended.")
    heartbeat_timeout: Seconds = Field(60.0, gt=0, description="A runner silent for that long is ended.")
    send_timeout: Seconds = Field(
        60.0, gt=0, description="A client that reads nothing of its answer for that long is dropped."
    )
    drain_timeout: Seconds = Field(30.0, ge=0, description="How long a stopping gateway waits for running requests.")
    backoff_first: Seconds = Field(10.0, ge=0, description="Pause after a first failed load; doubles each time.")
    backoff_max: Seconds = Field(300.0, ge=0, description="The longest pause after failed loads.")

    usage_retention: Seconds = Field(
        90 * 86400.0, ge=32 * 86400, description="How long records of usage are kept; 32 days or more, for quotas."
    )
    rate_per_key: str | None = Field(
        None, description="Requests each API key may make, such as 60/minute or 5/second;1000/day."
    )
    rate_per_address: str | None = Field(None, description="Requests each address may make, likewise.")
    rate_storage: str = Field(
        "memory://",
        pattern=r"^(memory://$|(redis|rediss|redis\+unix)://)",
        description="Where rates are counted: memory://, or redis://HOST:PORT/DB, which keeps them over a restart.",
    )
    rate_storage_lost: Literal["memory", "allow", "refuse"] = Field(
        "memory", description="While Redis does not answer: count in memory, allow everything, or refuse with 503."
    )
    concurrent_per_key: int = Field(0, ge=0, description="Requests to models each key may have under way. 0: any.")
    concurrent_per_address: int = Field(0, ge=0, description="The same for each address. 0: any.")
    trusted_proxies: Annotated[list[str], NoDecode] = Field(
        [], description="Addresses or networks of proxies whose X-Forwarded-For is believed, comma-separated."
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        [], description="Origins whose web pages may ask, such as https://chat.example.org; * for any."
    )
    metrics_access: Literal["key", "open"] = Field(
        "key", description="Who may read /metrics: this machine and whoever has a key, or everybody (open)."
    )

    connection_limit: int = Field(
        2048,
        ge=1,
        description="Connections open at once, at least one more than threads. Beyond that, connections that send "
        "slowly or are idle make room.",
    )
    head_timeout: Seconds = Field(20.0, gt=0, description="How long a request's head may take to arrive.")
    body_timeout: Seconds = Field(
        30.0, gt=0, description="How long its body may take, and one second more for each min_body_rate received."
    )
    min_body_rate: Bytes = Field(
        8192, ge=1, description="Bytes per second below which a body is too slow, once body_timeout is over."
    )
    max_body: Bytes = Field(64 * 2**20, description="Largest request body; larger ones get 413.")
    max_new_tokens: int = Field(32768, ge=1, description="The most tokens one request may ask for.")

    default_vision_model: str | None = Field(
        None, description="The model of POST /generate. Default: the catalog's first that takes text and images."
    )

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

    policies_dir: Path | None = Field(
        None, description="Where policies for videos are looked for by name. Default: policies/ beside the code."
    )
    moderation_concurrency: int = Field(
        4, ge=1, le=64, description="Questions about one video under way at a time in POST /v1/moderations/video."
    )
    moderation_seconds: Seconds = Field(
        14_400.0, gt=0, description="Length of a video there. Only the frames looked at are decoded."
    )

    skip_download: bool = Field(False, description="Do not download missing weights at start.")

    @field_validator("preload", "trusted_proxies", "cors_origins", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("slot_budgets", mode="before")
    @classmethod
    def _split_budgets(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if wrong := [name for name, equals, _ in pairs if not equals]:
            raise ValueError(f"{wrong[0].strip()!r} has no size; write, say, cuda:1=20GB,cpu=8GB")
        return {name.strip(): size.strip() for name, _, size in pairs}

    @field_validator("rate_per_key", "rate_per_address")
    @classmethod
    def _is_rate(cls, value: str | None) -> str | None:
        if value:
            try:
                parse_many(value)
            except ValueError:
                raise ValueError(f"{value!r} is not a rate; write, say, 60/minute or 5/second;1000/day") from None
        return value or None

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: list[str]) -> list[str]:
        for text in value:
            try:
                ip_network(text, strict=False)
            except ValueError:
                raise ValueError(f"{text!r} is no address or network; write, say, 10.0.0.2 or 10.0.0.0/24") from None
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: list[str]) -> list[str]:
        for text in value:
            if text != "*" and not _ORIGIN.fullmatch(text):
                raise ValueError(f"{text!r} is no origin; write, say, https://chat.example.org, without a path")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags and environment only; :func:`load_settings` adds the file beneath them."""
        return init_settings, env_settings

    def thread_count(self, running: int) -> int:
        """Return the number of server threads when ``running`` requests may run at once.

        A full queue behind them leaves threads for health checks and early errors, and one for each dashboard stream.
        """
        return (self.threads or self.queue_total + running + _SPARE_THREADS) + self.live_streams

    def make_folders(self) -> None:
        """Create models/, logs/, tmp/ and data/; data/ is readable by this user only.

        :raises SettingsError: if a folder cannot be made, or if others use tmp/, whose content is cleaned away.
        """
        if is_shared(self.tmp_dir):
            raise SettingsError(f"setting 'tmp_dir': {self.tmp_dir} is used by others too; name a folder of its own")
        for folder in (self.models_dir, self.logs_dir, self.tmp_dir):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SettingsError(f"cannot create {folder}: {error.strerror}") from error
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"cannot create {self.data_dir}: {error.strerror}") from error


def is_shared(folder: Path) -> bool:
    """Return whether other programs put files into a folder."""
    places = ("/", "/tmp", "/var/tmp", tempfile.gettempdir(), Path.home(), ".")
    return folder.resolve() in {Path(place).resolve() for place in places}


def load_settings(config: Path | None = None, **flags: Any) -> Settings:
    """Return the settings from flags, the environment and an optional YAML file of ``name: value`` lines.

    :raises SettingsError: naming the file or variable, the setting and the mistake.
    """
    from_file = _read(config) if config else {}
    try:
        given = Settings(**flags).model_fields_set  # flags and environment override the file
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
