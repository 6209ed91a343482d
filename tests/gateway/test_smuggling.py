"""Requests made to be read in two ways: sent to a gateway directly, and through nginx and HAProxy, which deny /admin.

Each hides a request for ``/admin/smuggled`` where a second reader of the same bytes could find it. It must never run,
and a connection on which something cannot be read is closed. Heads and what follows them are sent apart, since a reader
that sees them at once may be right by chance.
"""

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conftest import Start
from tests.support.children import free_port
from tests.support.gateway import PATIENCE, GatewayProcess, only
from tests.support.programs import program

HIDDEN = b"GET /admin/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
NEXT = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
SIZE = len(HIDDEN)
QUIET = 2.0  # seconds without an answer after which none comes

_NGINX = """
{user}
daemon off;
worker_processes 1;
pid {home}/nginx.pid;
error_log stderr info;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    upstream gateway {{ server 127.0.0.1:{upstream}; keepalive 4; }}
    server {{
        listen 127.0.0.1:{port};
        underscores_in_headers on;
        location /admin {{ return 403; }}
        location / {{
            proxy_pass http://gateway;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_request_buffering off;
        }}
    }}
}}
"""
_HAPROXY = """
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend clients
    bind 127.0.0.1:{port}
    http-request deny if {{ path_beg /admin }}
    default_backend gateway
backend gateway
    server gateway 127.0.0.1:{upstream}
"""


def head(*fields: bytes, version: bytes = b"1.1") -> bytes:
    """Return the head of a request that is refused whatever its body is: nobody posts to /health."""
    return b"\r\n".join([b"POST /health HTTP/" + version, b"Host: localhost", *fields, b"", b""])


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


