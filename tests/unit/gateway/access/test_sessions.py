"""Sessions of browsers: how long, how many, whose; and what of a request's head counts."""

from pathlib import Path
from typing import Any

import pytest
from flask import Request
from werkzeug.test import EnvironBuilder

from gateway.access import sessions
from gateway.access.address import of_same_origin
from gateway.access.keys import Key, new_token
from gateway.access.sessions import Guesses, Sessions

KEYS: dict[str, Key] = {}


def made(name: str = "alice") -> Key:
    key_id, _, digest = new_token()
    return KEYS.setdefault(key_id, Key(id=key_id, name=name, digest=digest, created=0.0))


class Table:
    """Sessions by a clock of the test's, over keys of which some are ``gone``."""

    def __init__(self) -> None:
        self.now, self.gone = 1e9, set[str]()
        self.sessions = self.restarted(None)

    def restarted(self, file: Path | None) -> Sessions:
        return Sessions(self._good, lambda: self.now, file)

    def _good(self, key_id: str, digest: str) -> Key | None:
        key = KEYS[key_id]
        return None if key_id in self.gone or key.digest != digest else key


@pytest.fixture
def table() -> Table:
    return Table()


def test_a_session_stands_for_its_key_until_it_is_ended(table: Table) -> None:
    key = made()
    token = table.sessions.begin_session(key)
    assert table.sessions.find_session(token) == key
    for wrong in (None, "", token[:-1], token + "a", "a" * 43, "ä" * 43):
        assert table.sessions.find_session(wrong) is None
    table.sessions.end_session(token)
    assert table.sessions.find_session(token) is None
    table.sessions.end_session(token)


def test_it_ends_with_its_key_for_good(table: Table) -> None:
    key = made()
    token = table.sessions.begin_session(key)
    table.gone.add(key.id)
    assert table.sessions.find_session(token) is None
    table.gone.clear()
    assert table.sessions.find_session(token) is None


def test_it_ends_unused_and_at_last_in_any_case(table: Table) -> None:
    token = table.sessions.begin_session(made())
    for _ in range(13):
        table.now += 11.9 * 3600
        assert table.sessions.find_session(token)
    table.now += 12.1 * 3600
    assert table.sessions.find_session(token) is None
    token, began = table.sessions.begin_session(made()), table.now
    while table.now - began <= table.sessions.lifetime:
        assert table.sessions.find_session(token)
        table.now += 11 * 3600
    assert table.sessions.find_session(token) is None


def test_they_are_bounded_and_one_key_cannot_end_those_of_others(table: Table) -> None:
    alice, bob = table.sessions.begin_session(made()), made("bob")
    tokens = [table.sessions.begin_session(bob) for _ in range(300)]
    assert table.sessions.find_session(alice)
    assert [bool(table.sessions.find_session(token)) for token in tokens] == [False] * 200 + [True] * 100
    others = [table.sessions.begin_session(made(str(count))) for count in range(1200)]
    kept = sum(table.sessions.find_session(token) is not None for token in [alice, *tokens, *others])
    assert kept == 1000 and table.sessions.find_session(others[-1])


def test_a_look_is_no_use(table: Table) -> None:
    token = table.sessions.begin_session(made())
    table.now += 11.9 * 3600
    assert table.sessions.find_session(token, touch=False)
    table.now += 0.2 * 3600
    assert table.sessions.find_session(token) is None


def test_they_outlive_a_restart_and_their_ends_do_too(table: Table, tmp_path: Path) -> None:
    file, gone, rotated = tmp_path / "sessions.json", made("gone"), made("rotated")
    before = table.restarted(file)
    stays, ended, *lost = [before.begin_session(key) for key in (made(), made(), gone, rotated)]
    before.end_session(ended)
    assert file.stat().st_mode & 0o777 == 0o600 and list(tmp_path.iterdir()) == [file]
    assert not any(token in file.read_text() for token in (stays, ended, *lost))
    table.gone.add(gone.id)
    KEYS[rotated.id] = rotated.model_copy(update={"digest": "0" * 64})
    after = table.restarted(file)
    assert after.find_session(stays) and [after.find_session(token) for token in (ended, *lost)] == [None] * 3
    table.now += 13 * 3600
    assert table.restarted(file).find_session(stays) is None


