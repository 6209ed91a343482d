"""The processes that decode untrusted bytes, and what runs in them. They start in ``forkserver`` and ``process``.

Imported by decoder processes only. Knows no network, no models, no settings.
"""