REFUSED: dict[str, tuple[bytes, bytes, int]] = {
    "cl-te": (head(b"Content-Length: %d" % (SIZE + 5), CHUNKED), b"0\r\n\r\n" + HIDDEN, 400),
    "te-cl": (head(CHUNKED, b"Content-Length: 4"), chunk(HIDDEN) + b"0\r\n\r\n", 400),
    "te-te": (head(CHUNKED, b"Transfer-Encoding: identity"), b"0\r\n\r\n" + HIDDEN, 400),
    "te-unknown": (head(CHUNKED, b"Transfer-encoding: cow"), b"0\r\n\r\n" + HIDDEN, 501),
    "te-twice": (head(b"Transfer-Encoding: chunked, chunked"), b"0\r\n\r\n" + HIDDEN, 400),
    "te-not-last": (head(b"Transfer-Encoding: chunked, gzip"), b"0\r\n\r\n" + HIDDEN, 400),
    "te-prefix": (head(b"Transfer-Encoding: xchunked"), b"0\r\n\r\n" + HIDDEN, 501),
    "te-quoted": (head(b'Transfer-Encoding: "chunked"'), b"0\r\n\r\n" + HIDDEN, 501),
    "te-control": (head(b"Transfer-Encoding: \x0bchunked"), b"0\r\n\r\n" + HIDDEN, 400),
    "te-nbsp": (head(b"Transfer-Encoding: chunked\xa0"), b"0\r\n\r\n" + HIDDEN, 501),
    "te-blank": (head(b"Transfer-Encoding : chunked"), b"0\r\n\r\n" + HIDDEN, 400),
    "te-folded": (head(b"Transfer-Encoding:\r\n chunked"), b"0\r\n\r\n" + HIDDEN, 400),
    "te-behind-lf": (head(b"X: y\nTransfer-Encoding: chunked"), b"0\r\n\r\n" + HIDDEN, 400),
    "te-behind-cr": (head(b"X: y\rTransfer-Encoding: chunked"), b"0\r\n\r\n" + HIDDEN, 400),
    "te-1.0": (head(CHUNKED, b"Connection: keep-alive", version=b"1.0"), b"0\r\n\r\n" + HIDDEN, 400),
    "te-1.2": (head(CHUNKED, b"Content-Length: 0", version=b"1.2"), b"0\r\n\r\n" + HIDDEN, 400),
    "signed": (head(b"Content-Length: +%d" % SIZE), HIDDEN, 400),
    "negative": (head(b"Content-Length: -%d" % SIZE), HIDDEN, 400),
    "listed": (head(b"Content-Length: %d, %d" % (SIZE, SIZE)), HIDDEN, 400),
    "listed-differently": (head(b"Content-Length: 0, %d" % SIZE), HIDDEN, 400),
    "duplicate": (head(b"Content-Length: %d" % SIZE, b"Content-Length: %d" % SIZE), HIDDEN, 400),
    "duplicate-differently": (head(b"Content-Length: %d" % SIZE, b"Content-Length: 0"), HIDDEN, 400),
    "hexadecimal": (head(b"Content-Length: 0x%x" % SIZE), HIDDEN, 400),
    "two-numbers": (head(b"Content-Length: 0 %d" % SIZE), HIDDEN, 400),
    "underlined": (head(b"Content-Length: 4_6"), HIDDEN, 400),
    "superscript": (head(b"Content-Length: \xb2"), HIDDEN, 400),
    "no-number": (head(b"Content-Length: "), HIDDEN, 400),
    "five-thousand-digits": (head(b"Content-Length: " + b"0" * 5000 + b"%d" % SIZE), HIDDEN, 400),
    "length-blank": (head(b"Content-Length : %d" % SIZE), HIDDEN, 400),
    "length-folded": (head(b"X: y\r\n\tContent-Length: %d" % SIZE), HIDDEN, 400),
    "length-behind-lf": (head(b"X: y\nContent-Length: %d" % SIZE), HIDDEN, 400),
    "head-of-lf": (b"POST /health HTTP/1.1\nHost: localhost\n\n", HIDDEN, 400),
    "line-of-lf": (b"POST /health HTTP/1.1\nHost: localhost\r\n\r\n", HIDDEN, 400),
    "blank-before-fields": (b"POST /health HTTP/1.1\r\n Content-Length: 5\r\nHost: localhost\r\n\r\n", HIDDEN, 400),
    "two-hosts": (head(b"Host: 127.0.0.1"), HIDDEN, 400),
    "no-version": (b"GET /health\r\n\r\n", HIDDEN, 400),
    "two-blanks": (b"GET  /health HTTP/1.1\r\nHost: localhost\r\n\r\n", HIDDEN, 400),
    "control-in-path": (b"GET /health\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n", HIDDEN, 400),
    "after-an-error": (head(b"Content-Length: x"), HIDDEN * 3, 400),
    "after-too-long-a-body": (head(b"Content-Length: 999999999"), HIDDEN, 405),
    "chunk-lf": (head(CHUNKED), b"1\na\r\n0\r\n\r\n" + HIDDEN, 405),
    "chunk-end-lf": (head(CHUNKED), b"1\r\na\n0\r\n\r\n" + HIDDEN, 405),
    "chunk-longer": (head(CHUNKED), b"1\r\nab\r\n0\r\n\r\n" + HIDDEN, 405),
    "chunk-shorter": (head(CHUNKED), b"3\r\na\r\n0\r\n\r\n" + HIDDEN, 405),
    "chunk-signed": (head(CHUNKED), b"+1\r\na\r\n0\r\n\r\n" + HIDDEN, 405),
    "chunk-0x": (head(CHUNKED), b"0x1\r\na\r\n0\r\n\r\n" + HIDDEN, 405),
    "chunk-underlined": (head(CHUNKED), b"0_1\r\na\r\n0\r\n\r\n" + HIDDEN, 405),
    "chunk-blank": (head(CHUNKED), b" 1\r\na\r\n0\r\n\r\n" + HIDDEN, 405),
    "chunk-no-size": (head(CHUNKED), b"\r\n1\r\na\r\n0\r\n\r\n" + HIDDEN, 405),
    "extension-lf": (head(CHUNKED), b"1;a\nb\r\na\r\n0\r\n\r\n" + HIDDEN, 405),
    "extension-cr": (head(CHUNKED), b"1;a\rb\r\na\r\n0\r\n\r\n" + HIDDEN, 405),
    "extension-control": (head(CHUNKED), b"1;a=\x01\r\na\r\n0\r\n\r\n" + HIDDEN, 405),
    "trailer-length": (head(CHUNKED), b"0\r\nContent-Length: 50\r\n\r\n" + HIDDEN, 405),
    "trailer-lf": (head(CHUNKED), b"0\r\nX: y\n\r\n" + HIDDEN, 405),
}
"""What is sent, in two pieces, and the status that a gateway answers directly before it closes the connection. Where a
body is malformed it is the route's: it does not read the body."""

