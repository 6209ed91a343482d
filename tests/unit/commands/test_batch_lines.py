"""What the lines of a batch may have read, and results that are replaced."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from commands.batch_files import Files
from commands.batch_lines import Call, Line, LineError, parse, read_lines
from commands.batch_results import Results, ResultsError

PICTURE = b"\x89PNG" * 10
ENCODED = base64.b64encode(PICTURE).decode()
LIMIT = 100


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The input's folder, with another one and a file beside it."""
    for name in ("input", "input/sub", "other"):
        (tmp_path / name).mkdir()
    for name in ("input/a.png", "input/sub/b.png", "other/c.png", "outside.png"):
        (tmp_path / name).write_bytes(PICTURE)
    (tmp_path / "input/large.png").write_bytes(b"x" * (LIMIT + 1))
    (tmp_path / "input/out.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "input/in.png").symlink_to(tmp_path / "input/a.png")
    (tmp_path / "input/ring.png").symlink_to(tmp_path / "input/ring.png")
    os.mkfifo(tmp_path / "input/pipe.png")
    return tmp_path


def ask(home: Path, *folders: Path, **fields: Any) -> Call:
    line = Line(1, json.dumps({"prompt": "What is it?"} | fields).encode(), "")
    return parse(line, "blip_vqa", Files([home / "input", *folders], LIMIT))


@pytest.mark.parametrize(
    "name", ["file:a.png", "a.png", "sub/b.png", "file:sub/../a.png", "in.png", "file:///{}/a.png"]
)
def test_files_of_the_inputs_folder_are_read(home: Path, name: str) -> None:
    assert ask(home, image=name.format(home / "input")).body["image"] == ENCODED


def test_files_of_another_folder_are_read_where_it_is_named(home: Path) -> None:
    wanted = f"file:{home}/other/c.png"
    with pytest.raises(LineError, match="--files DIR"):
        ask(home, image=wanted)
    assert ask(home, home / "other", images=[wanted, "file:c.png"]).body["images"] == [ENCODED] * 2


@pytest.mark.parametrize(
    "name, why",
    [
        ("file:../outside.png", "outside.png is not in"),
        ("file:out.png", "outside.png is not in"),
        ("file:///etc/hostname", "hostname is not in"),
        ("file:/dev/zero", "zero is not in"),
        ("file:~/a.png", "cannot read the file"),
        ("file:missing.png", "cannot read the file"),
        ("file:ring.png", "cannot read the file|ring"),
        ("file:a\0.png", "cannot read the file"),
        ("file:" + "x" * 5000, "cannot read the file"),
        ("file:pipe.png", "no regular file"),
        ("file:sub", "no regular file"),
        ("file:", "no regular file"),
        ("file:large.png", "too large"),
    ],
)
def test_what_may_not_be_read_is_the_lines_mistake(home: Path, name: str, why: str) -> None:
    with pytest.raises(LineError, match=why):
        ask(home, image=name)
    with pytest.raises(LineError, match=why):
        body = {"messages": [{"content": [{"type": "image_url", "image_url": {"url": name}}]}]}
        parse(
            Line(1, json.dumps({"url": "/v1/chat/completions", "body": body}).encode(), ""),
            "m",
            Files([home / "input"], LIMIT),
        )


def test_the_files_of_a_line_share_the_limit(home: Path) -> None:
    assert ask(home, images=["a.png"] * 2).body["images"] == [ENCODED] * 2
    with pytest.raises(LineError, match="too large"):
        ask(home, images=["a.png"] * 3)


@pytest.mark.parametrize(
    "value",
    [
        "/etc/hostname",
        "../outside.png",
        "~/.profile",
        "missing.png",
        ENCODED,
        "ftp://x.y",
        "data:image/png;base64,a.b",
        "a" * 5000 + ".png",
    ],
)
def test_anything_else_is_the_servers_to_judge(home: Path, value: str) -> None:
    assert ask(home, image=value).body["image"] == value


def results(target: Path, source: Path, **options: bool) -> Results:
    found = Results(target, **options)
    found.take_up(read_lines(source, "m"))
    return found


def test_failures_are_replaced_in_order_and_the_rest_stays(tmp_path: Path) -> None:
    source, real, target = (tmp_path / name for name in ("source", "real", "target"))
    source.write_text("".join(f'"{number}"\n' for number in range(5)))
    target.symlink_to(real)
    lines = [{"line": line.number, "input": line.digest} for line in read_lines(source, "m")]
    first = results(target, source)
    for position, error in enumerate(["busy", None, "busy", "busy"]):
        first.add(position, lines[position] | {"error": error})
    first.close()
    real.chmod(0o640)
    before = real.read_text().splitlines()
    with pytest.raises(ResultsError, match="another run"):
        holder = Results(target)
        try:
            Results(target)
        finally:
            holder.close()

    second = results(target, source, retry_failed=True)
    assert (second.again, second.done, second.written, second.failed) == ({0, 2, 3}, 1, 4, 3)
    second.add(4, lines[4] | {"response": "new"})
    second.add(2, lines[2] | {"response": "new"})
    second.add(0, lines[0] | {"error": "again"})
    assert (second.again, second.done, second.failed) == ({3}, 4, 2)
    second.close()
    after = real.read_text().splitlines()
    assert [json.loads(line)["line"] for line in after] == [1, 2, 3, 4, 5]
    assert [json.loads(line).get("response") for line in after] == [None, None, "new", None, "new"]
    assert json.loads(after[0])["error"] == "again" and after[1] == before[1] and after[3] == before[3]
    assert target.is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["real", "source", "target"]


def test_a_replaced_file_is_still_locked_and_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.batch_results._REWRITE_SECONDS", 0)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text('"a"\n"b"\n"c"\n')
    lines = [{"line": line.number, "input": line.digest} for line in read_lines(source, "m")]
    first = results(target, source)
    first.add(0, lines[0] | {"error": "busy"})
    first.add(1, lines[1] | {"error": "busy"})
    first.close()
    second = results(target, source, retry_failed=True)
    second.add(1, lines[1] | {"response": "b"})
    assert json.loads(target.read_text().splitlines()[1])["response"] == "b", "what is replaced is in the file soon"
    with pytest.raises(ResultsError, match="another run"):
        Results(target)
    second.add(2, lines[2] | {"response": "c"})
    second.add(0, lines[0] | {"response": "a"})
    second.close()
    assert [json.loads(line)["response"] for line in target.read_text().splitlines()] == ["a", "b", "c"]
