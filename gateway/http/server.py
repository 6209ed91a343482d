"""How the application is served: gunicorn with one worker of many threads, or Flask's own server under ``--debug``.

One worker only (:mod:`gateway.http.gunicorn_worker`), because the slots have one owner. A stopping worker first lets
the requests under way finish, within ``drain_timeout``, then ends every runner. Gateway process.
"""

import errno
import gc
import logging
import resource
import signal
import socket
from collections.abc import Callable
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

from models_registry.catalog import Catalog, load_catalog
from utils.settings import Settings, SettingsError

log = logging.getLogger("switchyard")
_FILES = 65536  # open at once: each connection is one, and each long body that arrives
_MARGIN = 15  # seconds gunicorn leaves a worker after drain_timeout to end runners and threads


def options(settings: Settings) -> dict[str, Any]:
    """Return gunicorn's settings for these settings and the catalog they name.

    :raises CatalogError: if the catalog cannot be used.
    """
    threads = settings.thread_count(sum(Catalog.batch_size(spec) * spec.replicas for spec in load_catalog(settings)))
    return {
        "bind": f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}",
        "workers": 1,
        "worker_class": "gateway.http.gunicorn_worker.DrainingWorker",
        "threads": threads,
        "worker_connections": max(settings.connection_limit, threads + 1),
        "http_parser": "python",  # never another one because a package of that name is installed
        "forwarder_headers": "",  # no client says where the application stands (SCRIPT_NAME, PATH_INFO)
        "timeout": 120,
        "graceful_timeout": int(settings.drain_timeout) + _MARGIN,
        "keepalive": 30,
        "on_starting": lambda arbiter: raise_file_limit(),
        "pre_fork": _share_memory,
        "worker_exit": _stop_gateway,
        "logger_class": "gateway.http.server.GunicornLogger",
        "control_socket_disable": True,
        "proc_name": "switchyard",
    }


def _share_memory(_: Arbiter, __: ThreadWorker) -> None:
    """Keep what is imported shared with the worker: its first full collection would write into every object, and so
    copy all pages that the two have in common (18 MB)."""
    gc.collect()
    gc.freeze()


def _stop_gateway(_: Arbiter, worker: ThreadWorker) -> None:
    if isinstance(app := getattr(worker, "wsgi", None), Flask):
        app.extensions["switchyard"].stop()
        app.extensions["access"].close()


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
    log.info("Switchyard on http://%s:%d; the dashboard is at /ui/", settings.host, settings.port)
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


def raise_file_limit() -> None:
    """Let this process and its children have as many files open as they may, up to :data:`_FILES`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        log.warning("no more than %d files may be open at once: %s", soft, error)


def check_port(settings: Settings) -> None:
    """:raises SettingsError: in one line, if the address cannot be bound."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise SettingsError(
                    f"port {settings.port} on {settings.host} is in use; choose another with --port"
                ) from error
            reason = error.strerror or error
            raise SettingsError(f"cannot listen on {settings.host}:{settings.port}: {reason}") from error
