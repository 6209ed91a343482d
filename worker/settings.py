"""The worker's settings with their defaults and meanings.

Read once at start, in the worker's process, from the environment only. Names without ``WORKER_`` are those that other
programs use too. Must not know its readers. ``python -m worker.settings`` writes the table in ``docs/worker.md``.
"""

import difflib
import os
from pathlib import Path
from typing import Literal, Self

from pydantic import AliasChoices, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from utils.settings import ROOT, SettingsError
from utils.settings_reference import meaning, quoted_default
from utils.units import Bytes, Seconds

PREFIX = "WORKER_"
PAGE = ROOT / "docs" / "worker.md"
_URL = r"^https?://[^\s/?#]+[^\s?#]*$"
_BUCKET = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"
_LONGEST_VISIBILITY = 43_200
_BEGIN, _END = "<!-- settings: made by python -m worker.settings -->\n", "<!-- end of settings -->\n"


class WorkerSettings(BaseSettings):
    """Settings of one worker. Durations take ``90``, ``"90s"`` or ``"5m"``; sizes ``300000000`` or ``"300MB"``."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", validate_default=True, populate_by_name=True, env_ignore_empty=True
    )

    vllm_url: str = Field(
        "http://vllm:8000",
        alias="VLLM_URL",
        pattern=_URL,
        description="The model server, a Switchyard gateway or any other that has `/v1/chat/completions`.",
    )
    vllm_api_key: str | None = Field(
        None,
        validation_alias=AliasChoices("VLLM_API_KEY", "SWITCHYARD_API_KEY", "vllm_api_key"),
        repr=False,
        description="Its API key, where it wants one; `SWITCHYARD_API_KEY` does as well. A secret.",
    )
    aws_region: str = Field(
        "us-east-2", alias="AWS_REGION", pattern=r"^[a-z0-9-]{1,32}$", description="Region of queue, bucket and table."
    )
    aws_endpoint_url: str | None = Field(
        None,
        alias="AWS_ENDPOINT_URL",
        pattern=_URL,
        description="Where AWS is, for a local stand-in. `AWS_ENDPOINT_URL_SQS`, `…_S3` and `…_DYNAMODB` name it for "
        "one service. Default: AWS itself.",
    )
    queue_name: str = Field(
        "ai-chaperone-image-processing-queue",
        alias="QUEUE_NAME",
        pattern=r"^(https?://\S+|[\w-]{1,80}(\.fifo)?)$",
        description="The queue of jobs, by its name or its URL.",
    )
    dead_letter_queue: str | None = Field(
        None,
        alias="DEAD_LETTER_QUEUE",
        pattern=r"^(https?://\S+|[\w-]{1,80}(\.fifo)?)$",
        description="Where jobs go that cannot be done, by name or URL. Default: the target of the queue's redrive "
        "policy. There must be one.",
    )
    result_bucket: str = Field(
        "ai-chaperone-dev", alias="RESULT_BUCKET", pattern=_BUCKET, description="The bucket that results go to."
    )
    result_prefix: str = Field(
        "moderation-results",
        alias="RESULT_PREFIX",
        pattern=r"^[A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*$",
        description="Their folder in it: `<prefix>/<job_id>/image_llm_safety_result.json`.",
    )
    jobs_table: str = Field(
        "ai-chaperone-video-moderation-jobs",
        alias="JOBS_TABLE",
        pattern=r"^[A-Za-z0-9_.-]{3,255}$",
        description="The table of jobs. Its key is the string `job_id`, without a sort key.",
    )

    policy: Path = Field(Path("policies/default.yaml"), description="The policy that videos are held to.")
    model: str | None = Field(
        None, description="The model to ask. Default: the first of the server's that sees, or its only one."
    )
    fps: float = Field(1.0, gt=0, le=60, description="Frames per second that are looked at …")
    max_frames: int = Field(
        50, ge=1, le=1000, description="… and how many at most; they are spread over a video that has more."
    )
    frame_side: int = Field(768, ge=32, le=4096, description="Pixels that a frame's longer side is reduced to.")
    requests: int = Field(4, ge=1, le=64, description="Questions of one job that the model server has at a time.")
    answer_timeout: Seconds = Field(120.0, gt=0, description="How long the model server may take for one answer.")
    patience: Seconds = Field(
        300.0,
        ge=0,
        description="How long a model server that is busy (429, 503) or gone is asked again, as often as "
        "its Retry-After lets, before the job is given back.",
    )

    concurrency: int = Field(1, ge=1, le=64, description="Jobs at the same time.")
    tries: int = Field(
        3,
        ge=1,
        le=100,
        description="How often a job is begun before it is given up. A worker that dies in the "
        "middle counts; a model server that is busy or gone, an outage of AWS and a stopping worker do not.",
    )
    retry_delay: Seconds = Field(
        30.0, ge=0, le=_LONGEST_VISIBILITY, description="Pause before a job's second try; doubles each time."
    )
    retry_delay_max: Seconds = Field(900.0, ge=0, le=_LONGEST_VISIBILITY, description="The longest such pause.")
    max_receives: int = Field(
        100,
        ge=1,
        le=10_000,
        description="How often a message may be received in all before it is given up. Not counted: a model server "
        "that is busy or not set up, results that cannot be stored, a stopping worker.",
    )
    visibility: Seconds = Field(
        120.0,
        ge=3,
        le=3_600,
        description="How long a job stays hidden from other workers, and is this worker's, "
        "after its last sign of life. It gives one every third of that.",
    )
    job_timeout: Seconds = Field(3600.0, gt=0, le=39_600, description="A try that takes longer is stopped, and counts.")
    poll_wait: Seconds = Field(
        10.0, ge=1, le=20, description="How long one question for messages waits for them, in whole seconds."
    )
    grace: Seconds = Field(
        30.0, ge=0, description="How long SIGTERM and SIGINT let jobs go on. What is not done then is given back."
    )
    max_video: Bytes = Field(10 * 2**30, ge=1, description="Size of the largest video that is taken.")
    max_seconds: Seconds = Field(43_200.0, gt=0, description="Length of the longest video that is taken.")
    read_block: Bytes = Field(
        2 * 2**20, ge=64 * 2**10, le=64 * 2**20, description="Bytes of a video that are asked of S3 at once."
    )
    read_blocks: int = Field(8, ge=2, le=1024, description="Such blocks of a video that are held in memory at most.")
    max_pixels: int = Field(50_000_000, ge=1, description="Pixels of a video's frame.")
    decode_timeout: Seconds = Field(600.0, gt=0, description="How long decoding one video may take.")
    decode_memory: Bytes = Field(2 * 2**30, ge=64 * 2**20, description="Memory that decoding one video may take.")
    health_file: Path = Field(
        Path("tmp/worker-health.json"),
        description="File that is written anew while all is well; `main.py worker --check` reads it.",
    )
    health_age: Seconds = Field(60.0, gt=0, description="`--check` takes an older one for the sign of a stuck worker.")
    metrics_host: str = Field("127.0.0.1", min_length=1, description="Address of the metrics.")
    metrics_port: int = Field(9109, ge=0, le=65535, description="Port of the metrics. 0: none.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What to log.")
    log_format: Literal["text", "json"] = Field("text", description="Log lines of text, or each a JSON object.")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.poll_wait != int(self.poll_wait) or self.visibility != int(self.visibility):
            raise ValueError("poll_wait and visibility are whole seconds")
        if self.health_age < 2 * self.poll_wait:
            raise ValueError(f"health_age must be at least twice poll_wait, {2 * self.poll_wait:g} seconds")
        return self

    @property
    def server_url(self) -> str:
        """The model server's address without the path of its API."""
        return self.vllm_url.rstrip("/").removesuffix("/v1")


