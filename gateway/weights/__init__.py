"""Models' weights on the disk: what is there, fetched on demand, and deleted, while the gateway serves.

``house`` is what the routes ask, ``downloads`` the queue of fetches, ``fetch`` the process that makes one, ``remove``
the deleting, ``report`` what is told. Gateway process, but for ``fetch``.
"""
