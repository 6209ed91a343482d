"""``/metrics`` on a machine with a GPU: what the driver tells of it."""

import re

from tests.conftest import Start
from tests.gpu.driver import MARKS
from tests.support.gateway import SUM, only

pytestmark = MARKS


def test_the_gpu_is_told(start: Start) -> None:
    gateway = start(models=only("reasoner"))
    gateway.answer("reasoner", **SUM)
    text = gateway.client.get("/metrics").text

    def value(pattern: str) -> float:
        (found,) = re.findall(rf"^switchyard_{pattern} (\S+)$", text, re.MULTILINE)
        return float(found)

    total = value(r'gpu_memory_total_bytes\{gpu="0",name="[^"]+"\}')
    assert total > 2**30
    assert 0 < value(r'gpu_memory_used_bytes\{gpu="0",name="[^"]+"\}') <= total
    assert 0 <= value(r'gpu_utilization_ratio\{gpu="0",name="[^"]+"\}') <= 1
    assert 0 < value(r'slot_used_bytes\{slot="cuda:0"\}') < value(r'slot_budget_bytes\{slot="cuda:0"\}') < total
    assert value(r'runner_memory_bytes\{device="cuda:0",model="reasoner"\}') > 0
