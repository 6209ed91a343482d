"""What a slot is charged for a model, before and after its loads were measured."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gateway.memory.footprint import activations
from gateway.memory.footprint.prediction import Footprints
from gateway.memory.footprint.weights import float_bytes, laid_out, weight_bytes
from tests.unit.gateway.memory.test_footprint import TENSORS, resident_of, spec_of
from utils.settings import ROOT

MEASURED = 300_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(TENSORS, folder / "model.safetensors")
    return folder


# -- predicted and measured --------------------------------------------------------------------------------------------


def test_a_prediction_is_more_than_the_weights_and_more_on_a_gpu(folder: Path, tmp_path: Path) -> None:
    spec = spec_of(folder, 4)
    weights = weight_bytes(spec, tmp_path)
    cpu, gpu = (resident_of(Footprints(tmp_path), spec, device) for device in ("cpu", "cuda:0"))
    assert weights < cpu < gpu


def test_fewer_bits_never_take_more(tmp_path: Path) -> None:
    save_file({"a.weight": np.zeros((512, 512), np.float16)}, tmp_path / "m.safetensors")
    found = [resident_of(Footprints(tmp_path), spec_of(tmp_path, bits), "cpu") for bits in (4, 8, 16)]
    assert found == sorted(found) and len(set(found)) == 3


def test_what_was_measured_wins_also_after_a_restart(folder: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path), spec_of(folder, 4)
    guess = resident_of(footprints, spec, "cpu")
    footprints.record(spec, "cpu", MEASURED)
    for known in (footprints, Footprints(tmp_path)):
        assert resident_of(known, spec, "cpu") == MEASURED
        assert resident_of(known, spec, "cuda:0") not in (MEASURED, guess), "another device"
        assert resident_of(known, spec_of(folder, 8), "cpu") != MEASURED, "other bits"
    footprints.record(spec, "cpu", MEASURED - 99)
    assert resident_of(Footprints(tmp_path), spec, "cpu") == MEASURED - 99


def test_other_weights_in_the_same_place_were_not_measured(folder: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path), spec_of(folder, 4)
    footprints.record(spec, "cpu", MEASURED)
    save_file({**TENSORS, "more.weight": np.zeros((64, 64), np.float16)}, folder / "model.safetensors")
    assert resident_of(footprints, spec, "cpu") not in (0, MEASURED)


def test_weights_removed_meanwhile_are_not_recorded(folder: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path), spec_of(folder, 4)
    (folder / "model.safetensors").unlink()
    footprints.record(spec, "cpu", 5)
    assert resident_of(footprints, spec, "cpu") == 0


def test_changed_files_are_looked_into_again(folder: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path), spec_of(folder, 16)
    before = footprints.charge(spec, "cpu", 1024, 10**10).bytes
    assert footprints.charge(spec, "cpu", 1024, 10**10).bytes == before
    (folder / "config.json").write_text(json.dumps({"vocab_size": 100_000}))
    assert footprints.charge(spec, "cpu", 1024, 10**10).bytes > before
    (folder / "dangling.json").symlink_to(folder / "nowhere")
    assert footprints.charge(spec, "cpu", 1024, 10**10).bytes > before


# -- what a slot is charged --------------------------------------------------------------------------------------------


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """A text model whose cache is most of it."""
    folder = tmp_path / "decoder"
    folder.mkdir()
    save_file(
        {
            f"model.layers.{layer}.self_attn.{name}_proj.weight": np.zeros((512, 512), np.float16)
            for layer in range(8)
            for name in "qkvo"
        },
        folder / "m.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"vocab_size": 1000, "max_position_embeddings": 4096}))
    return folder


def test_a_charge_is_the_sum_of_its_parts(decoder: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path), spec_of(decoder, 16, family="deepseek")
    parts, charge = footprints.parts(spec, "cpu"), footprints.charge(spec, "cpu", 8192, 10**10)
    answering = parts.working.bytes(8192)
    assert parts.cache_token == 8 * 2 * 512 * float_bytes("cpu")
    assert charge.bytes == parts.weights + parts.overhead + answering + 8192 * parts.cache_token
    assert (charge.tokens, charge.growth) == (8192, answering + 8192 * parts.cache_token)


def test_a_small_slot_gets_as_many_tokens_as_fit(decoder: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path), spec_of(decoder, 16, family="deepseek")
    parts = footprints.parts(spec, "cpu")
    budget = parts.total(3000) + 5
    assert footprints.charge(spec, "cpu", 8192, budget)[:2] == (budget - 5, 3000)
    assert footprints.charge(spec, "cpu", 8192, 1) == footprints.charge(spec, "cpu", 1024, 1), "no fewer than the least"
    assert footprints.charge(spec, "cpu", 300, 1).tokens == 300


def test_a_peak_is_charged_where_it_is_more_than_what_comes_later(decoder: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path), spec_of(decoder, 16, family="deepseek")
    footprints.record(spec, "cpu", MEASURED, transient=5)
    without = footprints.charge(spec, "cpu", 1024, 10**10)
    assert without.bytes == MEASURED + without.growth
    footprints.record(spec, "cpu", MEASURED, transient=3 * MEASURED)
    footprints.record(spec, "cpu", MEASURED, transient=7)
    again = Footprints(tmp_path).charge(spec, "cpu", 1024, 10**10)
    assert again == without._replace(bytes=4 * MEASURED, peak=4 * MEASURED), "the highest, also after a restart"
    assert Footprints(tmp_path).charge(spec, "cpu", 1024, 2 * MEASURED).bytes == 2 * MEASURED, "it takes the whole slot"


def test_a_peak_is_charged_before_it_was_measured(decoder: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path), spec_of(decoder, 8, family="deepseek")
    parts = footprints.parts(spec, "cpu")
    assert parts.transient > float_bytes("cpu") * 512 * 512, "the types differ, so it is a copy that is quantized"
    least = footprints.charge(spec, "cpu", 1, 10**10)
    assert least.peak == parts.resident + parts.transient
    assert least.bytes == max(least.total, least.peak)
    small = footprints.charge(spec, "cpu", 1, least.total + 1)
    assert (small.bytes, small.peak) == (max(least.total, least.total + 1), least.peak), "the whole slot, and no more"
    footprints.record(spec, "cpu", MEASURED, transient=5)
    assert footprints.charge(spec, "cpu", 1, 10**10).peak == MEASURED + 5


def test_a_load_of_kept_weights_says_nothing_of_one_that_quantizes(decoder: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path), spec_of(decoder, 8, family="deepseek")
    predicted = footprints.parts(spec, "cpu").transient
    footprints.record(spec, "cpu", MEASURED, transient=None)
    assert resident_of(footprints, spec, "cpu") == MEASURED
    for known in (footprints, Footprints(tmp_path)):
        assert known.charge(spec, "cpu", 1, 10**10).peak == MEASURED + predicted
    footprints.record(spec, "cpu", MEASURED, transient=predicted + 7)
    footprints.record(spec, "cpu", MEASURED, transient=None)
    assert Footprints(tmp_path).charge(spec, "cpu", 1, 10**10).peak == MEASURED + predicted + 7


def test_of_weights_that_are_opened_nothing_passes(decoder: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path), spec_of(decoder, 8, family="deepseek")
    footprints.record(spec, "cpu", MEASURED, transient=3 * MEASURED)
    first, later = (footprints.charge(spec, "cpu", 1, 10**10, opened) for opened in (False, True))
    assert (first.bytes, first.total) == (4 * MEASURED, later.total)
    assert (later.bytes, later.peak) == (later.total, MEASURED)


def test_peaks_of_an_earlier_version_are_predicted_anew(decoder: Path, tmp_path: Path) -> None:
    """They were those of loads that took more on the way."""
    footprints, spec = Footprints(tmp_path), spec_of(decoder, 8, family="deepseek")
    footprints.record(spec, "cpu", MEASURED)
    file = tmp_path / ".switchyard" / "footprints.json"
    file.write_text(json.dumps({key: {"resident": MEASURED, "more": 10**9} for key in json.loads(file.read_text())}))
    again = Footprints(tmp_path)
    assert again.charge(spec, "cpu", 1, 10**10).peak == MEASURED + again.parts(spec, "cpu").transient


def test_fewer_bits_want_room_to_unpack_a_matrix(decoder: Path, tmp_path: Path) -> None:
    plain, packed = (Footprints(tmp_path).parts(spec_of(decoder, bits, family="deepseek"), "cpu") for bits in (16, 4))
    assert packed.working.bytes(100) - plain.working.bytes(100) == 512 * 512 * float_bytes("cpu")


def test_media_are_read_whole_and_text_in_pieces(decoder: Path, tmp_path: Path) -> None:
    text, media = (
        Footprints(tmp_path).parts(spec_of(decoder, 16, family=family, max_batch_size=4), "cpu").working
        for family in ("deepseek", "qwen_vl")
    )
    assert media.bytes(4096) > 1.5 * text.bytes(4096)
    assert media.bytes(9000) == media.bytes(4096), "no prompt is longer than the window"
    assert media.bytes(1000) == text.bytes(1000)


def test_the_engines_limits_are_as_assumed() -> None:
    """Told from the engines' source: importing them would bring torch into this process."""
    source = (ROOT / "runner" / "engines" / "transformers.py").read_text()
    assert (
        "self.prefill_chunk_bounds = (_CHUNK // 8, 8 * _CHUNK)" in source
        and "_CHUNK, _CHUNK_ON_GPU = 256, 2048" in source
    )
    assert activations.PIECE == 8 * 256
    assert f"BATCH = {activations.UBATCH}\n" in (ROOT / "runner" / "engines" / "gguf.py").read_text()


