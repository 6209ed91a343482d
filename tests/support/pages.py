"""The blocks of code in the documentation's pages, and the shell scripts they make.

A line that begins with ``# `` after a command says what comes back. A block that no test runs is followed by a
paragraph that begins with ``Not run by the tests:``.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.gateway import ROOT, GatewayProcess

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_REASON = re.compile(r"\n+\*Not run by the tests: ([^*]+)\*")
_PYTHON = re.compile(r"(?<![\w/.-])(?:\.venv/bin/python|python3?)(?= )")
_MARK = "@@@ end of a command"


@dataclass(frozen=True)
class Block:
    """``reason`` says why it is not run; it is empty where it is."""

    page: str
    line: int
    language: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the page's blocks of code, in order."""
    text = page.read_text()
    return [
        Block(
            str(page.relative_to(ROOT)),
            text.count("\n", 0, found.start()) + 1,
            found[1],
            found[2],
            reason[1] if (reason := _REASON.match(text, found.end())) else "",
        )
        for found in _BLOCK.finditer(text)
    ]


def prose(page: Path) -> str:
    """Return the page without its blocks of code."""
    return _BLOCK.sub("", page.read_text())


def here(command: str, gateway: GatewayProcess) -> str:
    """Put this gateway's port and this Python in place of the page's."""
    return _PYTHON.sub(sys.executable, command.replace("localhost:5000", f"localhost:{gateway.port}"))


def run_all(found: list[Block], gateway: GatewayProcess) -> int:
    """Run blocks of bash and Python in one shell, in the gateway's folder. Return how many of their words came back.

    :raises AssertionError: if a command fails, or something else comes back than its page says.
    """
    script, wanted = ["set -eu"], []
    for block in found:
        lines = block.text.splitlines()
        if block.language == "python":
            program = [line for line in lines if not line.startswith("# ")]
            lines = ["python - <<'EOF'", *program, "EOF", *(line for line in lines if line.startswith("# "))]
        for line in lines:
            if line.startswith("# "):
                wanted.append((str(block), line.removeprefix("# ")))
                script.append(f"echo '{_MARK}'")
            else:
                script.append(here(line, gateway))
    ran = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=gateway.home,
        env=gateway.environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    parts = ran.stdout.split(_MARK)
    for (where, words), part in zip(wanted, parts, strict=False):
        assert words in part, f"{where} does not give {words!r} but:\n{part}{ran.stderr}"
    assert ran.returncode == 0, f"a command after the {len(parts) - 1}th comment of {found[0].page} fails: {ran.stderr}"
    return len(wanted)
