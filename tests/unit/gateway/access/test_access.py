"""What is decided about keys, addresses, usage and rates before any request: files, owners, settings, headers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flask import Flask, request
from werkzeug.test import Client
from werkzeug.wrappers import Request, Response

from commands.doctor import network
from commands.serve import check_configuration
from gateway.access import keys
from gateway.access.address import TrustedProxies, is_local, networks
from gateway.access.control import Access
from gateway.routes.access_log import one_word
from main import main
from models_registry.catalog import load_catalog
from tests.support.gateway import ROOT
from utils.settings import Settings, SettingsError


def settings_in(folder: Path, **given: object) -> Settings:
    folders = {f"{name}_dir": folder / name for name in ("models", "logs", "tmp", "data")}
    settings = Settings(profile="pocket", device="cpu", **folders, **given)  # type: ignore[arg-type]
    settings.make_folders()
    return settings


def make_key(file: Path, **fields: object) -> None:
    key_id, _, digest = keys.new_token()
    with keys.changing(file) as found:
        found.append(keys.Key(id=key_id, name=f"k{len(found)}", digest=digest, created=1.0, **fields))  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_makes_is_the_data_folder_s_owner_s(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 2345)
    make_key(tmp_path / "keys.json")
    for name in ("keys.json", "keys.lock"):
        found = (tmp_path / name).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 2345, 0o600), name


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_gives_no_other_file_away(tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    folder = tmp_path / "data"
    folder.mkdir()
    os.chown(folder, 1234, 2345)
    os.link(tmp_path / "secret", folder / "keys.lock")
    make_key(folder / "keys.json")
    assert (tmp_path / "secret").stat().st_uid == 0


def test_usage_that_cannot_be_kept_is_found_before_the_port(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    (settings.data_dir / "usage.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(SettingsError, match=r"usage cannot be recorded in .*usage\.db"):
        check_configuration(settings, load_catalog(settings))


@pytest.mark.parametrize("storage", ["redis://host:port/0", "redis://:secret@host:70000000x/0"])
def test_rates_that_cannot_be_counted_are_found_before_the_port(tmp_path: Path, storage: str) -> None:
    settings = settings_in(tmp_path, rate_storage=storage)
    with pytest.raises(SettingsError, match="rate_storage") as raised:
        check_configuration(settings, load_catalog(settings))
    assert "secret" not in str(raised.value)


def test_a_storage_need_not_answer_yet(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, rate_storage="redis://127.0.0.1:1/0")
    check_configuration(settings, load_catalog(settings))


def test_doctor_reads_the_keys(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, host="0.0.0.0")
    file = keys.path(settings.data_dir)
    assert network.find_keys(settings).status == "warning"
    file.write_text(json.dumps({"version": 1, "keys": []}))
    assert "anybody" in network.find_keys(settings).says
    make_key(file, revoked=2.0)
    found = network.find_keys(settings)
    assert found.status == "warning" and "nobody" in found.says and found.do
    make_key(file)
    assert network.find_keys(settings).status == "ok"
    file.write_text("garbage")
    assert network.find_keys(settings).status == "failed"
    file.unlink()
    file.mkdir()
    assert network.find_keys(settings).status == "failed"


@pytest.mark.parametrize("headers", [{"Origin": "http://["}, {"Host": "["}, {"Host": "[x]"}])
def test_an_address_that_is_none_is_not_this_machine_s(headers: dict[str, str]) -> None:
    with Flask("test").test_request_context("/admin", headers=headers, environ_base={"REMOTE_ADDR": "127.0.0.1"}):
        assert not is_local(request, "127.0.0.1")


@pytest.mark.parametrize(
    ("said", "client"),
    [
        ("192.0.2.7:4711", "192.0.2.7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("2001:db8::7", "2001:db8::7"),
        ("192.0.2.7, 127.0.0.1:80", "192.0.2.7"),
        ("nobody", "127.0.0.1"),
    ],
)
def test_a_forwarded_address_may_have_a_port(said: str, client: str) -> None:
    application = TrustedProxies(
        Request.application(lambda request: Response(request.remote_addr)), networks(["127.0.0.0/8"])
    )
    answer = Client(application).get(
        "/", headers={"X-Forwarded-For": said}, environ_overrides={"REMOTE_ADDR": "127.0.0.1"}
    )
    assert answer.text == client


def test_a_path_is_one_word_of_a_log_line() -> None:
    assert one_word("/v1/models/größe") == "/v1/models/größe"
    assert one_word("/x 200 0.1s key=root\n\u2028%20") == "/x%20200%200.1s%20key=root%0A%E2%80%A8%2520"


def test_keys_are_listed_without_a_usage_that_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path)
    make_key(keys.path(settings.data_dir))
    (settings.data_dir / "usage.db").write_bytes(b"this is no database" * 100)
    monkeypatch.setenv("SWITCHYARD_DATA_DIR", str(settings.data_dir))
    assert main(["keys", "list", "--json"]) == 0
    said = capsys.readouterr()
    assert [key["last_used"] for key in json.loads(said.out)] == [None]
    assert "usage.db cannot be read" in said.err


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({"AUTHORIZATION": "Bearer {token}"}, True),
        ({"AUTHORIZATION": "bearer  {token} "}, True),
        ({"X-API-KEY": "{token}"}, True),
        ({"AUTHORIZATION": "Basic abc", "X-API-KEY": "{token}"}, True),
        ({"AUTHORIZATION": "Bearer {token}x"}, False),
        ({"COOKIE": "a=b;switchyard_5000={session} ; c=d"}, True),
        ({"COOKIE": "switchyard_50001={session}"}, False),
        ({"COOKIE": "switchyard_5000={session}x"}, False),
        ({"COOKIE": ";;=; switchyard_5000"}, False),
        ({"COOKIE": "switchyard_5000=\xff"}, False),
        ({"X-COOKIE": "switchyard_5000={session}"}, False),
        ({}, False),
    ],
)
def test_a_body_without_a_key_is_not_read(tmp_path: Path, headers: dict[str, str], wanted: bool) -> None:
    settings = settings_in(tmp_path)
    file = keys.path(settings.data_dir)
    key_id, token, digest = keys.new_token()
    with keys.changing(file) as found:
        found.append(key := keys.Key(id=key_id, name="a", digest=digest, created=1.0))
    access = Access(Flask("test"), settings, lambda error: Response())
    try:
        said = {"token": token, "session": access.sessions.begin_session(key)}
        given = {name: text.format(**said) for name, text in headers.items()}
        assert access.wants_body("POST", "/generate", given) is wanted
    finally:
        access.close()


def test_files_may_be_open_up_to_the_bound() -> None:
    script = (
        "import resource, gateway.http.server as s; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 1000));"
        "s.raise_file_limit(); print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert told.stdout == "(1000, 1000)\n", told.stderr
