"""Files that are broken, lying, enormous, or not media at all, each with the answers that are right for it.

Used by the tests of the decoder and by those of the gateway's HTTP side. Limits are taken to be the defaults.
"""

import base64
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image

from tests.media.samples import audio_bytes, audio_only_mp4, encoded, halves, image_bytes, video_bytes, wav

Entry = tuple[str, str, bytes, frozenset[int]]

OK, BAD, LARGE, TYPE = 200, 400, 413, 415


@cache
def hostile_files() -> list[Entry]:
    """Return (name, kind, bytes, statuses) of every file; 200 is among them where decoding it is right."""
    every = (_not_media(), _wrong_kind(), _cut_short(), _images(), _audio(), _video())
    return [(name, kind, data, frozenset(statuses)) for part in every for name, kind, data, statuses in part]


_Part = Iterator[tuple[str, str, bytes, set[int]]]


def _not_media() -> _Part:
    html = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("cat.jpg", image_bytes("JPEG"))
    noise = random.Random(7).randbytes(5000)
    for kind in ("image", "audio", "video"):
        yield f"zero bytes as {kind}", kind, b"", {BAD}
        yield f"noise as {kind}", kind, b"\x01\x02" + noise, {BAD}
        yield f"HTML as {kind}", kind, html, {TYPE}
    yield "one byte", "image", b"\x89", {BAD}
    yield "text", "image", b"this is no picture\n" * 30, {BAD}
    yield "UTF-16 text", "image", "this is no picture".encode("utf-16"), {BAD}
    yield "white space", "image", b" \n" * 100, {BAD}
    yield "zeros", "video", bytes(100_000), {BAD}
    yield "JSON", "audio", b'{"error": "not found"}', {BAD}
    yield "base64 of a JPEG", "image", base64.b64encode(image_bytes("JPEG")), {BAD}
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "SVG", "image", svg, {TYPE}
    yield "SVG after XML", "image", b'<?xml version="1.0"?>\n' + svg, {TYPE}
    yield "PDF", "image", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", {TYPE}
    yield "ZIP", "image", archive.getvalue(), {TYPE}
    yield "gzip", "audio", b"\x1f\x8b\x08" + noise, {TYPE}
    yield "ELF", "video", b"\x7fELF\x02\x01\x01" + bytes(100), {TYPE}
    yield "HEIC", "image", b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00heicmif1" + noise, {TYPE}
    yield "playlist naming a file", "video", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", {BAD}
    yield "concat script", "video", b"ffconcat version 1.0\nfile /etc/passwd\n", {BAD}


def _wrong_kind() -> _Part:
    yield "MP3 as image", "image", audio_bytes("MP3"), {TYPE}
    yield "MP4 as image", "image", video_bytes(), {TYPE}
    yield "PNG as audio", "audio", image_bytes("PNG"), {TYPE}
    yield "MP4 with pictures as audio", "audio", video_bytes(sound=True), {TYPE}
    yield "AVI as audio", "audio", video_bytes("avi"), {TYPE}
    yield "WAV as video", "video", audio_bytes("WAV"), {TYPE}
    yield "M4A as video", "video", audio_bytes("M4A"), {TYPE}
    yield "GIF as video", "video", image_bytes("GIF"), {TYPE}
    yield "MP4 without video", "video", audio_only_mp4(), {BAD}


