"""The compose files, read by Docker Compose itself. No engine runs here, so nothing is built or started."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from commands.command_line import command_line
from tests.deploy.checks import DEPLOY, tool
from tests.deploy.image import stages, words
from tests.support.gateway import ROOT
from worker.settings import WorkerSettings, variable

CPU = ("-f", "docker-compose.yml", "-f", "docker-compose.cpu.yml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a user has it: the compose files and no .env."""
    for name in ("docker-compose.yml", "docker-compose.cpu.yml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def config(folder: Path, *arguments: str, profile: str = "") -> dict[str, Any]:
    profiles = ("--profile", profile) if profile else ()
    loaded: dict[str, Any] = yaml.safe_load(tool("docker-compose", *arguments, *profiles, "config", cwd=folder))
    return loaded


def test_gateway_alone_with_a_gpu(folder: Path) -> None:
    services = config(folder)["services"]
    assert list(services) == ["switchyard"]
    gateway = services["switchyard"]
    (device,) = gateway["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["count"] == 1 and device["capabilities"] == ["gpu"]
    assert gateway["build"]["args"] == {"VARIANT": "cuda"}
    (port,) = gateway["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "5000", 5000)


def test_without_a_gpu(folder: Path) -> None:
    gateway = config(folder, *CPU)["services"]["switchyard"]
    assert "devices" not in gateway.get("deploy", {}).get("resources", {}).get("reservations", {})
    assert gateway["build"]["args"]["VARIANT"] == "cpu"
    assert gateway["environment"]["SWITCHYARD_PROFILE"] == "pocket"
    assert gateway["image"] != config(folder)["services"]["switchyard"]["image"]


PROFILES = {
    "monitoring": {"prometheus", "grafana"},
    "redis": {"redis"},
    "moderation": {"worker", "aws", "aws-setup"},
    "moderation-aws": {"worker-aws"},
}


@pytest.mark.parametrize(("profile", "more"), [*PROFILES.items(), ("*", set[str]().union(*PROFILES.values()))])
def test_profiles(folder: Path, profile: str, more: set[str]) -> None:
    services = config(folder, profile=profile)["services"]
    assert set(services) == {"switchyard"} | more
    for name in more:
        for port in services[name].get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name
        ours = services[name]["image"] == services["switchyard"]["image"] and services[name]["pull_policy"] == "never"
        assert ours or re.search(r":v?\d+(\.\d+)+", services[name]["image"]), "a release, not what is latest today"


def test_env_file_is_heeded_but_not_inside_addresses_and_folders(folder: Path) -> None:
    (folder / ".env").write_text(
        "SWITCHYARD_PROFILE=pocket\nSWITCHYARD_PORT=8080\nSWITCHYARD_PUBLISH=0.0.0.0:80\nHF_TOKEN=secret\n"
    )
    gateway = config(folder)["services"]["switchyard"]
    assert gateway["environment"]["SWITCHYARD_PROFILE"] == "pocket" and gateway["environment"]["HF_TOKEN"] == "secret"
    assert gateway["environment"]["SWITCHYARD_PORT"] == "5000"
    assert (gateway["ports"][0]["host_ip"], gateway["ports"][0]["published"]) == ("0.0.0.0", "80")


def test_agrees_with_the_image(folder: Path) -> None:
    gateway = config(folder)["services"]["switchyard"]
    image = stages()["production"]
    folders = set(words(image.last("VOLUME")))
    assert {volume["target"] for volume in gateway["volumes"]} == folders
    assert gateway["healthcheck"]["test"][1:] == words(image.last("HEALTHCHECK"))
    assert gateway["ports"][0]["target"] == int(image.last("EXPOSE"))
    for name, value in image.environment.items():
        if name.startswith("SWITCHYARD_"):
            assert gateway["environment"][name] == value


@pytest.mark.skipif(not (DEPLOY / "monitoring").is_dir(), reason="deploy/monitoring is not there")
def test_files_that_are_mounted_exist(folder: Path) -> None:
    mounted = [
        volume["source"]
        for service in config(folder, profile="*")["services"].values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    ]
    assert mounted
    for source in mounted:
        assert (ROOT / os.path.relpath(source, folder)).exists(), source


def test_workers_have_the_gateway_s_image_with_and_without_a_gpu(folder: Path) -> None:
    for files in ((), CPU):
        services = config(folder, *files, profile="*")["services"]
        for name in ("worker", "worker-aws", "aws-setup"):
            assert services[name]["image"] == services["switchyard"]["image"]


def test_a_worker_s_variables_are_its_settings(folder: Path) -> None:
    known = {variable(name, field) for name, field in WorkerSettings.model_fields.items()}
    (folder / ".env").write_text("QUEUE_NAME=mine\nAWS_REGION=eu-west-1\nAWS_ACCESS_KEY_ID=real\n")
    for name in ("worker", "worker-aws", "aws-setup"):
        given = config(folder, profile="*")["services"][name]["environment"]
        assert set(given) - {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= known
        assert (given["QUEUE_NAME"], given["AWS_REGION"]) == ("mine", "eu-west-1")
        # Real credentials never go to the local AWS, nor jobs for AWS to a local one.
        here = name != "worker-aws"
        assert given["AWS_ACCESS_KEY_ID"] == ("local" if here else "real")
        assert given.get("AWS_ENDPOINT_URL") == ("http://aws:5000" if here else None)


def test_a_worker_has_time_to_give_its_jobs_back(folder: Path) -> None:
    for name in ("worker", "worker-aws"):
        worker = config(folder, profile="*")["services"][name]
        seconds = {"1m0s": 60}[worker["stop_grace_period"]]
        assert seconds >= WorkerSettings().grace + WorkerSettings().poll_wait + 10
        words = worker["healthcheck"]["test"]
        _, verb, flags = command_line.resolve_command(click.Context(command_line), words[3:])
        assert words[:3] == ["CMD", "python", "main.py"] and verb and verb.make_context("worker", flags).params["check"]


def test_the_local_aws_is_the_tests_one(folder: Path) -> None:
    (pinned,) = re.findall(r"^moto\S*==(\S+)", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)
    assert config(folder, profile="moderation")["services"]["aws"]["image"] == f"motoserver/moto:{pinned}"
