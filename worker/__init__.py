"""The queue's worker takes moderation jobs from SQS and judges their videos: a process and a client of the gateway.

Nothing is imported here. ``loop.py`` is the loop, ``message_handler.py`` handles one message, ``aws/``
calls the services.
"""
