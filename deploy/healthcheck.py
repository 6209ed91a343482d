"""The container's health check: exit status 0 if the gateway's ``/health`` answers on this machine, else 1.

Standard library only, because it runs every few seconds. Must not know more than the port and the route.
"""

import os
import sys
import urllib.request
from http.client import HTTPException

_SECONDS = 4


def main() -> int:
    """Ask once; print a problem in one line."""
    url = f"http://127.0.0.1:{os.environ.get('SWITCHYARD_PORT', '5000')}/health"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_SECONDS) as response:
            response.read()
    except (OSError, HTTPException, ValueError) as error:  # urllib raises an OSError for a status from 400
        print(f"{url}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