def _cut_short() -> _Part:
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        data = _noisy(format)
        yield f"half a {format}", "image", data[: len(data) // 2], {BAD}
    for format in ("WAV", "MP3", "FLAC", "M4A", "OGG"):
        data = audio_bytes(format)
        yield f"half a {format}", "audio", data[: len(data) // 2], {BAD}
        yield f"the first 60 bytes of a {format}", "audio", data[:60], {BAD}
    for container in ("mp4", "avi", "mov", "webm"):
        data = video_bytes(container)
        yield f"half a {container}", "video", data[: len(data) // 2], {BAD}
        yield f"the first 60 bytes of a {container}", "video", data[:60], {BAD}


def _noisy(format: str) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), format)


def _images() -> _Part:
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        yield f"1 × 1 {format}", "image", encoded(Image.new("RGB", (1, 1), "red"), format), {OK}
    yield "PNG header of 50,000 × 50,000", "image", png(50_000, 50_000, zlib.compress(bytes(100))), {LARGE}
    yield "PNG of 2^31 - 1 squared", "image", png(2**31 - 1, 2**31 - 1, zlib.compress(b"")), {LARGE}
    rows = zlib.compressobj(9)
    bomb = b"".join(rows.compress(bytes(2501)) for _ in range(20_000)) + rows.flush()
    yield "PNG bomb", "image", png(20_000, 20_000, bomb, depth=1, colour=0), {LARGE}
    yield "PNG of no size", "image", png(0, 0, zlib.compress(b"")), {BAD}
    text_bomb = png(1, 1, zlib.compress(bytes(4)), text=bytes(80_000_000))
    yield "PNG with a text bomb", "image", text_bomb, {OK, BAD}
    good = image_bytes("PNG")
    yield "PNG with a wrong checksum", "image", good[:29] + b"\0\0\0\0" + good[33:], {BAD}
    yield "PNG without data", "image", good[:33] + good[-12:], {BAD}

    jpeg = image_bytes("JPEG")
    start = jpeg.index(b"\xff\xc0") + 5
    wide = jpeg[:start] + b"\xff\xdc\xff\xdc" + jpeg[start + 4 :]
    yield "JPEG header of 65,500 × 65,500", "image", wide, {LARGE}
    broken_exif = encoded(halves(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(40))
    yield "JPEG with broken EXIF", "image", broken_exif, {OK}
    yield "JPEG of markers alone", "image", b"\xff\xd8\xff" + b"\xff\xe0\x00\x02" * 20_000, {BAD}

    gif = image_bytes("GIF")
    yield "GIF screen of 65,535 × 65,535", "image", gif[:6] + b"\xff\xff\xff\xff" + gif[10:], {LARGE}
    frames = [Image.new("P", (16, 16), number % 250) for number in range(600)]
    endless = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], loop=0, duration=20)
    yield "endless GIF of many frames", "image", endless, {OK}
    yield "GIF of comments alone", "image", gif[:13] + b"\x21\xfe\x01a\x00" * 200_000, {BAD}
    yield "GIF whose pixels never end", "image", gif[: gif.index(b",")] + _gif_frame() * 3, {OK, BAD}

    bmp = image_bytes("BMP")
    wide = bmp[:18] + b"\xff\xff\xff\x7f" * 2 + bmp[26:]
    yield "BMP header of 2^31 - 1 squared", "image", wide, {LARGE, BAD}
    yield "WebP canvas of 16,383 squared", "image", _webp_canvas(), {LARGE}

    yield "TIFF of 2,000 pages", "image", _book(2000), {OK}
    yield "TIFF whose directory is past the end", "image", b"II*\0\xff\xff\xff\x7f" + bytes(50), {BAD}
    yield "TIFF whose directory is itself", "image", b"II*\0\x08\0\0\0\0\0\x08\0\0\0", {BAD}
    tags = {256: 100_000, 257: 100_000, 258: 8, 259: 1, 262: 1, 273: 8, 279: 9}
    tiff = b"II*\0\x08\0\0\0" + _directory(tags)
    yield "TIFF header of 100,000 × 100,000", "image", tiff, {LARGE}


def png(width: int, height: int, data: bytes, depth: int = 8, colour: int = 2, text: bytes = b"") -> bytes:
    """Return a PNG with this header and these compressed pixels, whether they fit or not."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    note = chunk(b"zTXt", b"note\0\0" + zlib.compress(text, 9)) if text else b""
    return b"\x89PNG\r\n\x1a\n" + header + note + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _gif_frame() -> bytes:
    """Return a frame of far more LZW codes than it has pixels, without an end code."""
    return b",\0\0\0\0\x40\0\x30\0\0\x08" + (b"\xff" + bytes(255)) * 2000


def _webp_canvas() -> bytes:
    size = (16_382).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + size
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def _book(pages: int) -> bytes:
    """Return a TIFF of grey pages of 4 × 4. Pillow would walk through all pages before for each that it adds."""
    written = b"II*\0" + struct.pack("<I", 8 + 16)
    for number in range(pages):
        at = len(written)
        tags = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: at, 278: 4, 279: 16}
        page = bytes([number % 256]) * 16 + _directory(tags)
        following = at + len(page) + 16 if number < pages - 1 else 0
        written += page[:-4] + struct.pack("<I", following)
    return written


def _directory(tags: dict[int, int]) -> bytes:
    """Return a TIFF's directory of these tags, the last."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return struct.pack("<H", len(tags)) + entries + bytes(4)


