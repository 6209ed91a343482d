"""The folders of quantized weights: what holds, what is stale or damaged, what is removed and when."""

import errno
import os
import time
from collections import namedtuple
from pathlib import Path

import pytest

from checkpoints import kept_weights

GONE = 2**22 + 1
"""A process id that no process can have."""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


def rewritten(file: Path) -> None:
    """As many other bytes, at another time: a file system's clock may stand still for some milliseconds."""
    file.write_bytes(b"x" * file.stat().st_size)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))


def write(
    base: Path,
    model: str = "a",
    bits: int = 4,
    found: str = "k1",
    size: int = 100,
    variant: str = "cpu",
    made_of: str = "",
) -> Path:
    place = kept_weights.folder(base, model, bits, found)
    unfinished = kept_weights.begin(place, size)
    (unfinished / "model.safetensors").write_bytes(b"q" * size)
    kept_weights.finish(unfinished, place, model, bits, variant, made_of)
    return place


def test_the_key_tells_files_settings_and_libraries_apart(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kept_weights.key(kept_weights.origin(checkpoint), {"bits": 4})
    assert kept_weights.key(kept_weights.origin(checkpoint), {"bits": 4}) == first
    assert kept_weights.key(kept_weights.origin(checkpoint), {"bits": 8}) != first
    (checkpoint / "model.safetensors").write_bytes(b"other weights")
    second = kept_weights.key(kept_weights.origin(checkpoint), {"bits": 4})
    assert second != first
    monkeypatch.setattr(kept_weights, "_libraries", lambda: {"torch": "99"})
    assert kept_weights.key(kept_weights.origin(checkpoint), {"bits": 4}) not in (first, second)


def test_what_was_written_is_whole_and_listed(tmp_path: Path) -> None:
    place = write(tmp_path)
    assert kept_weights.state(place) == "whole"
    (entry,) = kept_weights.entries(tmp_path)
    assert (entry.model, entry.bits, entry.bytes, entry.folder) == ("a", 4, 100, place)


def test_what_holds_is_known_without_a_load(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "kept"
    place = write(base, variant="cpu torch.float32", made_of=kept_weights.origin(checkpoint))
    assert kept_weights.holds(base, "a", 4, "cpu", checkpoint)
    assert not kept_weights.holds(base, "a", 8, "cpu", checkpoint) and not kept_weights.holds(
        base, "b", 4, "cpu", checkpoint
    )
    assert not kept_weights.holds(base, "a", 4, "cuda", checkpoint)
    assert not kept_weights.holds(base, "a", 4, "cpu", tmp_path / "nowhere")
    with monkeypatch.context() as patched:
        patched.setattr(kept_weights, "_libraries", lambda: {"torch": "99"})
        assert not kept_weights.holds(base, "a", 4, "cpu", checkpoint)
    (checkpoint / "config.json").write_text('{"other": 1}')
    assert not kept_weights.holds(base, "a", 4, "cpu", checkpoint), "made of other files"
    write(base, variant="cpu torch.float32", made_of=kept_weights.origin(checkpoint), found="k2")
    assert kept_weights.holds(base, "a", 4, "cpu", checkpoint) and not place.exists()
    (base / "a-4bit-k2" / "model.safetensors").unlink()
    assert not kept_weights.holds(base, "a", 4, "cpu", checkpoint)


def test_nothing_is_there_before(tmp_path: Path) -> None:
    assert kept_weights.state(tmp_path / "nowhere") == "absent"
    assert kept_weights.entries(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: (place / "model.safetensors").unlink(),
        lambda place: (place / "model.safetensors").write_bytes(b"q" * 99),
        lambda place: rewritten(place / "model.safetensors"),
        lambda place: (place / "switchyard.json").write_text("{"),
        lambda place: (place / "switchyard.json").write_text('{"model": "a"}'),
        lambda place: (place / "switchyard.json").unlink(),
    ],
    ids=["missing", "cut short", "rewritten", "record broken", "record cut", "record missing"],
)
def test_what_does_not_match_its_record_is_damaged(tmp_path: Path, damage: object) -> None:
    place = write(tmp_path)
    damage(place)  # type: ignore[operator]
    assert kept_weights.state(place) == "damaged"
    kept_weights.prune(tmp_path, 0)
    assert not place.exists()


def test_a_folder_that_cannot_be_written_is_still_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(os, "utime", refuse)
    assert kept_weights.state(place) == "whole"


def test_a_newer_one_replaces_those_of_its_kind_only(tmp_path: Path) -> None:
    old, other_bits = write(tmp_path, found="k1"), write(tmp_path, bits=8, found="k1")
    other_device, other_model = write(tmp_path, found="k2", variant="cuda"), write(tmp_path, model="b", found="k1")
    new = write(tmp_path, found="k3")
    assert kept_weights.state(old) == "absent"
    assert all(kept_weights.state(place) == "whole" for place in (new, other_bits, other_device, other_model))


def test_what_a_dead_writer_left_is_removed(tmp_path: Path) -> None:
    dead, living = tmp_path / f".unfinished-a-{GONE}", tmp_path / f".unfinished-b-{os.getppid()}"
    for place in (dead, living):
        place.mkdir()
        (place / "model.safetensors").write_bytes(b"half")
    assert kept_weights.prune(tmp_path, 0) == []
    assert not dead.exists() and living.exists()
    dead.mkdir()
    old = time.time() - 7200  # as the living one has another's process id
    os.utime(living, (old, old))
    own = tmp_path / f".unfinished-a-4bit-k1-{os.getpid()}"
    own.mkdir()
    (own / "other.safetensors").write_bytes(b"half")
    place = write(tmp_path)
    assert not dead.exists() and not living.exists()
    assert not (place / "other.safetensors").exists()


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    places = [write(tmp_path, model=name) for name in "abc"]
    for age, place in enumerate(places):
        os.utime(place / "switchyard.json", (1000 + age, 1000 + age))
    kept_weights.state(places[0])  # which is to use it
    assert [entry.model for entry in kept_weights.prune(tmp_path, 250)] == ["b"]
    assert [entry.model for entry in kept_weights.prune(tmp_path, 0)] == ["c", "a"]
    assert kept_weights.entries(tmp_path) == []


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(kept_weights.shutil, "disk_usage", lambda _: usage(10, 10, 10**9))
    with pytest.raises(OSError, match="are free"):
        kept_weights.begin(tmp_path / "a-4bit-k", 1)
    assert list(tmp_path.iterdir()) == []
