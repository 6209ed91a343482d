"""What a runner says of its highest mark while it loads."""

import time

import numpy as np

from runner.process.load_metrics import Peak, own_bytes

SIZE = 64 * 2**20


def test_memory_taken_and_given_back_within_is_seen() -> None:
    before = own_bytes()
    with Peak("cpu") as peak:
        held = np.ones(SIZE, np.uint8)
        deadline = time.monotonic() + 60
        while peak._highest < before + SIZE * 0.9 and time.monotonic() < deadline:
            held[:4096] += 1
        del held
    assert SIZE * 0.9 < peak.extra_bytes < SIZE * 2


def test_memory_that_stays_is_no_peak() -> None:
    with Peak("cpu") as peak:
        held = np.ones(SIZE, np.uint8)
    assert peak.extra_bytes < SIZE * 0.5 and held.size == SIZE


def test_a_gpu_that_nothing_of_this_process_uses_has_none() -> None:
    with Peak("cuda:0") as peak:
        pass
    assert peak.extra_bytes == 0
