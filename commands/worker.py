"""``python main.py worker``: takes moderation jobs from a queue until it is told to stop.

A process of its own beside the gateway, of which it is a client like any other. Here it is put together; what it does
is in ``worker/``. ``--check`` imports next to nothing: a container asks it every half minute.
"""

import logging
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

from utils.settings import SettingsError
from worker import health, settings

if TYPE_CHECKING:
    from worker.moderator import Moderator

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 30.0


def run(*, check: bool) -> int:
    """Work until SIGTERM or SIGINT, or only look whether a worker is well. Return the exit status.

    :raises SettingsError: if a setting cannot be used. :raises ValueError: if the policy cannot be.
    """
    chosen = settings.load()
    if check:
        well, said = health.check(chosen.health_file, chosen.health_age)
        print(said, file=sys.stdout if well else sys.stderr)
        return 0 if well else 1
    from utils import logs
    from worker.judge import Judge

    logs.to_stdout(chosen.log_level, chosen.log_format)
    try:
        health.write(chosen.health_file, {"state": "starting", "jobs": 0})
    except OSError as error:
        raise SettingsError(f"cannot write {chosen.health_file}: {error.strerror}") from error
    with closing(Judge(chosen)) as judge:
        return start(chosen, judge)


def start(chosen: settings.WorkerSettings, moderator: "Moderator") -> int:
    """Connect, waiting for AWS where it cannot be reached, and work. Return the exit status."""
    from worker.aws.clients import AwsError, passing, told
    from worker.aws.queue import QueueError
    from worker.service import Service

    pause = 1.0
    while True:
        try:
            service = Service(chosen, moderator)
            break
        except (QueueError, ValueError) as error:
            print(f"switchyard: {error}", file=sys.stderr)
            return 2
        except AwsError as error:
            if not passing(error):
                print(f"switchyard: AWS refuses: {told(error)}", file=sys.stderr)
                return 2
            logger.error("AWS cannot be reached, again in %.0f seconds: %s", pause, told(error))
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    try:
        return service.run()
    except OSError as error:  # the port of the metrics
        print(f"switchyard: metrics at {chosen.metrics_host}:{chosen.metrics_port}: {error.strerror}", file=sys.stderr)
        return 2