def test_uses_are_written_now_and_then(table: Table, tmp_path: Path) -> None:
    file = tmp_path / "sessions.json"
    kept = table.restarted(file)
    token, written = kept.begin_session(made()), file.read_bytes()
    for passed in (1, 500):
        table.now += passed
        assert kept.find_session(token)
        kept.write_sessions()
        assert file.read_bytes() == written
    table.now += 200
    assert kept.find_session(token)
    kept.write_sessions()
    assert file.read_bytes() != written
    table.now += 11.9 * 3600
    assert table.restarted(file).find_session(token), "it is known when it was used"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 2, "sessions": []}',
        b"\xff",
        b" " * 2**21,
        b'{"version": 1, "sessions": [{"token": "x"}]}',
    ],
)
def test_a_damaged_file_signs_everybody_out_and_no_more(table: Table, tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "sessions.json"
    file.write_bytes(text)
    token = table.restarted(file).begin_session(made())
    assert table.restarted(file).find_session(token)


def test_where_nothing_can_be_written_they_last_as_long_as_the_process(table: Table, tmp_path: Path) -> None:
    kept = table.restarted(tmp_path / "none" / "sessions.json")
    assert kept.find_session(kept.begin_session(made()))


def test_wrong_keys_are_counted_by_address() -> None:
    address = "192.0.2.1"
    guesses = Guesses(lambda: address)
    for _ in range(10):
        assert guesses.wait() is None
        guesses.count()
    wait = guesses.wait()
    assert wait is not None and 1 <= wait <= 61
    address = "192.0.2.2"
    assert guesses.wait() is None


@pytest.mark.parametrize(
    ("cookies", "token"),
    [
        ("switchyard_5000=abc", "abc"),
        ("a=b;switchyard_5000=abc ; c=d", "abc"),
        ("switchyard_50001=abc", None),
        ("", None),
        (";;=; switchyard_5000", ""),
        ("switchyard_5000=\xff", "ÿ"),
    ],
)
def test_the_token_in_cookies(cookies: str, token: str | None) -> None:
    assert sessions.of_cookies(cookies, sessions.cookie_name(5000)) == token


@pytest.mark.parametrize(
    ("method", "path", "length", "wanted"),
    [
        ("POST", "/ui/login", "4096", True),
        ("POST", "/ui/login", "1", True),
        ("POST", "/ui/login", "0000000000000000004096", True),
        ("POST", "/ui/login", "4097", False),
        ("POST", "/ui/login", None, False),
        ("POST", "/ui/login/x", "10", False),
        ("GET", "/ui/login", "10", False),
    ],
)
def test_of_strangers_only_a_short_login_is_read(method: str, path: str, length: str | None, wanted: bool) -> None:
    assert sessions.is_login(method, path, length) is wanted


@pytest.mark.parametrize(
    ("headers", "strict", "lenient"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True, True),
        ({"Sec-Fetch-Site": "same-site"}, False, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://gate:5000"}, False, False),
        ({"Sec-Fetch-Site": "none"}, False, False),
        ({"Origin": "http://gate:5000"}, True, True),
        ({"Origin": "https://gate:5000"}, True, True),
        ({"Origin": "http://gate:5001"}, False, False),
        ({"Origin": "http://gate"}, False, False),
        ({"Origin": "null"}, False, False),
        ({"Origin": "http://[gate:5000"}, False, False),
        ({}, False, True),
    ],
)
def test_whose_page_sent_it(headers: dict[str, str], strict: bool, lenient: bool) -> None:
    request: Any = Request(EnvironBuilder(base_url="http://gate:5000", headers=headers).get_environ())
    assert of_same_origin(request, strict=True) is strict
    assert of_same_origin(request, strict=False) is lenient
