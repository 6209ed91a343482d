"""How log lines look and are written, without a gateway: formats, a slow or full place to write, a fork, a runner's
records."""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from utils import log_lines, logs
from utils.request_ids import request_of, taken, ticket_of
from utils.settings import ROOT


class Kept(logging.Handler):
    """A place to write that keeps what it gets, and writes only while its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def emit(self, record: logging.LogRecord) -> None:
        self.gate.wait()
        self.written.append(self.format(record))


@pytest.fixture
def kept() -> Iterator[Kept]:
    kept = Kept()
    yield kept
    kept.gate.set()


def logger_to(kept: Kept, log_format: str = "text", **options: Any) -> tuple[logging.Logger, logs.Background]:
    background = logs.Background([kept], **{"patience": 60} | options)  # whatever the machine does meanwhile
    background.setFormatter(logs._JsonFormatter() if log_format == "json" else logs._TextFormatter())
    logger = logging.Logger("here", logging.DEBUG)
    logger.addHandler(background)
    return logger, background


def failed_with(text: str) -> BaseException:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def test_a_line_of_text(kept: Kept) -> None:
    logger, _ = logger_to(kept)
    fields = {"model": "deepseek", "seconds": 0.123456, "why": 'a "b"', "no": None}
    logger.info("it took %d", 3, extra={"fields": fields, "request_id": "abc"})
    (line,) = kept.written
    assert line.endswith(' INFO    here: it took 3 model=deepseek seconds=0.1235 why="a \\"b\\"" request_id=abc')


def test_nobody_can_start_a_line_of_their_own(kept: Kept) -> None:
    logger, _ = logger_to(kept)
    forged = "x\n2026-01-01 INFO here: forged\r\x1b[2K\u009b1m"
    logger.info("GET %s", forged, extra={"fields": {"key": forged}})
    (line,) = kept.written
    assert line.isprintable() and line.count("forged") == 2


def test_a_traceback_follows_a_line_of_text_and_is_in_one_of_json(kept: Kept) -> None:
    for log_format in ("text", "json"):
        logger, _ = logger_to(kept, log_format)
        logger.error("it broke", exc_info=failed_with("of this"))
    text, as_json = kept.written
    assert "here: it broke\nTraceback" in text and text.endswith("ValueError: of this")
    said = json.loads(as_json)
    assert said["message"] == "it broke" and said["traceback"].endswith("ValueError: of this")
    assert "\n" not in as_json


def test_a_line_of_json(kept: Kept) -> None:
    logger, _ = logger_to(kept, "json")
    logger.warning("%s ended", "it\n", extra={"fields": {"model": "deepseek", "no": None, "where": Path("/x")}})
    (line,) = kept.written
    said = json.loads(line)
    assert said.pop("time").endswith("Z")
    assert said == {"level": "warning", "logger": "here", "message": "it\n ended", "model": "deepseek", "where": "/x"}


def test_a_line_that_cannot_be_made_is_told_and_harms_nobody(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    logger, _ = logger_to(kept)
    logger.info("%d", "no number")
    logger.info("on")
    assert [line.rpartition(" ")[2] for line in kept.written] == ["on"]
    assert "no number" in capsys.readouterr().err


def test_a_line_is_written_when_logging_it_returns(kept: Kept) -> None:
    logger, _ = logger_to(kept)
    for number in range(100):
        logger.info("%d", number)
        assert len(kept.written) == number + 1


def test_a_place_that_hangs_holds_nobody_up_and_lost_lines_are_told(kept: Kept) -> None:
    logger, background = logger_to(kept, capacity=5, patience=0.01)
    kept.gate.clear()
    for number in range(20):  # each returns though none can be written
        logger.info("line %d", number)
    assert kept.written == []
    assert 13 <= background.dropped <= 15, "five wait, perhaps one is being written"
    root = logging.getLogger("switchyard")
    root.addHandler(background)
    try:
        kept.gate.set()
        background.flush()
        logger.info("again")
        background.flush()
    finally:
        root.removeHandler(background)
    assert kept.written[0].endswith("line 0")
    assert any(f"{background.dropped} log lines were dropped" in line for line in kept.written)
    assert any(line.endswith("again") for line in kept.written)


def test_a_full_disk_costs_the_lines_and_says_so_once(tmp_path: Path) -> None:
    program = """
import logging, pathlib, sys
from utils import logs
logs.to_stdout("info")
full = logs.to_file(pathlib.Path(sys.argv[1]), 10**6, 1)
full.stream.close()
full.stream = open("/dev/full", "w")
for number in range(3):
    logging.info("line %d", number)
    logging.getLogger().handlers[0].flush()
