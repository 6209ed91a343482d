"""Processes that have done their imports and fork children on request: runners, zygotes and media decoders.

A client (:mod:`forking.client`) starts a server process (:mod:`forking.server`) and talks to it over a control socket.
The client sends requests with file descriptors; the server forks a child (:mod:`forking.child`) for each and answers
with events: ``preloaded``, ``forked`` and ``ended``. Each message is one JSON object in one packet.

Standard library only. Must not know what a child does.
"""

MESSAGE_BYTES = 65536
"""The longest message."""
