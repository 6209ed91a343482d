"""The queue's worker: takes moderation jobs from SQS and has them judged. A process of its own, a gateway's client.

Nothing is imported here. ``service.py`` is the loop, ``lane.py`` what becomes of one message, ``aws/`` the services.
"""
