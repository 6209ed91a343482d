"""Every page: its commands are run by a test or say why not, its links lead somewhere, what it names is there.

The pages in ``HERE`` are run against one gateway, started by the quickstart's own command with the quickstart's own
files. The quickstart comes last: it makes keys.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from commands.command_line import command_line
from models_registry.spec import ModelSpec
from tests.conftest import Start
from tests.gateway.access.conftest import Keys
from tests.support.gateway import ROOT, GatewayProcess
from tests.support.pages import PAGES, Block, blocks, here, prose, run_all
from utils.settings import Settings

QUICKSTART = "docs/quickstart.md"
HERE = (
    "docs/api.md",
    "docs/batch.md",
    "docs/moderation.md",
    "docs/slots.md",
    "docs/tuning.md",
    "docs/troubleshooting.md",
    QUICKSTART,
)
START = "main.py --config switchyard.yaml\n"
"""How the quickstart's block ends by which the gateway here is started."""
DOCTOR = "tests/commands/test_doctor.py::test_a_machine_that_is_well"
ELSEWHERE = {
    ("README.md", "/generate/"): "tests/docs/test_readme.py::test_example_answers_right",
    ("README.md", "/v1/moderations/"): "tests/docs/test_readme.py::test_example_answers_right",
    ("README.md", "main.py chat"): "tests/docs/test_readme.py::test_example_answers_right",
    ("README.md", "from openai"): "tests/docs/test_readme.py::test_python_example_answers_right",
    ("README.md", "/admin/model_status"): "tests/docs/test_readme.py::test_look_and_steer",
    ("docs/deployment.md", ".venv/bin/python main.py doctor\n"): DOCTOR,
    (QUICKSTART, "main.py --profile pocket doctor"): DOCTOR,
    ("docs/memory.md", "models --fit"): "tests/commands/test_command_line.py::test_what_fits_together",
    (
        "docs/monitoring.md",
        "/metrics | grep",
    ): "tests/gateway/observe/test_page.py::test_the_figures_are_one_command_away",
    ("docs/monitoring.md", "/admin/events"): "tests/gateway/observe/test_page.py::test_the_journal_is_one_command_away",
    ("docs/monitoring.md", "X-Request-ID"): "tests/gateway/observe/test_page.py::test_a_request_is_found_in_the_log",
    (
        "docs/monitoring.md",
        "promtool",
    ): "tests/gateway/observe/test_page.py::test_prometheus_can_be_pointed_at_another_address",
    ("docs/worker.md", "worker.aws.create"): "tests/worker/test_queue_many.py::test_the_page_s_commands",
    ("docs/security.md", ""): "tests/gateway/access/test_page.py::test_the_page_s_commands",
}
"""Page and words of a block, and the test that runs it."""
ALL = [block for page in PAGES for block in blocks(page)]
COMMANDS = [block for block in ALL if block.language in ("bash", "console", "sh", "shell", "python")]
NOT_SETTINGS = {"API_KEY", "PUBLISH"}
"""What is called ``SWITCHYARD_…`` and is the clients' or Compose's."""


def elsewhere(block: Block) -> list[str]:
    return [test for (page, words), test in ELSEWHERE.items() if page == block.page and words in block.text]


def run_here(page: str) -> list[Block]:
    return [
        block
        for block in ALL
        if block.page == page
        and block.language in ("bash", "python")
        and not block.reason
        and not elsewhere(block)
        and not block.text.endswith(START)
    ]


# -- commands ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_a_command_is_run_once_or_says_why_not(block: Block) -> None:
    mine = block.page in HERE and (block in run_here(block.page) or block.text.endswith(START))
    ran = elsewhere(block) + [block.page] * mine
    assert ran or block.reason, f"{block} is run by no test and has no paragraph 'Not run by the tests: …' below it"
    assert not (ran and block.reason), f"{block} is run by {ran} and says that it is not"


def test_the_tests_that_run_commands_are_there() -> None:
    for (page, words), test in ELSEWHERE.items():
        file, _, name = test.partition("::")
        functions = {node.name for node in ast.parse((ROOT / file).read_text()).body if hasattr(node, "name")}
        assert name in functions, test
        assert any(block.page == page and words in block.text for block in COMMANDS), (page, words)


@pytest.fixture(scope="module")
def gateway(start_for_module: Start) -> Iterator[GatewayProcess]:
    """A gateway in a folder that is like a clone of this one, with the quickstart's files in it."""
    gateway = start_for_module(launch=False)
    own = {"models", "logs", "tmp", "data", "models.yaml", "switchyard.yaml"}
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name not in own:
            (gateway.home / entry.name).symlink_to(entry)
    page = [block for block in ALL if block.page == QUICKSTART]
    for block in page:
        if block.language == "yaml":
            name, _, text = block.text.removeprefix("# ").partition("\n")
            (gateway.home / name).write_text(text)
    (start,) = [block.text for block in page if block.text.endswith(START)]
    gateway.command = shlex.split(here(start, gateway))
    yield gateway.start()


