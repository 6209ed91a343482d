"""SQS, S3 and DynamoDB as the worker needs them, by boto3. The worker's process only; the gateway never imports it.

Nothing is imported here. Each service has a module; none of them knows how a video is judged.
"""
