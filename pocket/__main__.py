"""`python -m pocket`: trains every pocket checkpoint, two at a time, one thread each.

What builds on another comes after it in the same chain. Arguments are passed on, so `--check` measures them all.
"""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

CHAINS = (("qwen_vl", "qwen_omni"), ("qwen_audio", "blip_vqa", "reasoner"))


def run(chain: tuple[str, ...]) -> None:
    """Train one after another. :raises subprocess.CalledProcessError: if one fails."""
    for name in chain:  # a process of its own each, so that seeds and threads are as when it is run alone
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", f"pocket.{name}", *sys.argv[1:]], check=True)
        print(f"== {name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    with ThreadPoolExecutor() as pool:
        list(pool.map(run, CHAINS))
