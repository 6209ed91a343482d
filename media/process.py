"""Fresh processes for decoding: Python with next to no environment, in a session of its own.

Runs where decoders are started: the gateway, the command line, the worker. Must not know what such a process does, nor
requests, media or settings.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

_ROOT = Path(__file__).resolve().parent.parent
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")


class Process(Protocol):
    """A decoder at work, fresh or forked. ``wait`` raises :class:`subprocess.TimeoutExpired`."""

    @property
    def stderr(self) -> IO[bytes] | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


def program_of(module: str) -> str:
    """Return the program that calls the module's ``main`` with its argument, a text, and exits with the status."""
    return f"import sys; sys.path[:] = sys.argv[2:]; from {module} import main; sys.exit(main(sys.argv[1]))"


def command(program: str, argument: str) -> list[str]:
    """Return the command that runs ``program`` in Python without ``site`` and without the environment's settings. The
    program finds its argument, then the module path, in ``sys.argv``."""
    modules = [str(_ROOT), *(path for path in sys.path if os.path.isabs(path))]
    return [sys.executable, "-I", "-S", "-X", "faulthandler", "-c", program, argument, *modules]


def environment(home: Path) -> dict[str, str]:
    """Return the whole environment of such a process. It has none of this process's secrets."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | {**_ONE_THREAD, "LC_ALL": "C.UTF-8", "HOME": str(home), "TMPDIR": str(home)}


@contextmanager
def decoder_process(
    program: str, argument: str, home: Path, pass_fds: Sequence[int] = (), errors: int | IO[bytes] = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """A fresh process that runs ``program``; killed and reaped on the way out."""
    process = subprocess.Popen(
        command(program, argument),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        pass_fds=pass_fds,
        cwd=home,
        env=environment(home),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
