"""The queue of jobs and its dead-letter queue: receive, hide, delete and dead-letter messages.

The worker's process, any thread. A received message is *hidden* from other workers for a while and comes back unless it
is deleted. Must not know what a message asks for.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError

from worker.aws.clients import Clients, error_code

_LONGEST_HIDDEN = 43_200 - 60
_LONGEST_REASON = 1_000
_GONE = {
    "ReceiptHandleIsInvalid",
    "InvalidParameterValue",
    "MessageNotInflight",
    "AWS.SimpleQueueService.MessageNotInflight",
}


class QueueError(Exception):
    """The queue cannot be used. The message says what to do."""


@dataclass(frozen=True)
class Message:
    """A message that is ours while hidden. ``receives`` counts this receipt too; SQS calls it approximate."""

    id: str
    receipt: str
    body: str
    receives: int
    since: float = field(default_factory=time.monotonic)
    """When it was received."""


class Queue:
    """The queue and its dead-letter queue. Methods raise what botocore raises."""

    def __init__(self, clients: Clients, name: str, dead_letters: str | None, wait: float) -> None:
        """Names or URLs. Without ``dead_letters``, the queue's redrive policy names the dead-letter queue.

        :raises QueueError: if a queue is missing, or no dead-letter queue is named.
        """
        self._sqs = clients.sqs
        self._wait = int(wait)
        self.url = self._find(name, "QUEUE_NAME")
        self._dead_url = self._find(dead_letters, "DEAD_LETTER_QUEUE") if dead_letters else self._redrive_target()
        if self._dead_url == self.url:
            raise QueueError("the queue is its own dead-letter queue; name another as DEAD_LETTER_QUEUE")

    def receive_message(self, hidden: float) -> Message | None:
        """Wait for a message; return it, hidden for this many seconds, or None."""
        answer = self._sqs.receive_message(
            QueueUrl=self.url,
            MaxNumberOfMessages=1,
            WaitTimeSeconds=self._wait,
            VisibilityTimeout=int(hidden),
            MessageSystemAttributeNames=["ApproximateReceiveCount"],
        )
        for one in answer.get("Messages", []):
            receives = int(one.get("Attributes", {}).get("ApproximateReceiveCount", 1))
            return Message(one["MessageId"], one["ReceiptHandle"], one["Body"], receives)
        return None

    def hide_message(self, message: Message, seconds: float) -> bool:
        """Hide the message for this long from now; 0 gives it back at once.

        Return False if it is no longer ours: deleted, given back, or hidden for SQS's maximum.
        """
        longest = max(int(_LONGEST_HIDDEN - (time.monotonic() - message.since)), 0)  # the limit counts from the receipt
        return self._if_ours(
            self._sqs.change_message_visibility, message, VisibilityTimeout=min(round(seconds), longest)
        )

    def delete_message(self, message: Message) -> None:
        """Delete the message. One that is already gone is fine."""
        self._if_ours(self._sqs.delete_message, message)

    def dead_letter_message(self, message: Message, reason: str, attributes: Mapping[str, str]) -> None:
        """Send the body to the dead-letter queue with the reason. The caller still deletes the message.

        A repetition after a lost answer may send it twice.
        """
        told = {"reason": reason[:_LONGEST_REASON], "message_id": message.id, "receives": str(message.receives)}
        typed = {
            name: {"DataType": "String", "StringValue": _printable(value)}
            for name, value in (told | dict(attributes)).items()
            if value
        }
        group = (
            {"MessageGroupId": "dead", "MessageDeduplicationId": message.id} if self._dead_url.endswith(".fifo") else {}
        )
        self._sqs.send_message(QueueUrl=self._dead_url, MessageBody=message.body, MessageAttributes=typed, **group)

    def _if_ours(self, call: Any, message: Message, **arguments: Any) -> bool:
        try:
            call(QueueUrl=self.url, ReceiptHandle=message.receipt, **arguments)
        except ClientError as error:
            if error_code(error).rpartition("#")[2] not in _GONE:
                raise
            return False
        return True

    def _find(self, name: str, setting: str) -> str:
        if name.startswith(("http://", "https://")):
            self._sqs.get_queue_attributes(QueueUrl=name, AttributeNames=["QueueArn"])
            return name
        try:
            return str(self._sqs.get_queue_url(QueueName=name)["QueueUrl"])
        except self._sqs.exceptions.QueueDoesNotExist:
            region = self._sqs.meta.region_name
            raise QueueError(f"there is no queue {name} in {region}; see {setting} and AWS_REGION") from None

    def _redrive_target(self) -> str:
        answer = self._sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["RedrivePolicy"])
        policy = json.loads(answer.get("Attributes", {}).get("RedrivePolicy", "{}"))
        arn = str(policy.get("deadLetterTargetArn", ""))
        if not arn:
            raise QueueError("the queue has no dead-letter queue; give it a redrive policy or set DEAD_LETTER_QUEUE")
        *_, account, name = arn.split(":")
        return str(self._sqs.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)["QueueUrl"])


def _printable(text: str) -> str:
    """Replace the characters that an attribute must not have."""
    return "".join(
        sign
        if sign in "\t\n\r" or " " <= sign <= "\ud7ff" or "\ue000" <= sign <= "\ufffd" or sign > "\uffff"
        else "\ufffd"
        for sign in text
    )