WHOLE: dict[str, tuple[bytes, bytes]] = {
    "length": (head(b"Content-Length: %d" % SIZE), HIDDEN),
    "padded": (head(b"Content-Length: %022d" % SIZE), HIDDEN),
    "padded-to-4000": (head(b"Content-Length: %04000d" % SIZE), HIDDEN),
    "blanks-around": (head(b"Content-Length: \t %d \t" % SIZE), HIDDEN),
    "chunk": (head(CHUNKED), chunk(HIDDEN) + b"0\r\n\r\n"),
    "chunks-of-a-byte": (head(CHUNKED), b"".join(chunk(HIDDEN[n : n + 1]) for n in range(SIZE)) + b"0\r\n\r\n"),
    "chunk-padded": (head(CHUNKED), b"%022x\r\n%b\r\n%b" % (SIZE, HIDDEN, b"0" * 22 + b"\r\n\r\n")),
    "chunk-extension": (head(CHUNKED), b'%x ;a=b; c="d;\\"e"\r\n%b\r\n0;f\r\n\r\n' % (SIZE, HIDDEN)),
    "trailers": (head(CHUNKED), chunk(HIDDEN) + b"0\r\nX-Sum: 1\r\nX-Y: 2\r\n\r\n"),
    "capitals": (head(b"tRANSFER-eNCODING: CHUNKED"), chunk(HIDDEN) + b"0\r\n\r\n"),
    "underscore-length": (head(b"Content_Length: 0", b"Content-Length: %d" % SIZE), HIDDEN),
    "underscore-encoding": (head(b"Transfer_Encoding: chunked", b"Content-Length: %d" % SIZE), HIDDEN),
}
"""Bodies that are what they seem, however they are written: the request behind one is answered."""


@dataclass(frozen=True)
class Answers:
    """What came back on one connection."""

    statuses: list[int]
    closed: bool


def exchange(port: int, *pieces: bytes) -> Answers:
    """Send pieces, each some time after the one before, and read until nothing more comes."""
    data, closed = b"", False
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        with contextlib.suppress(OSError):  # refused before all is sent
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.2)
        connection.settimeout(QUIET)
        try:
            while part := connection.recv(65536):
                data += part
            closed = True
        except TimeoutError:
            pass
        except ConnectionError:
            closed = True
    return Answers([int(status) for status in re.findall(rb"^HTTP/1\.[01] (\d{3}) ", data, re.MULTILINE)], closed)


def exchange_all(port: int) -> dict[str, Answers]:
    sent = {name: form[:2] for name, form in REFUSED.items()}
    sent |= {name: (first, rest, NEXT) for name, (first, rest) in WHOLE.items()}
    with ThreadPoolExecutor(len(sent)) as pool:
        found = {name: pool.submit(exchange, port, *pieces) for name, pieces in sent.items()}
    return {name: future.result() for name, future in found.items()}


