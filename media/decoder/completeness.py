"""Whether a file of sound or video ends early, and how long a WAV says it is.

Runs in the decoder process, before FFmpeg sees the bytes: FFmpeg would return the part that is there, and a model would
answer about half a file. Images need no such check: Pillow notices. Only lengths are read. A file whose length is
unknown by its format's own rules (a recorded stream) counts as whole.
"""

from mmap import mmap

_UNKNOWN = 0x7FFFF000  # RIFF sizes from here on are written by programs that did not know
_SLACK = 64  # bytes; some writers count a header too many
_PCM_TAGS = (1, 3, 0xFFFE)
_MAX_STEPS = 2_000_000

Bytes = bytes | mmap


def missing_bytes(data: Bytes, format: str) -> int:
    """Return how many bytes are missing at the end of a file of this format; 0 if none or if it cannot be
    told."""
    end = {
        "WAV": _riff_end,
        "AVI": _riff_end,
        "MP4": _boxes_end,
        "MOV": _boxes_end,
        "M4A": _boxes_end,
        "WEBM": _segment_end,
        "MATROSKA": _segment_end,
        "OGG": _pages_end,
        "MP3": _tagged_end,
    }.get(format)
    missing = end(data) - len(data) if end else 0
    slack = 2048 if format == "MP3" else _SLACK if format in ("WAV", "AVI") else 0
    return missing if missing > slack else 0


def wav_seconds(data: Bytes) -> float:
    """Return the duration in seconds that a WAV's header claims; 0 if it claims none."""
    rate, at, steps = 0, 12, 0
    while at + 8 <= len(data) and steps < 1000:
        name, size = data[at : at + 4], _little(data, at + 4, 4)
        if name == b"fmt " and at + 24 <= len(data):
            tag, hertz, align = _little(data, at + 8, 2), _little(data, at + 12, 4), _little(data, at + 20, 2)
            rate = hertz * align if tag in _PCM_TAGS else _little(data, at + 16, 4)
        if name == b"data":
            return size / rate if rate and size < _UNKNOWN else 0.0
        at, steps = at + 8 + size + size % 2, steps + 1
    return 0.0


def _little(data: Bytes, at: int, count: int) -> int:
    return int.from_bytes(data[at : at + count], "little")


def _big(data: Bytes, at: int, count: int) -> int:
    return int.from_bytes(data[at : at + count], "big")


def _riff_end(data: Bytes) -> int:
    if data[:4] != b"RIFF":
        return 0
    size = _little(data, 4, 4)
    return size + 8 if size < _UNKNOWN else 0


def _boxes_end(data: Bytes) -> int:
    """Return where the last top-level box ends."""
    at = 0
    for _ in range(_MAX_STEPS):
        if at + 8 > len(data) or not data[at + 4 : at + 8].isalnum():
            return at  # padding or a stray tail, which players ignore too
        size = _big(data, at, 4)
        if size == 1:
            size = _big(data, at + 8, 8)
        if size < 8:  # 0: to the end of the file
            return 0
        at += size
        if at >= len(data):
            return at
    return 0


def _segment_end(data: Bytes) -> int:
    at = 4
    for identifier in (b"", b"\x18S\x80g"):  # the EBML header's own size, then the segment's
        if identifier and data[at : at + 4] != identifier:
            return 0
        at += len(identifier)
        first = data[at] if at < len(data) else 0
        if not first:
            return 0
        width = 9 - first.bit_length()
        size = _big(data, at, width) & (1 << 7 * width) - 1
        if size == (1 << 7 * width) - 1:
            return 0
        at += width + size
    return at


def _pages_end(data: Bytes) -> int:
    at = 0
    for _ in range(_MAX_STEPS):
        if at >= len(data) or data[at : at + 4] != b"OggS":
            return at
        if at + 27 > len(data):
            return at + 27
        table = data[at + 27 : at + 27 + data[at + 26]]
        at += 27 + data[at + 26] + sum(table)
    return 0


def _tagged_end(data: Bytes) -> int:
    """Return where an MP3 ends by its Xing header, which names the bytes of the stream; 0 without one."""
    start = 0
    if data[:3] == b"ID3":
        start = 10 + (data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9])
        if start >= len(data):
            return start + 1 + 2048
    head = bytes(data[start : start + 256])
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0 or at + 16 > len(head) or not head[at + 7] & 2:
        return 0
    return start + _big(head, at + (12 if head[at + 7] & 1 else 8), 4)
