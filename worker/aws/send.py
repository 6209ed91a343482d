"""Sends a job: ``python -m worker.aws.send JOB_ID VIDEO``. A program for trying a worker and for scripts.

``VIDEO`` is an ``s3://`` address or a file; a file is uploaded beside the results first. ``--wait`` follows the job to
its end.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from utils.settings import SettingsError
from worker.aws.clients import AwsError, connect, describe_error
from worker.aws.messages import BadMessage, parse_job
from worker.settings import load_worker_settings

_ENDS = {"completed": 0, "failed": 1}


def main(argv: list[str] | None = None) -> int:
    """Send, and wait if asked to. Return 0, 1 if the job failed, 2 if it could not be sent."""
    parser = argparse.ArgumentParser("worker.aws.send", description="Send a video moderation job to the queue.")
    parser.add_argument("job_id", help="names the job, and the folder of its result")
    parser.add_argument("video", help="s3://bucket/key, or a file to upload")
    parser.add_argument("--wait", action="store_true", help="follow the job to its end and print its item")
    arguments = parser.parse_args(argv)
    try:
        return _send(arguments.job_id, arguments.video, wait=arguments.wait)
    except KeyboardInterrupt:
        return 130
    except (SettingsError, BadMessage, OSError) as error:
        print(f"worker.aws.send: {error}", file=sys.stderr)
    except AwsError as error:
        print(f"worker.aws.send: {describe_error(error)}", file=sys.stderr)
    return 2


def _send(job_id: str, video: str, *, wait: bool) -> int:
    settings = load_worker_settings()
    clients = connect(settings)
    local, url = None, video
    if not video.startswith("s3://"):
        local = Path(video)
        url = f"s3://{settings.result_bucket}/moderation-videos/{job_id}/{local.name}"
    body = json.dumps({"job_id": job_id, "video_s3_url": url})
    job = parse_job(body)
    if local is not None:
        with local.open("rb") as file:
            clients.s3.upload_fileobj(file, job.bucket, job.key)
    named = settings.queue_name
    queue = named if "://" in named else clients.sqs.get_queue_url(QueueName=named)["QueueUrl"]
    fifo = {"MessageGroupId": job_id, "MessageDeduplicationId": job_id} if queue.endswith(".fifo") else {}
    clients.sqs.send_message(QueueUrl=queue, MessageBody=body, **fifo)
    print(f"sent: {body}")
    while wait:
        item: dict[str, Any] = clients.dynamodb.get_item(
            TableName=settings.jobs_table, Key={"job_id": {"S": job_id}}, ConsistentRead=True
        ).get("Item", {})
        status = item.get("status", {}).get("S")
        if status in _ENDS:
            print(json.dumps({name: next(iter(typed.values())) for name, typed in sorted(item.items())}, indent=2))
            return _ENDS[status]
        time.sleep(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
