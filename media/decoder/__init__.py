"""The processes that decode untrusted bytes, and what runs in them. Only ``forkserver`` and ``process`` start there.

Imported by decoder processes only. Knows no network, no models, no settings.
"""
