"""How far transformers has come with a checkpoint's tensors, told from the progress bar it draws. Runner process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging

_STEPS = 20  # reports of one load, at most


@contextmanager
def watched_weights(report: Callable[[float], None]) -> Iterator[None]:
    """Call ``report`` with the fraction done while a model is loaded, and draw no bar."""
    set_hook = getattr(logging, "set_tqdm_hook", None)
    if set_hook is None:  # an older release: the load goes unwatched
        yield
        return
    before = set_hook(lambda factory, args, options: _Bar(args, options, report))
    try:
        yield
    finally:
        set_hook(before)


class _Bar:
    """Stands where transformers wants a tqdm bar."""

    def __init__(self, args: tuple[Any, ...], options: dict[str, Any], report: Callable[[float], None]) -> None:
        self._items = args[0] if args else options.get("iterable", ())
        self._report = report

    def __iter__(self) -> Iterator[Any]:
        total = len(self._items) if hasattr(self._items, "__len__") else 0
        shown = 0
        for done, item in enumerate(self._items, 1):
            yield item
            if total and done * _STEPS // total > shown:
                shown = done * _STEPS // total
                self._report(round(done / total, 2))

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Whatever else one does to a bar: update, close, set_postfix."""
        return lambda *_, **__: None