@pytest.mark.parametrize(
    ("limits", "held"), [({"0": "1MB", "cpu": "9GB"}, 10**6), ({"1": "1MB"}, None), ({"cpu": "1MB"}, None)]
)
def test_weights_that_may_be_offloaded_are_charged_as_far_as_they_stay(
    decoder: Path, tmp_path: Path, limits: dict[str, str], held: int | None
) -> None:
    spec = spec_of(decoder, 16, max_memory=limits)
    assert Footprints(tmp_path).parts(spec, "cuda:0").weights == (held or weight_bytes(spec, tmp_path))
    on_cpu = weight_bytes(spec, tmp_path, float_bytes("cpu"), laid_out("cpu"))
    assert Footprints(tmp_path).parts(spec, "cpu").weights == on_cpu


# -- the file of figures -----------------------------------------------------------------------------------------------


def test_another_limit_is_another_load(decoder: Path, tmp_path: Path) -> None:
    footprints = Footprints(tmp_path)
    limited = spec_of(decoder, 16, max_memory={"0": "1MB", "cpu": "9GB"})
    footprints.record(limited, "cuda:0", 2_000_000)
    assert resident_of(footprints, limited, "cuda:0") == 2_000_000
    for limits in (None, {"0": "1.2MB", "cpu": "9GB"}):
        other = spec_of(decoder, 16, max_memory=limits)
        assert resident_of(footprints, other, "cuda:0") > 2_000_000, (
            "more of it may lie there than when that was measured"
        )


