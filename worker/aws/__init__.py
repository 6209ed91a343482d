"""Calls SQS, S3 and DynamoDB with boto3. Only the worker's process imports this package.

Nothing is imported here. Each service has its module; none knows how a video is judged.
"""
