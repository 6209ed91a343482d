"""Writes processor files under the names of published checkpoints.

The library now saves one `processor_config.json`. Published folders and older versions of the library have
`preprocessor_config.json` (pictures and sounds) and `video_preprocessor_config.json`. Both load; a pocket
folder should look like the published one.
"""

import json
from pathlib import Path
from typing import Any

from transformers.processing_utils import ProcessorMixin


def settings(part: Any, owner: str) -> dict[str, Any]:
    """Return one part's settings; sizes in pixels also under the family's own names."""
    found: dict[str, Any] = json.loads(part.to_json_string())
    size = found.get("size") or {}
    if "shortest_edge" in size and "longest_edge" in size:
        found |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    return {**found, "processor_class": owner}


def write_processor(folder: Path, processor: ProcessorMixin) -> None:
    """Write a processor with its tokenizer and chat template into `folder`."""
    processor.save_pretrained(folder)
    (folder / "processor_config.json").unlink(missing_ok=True)
    owner = type(processor).__name__
    still: dict[str, Any] = {}
    for name in ("feature_extractor", "image_processor"):
        if (part := getattr(processor, name, None)) is not None:
            still |= settings(part, owner)
    files = {"preprocessor_config.json": still}
    if (part := getattr(processor, "video_processor", None)) is not None:
        files["video_preprocessor_config.json"] = settings(part, owner)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
