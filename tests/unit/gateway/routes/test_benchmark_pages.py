"""The committed benchmarks as the dashboard shows them: every figure of a card is found, and nothing leads away."""

import re
from pathlib import Path

from gateway.routes.ui.benchmarks import FOLDER, HEADLINES, Library


def test_every_card_has_the_figures_that_it_is_to_have() -> None:
    found = Library(FOLDER).benchmarks()
    assert list(found) == list(HEADLINES), "a new page wants headlines, and a lost one none"
    for name, one in found.items():
        assert len(one.headlines) == len(HEADLINES[name]), (name, one.headlines)
        assert all(re.search(r"\d", value) for value, _, _ in one.headlines), one.headlines
        assert "`" not in one.title and one.plot and one.plot[2] > one.plot[3] / 2 > 100
    assert found["swap"].headlines[0][0] in found["swap"].body


def test_a_page_keeps_to_the_policy_and_to_its_neighbours() -> None:
    library = Library(FOLDER)
    for one in library.benchmarks().values():
        assert not re.search("<img|style=|<!--|<script", one.body)
        for link in re.findall(r'href="([^"]*)"', one.body):
            name = link.removeprefix("/ui/benchmarks/")
            assert name in library.benchmarks() or library.raw_file(name), link


def test_only_plots_and_figures_of_the_folder_are_there(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a.png", "b/c.png", ".hidden.json", "d.py"):
        (tmp_path / name).write_bytes(b"x")
    library = Library(tmp_path)
    assert library.benchmarks() == {}
    assert library.raw_file("a.png") == tmp_path / "a.png"
    for name in ("../a.png", "b/c.png", ".hidden.json", "d.py", "nothing.png", "b", ""):
        assert library.raw_file(name) is None


def test_a_page_that_changes_is_read_again(tmp_path: Path) -> None:
    library, page = Library(tmp_path), tmp_path / "load.md"
    page.write_text("# Was\n\nText with <b>marks</b>.\n\n![plot](gone.png)\n")
    first = library.benchmarks()["load"]
    assert (first.title, first.plot, first.headlines) == ("Was", None, ()) and "&lt;b&gt;" in first.body
    page.write_text("# Is now\n\nText.\n\n| model | tokens/s |\n| --- | --- |\n| **all** | 7 (6 to 8) |\n")
    now = library.benchmarks()["load"]
    assert (now.title, now.headlines) == ("Is now", (("7", "tokens/s", "for 8 users of three models"),))


def test_without_the_folder_there_are_none(tmp_path: Path) -> None:
    assert Library(tmp_path / "nowhere").benchmarks() == {}
