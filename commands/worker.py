"""``python main.py worker``: takes moderation jobs from a queue until SIGTERM.

A process of its own and a client of the gateway. Builds the parts of ``worker/``. ``--check`` imports little, because a
container's health check runs it every 30 seconds.
"""

import logging
import sys
import time
from contextlib import closing

import click

from utils.settings import SettingsError
from worker import health_file, settings
from worker.moderator import Moderator

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 30.0


@click.command("worker")  # its settings are its own: it takes none of the flags for the gateway's
@click.option("--check", is_flag=True, help="only read the health file and report whether the worker is well")
def worker_command(check: bool) -> int:
    """Take video moderation jobs from a queue until SIGTERM. Settings are environment variables: see docs/worker.md."""
    chosen = settings.load_worker_settings()
    if check:
        well, said = health_file.check_health(chosen.health_file, chosen.health_age)
        print(said, file=sys.stdout if well else sys.stderr)
        return 0 if well else 1
    from utils import logs
    from worker.pipeline_moderator import PipelineModerator

    logs.to_stdout(chosen.log_level, chosen.log_format)
    try:
        health_file.write_health(chosen.health_file, {"state": "starting", "jobs": 0})
    except OSError as error:
        raise SettingsError(f"cannot write {chosen.health_file}: {error.strerror}") from error
    with closing(PipelineModerator(chosen)) as moderator:
        return start_worker(chosen, moderator)


def start_worker(chosen: settings.WorkerSettings, moderator: Moderator) -> int:
    """Run the worker; wait for AWS if it cannot be reached. Return the exit status.

    :raises ValueError: if AWS refuses, or the queue, the policy or the port of the metrics cannot be used.
    """
    from worker.aws.clients import AwsError, describe_error, is_transient
    from worker.aws.queue import QueueError
    from worker.loop import WorkerLoop

    pause = 1.0
    while True:
        try:
            loop = WorkerLoop(chosen, moderator)
            break
        except (QueueError, ValueError) as error:
            raise ValueError(str(error)) from error
        except AwsError as error:
            if not is_transient(error):
                raise ValueError(f"AWS refuses: {describe_error(error)}") from error
            logger.error("AWS cannot be reached, again in %.0f seconds: %s", pause, describe_error(error))
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    try:
        return loop.run_until_stopped()
    except OSError as error:  # the metrics' port cannot be opened
        raise ValueError(f"metrics at {chosen.metrics_host}:{chosen.metrics_port}: {error.strerror}") from error
