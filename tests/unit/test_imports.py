"""The gateway's side of the house knows neither torch nor transformers nor the runner."""

import subprocess
import sys

from utils.settings import ROOT

GATEWAY_SIDE = "app, main, gateway.gateway, models_registry.catalog, media.client, commands.serve, commands.fit"


def imported(modules: str) -> set[str]:
    """Top-level names in ``sys.modules`` after an import in a fresh interpreter."""
    program = f"import {modules}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_gateway_imports_no_torch() -> None:
    found = imported(GATEWAY_SIDE)
    assert {"app", "gateway", "commands", "flask"} <= found, "the imports were real"
    assert not found & {"torch", "transformers", "runner", "llama_cpp", "bitsandbytes"}


def test_the_policy_and_the_protocol_import_the_standard_library_alone() -> None:
    found = imported("gateway.scheduler, protocol.messages")
    outside = {name for name in found if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert outside <= {"gateway", "protocol", "sitecustomize", "usercustomize"}


def test_help_imports_little() -> None:
    program = (
        "import sys, main\nassert main.main(['--help']) == 0\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    found = set(done.stderr.split())
    assert "commands" in found and not found & {"flask", "gateway", "app", "pydantic", "rich", "torch"}, done.stderr
