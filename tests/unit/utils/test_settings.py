"""Where a setting comes from, and what a wrong one says."""

from pathlib import Path
from typing import Any

import pytest

import main
from gateway.http.server import options
from utils.settings import Settings, SettingsError, load_settings


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "switchyard.yaml"


def error_of(config: Path | None = None, **flags: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(config, **flags)
    message = str(caught.value)
    assert "\n" not in message and "pydantic" not in message
    return message


def test_flag_over_environment_over_file_over_default(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().port == 5000
    config.write_text("port: 6001\nhost: 10.0.0.1\nquantum: 2m\n")
    assert load_settings(config).port == 6001
    monkeypatch.setenv("SWITCHYARD_PORT", "6002")
    monkeypatch.setenv("SWITCHYARD_QUANTUM", "3m")
    settings = load_settings(config)
    assert (settings.port, settings.quantum) == (6002, 180)
    settings = load_settings(config, port=6003)
    assert (settings.port, settings.host, settings.quantum, settings.keep_alive) == (6003, "10.0.0.1", 180, 300)


def test_a_setting_given_its_default_still_wins(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("port: 6001\n")
    assert load_settings(config, port=5000).port == 5000
    monkeypatch.setenv("SWITCHYARD_PORT", "5000")
    assert load_settings(config).port == 5000


def test_flags_of_the_command_line(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flags(*argv: str) -> dict[str, Any]:
        given: dict[str, Any] = {}

        def load(**flags: Any) -> None:
            given.update(flags)
            raise SettingsError("no further")

        with monkeypatch.context() as patched:
            patched.setattr("utils.settings.load_settings", load)
            assert main.main(list(argv)) == 2
        return given

    assert flags() == {} == flags("serve") == flags("models", "--json")
    assert flags("--port", "7000", "--debug") == {"port": 7000, "debug": True}
    assert flags("serve", "--port", "7000") == flags("--port", "7000", "serve") == {"port": 7000}
    assert flags("--profile", "pocket", "models") == {"profile": "pocket"}
    assert flags("--profile", "pocket", "serve", "--skip-download") == {"profile": "pocket", "skip_download": True}
    config.write_text("debug: true\n")
    assert load_settings(**flags("--config", str(config), "models")).debug


def test_units_and_lists(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWITCHYARD_MAX_BODY", "1MiB")
    monkeypatch.setenv("SWITCHYARD_KEEP_ALIVE", "-1")
    monkeypatch.setenv("SWITCHYARD_PRELOAD", "deepseek, qwen_vl,")
    settings = load_settings()
    assert (settings.max_body, settings.keep_alive, settings.preload) == (2**20, -1, ["deepseek", "qwen_vl"])
    monkeypatch.delenv("SWITCHYARD_PRELOAD")
    config.write_text("preload: [a, b]\nslot_budget: 2 GB\n")
    settings = load_settings(config)
    assert (settings.preload, settings.slot_budget) == (["a", "b"], 2 * 10**9)
    config.write_text("preload: a\n")
    assert load_settings(config).preload == ["a"]


def test_an_empty_file_changes_nothing(config: Path) -> None:
    config.write_text("# nothing yet\n")
    assert load_settings(config) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "0"),
        ("port", "65536"),
        ("port", "http"),
        ("max_body", "-1"),
        ("max_body", "5i"),
        ("max_body", "big"),
        ("keep_alive", "soon"),
        ("device", "tpu"),
        ("device", "cuda:x"),
        ("gpu_utilization", "0"),
        ("gpu_utilization", "1.01"),
        ("gpu_utilization", "nan"),
        ("queue_total", "0"),
        ("load_timeout", "0"),
        ("load_timeout", "-1"),
        ("quantum", "-1"),
        ("log_level", "loud"),
        ("debug", "perhaps"),
        ("rate_per_key", "often"),
        ("rate_storage", "mysql://x"),
        ("rate_storage_lost", "panic"),
        ("trusted_proxies", "10.0.0.1,proxy"),
        ("cors_origins", "https://a.example/path"),
        ("cors_origins", "example.org"),
        ("usage_retention", "7d"),
        ("min_body_rate", "0"),
        ("metrics_access", "all"),
        pytest.param("gpu_reserve", "9" * 400 + "TB", id="gpu_reserve-huge"),
        ("request_timeout", "inf"),
    ],
)
def test_a_wrong_variable_is_one_line_naming_the_setting(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"SWITCHYARD_{name.upper()}", value)
    message = error_of()
    assert f"'{name}'" in message or f"SWITCHYARD_{name.upper()}" in message


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("port: high", "port"),
        ("prot: 5000", "prot"),
        ("max_body: .inf", "max_body"),
        ("keep_alive: .nan", "keep_alive"),
        ("keep_alive: true", "keep_alive"),
        ("preload: 3", "preload"),
        ("gpu_utilization: [1]", "gpu_utilization"),
        ("max_body: 5i", "max_body"),
        ("5000: port", "5000"),
    ],
)
def test_a_wrong_line_is_one_line_naming_the_file_and_the_setting(config: Path, line: str, name: str) -> None:
    config.write_text(line + "\n")
    message = error_of(config)
    assert f"'{name}'" in message and str(config) in message


