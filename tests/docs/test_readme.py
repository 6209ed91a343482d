"""What the documentation says holds: the README's requests run as written and answer right."""

import re
import subprocess
import sys

import pytest

from tests.conftest import Start
from tests.support.children import clean_environment
from tests.support.gateway import ROOT, GatewayProcess

README = (ROOT / "README.md").read_text()


def examples() -> list[tuple[str, str]]:
    """The README's commands that say, in a comment on their last line, what comes back."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    found = []
    for block in blocks:
        command, _, wanted = block.rstrip().rpartition("\n# ")
        if command:
            found.append((command, wanted))
    return found


@pytest.fixture(scope="module")
def gateway(start_for_module: Start) -> GatewayProcess:
    return start_for_module()


def shell(command: str, gateway: GatewayProcess) -> str:
    """Run a command of the page, with the port and the Python of this test in place of the page's."""
    command = command.replace("localhost:5000", f"localhost:{gateway.port}").replace(".venv/bin/python", sys.executable)
    environment = clean_environment(gateway.home) | {"SWITCHYARD_PORT": str(gateway.port)}
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=ROOT,
        env=environment,
        timeout=240,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_there_is_an_example_of_every_family() -> None:
    asked = {match for command, _ in examples() for match in re.findall(r"(?:generate/|chat )(\w+)", command)}
    assert asked == {"deepseek", "reasoner", "qwen_vl", "qwen_audio", "qwen_omni", "blip_vqa"}


@pytest.mark.parametrize(("command", "wanted"), examples(), ids=[wanted for _, wanted in examples()])
def test_example_answers_right(gateway: GatewayProcess, command: str, wanted: str) -> None:
    assert wanted in shell(command, gateway)


def test_python_example_answers_right(gateway: GatewayProcess) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    program, _, wanted = block.rstrip().rpartition("\n# ")
    assert wanted in shell(f".venv/bin/python - <<'EOF'\n{program}\nEOF", gateway)


def test_look_and_steer(gateway: GatewayProcess) -> None:
    block = README.partition("## Look and steer")[2].partition("```bash\n")[2].partition("```")[0]
    for line in block.strip().splitlines():
        printed = shell(line.partition("  #")[0], gateway)
        assert '"error"' not in printed, printed
