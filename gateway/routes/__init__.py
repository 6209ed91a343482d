"""One Flask blueprint per surface. They translate HTTP to :class:`gateway.gateway.Gateway` and back; nothing more."""

from typing import cast

from flask import current_app

from gateway.gateway import Gateway


def gateway() -> Gateway:
    """Return the gateway of the application that handles the current request."""
    return cast(Gateway, current_app.extensions["switchyard"])
