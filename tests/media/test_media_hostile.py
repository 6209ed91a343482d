"""Whatever the bytes are, the answer is an array or a MediaError, and nothing is left behind."""

import random
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from media.client import MediaItem, decode_media
from media.decoders import Decoders
from media.errors import MediaError
from media.incoming import RawMedia
from media.limits import MediaLimits
from media.sniff import Kind, sniff
from tests.media.hostile import hostile_files
from tests.media.samples import audio_bytes, image_bytes, video_bytes

FILES = hostile_files()


NAMES = [name for name, *_ in FILES]


@pytest.mark.parametrize(("kind", "data", "statuses"), [entry[1:] for entry in FILES], ids=NAMES)
def test_hostile_file(
    kind: Kind, data: bytes, statuses: frozenset[int], limits: MediaLimits, tmp_path: Path, decoders: Decoders
) -> None:
    try:
        decoded = decode_media([MediaItem(RawMedia(kind, data, "input"))], limits, tmp_path, decoders)
    except MediaError as error:
        assert error.status in statuses, str(error)
        assert error.details.startswith("input: ") and len(error.details) > 20
        assert str(tmp_path) not in error.details and "Traceback" not in error.details
        if error.status in (400, 415):
            assert sniff(data).text in error.details
        if error.status == 413:
            assert "the limit is" in error.details
        assert list(tmp_path.iterdir()) == []
    else:
        assert 200 in statuses
        assert np.load(decoded[0].path, allow_pickle=False).shape == decoded[0].shape
        assert [path.name for path in decoded[0].path.parent.iterdir()] == ["0.npy"]


def test_there_are_many() -> None:
    assert len(FILES) >= 80
    assert {kind for _, kind, _, _ in FILES} == set(get_args(Kind))
    assert len({name for name, *_ in FILES}) == len(FILES)
    assert sum(200 not in statuses for *_, statuses in FILES) >= 60


SOUND: list[tuple[Kind, bytes]] = [
    *(("image", image_bytes(format)) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")),
    *(("audio", audio_bytes(format)) for format in ("WAV", "MP3", "FLAC", "M4A", "OGG")),
    *(("video", video_bytes(container)) for container in ("avi", "mov", "webm")),
    ("video", video_bytes("mp4", sound=True)),
]


@pytest.mark.parametrize("seed", range(len(SOUND)))
def test_flipped_bytes(seed: int, limits: MediaLimits, tmp_path: Path, decoders: Decoders) -> None:
    kind, good = SOUND[seed]
    chance = random.Random(seed)
    data = bytearray(good)
    for _ in range(20):
        data[chance.randrange(12, len(data))] = chance.randrange(256)
    try:
        item = MediaItem(RawMedia(kind, bytes(data), "input"), want_audio=True)
        assert decode_media([item], limits, tmp_path, decoders)[0].shape
    except MediaError as error:
        assert error.status in (400, 413, 415)
        assert list(tmp_path.iterdir()) == []
