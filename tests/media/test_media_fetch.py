"""Fetching a URL reaches public addresses only, and ends within its size and its time."""

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpcore
import pytest

from media import addresses, fetch
from media.addresses import is_public
from media.errors import MediaError
from media.incoming import Sent, read_one
from media.limits import MediaLimits


class Handler(BaseHTTPRequestHandler):
    """Good and bad manners, by path."""

    stopped = threading.Event()
    seen: list[tuple[str, str | None]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Host"]))
        name, _, rest = self.path[1:].partition("/")
        try:
            getattr(self, f"serve_{name}")(rest)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def serve_ok(self, rest: str) -> None:
        self.answer(200, b"bytes of a picture")

    def serve_to(self, rest: str) -> None:
        self.answer(302, Location=rest.replace("__", "//"))

    def serve_nowhere(self, rest: str) -> None:
        self.answer(302)

    def serve_loop(self, rest: str) -> None:
        self.answer(307, Location=f"/loop/{int(rest or 0) + 1}")

    def serve_missing(self, rest: str) -> None:
        self.answer(404, b"no")

    def serve_declared(self, rest: str) -> None:
        self.answer(200, bytes(5000))

    def serve_packed(self, rest: str) -> None:
        self.answer(200, b"packed", Content_Encoding="gzip")

    def serve_endless(self, rest: str) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.stopped.is_set():
            self.wfile.write(bytes(1000))

    def serve_drip(self, rest: str) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.stopped.wait(0.05):
            self.wfile.write(b".")
            self.wfile.flush()

    def serve_silence(self, rest: str) -> None:
        self.connection.recv(1)  # until the client leaves

    def serve_nonsense(self, rest: str) -> None:
        self.wfile.write(b"220 mail.example.com ESMTP\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    """A server that does not print what clients do wrong."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server.server_address[1]
    Handler.stopped.set()
    server.shutdown()
    thread.join()
    server.server_close()


def get(url: str, *open_ports: int | None, max_bytes: int = 3000, timeout: float = 60.0) -> bytes:
    ports = frozenset(port for port in open_ports if port is not None)
    return fetch.fetch(url, field="image", max_bytes=max_bytes, timeout=timeout, _loopback_ports=ports)


def refusal(url: str, port: int | None = None, status: int = 400, **options: Any) -> str:
    with pytest.raises(MediaError) as caught:
        get(url, port, **options)
    assert caught.value.status == status
    assert caught.value.details.startswith("image: ")
    return caught.value.details


def test_body(port: int) -> None:
    assert get(f"http://127.0.0.1:{port}/ok", port) == b"bytes of a picture"
    assert Handler.seen[-1] == ("/ok", f"127.0.0.1:{port}")


def test_redirects(port: int) -> None:
    assert get(f"http://127.0.0.1:{port}/to/http:__127.0.0.1:{port}/to//ok", port) == b"bytes of a picture"
    assert "more than 5 redirects" in refusal(f"http://127.0.0.1:{port}/loop/", port)
    assert "without saying where" in refusal(f"http://127.0.0.1:{port}/nowhere", port)


def test_loopback_is_refused(port: int) -> None:
    before = len(Handler.seen)
    for host in (
        "127.0.0.1",
        "localhost",
        "0.0.0.0",
        "127.1",
        "2130706433",
        "0x7f000001",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "LOCALHOST.",
        "127.0.0.1%2f",
    ):
        words = refusal(f"http://{host}:{port}/ok")
        assert "not a public address" in words or "could not be resolved" in words or "not a valid" in words
    assert "'localhost' is at" in refusal(f"http://localhost:{port}/ok")
    assert len(Handler.seen) == before


def test_no_setting_opens_loopback(port: int, limits: MediaLimits) -> None:
    from dataclasses import replace

    with pytest.raises(MediaError, match="not a public address"):
        read_one(Sent("image", f"http://127.0.0.1:{port}/ok", "image"), replace(limits, urls=True))


@pytest.mark.parametrize(
    "target",
    [
        "http:__10.0.0.1/",
        "http:__169.254.169.254/latest/meta-data/",
        "http:__[fd00::1]/",
        "http:__127.0.0.1:1/",
        "https:__192.168.1.1/",
    ],
)
def test_redirect_to_private_is_refused(port: int, target: str) -> None:
    assert "not a public address" in refusal(f"http://127.0.0.1:{port}/to/{target}", port)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/passwd", "not file"),
        ("ftp://example.com/x", "not ftp"),
        ("//example.com/x", "not none"),
        ("http://user:secret@example.com/", "user name or password"),
        ("http://@127.0.0.1/", "not a public address"),
        ("http:///x", "no host"),
        ("http://[::1/", "not a valid address"),
        ("http://exa mple.com/", "could not be fetched"),
        ("http://host.invalid/", "could not be resolved"),
        ("http://127.0.0.1:99999/", "not a valid address"),
        ("http://" + "a" * 300 + ".example/", "could not be"),
    ],
)
def test_addresses_that_are_refused(url: str, words: str) -> None:
    assert words in refusal(url)


