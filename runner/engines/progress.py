"""Reports how many of a checkpoint's tensors transformers has read, from its progress bar. Runner process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging

_STEPS = 20  # most reports of one load


@contextmanager
def watched_weights(report: Callable[[float], None]) -> Iterator[None]:
    """Within it, call ``report`` with the fraction read, and draw no progress bar."""
    set_hook = getattr(logging, "set_tqdm_hook", None)
    if set_hook is None:  # an older release: no reports
        yield
        return
    before = set_hook(lambda factory, args, options: _Bar(args, options, report))
    try:
        yield
    finally:
        set_hook(before)


class _Bar:
    """Replaces transformers' tqdm bar."""

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
        """Accept every other call on a bar: update, close, set_postfix."""
        return lambda *_, **__: None
