"""The serving process as it is told to stop, in an order that no gateway can be made to show."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.http import gunicorn_worker


def test_whoever_hears_that_it_stops_can_stop_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log tells of the stop: a Ctrl-C that comes then is the second one."""
    one = gunicorn_worker.DrainingWorker.__new__(gunicorn_worker.DrainingWorker)
    one.alive, one.method_queue = True, SimpleNamespace(defer=lambda function: None)
    one.wsgi = SimpleNamespace(extensions={"switchyard": SimpleNamespace(stop=None)})
    begun: list[tuple[str, bool]] = []

    def thread(**options: Any) -> SimpleNamespace:
        return SimpleNamespace(start=lambda: begun.append((options["name"], one.alive)))

    monkeypatch.setattr(gunicorn_worker, "threading", SimpleNamespace(Thread=thread))
    one.handle_quit(signal.SIGINT, None)
    one.handle_exit(signal.SIGTERM, None)
    one.handle_quit(signal.SIGINT, None)
    assert begun == [("drain", False), ("stop-now", False)]
