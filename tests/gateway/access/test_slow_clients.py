"""Clients that send or read slowly, or not at all, hold no thread; what comes in pieces is whole in the end.

The gateways here have few threads, and each test has more slow clients than that.
"""

import contextlib
import json
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.http.server import raise_file_limit
from tests.conftest import Start
from tests.support.gateway import PARIS, PATIENCE, STORY, GatewayProcess, only, request_bytes

THREADS = 4
SLOW = 3 * THREADS
CONNECTIONS = 500
WHOLE = request_bytes("/generate/deepseek", **PARIS)
END = WHOLE.index(b"\r\n\r\n") + 4


@pytest.fixture(scope="module")
def patient(start_for_module: Start) -> GatewayProcess:
    """A gateway of few threads that gives up on nobody while a test lasts."""
    return start_for_module(
        models=only("deepseek"),
        threads=THREADS,
        live_streams=0,
        head_timeout="10m",
        body_timeout="10m",
        send_timeout="10m",
        max_body="200kB",
        connection_limit=CONNECTIONS,
    )


@contextlib.contextmanager
def connections(gateway: GatewayProcess, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(gateway.raw(sent)) for _ in range(count)]


def still_open(connection: socket.socket) -> bool:
    return not select.select([connection], [], [], 0)[0]


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def serves(gateway: GatewayProcess) -> None:
    assert gateway.get("/health")["status"] == "healthy"
    assert "Paris" in gateway.answer("deepseek", **PARIS)["response"]


# -- slow senders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"P",
        b"POST /generate/deepseek HTTP/1.1\r\nHost: local",
        WHOLE[: END - 1],
        WHOLE[:END],
        WHOLE[:-1],
        WHOLE[:END].replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\nX-Was: ") + b"5\r\n{",
    ],
    ids=["nothing", "a-letter", "half-a-head", "head-but-a-byte", "no-body", "half-a-body", "half-a-chunk"],
)
def test_more_slow_senders_than_threads(patient: GatewayProcess, sent: bytes) -> None:
    with connections(patient, SLOW, sent) as slow:
        serves(patient)
        if sent not in (b"", WHOLE[:-1]):  # one more byte, which makes none of the others whole
            for connection in slow:
                connection.sendall(b"x")
            serves(patient)
        assert all(still_open(connection) for connection in slow)


def test_what_drips_in_is_answered(patient: GatewayProcess) -> None:
    """Byte by byte, each in a packet of its own; the connection is kept, and two more requests come at once."""
    with patient.raw(b"") as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(len(WHOLE)):
            connection.sendall(WHOLE[place : place + 1])
        first = b""
        while b"Paris" not in first:
            assert (part := connection.recv(65536)), first
            first += part
        assert first.startswith(b"HTTP/1.1 200")
        connection.sendall(WHOLE + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        rest = read_all(connection)
    assert rest.count(b"HTTP/1.1 200") == 2 and b"Paris" in rest and b'"healthy"' in rest


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    head = b"POST /generate/deepseek HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
    return head + b"\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"000;last\r\nX-Trailer: yes\r\n\r\n"])
def test_a_body_in_chunks(patient: GatewayProcess, end: bytes) -> None:
    body = WHOLE[END:]
    with patient.raw(chunked(body[:3], body[3:9], body[9:], end=end)) as connection:
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200") and b"Paris" in answer


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (chunked(b"x" * 100_000, b"x" * 100_001, end=b""), b"413"),
        (chunked(*[b"x"] * 120_000, end=b""), b"4"),
        (chunked(b"{", end=b"zz\r\n"), b"400"),
        (chunked(b"{", end=b"-5\r\n"), b"400"),
        (chunked(b"{", end=b"f" * 10_000), b"400"),
        (b"GET / HTTP/1.1\nHost: x\n\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000, b"431"),
        (b"GET /" + b"y" * 9000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
        (WHOLE[:END].replace(b"Content-Length: ", b"Content-Length: 9999") + b"{", b"413"),
        (WHOLE[:END].replace(b"Content-Length: ", b"Content-Length: -"), b"400"),
        (WHOLE[:END].replace(b"Content-Length: ", b"Content-Length: 3\r\nContent-Length: ") + b"{}}", b"400"),
    ],
    ids=[
        "chunks-too-large",
        "tiny-chunks",
        "no-size",
        "negative-size",
        "endless-size",
        "bare-lf",
        "endless-head",
        "endless-line",
        "many-fields",
        "tls",
        "too-large",
        "negative",
        "two-lengths",
    ],
)
def test_what_cannot_be_taken_is_refused(patient: GatewayProcess, sent: bytes, status: bytes) -> None:
    """At once: none of these is whole, and the client neither closes nor goes on."""
    with patient.raw(sent) as connection:
        answer = connection.recv(65536)
        while not answer.endswith(b"}\n"):
            assert (part := connection.recv(65536)), answer
            answer += part
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error", "details"}
    serves(patient)


def test_a_client_that_asks_before_it_sends(patient: GatewayProcess) -> None:
    head = WHOLE[:END].replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
    with patient.raw(head) as connection:
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(WHOLE[END:])
        assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_more_connections_than_the_server_keeps(patient: GatewayProcess) -> None:
    """Those that have been sending for longest make room."""
    with connections(patient, CONNECTIONS + 50, b"GET /hea") as slow:
        serves(patient)  # by a connection that it has already: these may not all be accepted yet
        patient.until(lambda: not all(still_open(connection) for connection in slow[:60]), "room to be made")
        serves(patient)
        assert still_open(slow[-1])


def test_a_thousand_open_connections(start: Start) -> None:
    """They are no more than the server keeps by default, and none waits for another."""
    raise_file_limit()  # of this process, which has the other ends
    gateway = start(models=only("deepseek"), threads=THREADS, head_timeout="10m")
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connections(gateway, 950, ask[:-2]) as slow, connections(gateway, 50, ask) as kept:
        for connection in kept:
            read_json(connection)
        serves(gateway)
        assert all(still_open(connection) for connection in [*slow, *kept])
        for connection in slow:
            connection.sendall(ask[-2:])
        for connection in slow:
            read_json(connection)


def stalled(size: int) -> bytes:
    return WHOLE[:END].split(b"Content-Length")[0] + b"Content-Length: %d\r\n\r\n" % size + b"x" * (size - 1)


def refused(connection: socket.socket, status: bytes) -> None:
    head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status) and (status != b"503" or b"Retry-After: " in head), head
    assert set(json.loads(body)) == {"error", "details"}


