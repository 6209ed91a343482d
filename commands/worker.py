"""``python main.py worker``: takes moderation jobs from a queue until it is told to stop.

A process beside the gateway and an ordinary client of it. Only puts ``worker/`` together. ``--check`` imports little:
a container's health check runs it every 30 seconds.
"""

import logging
import sys
import time
from contextlib import closing

import click

from commands.verb import Verb
from utils.settings import SettingsError
from worker import health, settings
from worker.moderator import Moderator

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 30.0


@click.command("worker", cls=Verb)
@click.option("--check", is_flag=True, help="only read the health file and report whether the worker is well")
def worker_command(check: bool) -> int:
    """Take video moderation jobs from a queue until SIGTERM. Settings are environment variables: see docs/worker.md."""
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
        return start_worker(chosen, judge)


def start_worker(chosen: settings.WorkerSettings, moderator: Moderator) -> int:
    """Connect, waiting for AWS where it cannot be reached, and work. Return the exit status.

    :raises ValueError: if AWS refuses, or the queue, the policy or the port of the metrics cannot be used.
    """
    from worker.aws.clients import AwsError, passing, told
    from worker.aws.queue import QueueError
    from worker.service import Service

    pause = 1.0
    while True:
        try:
            service = Service(chosen, moderator)
            break
        except (QueueError, ValueError) as error:
            raise ValueError(str(error)) from error
        except AwsError as error:
            if not passing(error):
                raise ValueError(f"AWS refuses: {told(error)}") from error
            logger.error("AWS cannot be reached, again in %.0f seconds: %s", pause, told(error))
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    try:
        return service.run()
    except OSError as error:  # the port of the metrics
        raise ValueError(f"metrics at {chosen.metrics_host}:{chosen.metrics_port}: {error.strerror}") from error
