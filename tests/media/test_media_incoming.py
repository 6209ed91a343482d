"""What clients send becomes bytes or a 400 that names the field."""

import base64
import pickle
from dataclasses import replace

import pytest

from media.client import limits_from_settings
from media.errors import MediaError
from media.incoming import Sent, read_all, read_one
from media.limits import MediaLimits
from media.sniff import sniff
from tests.media.samples import audio_bytes, audio_only_mp4, image_bytes, video_bytes
from utils.settings import Settings

DATA = bytes(range(256)) + b"\xfb\xff\xfe"
PLAIN = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.rstrip("="),
        f"  {PLAIN}\n",
        "\r\n".join(PLAIN[start : start + 76] for start in range(0, len(PLAIN), 76)),
        base64.urlsafe_b64encode(DATA).decode(),
        f"data:image/png;base64,{PLAIN}",
        f"data:;base64,{PLAIN}",
        f"DATA:image/png;charset=utf-8;BASE64,\n{PLAIN}",
    ],
)
def test_base64(limits: MediaLimits, text: str) -> None:
    raw = read_one(Sent("image", text, "image"), limits)
    assert raw.data == DATA and raw.kind == "image" and raw.field == "image"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("cat.jpg", "looks like a file name"),
        ("not base64!", "character '!'"),
        ("äöü", "character 'ä'"),
        ("AAAAA", "was it cut?"),
        ("AB=CD", "character '='"),
        ("data:image/png,hello", "data:<type>;base64"),
        ("data:image/png;base64", "data:<type>;base64"),
        ("\x00\x01", "character"),
        ("data:image/png;base64,%41%42", "character '%'"),
        (None, "not null"),
        (12, "not a number"),
        ({"url": "x"}, "not an object"),
        (["AAAA"], "not an array"),
        (True, "not a boolean"),
        ("http://example.com/cat.jpg", "SWITCHYARD_MEDIA_URLS"),
        ("HTTPS://example.com/cat.jpg", "SWITCHYARD_MEDIA_URLS"),
        ("file:///etc/passwd", "file://"),
        ("gopher://example.com", "gopher://"),
    ],
)
def test_broken(limits: MediaLimits, value: object, words: str) -> None:
    with pytest.raises(MediaError) as caught:
        read_one(Sent("image", value, "images[3]"), limits)
    assert caught.value.status == 400
    assert caught.value.details.startswith("images[3]: ") and words in caught.value.details


def test_empty_text_is_zero_bytes(limits: MediaLimits) -> None:
    assert read_one(Sent("image", "", "image"), limits).data == b""


def test_uploads_and_limits(limits: MediaLimits) -> None:
    small = replace(limits, max_bytes=100, max_items=2)
    file = Sent("image", bytes(60), "image")
    assert read_one(file, small).data == bytes(60)
    text = Sent("audio", base64.b64encode(bytes(60)).decode(), "audio")
    with pytest.raises(MediaError) as caught:
        read_all([file, text], small)
    assert caught.value.status == 413 and "120 B; the limit is 100 B" in caught.value.details
    with pytest.raises(MediaError) as caught:
        read_all([file] * 3, small)
    assert caught.value.status == 413 and "3 media; the limit is 2" in caught.value.details
    assert len(read_all([file, replace(file, value=bytes(40))], small)) == 2


def test_limits_from_settings() -> None:
    settings = Settings(max_pixels=7, decode_timeout=3, url_timeout=4, media_urls=True)
    limits = limits_from_settings(settings)
    assert (limits.max_pixels, limits.timeout, limits.url_timeout, limits.urls) == (7, 3, 4, True)


def test_error_survives_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(MediaError(413, "Media too large", "image: it is")))
    assert (error.status, error.error, error.details) == (413, "Media too large", "image: it is")
    assert str(error) == "Media too large: image: it is"


@pytest.mark.parametrize(
    ("data", "format"),
    [
        *((image_bytes(name), name) for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")),
        *((audio_bytes(name), name) for name in ("WAV", "MP3", "FLAC", "M4A", "OGG")),
        (audio_only_mp4(), "MP4"),
        (video_bytes("mp4"), "MP4"),
        (video_bytes("mov"), "MOV"),
        (video_bytes("avi"), "AVI"),
        (video_bytes("webm"), "WEBM"),
        (video_bytes("matroska"), "MATROSKA"),
        (b"ID3\x04\0\0\0\0\0\x05extra" + audio_bytes("FLAC"), "FLAC"),
        (b"", ""),
    ],
)
def test_sniff(data: bytes, format: str) -> None:
    assert sniff(data).format == format


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_sniff_never_raises(cut: int) -> None:
    media = (image_bytes("PNG"), audio_bytes("MP3"), video_bytes("webm"))
    for data in (*media, "<html>ä".encode(), b"BM", b"ID3"):
        assert sniff(data[:cut]).text
