"""Creates the queue, its dead-letter queue, the bucket and the table: ``python -m worker.aws.create``.

A program for a local stand-in of AWS and for tests. Existing resources stay as they are. It does nothing without
``AWS_ENDPOINT_URL``: in AWS itself, create resources with your infrastructure's own tools.
"""

import json
import sys
import time
from typing import Any

from utils.settings import SettingsError
from worker.aws.clients import AwsError, Clients, connect, describe_error, is_transient
from worker.settings import WorkerSettings, load_worker_settings

_PATIENCE = 60.0
_FOURTEEN_DAYS = 14 * 86400


def create_resources(settings: WorkerSettings, clients: Clients) -> None:
    """Create what is missing. Raises botocore's errors."""
    sqs, s3, dynamodb = clients.sqs, clients.s3, clients.dynamodb
    name = settings.queue_name.rpartition("/")[2]  # of a URL
    dead = (settings.dead_letter_queue or _dead(name)).rpartition("/")[2]
    _queue(sqs, dead, {"MessageRetentionPeriod": str(_FOURTEEN_DAYS)})
    arn = sqs.get_queue_attributes(QueueUrl=sqs.get_queue_url(QueueName=dead)["QueueUrl"], AttributeNames=["QueueArn"])[
        "Attributes"
    ]["QueueArn"]
    # The worker dead-letters messages itself, with the reason, and does not count every receipt. This count catches
    # messages that no worker can handle; SQS takes 1000 at most.
    redrive = {"deadLetterTargetArn": arn, "maxReceiveCount": str(min(5 * settings.max_receives, 1_000))}
    _queue(sqs, name, {"RedrivePolicy": json.dumps(redrive), "VisibilityTimeout": str(int(settings.visibility))})
    if settings.result_bucket not in {one["Name"] for one in s3.list_buckets()["Buckets"]}:
        location = (
            {}
            if settings.aws_region == "us-east-1"
            else {"CreateBucketConfiguration": {"LocationConstraint": settings.aws_region}}
        )
        s3.create_bucket(Bucket=settings.result_bucket, **location)
    if settings.jobs_table not in dynamodb.list_tables()["TableNames"]:
        dynamodb.create_table(
            TableName=settings.jobs_table,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "job_id", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "job_id", "KeyType": "HASH"}],
        )


def _dead(name: str) -> str:
    plain, dot, fifo = name.partition(".")
    return f"{plain}-dead{dot}{fifo}"


def _queue(sqs: Any, name: str, attributes: dict[str, str]) -> None:
    try:
        sqs.get_queue_url(QueueName=name)
    except sqs.exceptions.QueueDoesNotExist:
        fifo = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
        sqs.create_queue(QueueName=name, Attributes=attributes | fifo)


def main() -> int:
    """Create everything; wait up to a minute for the stand-in. Return the exit status."""
    try:
        settings = load_worker_settings()
    except SettingsError as error:
        print(f"worker.aws.create: {error}", file=sys.stderr)
        return 2
    if settings.aws_endpoint_url is None:
        print("worker.aws.create: set AWS_ENDPOINT_URL; this is for a local stand-in of AWS", file=sys.stderr)
        return 2
    clients, end = connect(settings), time.monotonic() + _PATIENCE
    while True:
        try:
            create_resources(settings, clients)
        except AwsError as error:
            if not is_transient(error) or time.monotonic() > end:
                print(f"worker.aws.create: {describe_error(error)}", file=sys.stderr)
                return 1
            time.sleep(1)
        else:
            print(f"there are {settings.queue_name}, {settings.result_bucket} and {settings.jobs_table}")
            return 0


if __name__ == "__main__":
    sys.exit(main())
