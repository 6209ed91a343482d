"""A key is traded for a session: what the cookie opens, what it does not, and when that ends. No model is loaded."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Start
from tests.gateway.access.conftest import Keys, administered
from tests.support.gateway import only

PAGE = {"Accept": "text/html,*/*;q=0.8"}
PAGES = ["/ui/", "/ui/playground", "/ui/models", "/ui/events", "/ui/files", "/ui/benchmarks"]
NOBODY: dict[str, Any] = {"model": "nobody", "messages": [{"role": "user", "content": "x" * 300_000}]}
"""A question to no model: the 404 proves that it was let in and read."""


@pytest.fixture(scope="module")
def keys(start_for_module: Start) -> Keys:
    gateway = start_for_module(models=only("deepseek"), launch=False)
    made = administered(gateway)
    gateway.start()
    return made


@pytest.fixture
def browser(keys: Keys) -> Iterator[httpx.Client]:
    """Somebody who keeps cookies and has no key, and says what browsers say of a page's own requests."""
    headers = {"Origin": keys.gateway.url, "Sec-Fetch-Site": "same-origin"}
    with httpx.Client(base_url=keys.gateway.url, headers=headers, trust_env=False, timeout=60) as client:
        yield client


def log_in(browser: httpx.Client, key: str, **fields: str) -> httpx.Response:
    return browser.post("/ui/login", data={"key": key} | fields)


def test_pages_lead_to_the_login_and_back(keys: Keys, browser: httpx.Client) -> None:
    asked = browser.get("/ui/events?model=deepseek", headers=PAGE)
    assert asked.status_code == 303 and asked.headers["location"] == "/ui/login?next=/ui/events%3Fmodel%3Ddeepseek"
    form = browser.get(asked.headers["location"], headers=PAGE)
    assert form.status_code == 200 and 'value="/ui/events?model=deepseek"' in form.text
    done = log_in(browser, f" {keys.create('back')} ", next="/ui/events?model=deepseek")
    assert done.status_code == 303 and done.headers["location"] == "/ui/events?model=deepseek"
    assert browser.get("/ui/login", headers=PAGE).headers["location"] == "/ui/"


@pytest.mark.parametrize(
    "place",
    [
        "//elsewhere.example",
        "https://elsewhere.example/ui/",
        "/\\elsewhere.example",
        "/ui/../admin",
        "/ui//x",
        "/admin/model_status",
        "javascript:alert(1)",
        "/ui/\r\nX: y",
        "/uimodels",
        "",
    ],
)
def test_only_its_own_pages_are_gone_back_to(keys: Keys, browser: httpx.Client, place: str) -> None:
    token = keys.tokens[0]
    assert log_in(browser, token, next=place).headers["location"] == "/ui/"


def test_the_cookie(keys: Keys, browser: httpx.Client) -> None:
    token = keys.tokens[0]
    cookie = log_in(browser, token).headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=")), cookie
    assert "Secure" not in cookie and token not in cookie and token.split("-")[1] not in cookie
    with httpx.Client(base_url=keys.gateway.url, trust_env=False) as over_tls:
        origin = f"https://{keys.gateway.url.partition('//')[2]}"
        made = over_tls.post("/ui/login", data={"key": token}, headers={"Origin": origin})
    assert "Secure" in made.headers["set-cookie"]


def test_a_session_is_let_in_wherever_its_key_is(keys: Keys, browser: httpx.Client) -> None:
    refused = browser.post("/v1/chat/completions", json=NOBODY)
    assert refused.status_code == 401
    log_in(browser, keys.create("carol", "--role", "admin"))
    assert [browser.get(path, headers=PAGE).status_code for path in PAGES] == [200] * len(PAGES)
    assert browser.get("/admin/model_status").status_code == 200
    assert browser.post("/admin/cleanup_temp").status_code == 200
    assert browser.post("/v1/chat/completions", json=NOBODY).status_code == 404, "the body is read"
    assert "carol" in browser.get("/ui/", headers=PAGE).text
    wrong = browser.get("/v1/models", headers={"Authorization": "Bearer none"})
    assert wrong.status_code == 401, "a key that is sent is what counts"
    basic = browser.get("/v1/models", headers={"Authorization": "Basic bm9ib2R5"})
    assert basic.status_code == 200, "a proxy's own login is no key"


def test_a_user_sees_what_is_for_users(keys: Keys, browser: httpx.Client) -> None:
    log_in(browser, keys.create("dora"))
    found = {path: browser.get(path, headers=PAGE) for path in PAGES}
    restricted = {path for path, page in found.items() if page.status_code == 403}
    assert restricted == {"/ui/models", "/ui/events", "/ui/files"}
    assert "dora" in found["/ui/models"].text and "administrators" in found["/ui/models"].text
    assert "/ui/files" not in found["/ui/"].text
    assert browser.get("/admin/model_status").status_code == 403