@pytest.mark.parametrize("page", HERE)
def test_the_page_s_commands_do_what_it_says(gateway: GatewayProcess, page: str) -> None:
    try:
        assert run_all(run_here(page), gateway) > 0
    finally:
        if page == QUICKSTART:  # it made keys; the gateway is still to be asked what it left
            key = Keys(gateway).create("after", "--role", "admin", "--rate", "100000/minute")
            gateway.client.headers["Authorization"] = f"Bearer {key}"


def flags(command: click.Command) -> set[str]:
    return {flag for option in command.get_params(click.Context(command)) for flag in option.opts}


def verb(command: click.Command, name: str) -> click.Command | None:
    return command.get_command(click.Context(command), name) if isinstance(command, click.Group) else None


def test_verbs_and_flags_are_there() -> None:
    found = 0
    for page in PAGES:
        for command in re.findall(r"main\.py ([a-z-][^`\n|#;)]*)", page.read_text()):
            named: click.Command = command_line
            known = flags(named)
            for word in command.split():
                if found_verb := verb(named, word):
                    named = found_verb
                    known |= flags(named)
                elif word.startswith("--"):
                    assert word.partition("=")[0].rstrip(".,") in known, f"{page.name}: main.py {command}"
            assert named is not command_line or command.startswith("--"), f"{page.name}: main.py {command}"
            found += 1
    assert found > 40


# -- names -------------------------------------------------------------------------------------------------------------


def test_settings_are_there() -> None:
    known = {name.upper() for name in Settings.model_fields} | NOT_SETTINGS
    for page in PAGES:
        named = set(re.findall(r"\bSWITCHYARD_([A-Z_]+[A-Z])\b", page.read_text()))
        assert named <= known, (page.name, named - known)


def test_metrics_are_there() -> None:
    """Those of the page on monitoring are held to a live gateway's by a test of its own."""
    known = set(re.findall(r"switchyard_[a-z_]+[a-z]", (ROOT / "docs/monitoring.md").read_text()))
    for page in PAGES:
        named = set(re.findall(r"`(switchyard_[a-z_]+[a-z])\b", page.read_text()))
        assert named <= known, (page.name, named - known)


def test_what_the_tuning_page_sets_is_there() -> None:
    known = set(Settings.model_fields) | set(ModelSpec.model_fields) | {"priority"}
    rows = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+)[^|]* \| ", (ROOT / "docs/tuning.md").read_text(), re.MULTILINE)
    named = {name.partition(":")[0] for row in rows for name in re.findall(r"`([^`]+)`", row)}
    named = {name for name in named if not name.startswith("switchyard_")}
    assert len(named) > 20 and named <= known, named - known


def test_messages_that_troubleshooting_quotes_are_the_program_s() -> None:
    """What stands between two ``…`` is in the source as it is quoted; pieces of a word or two say nothing."""
    files = (
        file
        for folder in (
            "commands",
            "forking",
            "gateway",
            "media",
            "models_registry",
            "protocol",
            "runner",
            "utils",
            "worker",
        )
        for file in (ROOT / folder).rglob("*.py")
    )
    joined = "\n".join(re.sub(r'"\s*\n\s*f?"', "", file.read_text()) for file in files)
    rows = [
        line.split("|")[1]
        for line in (ROOT / "docs/troubleshooting.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    pieces = [piece.strip() for row in rows for quoted in re.findall(r"`([^`]+)`", row) for piece in quoted.split("…")]
    long = [piece for piece in pieces if len(piece) > 11 and not piece.startswith(("switchyard", '"'))]
    assert len(long) > 40
    for piece in long:
        for part in re.split(r"(?<=: )", piece):  # what follows a colon is often put in
            assert part.strip() in joined, piece


# -- links -------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    plain = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", prose(page)):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            text = re.sub(r"^```.*?^```$", "", file.read_text(), flags=re.DOTALL | re.MULTILINE)
            assert anchor in anchors(text), f"{page.name}: {target}#{anchor} is none of {sorted(anchors(text))}"


def test_the_list_has_every_page_once_and_in_order() -> None:
    text = (ROOT / "docs/README.md").read_text()
    numbers, pages = zip(*re.findall(r"^(\d+)\. \[[^]]+\]\(([^)]+)\)", text, re.MULTILINE), strict=True)
    assert list(numbers) == [str(number) for number in range(1, len(pages) + 1)]
    there = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert set(pages) == there | {"benchmarks/README.md", "../CONTRIBUTING.md"} and len(set(pages)) == len(pages)
