"""Programs that tests start and Python packages do not bring: found, or the test skips, or in CI fails.

Their Debian packages are in ``tests/debian-packages.txt``, which ``make test`` installs where it may.
"""

import os
import shutil

import pytest

_PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"])


def program(name: str, package: str) -> str:
    """Return the program's path. Without it the test skips and says what to install; where ``CI=true`` it fails."""
    if found := shutil.which(name, path=_PLACES):
        return found
    missing = f"{name} is not installed: apt-get install --no-install-recommends {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)