def _audio() -> _Part:
    quiet = bytes(32_000)
    yield "WAV header of 10 hours", "audio", wav(quiet, declared=36_000 * 32_000), {LARGE}
    yield "WAV of 11 true minutes", "audio", wav(bytes(660_000), rate=1000, bits=8), {LARGE}
    yield "WAV of an unknown length", "audio", wav(quiet, declared=0xFFFFFFFF), {OK}
    for rate in (0, 1, 4_294_967_295):
        yield f"WAV at {rate} Hz", "audio", wav(quiet, rate=rate), {BAD, LARGE}
    for channels in (0, 65_535):
        yield f"WAV of {channels} channels", "audio", wav(quiet, channels=channels), {BAD}
    yield "WAV of 0 bits", "audio", wav(quiet, bits=0), {BAD, TYPE}
    yield "WAV of an unknown codec", "audio", wav(quiet, tag=0x9999), {BAD, TYPE}
    yield "WAV without samples", "audio", wav(b""), {BAD}
    yield "WAV of one sample", "audio", wav(bytes(2)), {OK}
    for name, value in (("NaN", np.nan), ("infinite", np.inf), ("enormous", 1e38)):
        samples = np.full(8000, value, np.float32).tobytes()
        yield f"WAV of {name} samples", "audio", wav(samples, bits=32, tag=3), {BAD}
    yield "MP3 tag of 256 MB", "audio", b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + audio_bytes("MP3"), {BAD}
    yield "MP3 of one header", "audio", b"\xff\xfb\x90\x00", {BAD}
    frames = (b"\xff\xfb\x90\x00" + random.Random(number).randbytes(413) for number in range(50))
    yield "MP3 frames of noise", "audio", b"".join(frames), {OK, BAD}
    flac = audio_bytes("FLAC")
    yield "FLAC that claims 12 hours", "audio", flac[:21] + b"\xff" * 5 + flac[26:], {BAD, LARGE}
    ogg = audio_bytes("OGG")
    yield "OGG headers alone", "audio", ogg[: ogg.index(b"OggS", 4)], {BAD}
    yield "OGG with a hole", "audio", ogg[: len(ogg) // 3] + ogg[len(ogg) // 2 :], {OK, BAD}
    long = audio_bytes("OGG", seconds=120)
    yield (
        "OGG with zeros in its middle",
        "audio",
        long[: len(long) // 2] + bytes(100_000) + long[len(long) // 2 + 100_000 :],
        {BAD},
    )


def _video() -> _Part:
    mp4 = video_bytes()
    yield "MP4 that claims 100 hours", "video", _claims(mp4, 360_000), {OK, LARGE}
    yield "MP4 that claims 1 millisecond", "video", _claims(mp4, 0.001), {OK}
    yield "MP4 that lasts 20 minutes", "video", video_bytes("mp4", "mpeg4", 1200, 1, 16, 16), {LARGE}
    yield "MP4 of 65,535 × 65,535 by its track", "video", _wide(mp4), {OK, BAD, LARGE}
    yield "MP4 type box alone", "video", mp4[: int.from_bytes(mp4[:4], "big")], {BAD}
    yield "MP4 without its index", "video", mp4.replace(b"moov", b"junk"), {BAD}
    yield "MP4 box of 2^63 bytes", "video", mp4[:32] + b"\0\0\0\1mdat\x7f" + b"\xff" * 99, {BAD}
    yield "MP4 box of no size", "video", mp4[:32] + b"\0\0\0\x00moov" * 1000, {BAD}
    yield "MP4 boxes within boxes", "video", _nested(mp4[:32]), {BAD}
    pictures = _noise(mp4, mp4.index(b"mdat") + 4, mp4.index(b"moov") - 4)
    yield "MP4 with noise for pictures", "video", pictures, {OK, BAD}
    index = _noise(mp4, mp4.index(b"stbl") + 4, len(mp4))
    yield "MP4 with noise for an index", "video", index, {OK, BAD, LARGE, TYPE}
    avi = video_bytes("avi")
    yield "AVI of one frame a day", "video", _slow(avi), {LARGE}
    yield "AVI with noise for a header", "video", _noise(avi, 40, 300), {OK, BAD, LARGE, TYPE}
    yield "AVI list alone", "video", avi[:12] + b"LIST\xff\xff\xff\x7f" + bytes(50), {BAD}
    webm = video_bytes("webm")
    yield "WebM header alone", "video", webm[: webm.index(b"\x18S\x80g")], {BAD}
    yield "WebM with noise for clusters", "video", _noise(webm, 400, len(webm)), {OK, BAD, LARGE, TYPE}
    endless = webm[: webm.index(b"\x18S\x80g") + 4] + b"\x01" + b"\xff" * 7 + b"\xec\x81\0" * 100_000
    yield "WebM that never begins", "video", endless, {BAD}


def _claims(mp4: bytes, seconds: float) -> bytes:
    """Return an MP4 whose movie and media headers claim a duration, in 32 bits."""
    data = bytearray(mp4)
    for name in (b"mvhd", b"mdhd"):
        at = mp4.index(name) + 4 + 12  # past version and times: time scale, then duration
        scale = int.from_bytes(mp4[at : at + 4], "big")
        data[at + 4 : at + 8] = min(2**32 - 2, int(seconds * scale)).to_bytes(4, "big")
    return bytes(data)


def _wide(mp4: bytes) -> bytes:
    at = mp4.index(b"avc1", mp4.index(b"stsd")) + 4 + 24
    return mp4[:at] + b"\xff\xff\xff\xff" + mp4[at + 4 :]


def _nested(head: bytes) -> bytes:
    depth = 20_000
    sizes = [8 * (depth - level) for level in range(depth)]
    data = b"".join(
        struct.pack(">I", size) + (b"moov", b"trak", b"mdia")[min(2, level)] for level, size in enumerate(sizes)
    )
    return head + data


def _noise(data: bytes, start: int, end: int) -> bytes:
    return data[:start] + random.Random(3).randbytes(end - start) + data[end:]


def _slow(avi: bytes) -> bytes:
    at = avi.index(b"strh") + 8 + 20  # scale, rate
    return avi[:at] + struct.pack("<II", 86_400, 1) + avi[at + 8 :]
