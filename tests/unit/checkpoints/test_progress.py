"""The meter of a download: it tells seldom, and yet all that came before a stall, and nothing after its end."""

import queue
import threading

from checkpoints.hub.progress import Meter
from checkpoints.hub.records import Progress, RemoteFile

FILE = RemoteFile("weights", 100, "0" * 40)


def test_what_came_before_a_stall_is_told() -> None:
    told: queue.Queue[Progress] = queue.Queue()
    with Meter("m", [FILE], told.put) as meter:
        for done in range(1, 41):
            meter.update_file("weights", "fetching", done, 1)
        seen = [told.get(timeout=60)]
        while seen[-1].done < 40:
            seen.append(told.get(timeout=60))
    assert seen[-1].fetched == 40 and len(seen) < 40, "not each byte is told"


def test_nothing_is_told_after_the_end() -> None:
    told: list[int] = []
    before = set(threading.enumerate())
    with Meter("m", [FILE], lambda progress: told.append(progress.done)) as meter:
        meter.update_file("weights", "fetching", 1, 1)
        meter.update_file("weights", "fetching", 2, 1)
    for late in set(threading.enumerate()) - before:
        late.join(60)
    meter.update_file("weights", "done", 100)
    assert told in ([1], [1, 2]), "the second late and before the end, or never"
