"""Tests the Terraform files: parsed, self-contained, formatted; the instance's script rendered and checked by
shellcheck.

AWS's provider does not check them, because a test cannot download it.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import hcl2
import pytest

from tests.deploy.checks import DEPLOY, run, tool
from utils.settings import Settings

FOLDER = DEPLOY / "terraform"
TEXT = "\n".join(path.read_text() for path in sorted(FOLDER.glob("*.tf")))
terraform = pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not installed; no package brings it")


def blocks(kind: str) -> list[list[str]]:
    """Return the labels of every block of a kind."""
    found: list[list[str]] = []
    for path in sorted(FOLDER.glob("*.tf")):
        for block in hcl2.loads(path.read_text()).get(kind, []):
            found.append(_labels(block))
    return found


def _labels(block: dict[str, Any]) -> list[str]:
    labels = []
    while len(names := [name for name in block if not name.startswith("__")]) == 1 and names[0].startswith('"'):
        labels.append(names[0].strip('"'))
        block = block[names[0]]
    return labels


def test_every_reference_leads_somewhere() -> None:
    code = re.sub(r"#.*", "", TEXT)
    declared = {("var", name) for (name,) in blocks("variable")}
    declared |= {("data", *labels) for labels in blocks("data")} | {tuple(labels) for labels in blocks("resource")}
    used = {("var", name) for name in re.findall(r"\bvar\.(\w+)", code)}
    used |= {("data", kind, name) for kind, name in re.findall(r"\bdata\.(aws_\w+)\.(\w+)", code)}
    used |= set(re.findall(r"(?<!data\.)\b(aws_\w+)\.(\w+)", code))
    assert used - declared == set()
    assert {name for name in declared if name[0] == "var"} <= used, "a variable that nothing uses"


def test_provider_is_pinned() -> None:
    (versions,) = hcl2.loads((FOLDER / "versions.tf").read_text())["terraform"]
    assert re.search(r"version['\"]?: ['\"]+~> \d+\.\d+", str(versions["required_providers"]))
    assert versions["required_version"]


def test_closed_unless_opened() -> None:
    variables = {_labels(block)[0]: block for block in hcl2.loads((FOLDER / "variables.tf").read_text())["variable"]}
    (cidrs,) = variables["allowed_cidrs"].values()
    assert cidrs["default"] == []
    assert re.search(r'http_tokens\s*= "required"', TEXT)
    assert TEXT.count("encrypted") == 2, "both volumes"
    assert re.search(r'length\(var\.allowed_cidrs\) == 0 \? "127\.0\.0\.1:5000:5000"', TEXT)


def test_template_gets_what_it_names() -> None:
    script = (FOLDER / "user_data.sh.tftpl").read_text()
    named = set(re.findall(r"\$\{(\w+)\}", script)) | set(re.findall(r"%\{ if (\w+)", script))
    (given,) = re.findall(r'user_data\.sh\.tftpl", \{(.*?)\n  \}\)', TEXT, re.DOTALL)
    assert named == set(re.findall(r"^\s{4}(\w+)\s+=", given, re.MULTILINE))


@terraform
def test_formatted() -> None:
    run("terraform", "fmt", "-check", "-diff", FOLDER)


@terraform
@pytest.mark.parametrize("token", ["", "/switchyard/hf-token"])
def test_script_of_the_instance(tmp_path: Path, token: str) -> None:
    """Terraform renders the script, in a module without providers."""
    values = {
        "image": "1.dkr.ecr.eu-west-1.example/switchyard:1",
        "region": "eu-west-1",
        "volume_id": "vol-0123",
        "settings": "SWITCHYARD_PROFILE=pocket\nSWITCHYARD_PORT=5000",
        "hf_token_parameter": token,
        "publish": "5000:5000",
    }
    shutil.copy(FOLDER / "user_data.sh.tftpl", tmp_path)
    rendered = 'templatefile("${path.module}/user_data.sh.tftpl", ' + json.dumps(values) + ")"
    (tmp_path / "main.tf").write_text('output "script" {\n  value = ' + rendered + "\n}\n")
    run("terraform", "init", "-input=false", cwd=tmp_path)
    run("terraform", "apply", "-input=false", "-auto-approve", cwd=tmp_path)
    script = tmp_path / "script.sh"
    script.write_text(run("terraform", "output", "-raw", "script", cwd=tmp_path))
    tool("shellcheck", "--severity=style", "--exclude=SC2194,SC2195", script)  # rendered words are constant
    assert ("HF_TOKEN" in script.read_text()) == bool(token)
    lines = script.read_text().partition("<<'SETTINGS'\n")[2].partition("\nSETTINGS\n")[0].splitlines()
    pairs = [line.partition("=") for line in lines]
    Settings(**{name.removeprefix("SWITCHYARD_").lower(): value for name, _, value in pairs})
