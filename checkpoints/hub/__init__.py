"""Downloads checkpoints from a model hub into ``models/``: list, choose, fetch, verify, record.

The command line's process or a download process of the gateway. Knows HTTP and the file system; knows no torch and no
catalog, and does not print.
"""
