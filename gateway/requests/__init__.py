"""One request's way through the gateway: its ticket, its timeline, its conversation.

Gateway process, in the thread of the request. Knows nothing of HTTP or Flask.
"""