def load_worker_settings() -> WorkerSettings:
    """Return the settings from the environment.

    :raises SettingsError: naming the variable and the error; an unknown ``WORKER_…`` is an error too.
    """
    known = {variable_name(name, field): name for name, field in WorkerSettings.model_fields.items()}
    for name in os.environ:
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise SettingsError(f"{name} is no setting of the worker" + (f"; is it {near[0]}?" if near else ""))
    try:
        return WorkerSettings()
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0]) if first["loc"] else ""
        named = where if where.isupper() else variable_name(where, WorkerSettings.model_fields.get(where))
        what = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{named}: {what}" if where else what) from None


def variable_name(name: str, field: FieldInfo | None) -> str:
    """Return the environment variable of a setting."""
    alias = field.validation_alias if field else None
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return alias if isinstance(alias, str) else PREFIX + name.upper()


def settings_table() -> str:
    """Return the table of settings for the page."""
    rows = [
        f"| `{variable_name(name, field)}` | {quoted_default(field)} | {meaning(field)} |"
        for name, field in WorkerSettings.model_fields.items()
    ]
    return "| variable | default | meaning |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"


def page_with_table(page: str) -> str:
    """Return the page with the current table. :raises ValueError: if it lacks the marks."""
    before, _, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise ValueError(f"{PAGE} lacks the marks of the settings: {_BEGIN.strip()} … {_END.strip()}")
    return f"{before}{_BEGIN}{settings_table()}{_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
