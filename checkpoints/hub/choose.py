"""Chooses the files of a repository that a model needs. Pure: names in, names out; no network, no files.

Weights are safetensors or GGUF only. Formats that run code when opened (.bin, .pt, .pth, .ckpt, .pkl) are never chosen,
except the speaker table of a talking model, for speech.
"""

import json
import re
from collections.abc import Iterable

from checkpoints.hub.records import DownloadError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SPEECH = "spk_dict.pt"

_SMALL = re.compile(
    r"config[\w.-]*\.json|generation_config\.json"
    r"|tokenizer[\w.-]*\.(json|model)|vocab\.(json|txt)|merges\.txt|special_tokens_map\.json|added_tokens\.json"
    r"|(spiece|sentencepiece[\w.-]*|source|target)\.(model|spm)|[\w.-]+\.tiktoken|tekken\.json|normalizer\.json"
    r"|chat_template\.(json|jinja)|additional_chat_templates/[\w-]+\.jinja"
    r"|(\w+_)?preprocessor_config\.json|processor_config\.json|feature_extractor_config\.json"
)
_SHARD_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")
_GGUF_PART = re.compile(r"(?P<stem>[\w.-]+)-\d{5}-of-(?P<count>\d{5})\.gguf")
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")


def choose_gguf(names: Iterable[str], file: str) -> list[str]:
    """Return the GGUF ``file``, with its other parts when it is split (``…-00001-of-00003.gguf``).

    :raises DownloadError: if it is not a GGUF file or the repository lacks it.
    """
    available = set(names)
    if not file.endswith(".gguf"):
        raise DownloadError(f"{file} is not a .gguf file")
    split = _GGUF_PART.fullmatch(file)
    count = int(split["count"]) if split else 1
    wanted = [f"{split['stem']}-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1)] if split else [file]
    for name in wanted:
        if name not in available:
            others = sorted(other for other in available if other.endswith(".gguf"))
            has = f"it has {', '.join(others)}" if others else "it has no .gguf file at all"
            raise DownloadError(f"the repository has no {name}; {has}")
    return wanted


def choose_checkpoint(names: Iterable[str], index: bytes | None, *, speech: bool = False) -> list[str]:
    """Return the files of a transformers checkpoint, sorted.

    ``index`` is the content of :data:`INDEX` if the repository has one; then its shards are chosen, and a single file
    beside them is not. ``speech`` adds :data:`SPEECH` if it exists.

    :raises DownloadError: without a config.json, without safetensors weights, or for an index that names missing files.
    """
    available = set(names)
    if "config.json" not in available:
        ggufs = any(name.endswith(".gguf") for name in available)
        hint = "; it has GGUF files: name one as source.file" if ggufs else ""
        raise DownloadError(f"the repository has no config.json, so it is no transformers checkpoint{hint}")
    if index is not None:
        weights = {INDEX, *shards_of(index)}
        if absent := sorted(weights - available):
            raise DownloadError(f"the repository's {INDEX} names {absent[0]}, which is not in the repository")
    elif SINGLE in available:
        weights = {SINGLE}
    else:
        raise DownloadError(_no_weights(available))
    small = {name for name in available if _SMALL.fullmatch(name)}
    extra = {SPEECH} & available if speech else set()
    return sorted(weights | small | extra)


def shards_of(index: bytes) -> set[str]:
    """Return the file names in a safetensors index. :raises DownloadError: if it is not an index."""
    try:
        shards = set(json.loads(index)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        shards = set()
    if not shards or not all(isinstance(name, str) and _SHARD_NAME.fullmatch(name) for name in shards):
        raise DownloadError(f"{INDEX} is not a list of safetensors files")
    return shards


def _no_weights(available: set[str]) -> str:
    others = sorted(name for name in available if name.endswith(_OTHER_WEIGHTS) and "/" not in name)
    has = f"; it has {', '.join(others[:3])}, not taken: only safetensors and GGUF are loaded" if others else ""
    return (
        f"the repository has no safetensors weights ({SINGLE} or {INDEX}) at this revision{has}; "
        "set revision to one that has them, or convert them yourself and give a path"
    )
