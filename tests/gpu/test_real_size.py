"""Every family at real size on a GPU: loads at 16, 8 and 4 bits, answers, gives its memory back. Peaks are recorded.

The weights are random, so the answers mean nothing; memory, loads and the whole path do. Figures go to the file named
by ``SWITCHYARD_GPU_FIGURES``, if it is set.
"""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.conftest import Start
from tests.gpu.driver import MARKS, Peak, record, used
from tests.gpu.real_size import SIZES
from tests.support.gateway import ROOT, GatewayProcess, only

EXAMPLES = ROOT / "examples"
MEDIA = {
    "deepseek": {},
    "qwen_vl": {"image": "red-circle.png", "video": "moves-left.mp4"},
    "qwen_audio": {"audio": "rising.wav"},
    "blip_vqa": {"image": "red-circle.png"},
    "qwen_omni": {"image": "red-circle.png", "audio": "rising.wav", "video": "moves-left.mp4"},
}


pytestmark = MARKS


@pytest.fixture(scope="module", params=SIZES)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, start_for_module: Start
) -> Iterator[tuple[str, GatewayProcess]]:
    """A gateway on the GPU with one model at real size."""
    name = str(request.param)
    folder = tmp_path_factory.mktemp("real") / name
    subprocess.run([sys.executable, "-m", "tests.gpu.real_size", name, str(folder)], cwd=ROOT, check=True)
    entry = {"family": name, "source": {"path": str(folder)}, "generation": {"max_new_tokens": 16, "temperature": 0}}
    gateway = start_for_module(models=only(**{name: entry}), device="cuda", load_timeout=1200)
    yield name, gateway
    gateway.stop()
    for file in folder.glob("*.safetensors"):
        file.unlink()


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_loads_answers_and_gives_its_memory_back(served: tuple[str, GatewayProcess], bits: int) -> None:
    name, gateway = served
    before = used()
    with Peak() as peak:
        began = time.monotonic()
        loaded = gateway.load(name, quant_bits=bits)
        seconds = time.monotonic() - began
        with_files = {kind: (EXAMPLES / file).open("rb") for kind, file in MEDIA[name].items()}
        answer = gateway.client.post(f"/generate/{name}", data={"prompt": "What is it?"}, files=with_files, timeout=600)
    assert answer.status_code == 200, answer.text
    assert answer.json()["device"].startswith("cuda")
    assert loaded["bytes"] > 0
    gateway.unload(name)
    gateway.until(lambda: used() <= before + 64 * 2**20, "the driver to show the memory back", 30)
    record(
        {
            "model": name,
            "bits": bits,
            "resident_bytes": loaded["bytes"],
            "peak_bytes": peak.bytes - before,
            "load_seconds": round(seconds, 2),
            "timings": answer.json()["timings"],
        }
    )


def test_repeated_swaps_do_not_creep(served: tuple[str, GatewayProcess]) -> None:
    name, gateway = served
    gateway.load(name, quant_bits=4)
    gateway.unload(name)
    before = used()
    for _ in range(5):
        gateway.load(name)
        gateway.unload(name)
    gateway.until(lambda: used() <= before + 16 * 2**20, "memory to be what it was", 30)
