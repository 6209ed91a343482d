"""How the application is served: gunicorn with one worker of many threads, or Flask's own server under ``--debug``.

One worker only, because the slots have one owner. A stopping worker first lets the requests under way finish, within
``drain_timeout``, then ends every runner. A client that stops reading keeps its thread for ``send_timeout`` only.
Gateway process.
"""

import errno
import logging
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

from gateway.service import Gateway
from models_registry.catalog import Catalog, load_catalog
from utils.settings import Settings, SettingsError

log = logging.getLogger("switchyard")
_LONGEST_SEND = 10**6  # seconds; the kernel refuses what it cannot count in ticks
_MARGIN = 15  # seconds gunicorn leaves a worker after drain_timeout to end runners and threads


class DrainingWorker(ThreadWorker):  # type: ignore[misc]
    """A thread worker that drains on SIGTERM and on Ctrl-C, stops at once on a second Ctrl-C, and drops a client that
    does not read."""

    _draining = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self._draining:
            self._draining = True
            threading.Thread(target=self._drain, name="drain", daemon=True).start()
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT and self.alive:
            self.handle_exit(sig, frame)
        elif sig == signal.SIGINT:
            threading.Thread(target=self._gateway.stop, name="stop-now", daemon=True).start()
        else:
            super().handle_quit(sig, frame)

    @property
    def _gateway(self) -> Gateway:
        service: Gateway = self.wsgi.extensions["switchyard"]
        return service

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Answer one request. The kernel limits each send; the application's iterator is closed before this raises."""
        whole, part = divmod(self._gateway.settings.send_timeout, 1)
        limit = struct.pack("ll", min(int(whole), _LONGEST_SEND), int(part * 1e6))
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            return bool(super().handle_request(req, conn))
        except BlockingIOError as error:
            log.info("dropped %s %s: its client reads nothing", req.method, req.path)
            # Nothing more is said or heard: a close that lingers would keep the accepting thread waiting for it.
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            conn.sock.shutdown(socket.SHUT_RD)
            raise ConnectionResetError(errno.ECONNRESET, "the client reads nothing") from error

    def _drain(self) -> None:
        gateway = self._gateway
        gateway.drain()
        log.info("stopping: no new requests; those under way have %g s", gateway.settings.drain_timeout)
        deadline = time.monotonic() + gateway.settings.drain_timeout
        while self.nr_conns > len(self.keepalived_conns) and time.monotonic() < deadline:
            time.sleep(0.05)
        gateway.stop()


def options(settings: Settings) -> dict[str, Any]:
    """Return gunicorn's settings for these settings and the catalog they name.

    :raises CatalogError: if the catalog cannot be used.
    """
    threads = settings.thread_count(sum(Catalog.batch_size(spec) * spec.replicas for spec in load_catalog(settings)))
    return {
        "bind": f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}",
        "workers": 1,
        "worker_class": "gateway.server.DrainingWorker",
        "threads": threads,
        "worker_connections": threads + 512,
        "timeout": 120,
        "graceful_timeout": int(settings.drain_timeout) + _MARGIN,
        "keepalive": 30,
        "worker_exit": _stop_gateway,
        "logger_class": "gateway.server.GunicornLogger",
        "control_socket_disable": True,
        "proc_name": "switchyard",
    }


def _stop_gateway(_: Arbiter, worker: ThreadWorker) -> None:
    if isinstance(app := getattr(worker, "wsgi", None), Flask):
        app.extensions["switchyard"].stop()


class GunicornLogger(Logger):  # type: ignore[misc]
    """Sends gunicorn's own lines where all other lines go."""

    def setup(self, cfg: Any) -> None:
        self.error_log.propagate = True
        self.error_log.handlers = []
        self.error_log.setLevel(logging.WARNING)


class _DrainingArbiter(Arbiter):  # type: ignore[misc]
    def handle_int(self) -> None:
        """Ctrl-C drains like SIGTERM."""
        self.handle_term()


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, factory: Callable[[], Flask], settings: Settings) -> None:
        self._factory, self._settings = factory, settings
        super().__init__()

    def load_config(self) -> None:
        for name, value in options(self._settings).items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        return self._factory()

    def run(self) -> None:
        _DrainingArbiter(self).run()


def serve(factory: Callable[[], Flask], settings: Settings) -> None:
    """Serve until told to stop. :raises SettingsError: if the port cannot be had."""
    check_port(settings)
    log.info("Switchyard on http://%s:%d", settings.host, settings.port)
    if settings.debug:
        _serve_debug(factory(), settings)
    else:
        _Server(factory, settings).run()


def _serve_debug(app: Flask, settings: Settings) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        app.run(settings.host, settings.port, threaded=True, use_reloader=False, debug=False)
    except KeyboardInterrupt:
        log.info("stopping")
    finally:
        app.extensions["switchyard"].stop()


def check_port(settings: Settings) -> None:
    """:raises SettingsError: in one line, if the address cannot be bound."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise SettingsError(f"port {settings.port} on {settings.host} is in use; "
                                    "choose another with --port") from error  # fmt: skip
            reason = error.strerror or error
            raise SettingsError(f"cannot listen on {settings.host}:{settings.port}: {reason}") from error
