"""Models' weights on the disk: what is there, downloading and deleting them while the gateway serves.

``operations`` is what the routes call. ``downloads`` is the queue of downloads, ``download_process`` the process that
makes one; ``deletion`` deletes, ``report`` reports, ``files`` checks the files before a load. All but
``download_process`` run in the gateway process.
"""
