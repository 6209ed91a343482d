"""One servable model: its family, the source of its weights, how it is loaded and its defaults.

Pure data, used by the gateway and the command line. Imports no torch.
"""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator

from utils.settings import ROOT
from utils.units import Seconds, parse_bytes

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$")]
Input = Literal["text", "image", "audio", "video"]
QuantBits = Literal[4, 8, 16]
_DEVICE = re.compile(r"auto|(cpu|cuda)(:\d{1,3})?")


def _devices(value: Any) -> Any:
    """Accept one name, or several as a list or separated by commas."""
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise ValueError("give a device, or a list of them")
    for name in names:
        if not isinstance(name, str) or not _DEVICE.fullmatch(name):
            raise ValueError(f"{name!r} is no device; write auto, cuda, cuda:N, cpu or cpu:N")
    return names


Devices = Annotated[tuple[str, ...], BeforeValidator(_devices)]
"""``cuda:1`` and ``cpu:0`` are one slot; ``cuda`` and ``cpu`` any of that kind; ``auto`` is a GPU if there is one."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """The source of the weights: exactly one of a hub repository, a local path or an installed Python package.

    A ``path`` is relative to the project's folder. A ``file`` names the one GGUF file to use.
    """

    hub: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = "main"
    path: Path | None = None
    package: str | None = Field(None, pattern=r"^\w+$")
    file: str | None = Field(None, pattern=r"^[\w.-]+$")

    @model_validator(mode="after")
    def _exactly_one(self) -> "Source":
        if sum(given is not None for given in (self.hub, self.path, self.package)) != 1:
            raise ValueError("give exactly one of hub, path or package")
        if self.package and not self.file:
            raise ValueError("a package needs the file inside it")
        return self


class Generation(_Strict):
    """Generation defaults of a model, for fields that a request does not give."""

    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.7, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    repetition_penalty: float = Field(1.0, gt=0, le=2)


class ModelSpec(_Strict):
    """One entry of the catalog.

    ``folder`` is the download's folder under ``models/``. ``inputs`` narrows the family's inputs. ``context`` (tokens)
    and ``chat_template`` (Jinja) replace the checkpoint's own. ``max_batch_size`` is how many requests its runner
    answers at once (default: the family's), ``cache_tokens`` the most tokens of KV cache for all of them (default:
    8192, or the context if larger), ``batch_wait_ms`` how long the first request of an idle runner waits for others.
    ``cpu_quant_bits`` applies on a CPU; without it a CPU uses 16 bits where they fit, because quantization makes a CPU
    slower. ``device`` names the slots it may use; a CPU among several is for models that fit no GPU. Up to ``replicas``
    runners answer, each in its own slot.
    """

    name: Name
    family: str
    label: str = ""
    source: Source
    folder: str | None = Field(None, pattern=r"^\w[\w.-]*$")
    quant_bits: QuantBits = 4
    cpu_quant_bits: QuantBits | None = None
    engine: Literal["transformers", "llama_cpp"] = "transformers"
    device: Devices = ("auto",)
    replicas: int = Field(1, ge=1, le=64)
    inputs: tuple[Input, ...] | None = None
    generation: Generation = Field(default_factory=Generation)
    context: int | None = Field(None, ge=16)
    chat_template: str | None = None
    max_batch_size: int | None = Field(None, ge=1, le=256)
    cache_tokens: int | None = Field(None, ge=256)
    batch_wait_ms: float = Field(0, ge=0, le=10_000)
    keep_alive: Seconds | None = None
    pinned: bool = False
    aliases: tuple[Name, ...] = ()
    max_memory: dict[str, str] | None = Field(None, description="Per-device limits that allow CPU offload.")

    @field_validator("max_memory", mode="before")
    @classmethod
    def _limits(cls, value: Any) -> Any:
        """Accept numbers as keys. Limits must be sizes, and name one GPU at most."""
        if not isinstance(value, dict):
            return value
        limits = {str(key): limit for key, limit in value.items()}
        for key, limit in limits.items():
            if key != "cpu" and not key.isdigit():
                raise ValueError(f"{key!r} is neither cpu nor the number of a GPU")
            parse_bytes(limit)
        if sum(key.isdigit() for key in limits) > 1:
            raise ValueError("names more than one GPU; a model is loaded on one, and may be offloaded to the CPU")
        return limits

    @model_validator(mode="after")
    def _folder_when_needed(self) -> "ModelSpec":
        if self.source.hub and not self.folder:
            raise ValueError("folder: a model from the hub needs a folder under models/")
        return self

    def path(self, models_dir: Path) -> Path:
        """Return the checkpoint's folder, or the GGUF file. It need not exist."""
        source = self.source
        if source.package:
            found = find_spec(source.package)
            base = Path(found.origin).parent if found and found.origin else Path(f"<package {source.package}>")
        elif source.path:
            base = source.path if source.path.is_absolute() else ROOT / source.path
        else:
            base = models_dir / str(self.folder)
        return base / source.file if source.file else base

    def missing(self, models_dir: Path) -> str | None:
        """Return what the weights obviously lack, in words, or None."""
        path = self.path(models_dir)
        if self.source.file:
            return None if path.is_file() else f"{path} is not there"
        if not path.is_dir():
            return f"the folder {path} is not there"
        if not (path / "config.json").is_file():
            return f"{path} has no config.json"
        if not any(path.glob("*.safetensors")):
            return f"{path} has no .safetensors weights"
        return None


def replica_names(spec: ModelSpec) -> list[str]:
    """Return the names of a model's replicas: its own name, then ``name#2``, ``name#3``…"""
    return [spec.name, *(f"{spec.name}#{number}" for number in range(2, spec.replicas + 1))]


def spec_name(replica: str) -> str:
    """Return the model name of a replica."""
    return replica.partition("#")[0]
