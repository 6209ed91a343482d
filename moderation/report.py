"""Renders a result as one self-contained HTML page, without scripts or network.

All text from a video, a model or a policy is escaped. Must not know how the result was made.
"""

import base64
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from moderation.policy import DECISIONS
from moderation.result import CategoryVerdict, FrameFinding, Interval, NotSeen, Result

_WORDS = {"allow": "Allow", "review": "Review", "block": "Block"}


def render_report(result: Result, thumbnails: Mapping[int, bytes]) -> str:
    """Return the page. ``thumbnails`` are JPEGs by frame index."""
    length = max([result.video.duration, *(one.end for one in result.not_seen), 1e-3])

    def position(seconds: float) -> float:
        return round(1000 * min(seconds, length) / length, 2)

    decisions = {category.id: category.decision for category in result.categories}
    return _template().render(
        result=result,
        words=_WORDS,
        length=length,
        clock=format_time,
        spoken=_spoken,
        stretches=_stretches,
        position=position,
        width=lambda start, end: max(2.0, round(position(end) - position(start), 2)),
        pictures={index: base64.b64encode(data).decode() for index, data in thumbnails.items()},
        titles={category.id: category.title for category in result.categories},
        decisions=decisions,
        answers=_answers,
        worst=lambda frame: max((decisions[name] for name in frame.violations), key=DECISIONS.index),
        hits=[frame for frame in result.frames if frame.violations],
        others=[frame for frame in result.frames if not frame.violations],
    )


def _answers(frame: FrameFinding) -> list[tuple[str, str, bool]]:
    """Return each question and answer once, and whether it violates any category."""
    found: dict[tuple[str, str], bool] = {}
    for said in frame.answers:
        found[said.question, said.answer] = found.get((said.question, said.answer), False) or said.violates
    return [(question, answer, violates) for (question, answer), violates in found.items()]


def format_time(seconds: float) -> str:
    """Return a time such as ``0:03.5`` or ``1:02:03.0``."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    rest = f"{tenths / 10:04.1f}"
    return f"{hours}:{minutes:02}:{rest}" if hours else f"{minutes}:{rest}"


def _spoken(category: CategoryVerdict) -> str:
    return _stretches(category.intervals) or "never"


def _stretches(found: Sequence[Interval | NotSeen]) -> str:
    return ", ".join(f"{format_time(one.start)} to {format_time(one.end)}" for one in found)


@functools.cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html")