def test_a_browser_is_shown_its_errors(keys: Keys, browser: httpx.Client) -> None:
    log_in(browser, keys.tokens[0])
    for method, path, status in (
        ("GET", "/ui/nowhere", 404),
        ("GET", "/ui/benchmarks/nope", 404),
        ("GET", "/ui/static/x/none.css", 404),
        ("POST", "/ui/benchmarks", 405),
    ):
        shown = browser.request(method, path, headers=PAGE)
        assert shown.status_code == status and shown.headers["content-type"].startswith("text/html"), (path, shown.text)
        assert "<h1" in shown.text and "default-src 'none'" in shown.headers["content-security-policy"]
    assert shown.headers["allow"] == "GET, HEAD, OPTIONS"
    assert browser.post("/ui/benchmarks").json()["error"] == "Method Not Allowed", "scripts are told as ever"
    long = browser.post("/ui/login", data={"key": "x" * 5000}, headers=PAGE)
    assert long.status_code == 413 and "A login has 4096 bytes at most" in long.text and "<h1" in long.text
    foreign = httpx.post(
        f"{keys.gateway.url}/ui/login",
        data={"key": "x"},
        trust_env=False,
        headers=PAGE | {"Origin": "http://elsewhere.example"},
    )
    assert foreign.status_code == 403 and "own page" in foreign.text and "<h1" in foreign.text
    assert "masthead" not in foreign.text, "whoever is not signed in sees no menu, whose scripts would lead away"
    stranger = httpx.head(f"{keys.gateway.url}/ui/", headers=PAGE, trust_env=False)
    assert stranger.status_code == 303, "as GET"


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://elsewhere.example"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": None, "Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": None, "Origin": None},
    ],
)
def test_no_other_page_may_use_a_session(keys: Keys, browser: httpx.Client, headers: dict[str, str | None]) -> None:
    log_in(browser, keys.tokens[0])
    given = {name: value for name, value in headers.items() if value}
    said = given | {"Cookie": "; ".join(f"{one.name}={one.value}" for one in browser.cookies.jar)}
    for method, path in (
        ("POST", "/admin/cleanup_temp"),
        ("POST", "/v1/chat/completions"),
        ("DELETE", "/v1/requests/x"),
        ("POST", "/ui/logout"),
    ):
        answer = httpx.request(method, f"{keys.gateway.url}{path}", headers=said, trust_env=False)
        assert answer.status_code == 403 and "session" in answer.text, (path, answer.text)
    assert browser.get("/v1/models").status_code == 200
    if headers.get("Origin"):
        made = httpx.post(f"{keys.gateway.url}/ui/login", data={"key": keys.tokens[0]}, trust_env=False, headers=given)
        assert made.status_code == 403 and "set-cookie" not in made.headers


def test_logging_out(keys: Keys, browser: httpx.Client) -> None:
    log_in(browser, keys.tokens[0])
    before = dict(browser.cookies)
    assert browser.post("/ui/logout").headers["location"] == "/ui/login"
    assert not browser.cookies
    browser.cookies.update(before)
    assert browser.get("/v1/models").status_code == 401, "the token is good for nothing any more"


@pytest.mark.parametrize("change", ["revoke", "rotate", "remove"])
def test_a_session_ends_with_its_key(keys: Keys, browser: httpx.Client, change: str) -> None:
    log_in(browser, keys.create(change))
    assert browser.get("/v1/models").status_code == 200
    keys.done(change, change) if change != "remove" else (keys.done("revoke", change), keys.done("remove", change))
    assert browser.get("/v1/models").status_code == 401
    assert browser.get("/ui/", headers=PAGE).status_code == 303


def test_what_is_open_and_what_is_not(keys: Keys, browser: httpx.Client) -> None:
    form = browser.get("/ui/login", headers=PAGE)
    assert form.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in form.headers["content-security-policy"]
    sheet = form.text.split('rel="stylesheet" href="')[1].split('"')[0]
    assert browser.get(sheet).status_code == 200
    assert browser.get("/ui/live").status_code == 401
    assert browser.get("/ui/live", headers=PAGE).status_code in (303, 401)
    for path in (
        "/ui/static/../../app.py",
        "/ui/static/x/../../../app.py",
        "/ui/static/x/%2e%2e/%2e%2e/%2e%2e/app.py",
        "/ui/static/x/..%2f..%2f..%2fapp.py",
        "/docs/../app.py",
        "/docs/%2e%2e/admin/model_status",
    ):
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        with keys.gateway.raw(head.encode()) as connection, connection.makefile("rb") as answer:  # httpx would tidy it
            said = answer.read()
        assert said.split(b" ", 2)[1] in (b"401", b"404") and b"create_app" not in said, (path, said[:200])
    assert browser.get("/", headers=PAGE).headers["location"] == "/ui/"
    assert browser.get("/").status_code == 401


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        (b"Content-Length: 1000000", b"413", b"4096 bytes"),
        (b"Transfer-Encoding: chunked", b"411", b"Content-Length"),
        (b"Content-Length: 0", b"400", b"Enter an API key"),
        (b"A: b", b"400", b"Enter an API key"),
    ],
)
def test_a_login_s_body_is_short(keys: Keys, fields: bytes, status: bytes, words: bytes) -> None:
    head = b"POST /ui/login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + fields + b"\r\n\r\n"
    with keys.gateway.raw(head) as connection, connection.makefile("rb") as answer:
        said = answer.read()
    assert said.split(b" ", 2)[1] == status and words in said, said
    assert b"67108864" not in said


def test_a_key_that_is_too_long_is_told_the_limit(keys: Keys, browser: httpx.Client) -> None:
    refused = log_in(browser, "x" * 5000)
    assert refused.status_code == 413 and "4096 bytes" in refused.json()["details"]


def test_guesses_are_counted_and_lock_nobody_out(keys: Keys, browser: httpx.Client) -> None:
    """The last one: this address is told to wait with wrong keys for a minute."""
    right, statuses = keys.create("eve"), []
    for _ in range(11):
        wrong = log_in(browser, right[:-1] + ("a" if right[-1] != "a" else "b"))
        statuses.append(wrong.status_code)
        assert "set-cookie" not in wrong.headers and right[:-1] not in wrong.text
    assert statuses == [401] * 10 + [429] and int(wrong.headers["retry-after"]) <= 61
    assert log_in(browser, right).status_code == 303, "a right one is taken all the same"
    assert right[:-1] not in keys.gateway.log()
