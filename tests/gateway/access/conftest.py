"""Keys made by the command line, and gateways that ask for them."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any
from unittest import mock

import httpx
import pytest

import main
from tests.support.gateway import ROOT, GatewayProcess


class Keys:
    """``main.py keys`` for one gateway's data folder, and requests with the keys it made."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway = gateway
        self.tokens: list[str] = []

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run the verb in this process; return its status and what it wrote to standard output and error."""
        output, errors = io.StringIO(), io.StringIO()
        settings = {name: value for name, value in self.gateway.environment.items() if name.startswith("SWITCHYARD_")}
        with mock.patch.dict(os.environ, settings), redirect_stdout(output), redirect_stderr(errors):
            status = main.main(["keys", *arguments])
        return status, output.getvalue(), errors.getvalue()

    def run_apart(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the verb in a process of its own."""
        command = [sys.executable, str(ROOT / "main.py"), "keys", *arguments]
        return subprocess.run(
            command, env=self.gateway.environment, cwd=self.gateway.home, capture_output=True, text=True, timeout=120
        )

    def done(self, *arguments: str) -> dict[str, Any]:
        status, output, errors = self.run(*arguments, "--json")
        assert status == 0, errors
        found: dict[str, Any] = json.loads(output)
        if "key" in found:
            self.tokens.append(found["key"])
        return found

    def create(self, name: str, *flags: str) -> str:
        """Make a key and return it."""
        return str(self.done("create", name, *flags)["key"])

    def ask(self, token: str | None, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request with a key, or with none."""
        headers = {"Authorization": f"Bearer {token}" if token else ""} | options.pop("headers", {})
        return self.gateway.client.request(method, path, headers=headers, **options)

    def answer(self, token: str, model: str = "deepseek", **fields: Any) -> httpx.Response:
        body = {"prompt": "Hello", "max_new_tokens": 4} | fields
        return self.ask(token, "POST", f"/generate/{model}", json=body)


def administered(gateway: GatewayProcess) -> Keys:
    """Give a gateway that is not started yet a key of the role admin, by which all its own questions are asked."""
    keys = Keys(gateway)
    gateway.client.headers["Authorization"] = f"Bearer {keys.create('root', '--role', 'admin')}"
    return keys


@pytest.fixture
def both_envelopes() -> Any:
    """Hold a refusal to the error shape of its surface."""

    def check(response: httpx.Response, status: int, *words: str) -> dict[str, Any]:
        assert response.status_code == status, response.text
        body = response.json()
        if response.request.url.path.startswith("/v1/"):
            error: dict[str, Any] = body["error"]
            assert set(error) >= {"message", "type", "param", "code"}
            said = error["message"]
        else:
            error, said = body, body["details"]
            assert isinstance(body["error"], str)
        assert all(word in said for word in words), said
        return error

    return check