def test_figures_of_an_earlier_version_are_understood(folder: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path), spec_of(folder, 4)
    footprints.record(spec, "cpu", MEASURED)
    file = tmp_path / ".switchyard" / "footprints.json"
    file.write_text(json.dumps(dict.fromkeys(json.loads(file.read_text()), MEASURED + 1)))
    assert resident_of(Footprints(tmp_path), spec, "cpu") == MEASURED + 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"text"',
        b"\xff\xfe",
        b'{"a": null}',
        b'{"a": "many"}',
        b'{"a": "300"}',
        b'{"a": []}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"\0" * 100,
    ],
)
def test_damaged_figures_are_survived_and_written_anew(folder: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / ".switchyard" / "footprints.json"
    file.parent.mkdir()
    file.write_bytes(content)
    footprints, spec = Footprints(tmp_path), spec_of(folder, 4)
    assert resident_of(footprints, spec, "cpu") > 0
    footprints.record(spec, "cpu", MEASURED)
    assert list(json.loads(file.read_text()).values()) == [{"resident": MEASURED, "transient": 0}]
    assert [path.name for path in file.parent.iterdir()] == ["footprints.json"], "no leavings"


def test_figures_are_kept_in_a_folder_that_is_not_there_yet(folder: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path / "not" / "yet"), spec_of(folder, 4)
    footprints.record(spec, "cpu", MEASURED)
    assert resident_of(Footprints(tmp_path / "not" / "yet"), spec, "cpu") == MEASURED


def test_a_figure_that_cannot_be_is_not_believed(folder: Path, tmp_path: Path) -> None:
    footprints, spec = Footprints(tmp_path), spec_of(folder, 4)
    footprints.record(spec, "cpu", MEASURED)
    file = tmp_path / ".switchyard" / "footprints.json"
    file.write_text(file.read_text().replace(str(MEASURED), f"-{MEASURED}"))
    assert resident_of(Footprints(tmp_path), spec, "cpu") > 0


def test_a_folder_that_cannot_be_written_costs_no_load(folder: Path, tmp_path: Path) -> None:
    """models/ may be mounted read-only. The figure is good for this run all the same."""
    (tmp_path / ".switchyard").write_text("a file where the folder should be")
    footprints, spec = Footprints(tmp_path), spec_of(folder, 4)
    footprints.record(spec, "cpu", MEASURED)
    assert resident_of(footprints, spec, "cpu") == MEASURED
