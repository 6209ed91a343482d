"""``/ui/benchmarks``: the pages, plots and raw figures of ``docs/benchmarks``. Gateway process.

The pages are read on the first request and again when they change. An installation without the folder shows
no benchmarks.
"""

import re
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flask import Response, send_file
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from gateway.routes.ui.page_headers import blueprint
from gateway.routes.ui.pages import nothing, page

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "benchmarks"
_RAW = re.compile(r"[a-z_]+\.(png|json)")
_COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
_RUN = re.compile(r", (\d{4}-\d\d-\d\d): ([^.;]+)")


@dataclass(frozen=True, slots=True)
class Headline:
    """A figure of a card: the cell at ``column`` in the first row that begins with ``row``."""

    row: tuple[str, ...]
    column: str
    unit: str
    says: str


HEADLINES = {
    "swap": (
        Headline(
            ("swap, median",),
            "SmolLM2-135M",
            "s",
            "to the first token of a model that was not loaded, another one unloaded for it",
        ),
        Headline(("transformers serve",), "SmolLM2-135M", "s", "for the same by transformers serve"),
        Headline(("swap ÷ floor",), "SmolLM2-135M", "×", "the least that such a swap could take"),
    ),
    "throughput": (
        Headline(("Switchyard, transformers", "16"), "tokens/s", "tokens/s", "with 16 clients, transformers engine"),
        Headline(("Switchyard, llama.cpp Q4_1", "16"), "tokens/s", "tokens/s", "with 16 clients, llama.cpp engine"),
        Headline(
            ("transformers serve, as it comes (bfloat16)", "16"),
            "tokens/s",
            "tokens/s",
            "with 16 clients, transformers serve",
        ),
    ),
    "overhead": (
        Headline(("llama_cpp", "1"), "added, ms (95 % interval)", "ms", "on top of llama.cpp's own time for 1 token"),
        Headline(("llama_cpp", "32"), "added, ms (95 % interval)", "ms", "on top of its time for 32 tokens"),
    ),
    "simulate": (
        Headline(("mixed",), "Switchyard", "swaps", "by this policy, on the mixed trace"),
        Headline(("mixed",), "optimum in order of arrival", "swaps", "the fewest possible in order of arrival"),
        Headline(("mixed",), "told ÷ true, median", "×", "the true wait is what Retry-After tells"),
    ),
    "overload": (
        Headline(("lost, hung or another status",), "measured", "", "lost or hung of 500, at 4 times capacity"),
        Headline(("a refusal takes, p50 / p99",), "measured", "", "until a refusal, p50 / p99"),
    ),
    "load": (
        Headline(("all",), "tokens/s", "tokens/s", "for 8 users of three models"),
        Headline(("all",), "TTFT p50, s", "s", "to the first text, median"),
    ),
    "cycles": (
        Headline(("gateway, unique memory",), "slope per cycle, after 10", "", "memory gained by a load and its end"),
        Headline(("open descriptors of the gateway",), "slope per cycle, after 10", "", "open files gained"),
        Headline(("deepseek (SmolLM2-135M",), "in all", "s", "to load, answer and evict SmolLM2-135M"),
    ),
}
"""The cards in order, with their figures. A figure that its page no longer has is left out."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One page. ``summary`` and ``body`` are HTML, ``plot`` is (file, alternative text, width, height)."""

    name: str
    title: str
    summary: Markup
    body: Markup
    headlines: tuple[tuple[str, str, str], ...]
    run: tuple[str, str] | None
    plot: tuple[str, str, int, int] | None


def _markdown() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False}).enable("table")
    scroll = '<div class="table-scroll" role="region" tabindex="0" aria-label="Figures"><table class="table">'
    made.add_render_rule("table_open", lambda *_: scroll)
    made.add_render_rule("table_close", lambda *_: "</table></div>")
    return made


