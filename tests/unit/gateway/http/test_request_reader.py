"""Requests as they come, in whatever pieces: what the parser makes of them, and what it costs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import message
from gunicorn.http.errors import InvalidChunkSize, LimitRequestHeaders, NoMoreData, ParseException

from gateway.http import request_reader
from gateway.http.request_reader import Arrival, Pace, Part

PACE = Pace(head=20.0, body=30.0, rate=10.0, longest=600.0)
SIZED = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
IN_CHUNKS = CHUNKED + b"2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\nX-Sum: 1\r\n\r\n"
BEHIND = b"GET /next HTTP/1.1\r\n"


_made: list[Arrival] = []


def arriving(limit: int = 2**20, **options: Any) -> Arrival:
    _made.append(Arrival(Config(), ("127.0.0.1", 1), 0.0, PACE, limit, **options))
    return _made[-1]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    while _made:
        _made.pop().forget()


def feed(arrival: Arrival, data: bytes, step: int = 1, now: float = 1.0) -> int:
    """Feed pieces until nothing more is taken; return how many bytes were."""
    for place in range(0, len(data), step):
        if arrival.done:
            return place
        arrival.feed(data[place : place + step], now)
    return len(data)


def body(arrival: Arrival) -> bytes:
    arrival.give()
    assert arrival.request is not None
    return bytes(arrival.request.body.read())


@pytest.mark.parametrize("sent", [SIZED, IN_CHUNKS], ids=["sized", "chunks"])
@pytest.mark.parametrize("step", range(1, len(IN_CHUNKS) + len(BEHIND) + 1, 3))
def test_pieces_of_any_size_are_the_same_request(sent: bytes, step: int) -> None:
    arrival = arriving()
    taken = feed(arrival, sent + BEHIND, step)
    assert arrival.part is Part.WHOLE and body(arrival) == b"hello"
    arrival.forget()
    assert arrival.unreader.take_buffered() == BEHIND[: taken - len(sent)], "the next request begins there"


def test_a_request_without_a_body_is_whole_with_its_head() -> None:
    arrival = arriving()
    assert feed(arrival, b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n" + BEHIND) == 29
    assert arrival.part is Part.WHOLE and body(arrival) == b""


def test_a_long_body_is_kept_in_a_file(tmp_path: Path) -> None:
    arrival = arriving(folder=tmp_path)
    arrival.feed(SIZED.replace(b" 5\r", b" 500000\r"), 0.0)
    feed(arrival, b"x" * 499_995, 10_000)
    assert body(arrival) == b"hello" + b"x" * 499_995
    with pytest.raises(OSError, match="No such file"):
        feed(arriving(folder=tmp_path / "away"), CHUNKED + b"30d40\r\n" + b"x" * 200_000, 10_000)


# -- what does not come whole is never read as if it had ---------------------------------------------------------------


@pytest.mark.parametrize("size", [-1, 2, 100])
def test_a_malformed_body_is_an_error_for_whoever_reads_it(size: int) -> None:
    arrival = arriving()
    feed(arrival, CHUNKED + b"2\r\nab\r\nxy\r\n" + BEHIND)
    assert arrival.part is Part.CUT
    arrival.give()
    assert arrival.request is not None and arrival.request.should_close()
    with pytest.raises(InvalidChunkSize):
        assert arrival.request.body.read(size) == b"ab"
        arrival.request.body.read(size)
    arrival.forget()
    assert arrival.unreader.take_buffered() == b"", "nobody knows where a next request would begin"


def test_a_body_that_is_not_wanted_cannot_be_read() -> None:
    asked = []
    arrival = arriving(wanted=lambda *given: bool(asked.append(given)))
    arrival.feed(SIZED, 0.0)
    assert asked == [("POST", "/a", {"HOST": "x", "CONTENT-LENGTH": "5"})]
    assert arrival.part is Part.CUT
    with pytest.raises(NoMoreData):
        body(arrival)


@pytest.mark.parametrize("size", [b"6", b"0000000000000000000006", b"9" * 18])
def test_a_body_above_the_limit_is_not_awaited(size: bytes) -> None:
    arrival = arriving(limit=5)
    feed(arrival, SIZED.replace(b" 5\r", b" " + size + b"\r"))
    assert arrival.part is Part.CUT


def test_chunks_above_the_limit_can_be_read_beyond_it() -> None:
    """So that the application answers 413 and not 400."""
    arrival = arriving(limit=5)
    feed(arrival, CHUNKED + b"1\r\na\r\n" * 10)
    assert arrival.part is Part.CUT
    arrival.give()
    assert arrival.request is not None and arrival.request.body.read(6) == b"aaaaaa"


# -- what it costs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", [b"x", b"X: y\r\n", b"\r\n y: z"], ids=["one-line", "lines", "folded-lines"])
def test_a_head_that_drips_in_is_not_read_for_each_byte(drop: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    class Counted(message.Request):  # type: ignore[misc]
        def parse(self, unreader: Any) -> Any:
            nonlocal read
            read += 1
            return super().parse(unreader)

    monkeypatch.setattr(request_reader, "Request", Counted)
    arrival = arriving()
    with pytest.raises(ParseException) as error:
        feed(arrival, b"GET / HTTP/1.1\r\nX: " + drop * 70_000)
    assert isinstance(error.value, LimitRequestHeaders) and 10 < read < 500


def test_trailers_that_drip_in_end() -> None:
    arrival = arriving()
    taken = feed(arrival, CHUNKED + b"0\r\n" + b"X: y\r\n" * 20_000)
    assert arrival.part is Part.CUT and taken < 70_000
    with pytest.raises(LimitRequestHeaders):
        body(arrival)


def test_little_is_taken_at_once_where_the_parser_reads_it() -> None:
    """Chunks of one byte must not keep the accepting thread from other clients."""
    sized, chunked = arriving(), arriving()
    sized.feed(SIZED.replace(b" 5\r", b" 900000\r"), 0.0)
    chunked.feed(CHUNKED, 0.0)
    assert arriving().appetite == chunked.appetite == 16 * 2**10 and sized.appetite == 256 * 2**10
    sized.feed(b"x" * 899_990, 0.0)
    assert sized.appetite == 5, "nothing of the next request"


def test_a_long_body_has_no_more_time_than_the_longest(tmp_path: Path) -> None:
    arrival = arriving(folder=tmp_path)
    assert arrival.deadline == 20.0
    arrival.feed(b"POST / HTTP/1.1\r\nContent-Length: 500000\r\n\r\n", 5.0)
    assert arrival.deadline == 35.0
    arrival.feed(b"x" * 1000, 6.0)
    assert arrival.deadline == 135.0
    arrival.feed(b"x" * 400_000, 7.0)
    assert arrival.deadline == 605.0
    arrival.forget()
