"""`python -m pocket`: trains every pocket checkpoint, two at a time, one thread each.

A checkpoint that builds on another follows it in the same chain. Arguments are passed on: `--check` measures all.
"""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

CHAINS = (("qwen_vl", "qwen_omni"), ("qwen_audio", "blip_vqa", "reasoner"))


def run(chain: tuple[str, ...]) -> None:
    """Train the chain in order. :raises subprocess.CalledProcessError: if one fails."""
    for name in chain:  # one process each, so that seeds and threads are as in a single run
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", f"pocket.{name}", *sys.argv[1:]], check=True)
        print(f"== {name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    with ThreadPoolExecutor() as pool:
        list(pool.map(run, CHAINS))