class Library:
    """The benchmarks of a folder, cached until a file changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._seen: tuple[tuple[str, int, int], ...] = ()
        self._found: dict[str, Benchmark] = {}

    def benchmarks(self) -> dict[str, Benchmark]:
        """Return the benchmarks by name, in the order of :data:`HEADLINES`; those without headlines come last."""
        files = [path for path in sorted(self._folder.glob("*.md")) if path.stem != "README"]
        seen = tuple((path.name, (now := path.stat()).st_mtime_ns, now.st_size) for path in files)
        with self._lock:
            if seen != self._seen:
                order = {name: place for place, name in enumerate(HEADLINES)}
                files.sort(key=lambda path: order.get(path.stem, len(order)))
                self._found = {path.stem: _read(path) for path in files}
                self._seen = seen
            return self._found

    def raw_file(self, name: str) -> Path | None:
        """Return the path of a plot or of raw figures, or None."""
        path = self._folder / name
        return path if _RAW.fullmatch(name) and path.is_file() else None


def _read(path: Path) -> Benchmark:
    text = _COMMENT.sub("", path.read_text(encoding="utf-8"))
    markdown = _markdown()
    tokens = markdown.parse(text)
    plot = None
    for token in tokens:
        for child in token.children or ():
            if child.type == "link_open":
                _rewrite_link(child)
            elif child.type == "image" and plot is None:
                plot = _plot(path.parent, str(child.attrs["src"]), child.content)
    # The template shows the plot: drop the paragraph that holds only its image.
    kept: list[Token] = []
    for place, token in enumerate(tokens):
        around = tokens[max(0, place - 1) : place + 2]
        if not any(
            one.type == "inline" and [child.type for child in one.children or ()] == ["image"] for one in around
        ):
            kept.append(token)
    title, body = "".join(child.content for child in kept[1].children or ()), kept[3:]
    rows = list(_tables(tokens))
    found = [(_value(rows, one), one.unit, one.says) for one in HEADLINES.get(path.stem, ())]
    run = _RUN.search(text)
    return Benchmark(
        path.stem,
        title,
        Markup(markdown.renderer.render(body[:3], markdown.options, {})),
        Markup(markdown.renderer.render(body, markdown.options, {})),
        tuple((value, unit, says) for value, unit, says in found if value),
        (run[1], run[2]) if run else None,
        plot,
    )


def _rewrite_link(link: Token) -> None:
    """Point a link to the benchmark or file it names; remove the address of any other link."""
    wanted = str(link.attrs.get("href", ""))
    stem, _, kind = wanted.rpartition(".")
    if re.fullmatch("[a-z_]+", stem) and kind in ("md", "png", "json"):
        link.attrs["href"] = f"/ui/benchmarks/{stem if kind == 'md' else wanted}"
    else:
        del link.attrs["href"]


def _plot(folder: Path, name: str, shows: str) -> tuple[str, str, int, int] | None:
    try:
        with (folder / name).open("rb") as file:
            width, height = struct.unpack(">II", file.read(24)[16:])
    except (OSError, struct.error):
        return None
    return name, shows, width, height


def _tables(tokens: Sequence[Token]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield every row of every table as (the table's heads, the row's cells), in plain text."""
    heads: list[str] = []
    row: list[str] = []
    inside = False
    for token in tokens:
        if token.type == "tr_open":
            row = []
        elif token.type in ("th_open", "td_open", "th_close", "td_close"):
            inside = token.nesting == 1
        elif token.type == "inline" and inside:
            row.append("".join(child.content for child in token.children or ()))
        elif token.type == "thead_close":
            heads = row
        elif token.type == "tr_close" and token.level > 0 and row is not heads:
            yield heads, row


def _value(rows: Sequence[tuple[list[str], list[str]]], wanted: Headline) -> str:
    for heads, row in rows:
        starts = (
            len(row) >= len(wanted.row)
            and row[0].startswith(wanted.row[0])
            and row[1 : len(wanted.row)] == list(wanted.row[1:])
        )
        if starts and wanted.column in heads:
            return row[heads.index(wanted.column)].partition(" (")[0]
    return ""


_library = Library(FOLDER)


@blueprint.get("/benchmarks")
def benchmarks() -> Response:
    """The list of benchmarks with their headline figures."""
    return page("benchmarks.html", title="Benchmarks", view="benchmarks", benchmarks=_library.benchmarks().values())


@blueprint.get("/benchmarks/<name>")
def benchmark(name: str) -> Response:
    """A benchmark's page; or its plot or raw figures as a file."""
    if found := _library.benchmarks().get(name):
        return page("benchmark.html", title=found.title, view="benchmarks", benchmark=found)
    if (path := _library.raw_file(name)) is None:
        return nothing(name)
    return send_file(path, max_age=3600)
