"""Scratch space: gone when its request ends, however it ends, and never taken from one that runs."""

import os
import time
from pathlib import Path

import pytest

from utils.tmp_manage import TempFolder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "scratch"
    root.mkdir()
    return root


def aged(path: Path, seconds: float) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then), follow_symlinks=False)
    return path


def test_a_requests_folder_is_its_own_and_goes_with_all_it_holds(root: Path) -> None:
    temp = TempFolder(root)
    with temp.request("r1") as folder, temp.request("r2") as other:
        assert folder.is_dir() and other.is_dir() and folder != other and folder.parent == root
        assert folder.stat().st_mode & 0o077 == 0, "nobody else may look"
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "image.npy").write_bytes(b"0" * 100)
    assert list(root.iterdir()) == []


def test_it_goes_also_when_the_request_fails(root: Path) -> None:
    temp = TempFolder(root)
    with pytest.raises(RuntimeError, match="decoder"), temp.request("r1") as folder:
        (folder / "half").write_bytes(b"0")
        raise RuntimeError("decoder")
    assert list(root.iterdir()) == []
    with temp.request("r1") as folder:
        assert list(folder.iterdir()) == []


def test_it_goes_also_when_a_stream_is_closed(root: Path) -> None:
    temp = TempFolder(root)

    def stream() -> object:
        with temp.request("r1") as folder:
            yield folder

    running = stream()
    next(running)  # type: ignore[call-overload]
    assert len(list(root.iterdir())) == 1
    running.close()  # type: ignore[attr-defined]
    assert list(root.iterdir()) == []


def test_the_root_is_made_when_it_is_not_there(tmp_path: Path) -> None:
    temp = TempFolder(tmp_path / "not" / "yet")
    assert temp.entries() == [] and temp.clean() == (0, 0)
    with temp.request("r1") as folder:
        assert folder.is_dir()


def test_cleaning_leaves_what_is_in_use(root: Path) -> None:
    temp = TempFolder(root)
    (root / "request-gone").mkdir()
    (root / "request-gone" / "a").write_bytes(b"0" * 300)
    (root / "stray").write_bytes(b"0" * 50)
    with temp.request("r1") as folder:
        (folder / "image.npy").write_bytes(b"0" * 100)
        aged(folder, 10_000)
        assert temp.clean() == (2, 350)
        assert (folder / "image.npy").read_bytes() == b"0" * 100
        assert [path.name for path in root.iterdir()] == [folder.name]
    assert temp.clean() == (0, 0)


def test_cleaning_by_age(root: Path) -> None:
    temp = TempFolder(root)
    aged_file = root / "old"
    aged_file.write_bytes(b"12345")
    aged(aged_file, 1000)
    (root / "new").write_bytes(b"1")
    assert temp.clean(older_than=500) == (1, 5)
    assert [path.name for path in root.iterdir()] == ["new"]


def test_an_entry_just_as_old_as_asked_is_removed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 2000.0)
    (root / "old").write_bytes(b"12345")
    os.utime(root / "old", (1500.0, 1500.0))
    assert TempFolder(root).clean(older_than=500) == (1, 5)


def test_an_entry_from_the_future_has_no_age(root: Path) -> None:
    (root / "new").write_bytes(b"")
    aged(root / "new", -1000)
    assert [entry.age for entry in TempFolder(root).entries()] == [0.0]


def test_a_folder_removed_by_others_is_no_error(root: Path) -> None:
    with TempFolder(root).request("r1") as folder:
        folder.rmdir()
    assert list(root.iterdir()) == []


def test_hidden_files_stay(root: Path) -> None:
    (root / ".gitkeep").write_bytes(b"")
    assert TempFolder(root).clean() == (0, 0) and (root / ".gitkeep").exists()


def test_what_a_link_points_to_stays(root: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "weights").write_bytes(b"0" * 1000)
    (root / "link").symlink_to(precious)
    (root / "request-old").mkdir()
    (root / "request-old" / "link").symlink_to(precious)
    count, size = TempFolder(root).clean()
    assert count == 2 and size < 1000, "links are removed, not what they lead to"
    assert (precious / "weights").exists() and list(root.iterdir()) == []


def test_a_link_to_nothing_is_removed_too(root: Path) -> None:
    (root / "link").symlink_to(root / "nowhere")
    assert TempFolder(root).clean()[0] == 1 and list(root.iterdir()) == []


def test_entries_tell_size_age_and_use_oldest_first(root: Path) -> None:
    temp = TempFolder(root)
    (root / "middle").write_bytes(b"0" * 10)
    aged(root / "middle", 100)
    with temp.request("r1") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_bytes(b"0" * 70)
        aged(folder, 1000)
        oldest, newest = temp.entries()
    assert (oldest.name, oldest.bytes, oldest.in_use) == (folder.name, 70, True)
    assert (newest.name, newest.bytes, newest.in_use) == ("middle", 10, False)
    assert oldest.age >= 1000 > newest.age >= 100
