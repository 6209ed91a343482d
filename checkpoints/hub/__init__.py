"""Bringing checkpoints from a model hub into ``models/``: list, choose, fetch, verify, remember.

Runs in the command line's process or on a thread of the gateway. Knows HTTP and the file system, nothing
of torch or the catalog, and does not print.
"""