@pytest.fixture(scope="module")
def gateway(start_for_module: Start) -> GatewayProcess:
    return start_for_module(models=only("deepseek"), max_body="200kB")


@contextlib.contextmanager
def nothing_hidden(gateway: GatewayProcess, mark: str) -> Iterator[None]:
    """Hold the gateway to not having run the hidden request in this block."""
    before = len(gateway.log())
    yield
    gateway.client.get(f"/after/{mark}")
    gateway.until(lambda: f"/after/{mark} " in gateway.log(), "the log to be written")
    assert "smuggled" not in gateway.log()[before:]


@pytest.fixture(scope="module")
def direct(gateway: GatewayProcess) -> dict[str, Answers]:
    return exchange_all(gateway.port)


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(direct: dict[str, Answers], name: str) -> None:
    assert direct[name] == Answers([REFUSED[name][2]], closed=True)


@pytest.mark.parametrize("name", WHOLE)
def test_a_body_is_never_a_request(direct: dict[str, Answers], name: str) -> None:
    assert direct[name] == Answers([405, 200], closed=False)


def test_nothing_hidden_runs(gateway: GatewayProcess) -> None:
    with nothing_hidden(gateway, "direct"):
        exchange_all(gateway.port)


# -- headers that the server itself would set --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "Script_Name", "PATH_INFO", "REMOTE_USER", "SCRIPT-NAME"])
def test_no_client_says_where_the_application_stands(gateway: GatewayProcess, name: str) -> None:
    assert gateway.client.get("/x/health", headers={name: "/x"}).status_code == 404
    assert gateway.client.get("/health", headers={name: "/health"}).json()["status"] == "healthy"


def test_a_field_with_an_underscore_is_no_other_field(gateway: GatewayProcess) -> None:
    taken = gateway.client.get("/health", headers={"X-Request-ID": "my-own"}).headers["x-request-id"]
    assert taken == "my-own"
    assert gateway.client.get("/health", headers={"X_Request_ID": "my-own"}).headers["x-request-id"] != "my-own"


# -- through proxies ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def proxy(home: Path, text: str, gateway: GatewayProcess, command: Callable[[Path], list[str]]) -> Iterator[int]:
    """Run a proxy in front of the gateway; give its port."""
    port, file = free_port(), home / "proxy.conf"
    user = "" if os.getuid() else "user root;"
    file.write_text(text.format(home=home, port=port, upstream=gateway.port, user=user))
    with (home / "log.txt").open("wb") as log:
        process = subprocess.Popen(command(file), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        gateway.until(lambda: listens(port) or process.poll() is not None, "the proxy to listen")
        assert process.poll() is None, (home / "log.txt").read_text()
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def nothing_passes(port: int, gateway: GatewayProcess, mark: str) -> None:
    """Send everything through a proxy. What it takes for a request to /admin it denies itself, so the hidden request
    reaches the gateway only as a part of another."""
    url = f"http://127.0.0.1:{port}"
    with nothing_hidden(gateway, mark), httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
        assert client.get("/admin/smuggled").status_code == 403
        found = exchange_all(port)
        assert found["length"].statuses == [405, 200], "the proxy passes bodies on"
        for _ in range(8):  # on connections that the proxy keeps, and others used before
            assert client.get("/health").json()["status"] == "healthy"


def test_nothing_passes_nginx(gateway: GatewayProcess, tmp_path: Path) -> None:
    found = program("nginx", "nginx")
    with proxy(tmp_path, _NGINX, gateway, lambda file: [found, "-p", str(tmp_path), "-c", str(file)]) as port:
        nothing_passes(port, gateway, "nginx")


def test_nothing_passes_haproxy(gateway: GatewayProcess, tmp_path: Path) -> None:
    found = program("haproxy", "haproxy")
    with proxy(tmp_path, _HAPROXY, gateway, lambda file: [found, "-db", "-f", str(file)]) as port:
        nothing_passes(port, gateway, "haproxy")
