"""Checks the address: whether the port is free or a Switchyard answers there, and who may ask it.

The command line's process. Connects only to this machine.
"""

import httpx

from commands.doctor.finding import Finding, failed, ok, warning
from gateway.access import keys
from gateway.access.address import is_loopback
from gateway.http.server import check_port
from utils.settings import Settings, SettingsError

_SECONDS = 3.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def find_network(settings: Settings) -> list[Finding]:
    """Check the port, then who may use it."""
    return [find_port(settings), find_keys(settings)]


def find_port(settings: Settings) -> Finding:
    """Check whether the gateway can listen."""
    place = f"{settings.host}:{settings.port}"
    try:
        check_port(settings)
    except SettingsError as error:
        if running := _running(settings):
            return ok("port", f"{place} is served by a running Switchyard: {running}")
        return failed("port", str(error), "choose another with --port, or see who has it: ss -ltnp")
    return ok("port", f"{place} is free")


def _running(settings: Settings) -> str:
    """Return a listening Switchyard's description of itself, or an empty text."""
    host = _EVERYWHERE.get(settings.host, settings.host)
    try:
        url = httpx.URL(scheme="http", host=host, port=settings.port, path="/health")
        with httpx.Client(timeout=_SECONDS, trust_env=False) as client:
            said = client.get(url).json()
        if set(said) == {"status"}:  # with API keys it says no more
            return f"{said['status']}; it asks for an API key"
        return f"{said['status']}, profile {said['profile']} on {said['device']}"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return ""


def find_keys(settings: Settings) -> Finding:
    """Check who may ask: holders of keys, localhost only, or anybody."""
    file = keys.path(settings.data_dir)
    try:
        found = keys.read(file)
    except SettingsError as error:
        return failed("keys", str(error), f"give it to the user who runs the gateway, or put a good copy at {file}")
    if valid := sum(key.valid for key in found):
        return ok("keys", f"requests need an API key; {file} has {valid} that {'is' if valid == 1 else 'are'} valid")
    if found:
        return warning(
            "keys", f"nobody may ask: every key in {file} is revoked or expired", "python main.py keys create NAME"
        )
    if settings.host == "localhost" or is_loopback(settings.host):
        return ok("keys", f"none, and {settings.host} is open to this machine alone")
    return warning(
        "keys",
        f"anybody who reaches {settings.host}:{settings.port} may ask, as there are no API keys; "
        "/admin answers this machine alone",
        "python main.py keys create NAME",
    )
