"""What bytes are by their content, never by a name or a declared type.

Pure functions over the first few kilobytes, run in the gateway process before anything is decoded. Must not decode: a
file that *looks* like a PNG may still be broken.
"""

import re
from dataclasses import dataclass
from typing import Literal

from media.errors import undecodable, unsupported

Kind = Literal["image", "audio", "video"]

SUPPORTED: dict[Kind, str] = {
    "image": "an image must be PNG, JPEG, WebP, GIF, BMP or TIFF",
    "audio": "audio must be WAV, MP3, FLAC, M4A or OGG",
    "video": "a video must be MP4, AVI, MOV or WebM",
}
"""For messages: the accepted formats, by kind."""

_LOOK = 4096


@dataclass(frozen=True)
class Sniffed:
    """What some bytes look like.

    :ivar format: ``PNG``, ``MP4``, ``PDF`` …; empty when the bytes are no format known here.
    :ivar text: the same for a sentence: ``a PNG image``, ``an HTML page``, ``zero bytes``.
    :ivar kinds: what it may be taken as. Containers such as MP4 may hold sound alone; which it is shows
        when decoding.
    """

    format: str
    text: str
    kinds: frozenset[Kind] = frozenset()


_IMAGE: frozenset[Kind] = frozenset({"image"})
_AUDIO: frozenset[Kind] = frozenset({"audio"})
_VIDEO: frozenset[Kind] = frozenset({"video"})
_EITHER: frozenset[Kind] = frozenset({"audio", "video"})

_ZERO = Sniffed("", "zero bytes")
_JPEG = Sniffed("JPEG", "a JPEG image", _IMAGE)
_TIFF = Sniffed("TIFF", "a TIFF image", _IMAGE)
_GIF = Sniffed("GIF", "a GIF image", _IMAGE)
_WAV = Sniffed("WAV", "a WAV audio file", _AUDIO)
_MP3 = Sniffed("MP3", "an MP3 audio file", _AUDIO)
_FLAC = Sniffed("FLAC", "a FLAC audio file", _AUDIO)
_MOV = Sniffed("MOV", "a MOV video", _EITHER)

_PREFIXES: tuple[tuple[bytes, Sniffed], ...] = (
    (b"\x89PNG\r\n\x1a\n", Sniffed("PNG", "a PNG image", _IMAGE)),
    (b"\xff\xd8\xff", _JPEG),
    (b"GIF87a", _GIF),
    (b"GIF89a", _GIF),
    (b"II*\x00", _TIFF),
    (b"MM\x00*", _TIFF),
    (b"II+\x00", _TIFF),
    (b"MM\x00+", _TIFF),
    (b"fLaC", _FLAC),
    (b"%PDF", Sniffed("PDF", "a PDF")),
    (b"PK\x03\x04", Sniffed("ZIP", "a ZIP archive")),
    (b"PK\x05\x06", Sniffed("ZIP", "a ZIP archive")),
    (b"\x1f\x8b", Sniffed("GZIP", "a gzip archive")),
    (b"BZh", Sniffed("BZIP2", "a bzip2 archive")),
    (b"\xfd7zXZ\x00", Sniffed("XZ", "an xz archive")),
    (b"\x28\xb5\x2f\xfd", Sniffed("ZSTD", "a zstd archive")),
    (b"7z\xbc\xaf\x27\x1c", Sniffed("7Z", "a 7z archive")),
    (b"Rar!\x1a\x07", Sniffed("RAR", "a RAR archive")),
    (b"\x7fELF", Sniffed("ELF", "an ELF program")),
    (b"MZ", Sniffed("EXE", "a Windows program")),
    (b"8BPS", Sniffed("PSD", "a Photoshop image")),
    (b"\x00\x00\x01\x00", Sniffed("ICO", "an ICO icon")),
    (b"\x00\x00\x00\x0cjP  ", Sniffed("JPEG2000", "a JPEG 2000 image")),
    (b"\x00\x00\x00\x0cJXL ", Sniffed("JXL", "a JPEG XL image")),
    (b"\xff\x0a", Sniffed("JXL", "a JPEG XL image")),
    (b"FLV\x01", Sniffed("FLV", "an FLV video")),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Sniffed("ASF", "a Windows Media file")),
    (b"\x00\x00\x01\xba", Sniffed("MPEG", "an MPEG program stream")),
    (b"\x00\x00\x01\xb3", Sniffed("MPEG", "an MPEG video stream")),
    (b".snd", Sniffed("AU", "an AU audio file")),
    (b"#!AMR", Sniffed("AMR", "an AMR audio file")),
    (b"MThd", Sniffed("MIDI", "a MIDI file")),
    (b"\x93NUMPY", Sniffed("NPY", "a NumPy array")),
)

