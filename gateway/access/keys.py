"""API keys: what each may do, and their file. The gateway reads it; ``main.py keys`` reads and writes it.

A key is ``sy-<id>-<secret>``: the id says which one it is and may be shown, the secret has 256 random bits. The file
has its SHA-256 and never the key itself. A slow hash such as bcrypt protects passwords, which can be guessed; nobody
guesses 256 bits, and the gateway has to hash one for every request.
"""

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from limits import parse_many
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from utils.settings import SettingsError

log = logging.getLogger(__name__)
_TOKEN = re.compile(r"sy-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
_NOBODY = hashlib.sha256(b"").hexdigest()
Role = Literal["user", "admin"]
Count = Annotated[int, Field(ge=1)]


def _rate(text: str | None) -> str | None:
    if text is not None:
        try:
            parse_many(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a rate; write, say, 60/minute or 5/second;1000/day") from None
    return text


class Allowance(BaseModel):
    """What a key may do. None is no limit of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Role = "user"
    models: tuple[str, ...] | None = None
    requests_per_day: Count | None = None
    requests_per_month: Count | None = None
    tokens_per_day: Count | None = None
    tokens_per_month: Count | None = None
    rate: Annotated[str | None, AfterValidator(_rate)] = None
    concurrent: Count | None = None
    expires: float | None = None  # seconds since the epoch


class Key(Allowance):
    """One key, as the file has it. Times are seconds since the epoch."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    name: Annotated[str, Field(pattern=_NAME)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    created: float
    revoked: float | None = None

    @property
    def valid(self) -> bool:
        return self.revoked is None and (self.expires is None or time.time() < self.expires)

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    keys: list[Key] = []


class KeyChangeError(Exception):
    """A change of the keys that cannot be made. The message is one line for the person who wanted it."""


def path(data_dir: Path) -> Path:
    """Return where the keys are kept."""
    return data_dir / "keys.json"


def new_token(key_id: str | None = None) -> tuple[str, str, str]:
    """Return (id, whole key, digest) of a new key, or of a new secret for an old id."""
    key_id = key_id or secrets.token_hex(6)
    token = f"sy-{key_id}-{secrets.token_urlsafe(32)}"
    return key_id, token, digest(token)


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def read(file: Path) -> list[Key]:
    """Return the keys of a file; none if it is not there. :raises SettingsError: if it cannot be used."""
    try:
        return _File.model_validate_json(file.read_bytes()).keys
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"the keys in {file} cannot be used: {where or 'it'}: {first['msg']}") from None


@contextmanager
def changing(file: Path) -> Iterator[list[Key]]:
    """Lock the file, yield its keys to be changed, and write them at the end. Readers see the old keys or the new.

    :raises SettingsError: if the file cannot be used or written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SettingsError(f"cannot write {file}: {error.strerror}") from error
    try:
        _hand_over(lock, file)
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = read(file)
        yield keys
        _write(file, keys)
    finally:
        os.close(lock)


def _hand_over(descriptor: int, file: Path) -> None:
    """Give an open file that root made to the owner of the folder of ``file``. The gateway runs as that user; if it
    could not read the file, it would ask for no key.

    :raises SettingsError: if it cannot be given.
    """
    if os.geteuid() != 0:
        return
    try:
        folder, made = file.parent.stat(), os.fstat(descriptor)
        if made.st_uid == 0 and made.st_nlink == 1:  # not another file of root's that somebody linked there
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
    except OSError as error:
        raise SettingsError(f"cannot give {file} to the owner of its folder: {error.strerror}") from error


def _write(file: Path, keys: list[Key]) -> None:
    text = json.dumps(_File(keys=keys).model_dump(), indent=1)
    try:
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".keys-")  # its mode is 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as output:
                output.write(text)
                output.flush()
                _hand_over(output.fileno(), file)
                os.fsync(output.fileno())
            os.replace(name, file)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise SettingsError(f"cannot write {file}: {error.strerror}") from error


class KeyRing:
    """The keys as they are now. Every question looks at the file's times, so a change of the file counts at once. If
    the file is damaged or gone later on, its last keys stay in force: a mistake must not open the server to everybody.

    :raises SettingsError: if the file is there and cannot be used.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._seen = self._look()
        self._keys = {key.id: key for key in read(file)}

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._file)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _current(self) -> dict[str, Key]:
        if self._look() != self._seen:
            with self._lock:
                if (seen := self._look()) != self._seen:
                    self._read_again()
                    self._seen = seen
        return self._keys

    def _read_again(self) -> None:
        try:
            found = read(self._file)
        except SettingsError as error:
            log.error("%s; the keys of before stay in force", error)
            return
        if not self._file.exists() and self._keys:
            log.error("%s is gone; the keys it had stay in force until a restart", self._file)
            return
        self._keys = {key.id: key for key in found}
        log.info("keys: %s", ", ".join(key.name for key in found if key.valid) or "none that is valid")

    @property
    def keyed(self) -> bool:
        """Whether requests need a key: they do if there is one, even a revoked one."""
        return bool(self._current())

    def valid(self) -> list[Key]:
        """Return the keys that are valid now."""
        return [key for key in self._current().values() if key.valid]

    def name(self, key_id: str) -> str | None:
        """Return a key's name, whether it is valid or not."""
        key = self._current().get(key_id)
        return key.name if key else None

    def find(self, tokens: list[str]) -> Key | None:
        """Return the valid key among the presented tokens."""
        keys = self._current()
        for token in tokens:
            form = _TOKEN.fullmatch(token)
            key = keys.get(form[1]) if form else None
            same = hmac.compare_digest(digest(token), key.digest if key else _NOBODY)
            if key is not None and same and key.valid:
                return key
        return None

    def still(self, key: Key) -> Key | None:
        """Return the key as it is now, if it is still valid and has the same secret."""
        return self.good(key.id, key.digest)

    def good(self, key_id: str, digest: str) -> Key | None:
        """Return a key by its id as it is now, if it is valid and still has the secret of this digest."""
        now = self._current().get(key_id)
        return now if now is not None and now.digest == digest and now.valid else None


def presented(authorization: str | None, api_key: str | None) -> list[str]:
    """Return the tokens of a request's ``Authorization: Bearer`` and ``X-API-Key``. Some clients always send one of the
    headers, with any text; they can send the key in the other."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    return [text.strip() for text in (token if scheme.lower() == "bearer" else None, api_key) if text]