def test_redirect_to_a_file_is_refused(port: int) -> None:
    assert "not file" in refusal(f"http://127.0.0.1:{port}/to/file:__/etc/passwd", port)


def test_size(port: int) -> None:
    assert "5.0 kB; the limit is 3.0 kB" in refusal(f"http://127.0.0.1:{port}/declared", port, status=413)
    assert "the limit is 3.0 kB" in refusal(f"http://127.0.0.1:{port}/endless", port, status=413)
    assert len(get(f"http://127.0.0.1:{port}/declared", port, max_bytes=5000)) == 5000


@pytest.mark.parametrize("path", ["drip", "silence"])
def test_time(port: int, path: str) -> None:
    assert "took too long" in refusal(f"http://127.0.0.1:{port}/{path}", port, timeout=0.3)


def test_slow_name(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def never(*arguments: Any, **options: Any) -> Any:
        release.wait(60)
        raise OSError

    monkeypatch.setattr(addresses.socket, "getaddrinfo", never)
    assert "took too long" in refusal("http://example.com/", timeout=0.1)
    release.set()
    while any(thread.name == "resolve" for thread in threading.enumerate()):
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("path", "words"), [("missing", "answered 404"), ("packed", "compressed"), ("nonsense", "did not answer in HTTP")]
)
def test_answers_that_are_no_use(port: int, path: str, words: str) -> None:
    assert words in refusal(f"http://127.0.0.1:{port}/{path}", port)


def test_tls_is_verified_against_the_name(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    certificate, key = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
    subprocess.run(
        [
            openssl,
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            key,
            "-out",
            certificate,
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    server = QuietServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    at = server.server_address[1]
    try:
        assert "certificate verify failed" in refusal(f"https://localhost:{at}/ok", at)
        trusting = ssl.create_default_context(cafile=certificate)
        monkeypatch.setattr(fetch, "_tls", lambda: trusting)
        assert get(f"https://localhost:{at}/ok", at) == b"bytes of a picture"
        assert names[-1] == "localhost" and ("/ok", f"localhost:{at}") in Handler.seen
        assert "certificate verify failed" in refusal(f"https://127.0.0.1:{at}/ok", at)
        assert get(f"http://127.0.0.1:{port}/to/https:__localhost:{at}/ok", port, at) == b"bytes of a picture"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_proxies_are_not_used(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://10.0.0.1:3128")
    assert get(f"http://127.0.0.1:{port}/ok", port) == b"bytes of a picture"


def test_a_name_cannot_change_its_mind(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second answer, which would be loopback, is never asked for; the first is connected to."""
    asked: list[str] = []
    connected: list[str] = []

    def rebinding(host: str, at: int, **options: Any) -> Any:
        asked.append(host)
        address = "93.184.215.14" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, at))]

    def connect(self: Any, host: str, at: int, timeout: float, **options: Any) -> Any:
        connected.append(host)
        raise httpcore.ConnectError("not in a test")

    monkeypatch.setattr(addresses.socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    assert "no connection could be made" in refusal(f"http://rebind.example:{port}/ok")
    assert (asked, connected) == (["rebind.example"], ["93.184.215.14"])


def test_one_private_address_among_public_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed(host: str, at: int, **options: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, at)) for address in ("93.184.215.14", "10.1.2.3")]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", mixed)
    assert "10.1.2.3, which is not a public address" in refusal("http://mixed.example/")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("127.8.8.8", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("239.255.255.250", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("192.0.2.1", False),
        ("198.18.0.1", False),
        ("192.88.99.1", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:1::", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::808:808", False),
        ("2001:db8::1", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_is_public(address: str, public: bool) -> None:
    assert is_public(address) is public
