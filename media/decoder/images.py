"""Images to RGB arrays, with Pillow. Runs in the decoder process only.

The header's dimensions are checked before a pixel is decoded. NumPy is imported only for the few
images that need it: a small image costs half without. Must not know where results are kept.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from media.errors import too_large, undecodable
from media.limits import MediaLimits
from media.messages import Task

_PLUGINS = {"PNG": "Png", "JPEG": "Jpeg", "WEBP": "WebP", "GIF": "Gif", "BMP": "Bmp", "TIFF": "Tiff"}


def preload() -> None:
    """Import what any image may need, NumPy too: for a process whose forks decode."""
    import numpy  # noqa: F401

    Image.preinit()
    for name in _PLUGINS.values():
        import_module(f"PIL.{name}ImagePlugin")


def decode_image(path: Path, task: Task, limits: MediaLimits) -> tuple[Image.Image, dict[str, Any]]:
    """Return the first frame of an image, of mode RGB (8 bits a channel), upright, transparency on white.

    :returns: the image, and ``width`` and ``height`` in pixels, ``format``, and the ``mode`` it was stored
        in.
    :raises MediaError: 413 if the header names more pixels than ``limits.max_pixels``, 400 if it is broken.
    :raises Exception: whatever Pillow raises for bytes that it cannot read.
    """
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own check knows neither the limit nor how to name it
    import_module(f"PIL.{_PLUGINS[task.format]}ImagePlugin")  # else Pillow would load all of them to find it
    if task.format == "WEBP":  # whose decoder sets aside its canvas as soon as it is opened
        with path.open("rb") as file:
            _check(_webp_size(file.read(30)), task, limits)
    try:
        opened = Image.open(path, formats=[task.format])
    except UnidentifiedImageError:
        raise undecodable(task.field, task.looks_like, "its header is broken") from None
    with opened as image:
        _check(image.size, task, limits)
        mode = image.mode
        image.load()
        rgb = _rgb(_upright(image))
    return rgb, {"width": rgb.width, "height": rgb.height, "format": task.format, "mode": mode}


def _check(size: tuple[int, int], task: Task, limits: MediaLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        value = f"{width} × {height} = {width * height} pixels"
        raise too_large(task.field, "the image has", value, f"{limits.max_pixels} pixels")


def _webp_size(head: bytes) -> tuple[int, int]:
    """Return the canvas that a WebP's first chunk names, (0, 0) if it names none."""
    match head[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            return (int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF)
    return 0, 0


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # broken EXIF raises any of half a dozen types; the picture is still good
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Return greys of 16 or 32 bits or floating point (0 to 1, or to 255) as RGB."""
    import numpy as np

    grey = np.nan_to_num(np.asarray(image).astype(np.float32))
    if image.mode != "F":
        grey /= 257.0
    elif grey.size and 0.0 <= grey.min() and grey.max() <= 1.0:
        grey *= 255.0
    return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")
