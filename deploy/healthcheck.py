"""The container's health check: exit status 0 if the gateway's ``/health`` answers on this machine, else 1.

Standard library only, so that it costs little every few seconds. Knows the port and the route, nothing else.
"""

import os
import sys
import urllib.request
from http.client import HTTPException

_SECONDS = 4


def main() -> int:
    """Ask once; say in one line what is wrong."""
    url = f"http://127.0.0.1:{os.environ.get('SWITCHYARD_PORT', '5000')}/health"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_SECONDS) as response:
            response.read()
    except (OSError, HTTPException, ValueError) as error:  # an answer of 400 and more is an OSError
        print(f"{url}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