def test_an_unknown_setting_says_so(config: Path) -> None:
    config.write_text("prot: 5000\n")
    assert "no such setting" in error_of(config)


def test_the_file_is_not_blamed_for_the_environment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("port: 6000\n")
    monkeypatch.setenv("SWITCHYARD_PORT", "high")
    assert str(config) not in error_of(config)


def test_the_file_is_not_blamed_for_a_flag(config: Path) -> None:
    config.write_text("port: 6000\n")
    message = error_of(config, port=0)
    assert str(config) not in message and "'port'" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"- port\n", "mapping"),
        (b"just words\n", "mapping"),
        (b"port: [\n", "not valid YAML"),
        (b"\tport: 1\n", "YAML"),
        (b"port: \xff\n", "UTF-8"),
        (b"since: 2024-13-45\n", ""),
        (b"a: !!python/object:os.system {}\n", "YAML"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(config: Path, text: bytes, expected: str) -> None:
    config.write_bytes(text)
    message = error_of(config)
    assert str(config) in message and expected in message


def test_a_file_that_is_not_there_is_named(config: Path, tmp_path: Path) -> None:
    assert str(config) in error_of(config)
    assert str(tmp_path) in error_of(tmp_path), "a folder"


def test_the_line_of_broken_yaml_is_told(config: Path) -> None:
    config.write_text("port: 1\nhost: [\n")
    assert "line 3" in error_of(config) or "line 2" in error_of(config)


def test_folders_are_made(tmp_path: Path) -> None:
    settings = load_settings(models_dir=tmp_path / "deep" / "m", logs_dir=tmp_path / "l", tmp_dir=tmp_path / "t")
    settings.make_folders()
    settings.make_folders()
    assert all((tmp_path / name).is_dir() for name in ("deep/m", "l", "t"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = load_settings(models_dir=tmp_path / "file" / "m")
    with pytest.raises(SettingsError, match="file/m"):
        settings.make_folders()


def test_there_are_always_threads_beyond_a_full_queue() -> None:
    """Whoever runs has a thread as well as whoever waits."""
    assert load_settings(queue_total=10).thread_count(50) > 60
    assert load_settings(threads=7, live_streams=0).thread_count(50) == 7
    assert load_settings(threads=7, live_streams=5).thread_count(50) == 12  # pages that watch take none from requests


def test_the_server_has_a_thread_for_every_place_of_the_catalog(tmp_path: Path) -> None:
    catalog = tmp_path / "models.yaml"
    few, many = (_threads(catalog, size) for size in (1, 200))
    assert many - few == 199


def _threads(catalog: Path, batch_size: int) -> int:
    catalog.write_text(f"models: {{reasoner: {{max_batch_size: {batch_size}}}}}")
    return int(options(load_settings(profile="pocket", models_file=catalog))["threads"])


def test_no_fewer_connections_than_threads() -> None:
    given = {"profile": "pocket", "threads": 20, "live_streams": 0}
    assert options(load_settings(**given, connection_limit=900))["worker_connections"] == 900
    assert options(load_settings(**given, connection_limit=1))["worker_connections"] == 21


def test_main_tells_a_mistake_in_one_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("prot: 1\n")
    assert main.main(["--config", str(config), "models"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and "prot" in told.err
