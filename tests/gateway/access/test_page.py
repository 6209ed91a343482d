"""The commands of docs/security.md, in their order, against a gateway that runs."""

import re
import subprocess
import sys

from tests.conftest import Start
from tests.gateway.access.conftest import Keys
from tests.support.gateway import ROOT, only


def test_the_page_s_commands(start: Start) -> None:
    gateway = start(models=only("deepseek"))
    page = (ROOT / "docs" / "security.md").read_text()
    script, wanted = "", []
    for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("# "):
                script += f"\necho '@@@{len(wanted)}'\n"
                wanted.append(line.removeprefix("# "))
            else:
                script += line + "\n"
    script = script.replace("localhost:5000", f"localhost:{gateway.port}").replace(".venv/bin/python", sys.executable)
    ran = subprocess.run(
        ["bash", "-uo", "pipefail", "-c", script],
        cwd=ROOT,
        env=gateway.environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    parts = re.split(r"@@@\d+\n", ran.stdout)
    for words, part in zip(wanted, parts, strict=False):
        assert words in part, (words, part, ran.stderr)
    assert len(wanted) > 10
    keys = Keys(gateway)  # so that the gateway can still be asked what it left
    gateway.client.headers["Authorization"] = f"Bearer {keys.create('after', '--role', 'admin')}"