def test_whoever_fills_the_share_of_what_arrives_pays_for_it(patient: GatewayProcess) -> None:
    """More long bodies that stall than are held at once: the oldest of their address go, and others are served, also
    one that began before them."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(patient.raw(WHOLE[:-1]))
        slow = []
        for _ in range(40):
            slow.append(
                stack.enter_context(
                    socket.create_connection(
                        ("127.0.0.1", patient.port), timeout=PATIENCE, source_address=("127.0.0.2", 0)
                    )
                )
            )
            slow[-1].sendall(stalled(199_999))
        serves(patient)
        refused(slow[0], b"503")
        assert still_open(slow[-1])
        first.sendall(WHOLE[-1:])
        assert first.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_request_that_cannot_be_kept_is_refused_alone(patient: GatewayProcess) -> None:
    folder = Path(patient.environment["SWITCHYARD_TMP_DIR"])
    away = folder.rename(folder.with_name("tmp-away"))
    try:  # longer than what is kept in memory
        with patient.raw(chunked(b"x" * 150_000, end=b"")) as connection:
            refused(connection, b"503")
    finally:
        away.rename(folder)
    serves(patient)


# -- slow readers ------------------------------------------------------------------------------------------------------


def test_more_clients_that_do_not_read_than_threads(patient: GatewayProcess) -> None:
    """Their answers do not fit into the buffers, so that each has a thread stuck sending; one that reads gets it."""
    fields = {
        "model": "deepseek",
        "messages": [{"role": "user", "content": STORY["prompt"]}],
        "max_tokens": 3500,
        "repetition_penalty": 1.0,
        "logprobs": True,
        "top_logprobs": 20,
        "stream": True,
    }
    with contextlib.ExitStack() as stack:
        for _ in range(THREADS + 2):
            stack.enter_context(patient.unread("/v1/chat/completions", **fields))
        patient.until(lambda: "while others wait for a thread" in patient.log(), "a thread to be taken back")
        serves(patient)


# -- deadlines ---------------------------------------------------------------------------------------------------------


def test_whoever_takes_too_long_is_told_and_dropped(start: Start) -> None:
    gateway = start(models=only("deepseek"), head_timeout="5s", body_timeout="5s", min_body_rate="1MB")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(gateway.raw(sent)) for sent in (WHOLE[:20], WHOLE[:END], WHOLE[:-1], b"")]
        *told, nothing = [read_all(connection) for connection in slow]
    assert [answer[:13] for answer in told] == [b"HTTP/1.1 408 "] * 3
    assert nothing == b"", "nobody asked anything"
    assert gateway.get("/health")["status"] == "healthy"


def test_a_kept_connection_outlives_a_head_s_deadline(start: Start) -> None:
    """What is waited for then is a new request, which nobody promised."""
    gateway = start(models=only("deepseek"), head_timeout="4s")
    ask = b"GET /v1/models/deepseek HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with gateway.raw(ask) as kept, gateway.raw(b"") as idle:
        read_json(kept)
        idle.settimeout(PATIENCE)
        assert idle.recv(1) == b"", "the deadline has passed"
        kept.sendall(ask)
        read_json(kept)


def read_json(connection: socket.socket) -> None:
    data = b""
    while not data.endswith(b"}\n"):
        part = connection.recv(65536)
        assert part, data
        data += part
    assert data.startswith(b"HTTP/1.1 200")