print("dropped", logs.dropped(), flush=True)
"""
    ran = run(program, str(tmp_path))
    assert [line.rpartition(" ")[2] for line in ran.stdout.splitlines()] == ["0", "1", "2", "3"]
    assert ran.stderr.count("a log line cannot be written: [Errno 28]") == 1 and "Traceback" not in ran.stderr


def test_a_forked_child_logs_too() -> None:
    """gunicorn's worker is one: the thread that writes stays behind in the parent."""
    program = """
import logging, os
from utils import logs
logs.to_stdout("info")
logging.info("parent")
logging.getLogger().handlers[0].flush()
pid = os.fork()
if pid == 0:
    logging.info("child")
    logging.shutdown()
    os._exit(0)
os.waitpid(pid, 0)
logging.info("parent again")
"""
    said = [line.partition("root: ")[2] for line in run(program).stdout.splitlines()]
    assert said == ["parent", "child", "parent again"]


def test_what_was_logged_last_is_written_at_the_end() -> None:
    program = "import logging\nfrom utils import logs\nlogs.to_stdout('info', 'json')\nlogging.info('the last')"
    assert json.loads(run(program).stdout)["message"] == "the last"


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    return ran


def test_the_file_is_put_aside_at_its_size(tmp_path: Path) -> None:
    handler = logs.to_file(tmp_path, 300, 2)
    try:
        for number in range(40):
            logging.getLogger("rotating").warning("line number %d of them", number)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["main.log", "main.log.1", "main.log.2"]
    assert all(path.stat().st_size <= 300 for path in tmp_path.iterdir())
    assert "line number 39 of them" in (tmp_path / "main.log").read_text()


# -- what a runner says ------------------------------------------------------------------------------------------------


@pytest.fixture
def relayed() -> Iterator[list[logging.LogRecord]]:
    """The records that :func:`log_lines.relay` logs."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    output = logging.getLogger("runner")
    output.addHandler(handler)
    before, output.level = output.level, logging.INFO
    yield records
    output.removeHandler(handler)
    output.setLevel(before)


def line_of(record: logging.LogRecord) -> bytes:
    line = log_lines.LineFormatter().format(record)
    assert "\n" not in line
    return line.encode() + b"\n"


def record(level: int, text: str, *values: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("runner", level, "", 0, text, values, info)


def test_a_runner_s_record_comes_as_it_was(relayed: list[logging.LogRecord]) -> None:
    with log_lines.about(ticket_of("abc"), "def"):
        line = line_of(record(logging.ERROR, "two\nlines of %s", "it", error=failed_with("this")))
    log_lines.relay(line)
    (came,) = relayed
    assert came.levelname == "ERROR" and came.getMessage() == "two\nlines of it"
    assert came.exc_text is not None and came.exc_text.endswith("ValueError: this")
    assert came.request_id == "abc,def"  # type: ignore[attr-defined]
    assert came.name.startswith("runner[")


def test_what_is_below_the_level_is_left_out(relayed: list[logging.LogRecord]) -> None:
    log_lines.relay(line_of(record(logging.DEBUG, "no")))
    assert relayed == []


@pytest.mark.parametrize(
    "line",
    [
        b"a library's own words\n",
        b'\x1e{"torn\n',
        b"\x1e[1, 2]\n",
        b'\x1e{"level": "LOUD"}\n',
        b'\x1e{"name": "r", "pid": 1, "level": "INFO", "message": "m", "request_id": 5}\n',
        b"\xff\xfe\n",
        b"100% done\n",
    ],
)
def test_anything_else_comes_as_it_stands(relayed: list[logging.LogRecord], line: bytes) -> None:
    log_lines.relay(line)
    (came,) = relayed
    assert came.getMessage() == line.decode(errors="replace").rstrip().lstrip("\x1e")


def test_an_empty_line_is_none(relayed: list[logging.LogRecord]) -> None:
    log_lines.relay(b"  \n")
    assert relayed == []


# -- ids ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["abc", "1", "550e8400-e29b-41d4-a716-446655440000", "a.b_c-D", "x" * 128])
def test_an_id_that_is_taken(said: str) -> None:
    assert taken(said) == said == request_of(ticket_of(said))


@pytest.mark.parametrize(
    "said", [None, "", "x" * 129, "a b", "a\nb", "../up", ".hidden", "-f", "a/b", "a~b", "é", "a%20"]
)
def test_an_id_that_is_not_taken(said: str | None) -> None:
    assert taken(said) is None


def test_tickets_of_one_name_differ() -> None:
    assert len({ticket_of("abc") for _ in range(100)}) == 100
