"""Bytes in, bytes out: the gunicorn worker, how bytes become whole requests, and who has hung up.

Gateway process: the accepting thread and gunicorn's pool. Knows no models, no scheduler and no route.
"""
