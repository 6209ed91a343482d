"""The catalog: what profiles and users write, and what it says when that is wrong."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from models_registry.catalog import Catalog, CatalogError, load_catalog, profile_names
from models_registry.families import FAMILIES
from models_registry.spec import ModelSpec, replica_names, spec_name
from utils.settings import ROOT, Settings

ENTRY = {"family": "deepseek", "source": {"path": "somewhere"}}


def load(own: Path | None = None, profile: str = "workstation") -> Catalog:
    return load_catalog(Settings(profile=profile, models_file=own))


def written(tmp_path: Path, models: dict[str, Any]) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"models": models}))
    return path


def error_of(path: Path | None, profile: str = "workstation") -> str:
    with pytest.raises(CatalogError) as caught:
        load(path, profile)
    message = str(caught.value)
    assert "\n" not in message and "pydantic" not in message
    return message


def test_the_workstation_has_the_five_models() -> None:
    found = {spec.name: (spec.source.hub, spec.folder, spec.quant_bits) for spec in load() if spec.source.hub}
    assert found == {
        "deepseek": ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "deepseek-8b", 4),
        "qwen_vl": ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen-vl-3b", 4),
        "qwen_audio": ("Qwen/Qwen2-Audio-7B-Instruct", "qwen-audio-7b", 4),
        "qwen_omni": ("Qwen/Qwen2.5-Omni-3B", "qwen-omni-3b", 4),
        "blip_vqa": ("Salesforce/blip-vqa-base", "blip-vqa-base", 8),
    }


def test_every_profile_is_valid_and_says_its_name() -> None:
    assert {"workstation", "pocket"} <= set(profile_names())
    for profile in profile_names():
        catalog = load(profile=profile)
        assert catalog.profile == profile and len(catalog) == len(catalog.names) > 0


def test_an_unknown_profile_names_the_known_ones() -> None:
    message = error_of(None, "laptop")
    assert "'laptop'" in message and "pocket" in message and "workstation" in message


def test_a_profile_is_a_name_not_a_path() -> None:
    error_of(None, "../profiles/pocket")


def test_names_and_aliases_lead_to_the_same_model(tmp_path: Path) -> None:
    catalog = load(written(tmp_path, {"mine": ENTRY | {"aliases": ["gpt-4", "other"]}}))
    assert catalog.get("mine") is catalog.get("gpt-4") is catalog.get("other") is not None
    assert catalog.get("nobody") is None
    assert "gpt-4" not in catalog.names


def test_an_entry_of_the_same_name_replaces_the_fields_it_gives(tmp_path: Path) -> None:
    before = load().get("qwen_vl")
    after = load(written(tmp_path, {"qwen_vl": {"quant_bits": 8, "pinned": True, "keep_alive": "5m"}})).get("qwen_vl")
    assert before and after
    assert (after.quant_bits, after.pinned, after.keep_alive) == (8, True, 300)
    assert after == before.model_copy(update={"quant_bits": 8, "pinned": True, "keep_alive": 300})


def test_new_entries_are_added_and_null_takes_one_out(tmp_path: Path) -> None:
    catalog = load(written(tmp_path, {"mine": ENTRY, "qwen_vl": None, "never_there": None}))
    assert "mine" in catalog.names and catalog.get("qwen_vl") is None
    assert len(catalog) == len(load())


def test_models_yaml_of_the_working_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models: {blip_vqa: null}")
    assert load().get("blip_vqa") is None
    assert load(written(tmp_path, {})).get("blip_vqa") is not None, "unless another file is named"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"family": "llama"}, "family"),
        ({"quant_bits": 5}, "quant_bits"),
        ({"quant_bit": 8}, "quant_bit"),
        ({"source": {"hub": "no-slash"}, "folder": "x"}, "source.hub"),
        ({"source": {}}, "source"),
        ({"source": {"path": "a", "package": "b", "file": "c"}}, "source"),
        ({"source": {"package": "b"}}, "source"),
        ({"source": {"path": "a", "url": "b"}}, "source.url"),
        ({"folder": "../up"}, "folder"),
        ({"folder": ".hidden"}, "folder"),
        ({"folder": "a/b"}, "folder"),
        ({"source": {"path": "a", "file": "b/c"}}, "source.file"),
        ({"inputs": ["text", "smell"]}, "inputs"),
        ({"inputs": ["text", "image"]}, "inputs"),
        ({"engine": "vllm"}, "engine"),
        ({"engine": "llama_cpp"}, "source.file"),
        ({"device": "gpu"}, "device"),
        ({"device": ["cuda:0", "cuda:one"]}, "device"),
        ({"device": []}, "device"),
        ({"device": 0}, "device"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": "two"}, "replicas"),
        ({"max_memory": {"gpu": "1GB"}}, "max_memory"),
        ({"max_memory": {0: "1GB", 1: "1GB"}}, "max_memory"),
        ({"max_memory": {"cpu": "much"}}, "max_memory"),
        ({"generation": {"temperature": 3}}, "generation.temperature"),
        ({"generation": {"top_q": 1}}, "generation.top_q"),
        ({"generation": {"max_new_tokens": 0}}, "generation.max_new_tokens"),
        ({"context": 1}, "context"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"aliases": ["a b"]}, "aliases"),
        ({"aliases": "alone"}, "aliases"),
        ({"name": "other"}, "name"),
        ({"family": None}, "family"),
        ({"pinned": "perhaps"}, "pinned"),
        ({"generation": {"temperature": float("nan")}}, "generation.temperature"),
    ],
)
def test_a_wrong_field_is_one_line_naming_file_entry_and_field(
    tmp_path: Path, fields: dict[str, Any], field: str
) -> None:
    path = written(tmp_path, {"mine": ENTRY | fields})
    message = error_of(path)
    assert str(path) in message and "'mine'" in message
    assert f"field {field}" in message


def test_a_missing_field_is_needed(tmp_path: Path) -> None:
    message = error_of(written(tmp_path, {"mine": {"family": "deepseek"}}))
    assert "field source" in message and "needed" in message


def test_a_hub_model_needs_a_folder(tmp_path: Path) -> None:
    message = error_of(written(tmp_path, {"mine": {"family": "deepseek", "source": {"hub": "a/b"}}}))
    assert "'mine'" in message and "folder" in message


def test_an_overridden_entry_is_blamed_on_the_users_file(tmp_path: Path) -> None:
    path = written(tmp_path, {"qwen_vl": {"quant_bits": 3}})
    assert str(path) in error_of(path)


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "a/b", "x" * 65, "ä", "a\n"])
def test_a_wrong_name_is_refused(tmp_path: Path, name: str) -> None:
    assert "name" in error_of(written(tmp_path, {name: ENTRY}))


@pytest.mark.parametrize(("entry", "word"), [(["a"], "mapping"), ("text", "mapping"), (3, "mapping")])
def test_an_entry_must_be_a_mapping(tmp_path: Path, entry: object, word: str) -> None:
    path = written(tmp_path, {"mine": entry})
    message = error_of(path)
    assert str(path) in message and "'mine'" in message and word in message


@pytest.mark.parametrize(
    "models",
    [
        {"one": ENTRY | {"aliases": ["two"]}, "two": ENTRY},
        {"one": ENTRY | {"aliases": ["x"]}, "two": ENTRY | {"aliases": ["x"]}},
        {"one": ENTRY | {"aliases": ["one"]}},
        {"one": ENTRY | {"aliases": ["x", "x"]}},
        {"one": ENTRY | {"aliases": ["qwen_vl"]}},
    ],
)
def test_no_name_leads_to_two_models(tmp_path: Path, models: dict[str, Any]) -> None:
    path = written(tmp_path, models)
    message = error_of(path)
    assert str(path) in message and "aliases" in message and "already" in message


def test_an_alias_may_take_the_name_of_a_model_that_was_taken_out(tmp_path: Path) -> None:
    catalog = load(written(tmp_path, {"mine": ENTRY | {"aliases": ["qwen_vl"]}, "qwen_vl": None}))
    found = catalog.get("qwen_vl")
    assert found and found.name == "mine"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"models:",
        b"models: []",
        b"mine: {}",
        b"models: {}\nother: 1",
        b"models: {",
        b"\xff\xfe\x00",
        b"models: {mine: {since: 2024-13-45}}",
        b"models: !!python/object:os.system {}",
    ],
)
def test_a_file_that_is_no_catalog_is_named(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    assert str(path) in error_of(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "gone.yaml") in error_of(tmp_path / "gone.yaml")
    assert str(tmp_path) in error_of(tmp_path)


def test_inputs_are_the_familys_unless_narrowed() -> None:
    spec = ModelSpec(name="a", family="qwen_omni", source={"path": "x"})  # type: ignore[arg-type]
    assert Catalog.inputs(spec) == ("text", "image", "audio", "video")
    assert Catalog.inputs(spec.model_copy(update={"inputs": ("audio", "text")})) == ("text", "audio")
    assert Catalog.inputs(spec.model_copy(update={"engine": "llama_cpp"})) == ("text",)


def test_a_spec_cannot_be_changed() -> None:
    spec = ModelSpec(name="a", family="generic", source={"path": "x"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frozen"):
        spec.quant_bits = 8


# -- where weights are -------------------------------------------------------------------------------------------------


def spec_of(source: dict[str, Any], **fields: Any) -> ModelSpec:
    return ModelSpec.model_validate({"name": "a", "family": "generic", "source": source, **fields})


def test_where_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    assert spec_of({"hub": "a/b"}, folder="b-1").path(models) == models / "b-1"
    assert spec_of({"hub": "a/b", "file": "b.gguf"}, folder="b-1").path(models) == models / "b-1" / "b.gguf"
    assert spec_of({"path": "near/by"}).path(models) == ROOT / "near" / "by"
    assert spec_of({"path": str(tmp_path)}).path(models) == tmp_path
    assert spec_of({"path": str(tmp_path), "file": "x.gguf"}).path(models) == tmp_path / "x.gguf"
    (tmp_path / "tiny_weights").mkdir()
    (tmp_path / "tiny_weights" / "__init__.py").write_text("raise RuntimeError('looked at, not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    packaged = spec_of({"package": "tiny_weights", "file": "w.gguf"})
    assert packaged.path(models) == tmp_path / "tiny_weights" / "w.gguf"
    assert "tiny_weights" not in sys.modules


def test_a_package_that_is_not_installed_is_missing_not_an_error(tmp_path: Path) -> None:
    missing = spec_of({"package": "no_such_package_at_all", "file": "w.gguf"}).missing(tmp_path)
    assert missing and "no_such_package_at_all" in missing


def test_what_is_missing_is_told_step_by_step(tmp_path: Path) -> None:
    spec, folder = spec_of({"hub": "a/b"}, folder="b-1"), tmp_path / "b-1"
    assert "folder" in str(spec.missing(tmp_path)) and str(folder) in str(spec.missing(tmp_path))
    folder.mkdir()
    assert "config.json" in str(spec.missing(tmp_path))
    (folder / "config.json").write_text("{}")
    assert ".safetensors" in str(spec.missing(tmp_path))
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert ".safetensors" in str(spec.missing(tmp_path)), "a pickle does not count"
    (folder / "model.safetensors").write_bytes(b"")
    assert spec.missing(tmp_path) is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    spec = spec_of({"path": str(tmp_path), "file": "x.gguf"})
    assert str(tmp_path / "x.gguf") in str(spec.missing(tmp_path))
    (tmp_path / "x.gguf").mkdir()
    assert spec.missing(tmp_path), "a folder is no file"
    (tmp_path / "x.gguf").rmdir()
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert spec.missing(tmp_path) is None


# -- families ----------------------------------------------------------------------------------------------------------


def test_each_family_has_its_two_files() -> None:
    declared = {path.stem for path in (ROOT / "models_registry" / "families").glob("*.py")} - {"__init__", "base"}
    tensor_halves = {
        path.stem for path in (ROOT / "runner" / "families").glob("*.py") if "\nFAMILY = " in path.read_text()
    }
    assert declared == set(FAMILIES), "the file's name is the family's"
    assert declared == tensor_halves


def test_each_family_gives_a_reason_for_what_it_keeps_at_16_bits() -> None:
    for name, family in FAMILIES.items():
        assert family.name == name and "text" in family.inputs and family.requires <= family.inputs
        assert all(len(reason) > 20 for reason in family.keep_16bit.values())
        assert not family.options & family.switches


@pytest.mark.parametrize(
    ("given", "meant"), [("cpu", ("cpu",)), ("cuda:1, cpu", ("cuda:1", "cpu")), (["cuda", "cpu:0"], ("cuda", "cpu:0"))]
)
def test_devices_are_one_or_several(tmp_path: Path, given: object, meant: tuple[str, ...]) -> None:
    spec = load(written(tmp_path, {"mine": ENTRY | {"device": given, "replicas": 2}})).get("mine")
    assert spec is not None and spec.device == meant
    assert replica_names(spec) == ["mine", "mine#2"] and spec_name("mine#2") == "mine"


def test_a_limit_of_memory_takes_the_number_of_a_gpu(tmp_path: Path) -> None:
    spec = load(written(tmp_path, {"mine": ENTRY | {"max_memory": {0: "8GiB", "cpu": "32GiB"}}})).get("mine")
    assert spec is not None and spec.max_memory == {"0": "8GiB", "cpu": "32GiB"}