_RIFF = {
    b"WAVE": _WAV,
    b"AVI ": Sniffed("AVI", "an AVI video", _VIDEO),
    b"WEBP": Sniffed("WEBP", "a WebP image", _IMAGE),
}

_BRANDS = {
    b"M4A ": Sniffed("M4A", "an M4A audio file", _AUDIO),
    b"M4B ": Sniffed("M4A", "an M4A audio file", _AUDIO),
    b"qt  ": _MOV,
    b"avif": Sniffed("AVIF", "an AVIF image"),
    b"avis": Sniffed("AVIF", "an AVIF image"),
    b"heic": Sniffed("HEIC", "a HEIC image"),
    b"heix": Sniffed("HEIC", "a HEIC image"),
    b"mif1": Sniffed("HEIC", "a HEIC image"),
}


def sniff(data: bytes) -> Sniffed:
    """Return what ``data`` looks like. Never raises."""
    head = data[:_LOOK]
    if not head:
        return _ZERO
    for prefix, found in _PREFIXES:
        if head.startswith(prefix):
            return found
    return _container(head, data) or _mpeg_audio(data) or _writing(head) or _unknown(data)


def require(data: bytes, kind: Kind, field: str) -> Sniffed:
    """Return what ``data`` looks like if it may be a ``kind``.

    :raises MediaError: 415 for a known format of another kind or not supported, 400 for anything else.
    """
    found = sniff(data)
    if kind in found.kinds:
        return found
    if found.format:
        raise unsupported(field, found.text, SUPPORTED[kind])
    raise undecodable(field, found.text, SUPPORTED[kind])


def _container(head: bytes, data: bytes) -> Sniffed | None:
    """Tell the containers whose first bytes name a family: RIFF, ISO media, Matroska, Ogg, and BMP."""
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], Sniffed("MP4", "an MP4 video", _EITHER))
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        return _MOV
    if head.startswith(b"\x1aE\xdf\xa3"):
        if b"webm" in head[:64]:
            return Sniffed("WEBM", "a WebM video", _EITHER)
        return Sniffed("MATROSKA", "a Matroska video", _EITHER)
    if head.startswith(b"OggS"):
        if b"\x80theora" in head:
            return Sniffed("OGV", "an Ogg Theora video")
        return Sniffed("OGG", "an OGG audio file", _AUDIO)
    if head.startswith(b"BM") and head[15:18] == bytes(3) and head[14] in (12, 40, 52, 56, 64, 108, 124):
        return Sniffed("BMP", "a BMP image", _IMAGE)
    if head.startswith(b"FORM") and head[8:12] in (b"AIFF", b"AIFC"):
        return Sniffed("AIFF", "an AIFF audio file")
    if len(data) > 376 and data[0] == data[188] == data[376] == 0x47:
        return Sniffed("MPEGTS", "an MPEG transport stream")
    return None


def _mpeg_audio(data: bytes) -> Sniffed | None:
    """Tell MP3 by its tag or by a valid frame header, and the AAC stream that resembles it."""
    start = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        size = data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9]
        start = 10 + size
        if data[start : start + 4] == b"fLaC":
            return _FLAC
        if start >= len(data):
            return _MP3
    header = data[start : start + 4]
    if len(header) == 4 and header[0] == 0xFF and header[1] & 0xE0 == 0xE0:
        version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
        if layer == 0 and header[1] & 0xF0 == 0xF0:
            return Sniffed("AAC", "an AAC audio stream")
        if version != 1 and layer == 1 and header[2] >> 4 != 15 and header[2] >> 2 & 3 != 3:
            return _MP3
    return _MP3 if start else None


def _writing(head: bytes) -> Sniffed | None:
    """Tell text, and what is written in it."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Sniffed("", "text")
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(head) < _LOOK:  # a character cut by the window is no reason
            return None
        text = head[: error.start].decode("utf-8-sig")
    if re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]", text):
        return None
    start = text.lstrip().lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<body")):
        return Sniffed("HTML", "an HTML page")
    if "<svg" in start[:1024] and start.startswith("<"):
        return Sniffed("SVG", "an SVG drawing")
    if start.startswith("<?xml"):
        return Sniffed("XML", "an XML document")
    if not start:
        return Sniffed("", "white space")
    if start.startswith(("{", "[")):
        return Sniffed("", "JSON text")
    if len(text) >= 64 and re.fullmatch(r"[A-Za-z0-9+/=_\r\n-]+", text):
        return Sniffed("", "base64 text, encoded twice perhaps")
    return Sniffed("", "text")


def _unknown(data: bytes) -> Sniffed:
    if not any(data[:_LOOK]):
        return Sniffed("", "a run of zeros")
    return Sniffed("", f"unknown bytes starting {data[:8].hex(' ')}")
