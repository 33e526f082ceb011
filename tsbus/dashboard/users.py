"""Users: who may see and who may act, with hashed passwords and tokens, and the file that they are in.

The file is JSON, written by `treescale dashboard user` and `token`; its owner alone may read it. sessions.py knows who
is signed in.
"""

import base64
import hashlib
import hmac
import os
import re
import secrets
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Self

import msgspec

from tsbus.log import Log

MAX_PASSWORD: Final = 1024
"""Characters; scrypt would hash a gigabyte as well."""
MIN_PASSWORD: Final = 8
MAX_NAMED: Final = 10_000
"""Users, and tokens, in one file."""
MAX_FILE_BYTES: Final = 8 << 20
TOKEN_PREFIX: Final = "ts_"  # noqa: S105  (a mark, so that a token that leaked is known for one)
MAX_NAME: Final = 64
_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}"
_COST: Final = (1 << 14, 8, 5)
"""n, r, p of scrypt: 16 MiB and about 0.2 s, with the strength that OWASP asks for."""

_log = Log("dashboard")


class UsersError(Exception):
    """The users file is not in order, or does not have what was named; the text says what and what to do."""


class Role(StrEnum):
    """What somebody may do in the dashboard. What that does on a node is limited by the dashboard's own role there."""

    VIEW = "view"
    OPERATE = "operate"


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks the dashboard for something."""

    name: str
    """A user's; `token:NAME` of a token; empty where nobody has to sign in."""
    role: Role

    @property
    def may_operate(self) -> bool:
        """Whether this person may change something."""
        return self.role is Role.OPERATE


# Passwords ------------------------------------------------------------------------------------------------------------

_Bytes = Annotated[str, msgspec.Meta(pattern="^([A-Za-z0-9+/]{4}){4,32}[A-Za-z0-9+/=]{0,4}$")]
_Factor = Annotated[int, msgspec.Meta(ge=1, le=16)]


class Hashed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A password's salted scrypt hash in base64, with what it cost: at most a quarter of a gigabyte."""

    salt: _Bytes
    key: _Bytes
    n: Annotated[int, msgspec.Meta(ge=1024, le=131_072)]
    r: _Factor
    p: _Factor

    def __post_init__(self) -> None:
        if self.n & (self.n - 1):
            raise ValueError("n of scrypt is a power of two")

    @classmethod
    def of(cls, password: str, cost: tuple[int, int, int] = _COST) -> Self:
        """Hash `password` with a salt of its own; `cost`: n, r and p of scrypt."""
        salt = secrets.token_bytes(16)
        return cls(_text(salt), _text(_scrypt(password, salt, *cost)), *cost)

    def fits(self, password: str) -> bool:
        """Tell whether it is the hash of `password`, in a time that does not depend on the answer."""
        key = _scrypt(password, base64.b64decode(self.salt), self.n, self.r, self.p)
        return hmac.compare_digest(_text(key), self.key)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    secret = password[:MAX_PASSWORD].encode("utf-8", "surrogatepass")
    return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=32)


_NOBODY: Final = Hashed(_text(bytes(16)), _text(bytes(32)), *_COST)
"""What a password is compared with when there is no such user: that takes as long as with one."""


# The book -------------------------------------------------------------------------------------------------------------


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody who signs in with a password."""

    role: Role
    password: Hashed


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a program shows instead. It is random and long, so its plain SHA-256 tells nothing about it."""

    role: Role
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


_Name = Annotated[str, msgspec.Meta(pattern=f"^{_NAME}$")]


class Users(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All users and tokens: the content of the file. Each change gives a new one."""

    users: Annotated[dict[_Name, User], msgspec.Meta(max_length=MAX_NAMED)] = {}
    tokens: Annotated[dict[_Name, Token], msgspec.Meta(max_length=MAX_NAMED)] = {}

    def sign_in(self, name: str, password: str) -> Person | None:
        """Return who that is; None if there is no such user or the password is another, which takes the same time."""
        user = self.users.get(name)
        fits = (user.password if user else _NOBODY).fits(password)
        return Person(name, user.role) if user and fits else None

    def person_of(self, name: str, password: Hashed) -> Person | None:
        """Return the user `name` as of now; None if there is none any more, or the password is not that of then."""
        user = self.users.get(name)
        return Person(name, user.role) if user and user.password == password else None

    def bearer(self, token: str) -> Person | None:
        """Return whose token that is."""
        digest = _digest(token)
        found = [name for name, each in self.tokens.items() if hmac.compare_digest(each.sha256, digest)]
        return Person(f"token:{found[0]}", self.tokens[found[0]].role) if found else None

    def with_user(self, name: str, role: Role, password: str) -> Self:
        """Return these with one more. Raises UsersError where the name is taken or either is no good."""
        _check_name(name)
        if name in self.users:
            raise UsersError(f"there is a user {name} already; to give a new password: treescale dashboard user "
                             f"password {name}")  # fmt: skip
        return self._with(users=self.users | {name: User(role, Hashed.of(_checked(password)))})

    def with_password(self, name: str, password: str) -> Self:
        """Return these with a new password for one. Raises UsersError."""
        user = self._user(name)
        return self._with(users=self.users | {name: User(user.role, Hashed.of(_checked(password)))})

    def without_user(self, name: str) -> Self:
        """Return these without one. Raises UsersError."""
        self._user(name)
        return self._with(users={key: user for key, user in self.users.items() if key != name})

    def with_token(self, name: str, role: Role) -> tuple[Self, str]:
        """Return these with one more token, and the token itself, which is kept nowhere. Raises UsersError."""
        _check_name(name)
        if name in self.tokens:
            raise UsersError(f"there is a token {name} already; remove it first, or take another name")
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        return self._with(tokens=self.tokens | {name: Token(role, _digest(token))}), token

    def without_token(self, name: str) -> Self:
        """Return these without one. Raises UsersError."""
        if name not in self.tokens:
            raise UsersError(f"there is no token {name}; those there are: treescale dashboard token ls")
        return self._with(tokens={key: token for key, token in self.tokens.items() if key != name})

    def _user(self, name: str) -> User:
        if name not in self.users:
            raise UsersError(f"there is no user {name}; those there are: treescale dashboard user ls")
        return self.users[name]

    def _with(self, **changed: object) -> Self:
        new = msgspec.structs.replace(self, **changed)
        if max(len(new.users), len(new.tokens)) > MAX_NAMED:
            raise UsersError(f"there may be {MAX_NAMED} users and as many tokens; remove some")
        return new


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _check_name(name: str) -> None:
    if not re.fullmatch(_NAME, name):
        raise UsersError(f"{name!r} cannot be a name: take letters, digits and _ . @ -, at most 64, and begin with "
                         "a letter, a digit or _")  # fmt: skip


def _checked(password: str) -> str:
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise UsersError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters")
    return password


# The file -------------------------------------------------------------------------------------------------------------


class UsersFile:
    """The file at `path`: read anew when it has changed, written as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> tuple[int, int, int] | None:
        """Return what is another one when the file is another one; None where there is none. Raises UsersError."""
        try:
            told = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsersError(f"cannot look at {self.path}: {error.strerror}") from error
        return told.st_ino, told.st_mtime_ns, told.st_size

    def read(self) -> Users:
        """Return what is in it; nobody where there is none. Raises UsersError."""
        try:
            mode = self.path.stat().st_mode
            with self.path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return Users()
        except OSError as error:
            mend = "it must belong to the user who runs the dashboard"
            raise UsersError(f"cannot read {self.path}: {error.strerror}; {mend}") from error
        if mode & 0o077:
            raise UsersError(f"others may read or change {self.path}; chmod 600 {self.path}")
        if len(data) > MAX_FILE_BYTES:
            raise UsersError(f"{self.path} has more than {MAX_FILE_BYTES} bytes: it is no users file")
        try:
            return msgspec.json.decode(data, type=Users)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            mend = "restore it, or move it away and add the users anew: treescale dashboard user add NAME"
            raise UsersError(f"{self.path} is damaged: {error}; {mend}") from error

    def write(self, users: Users) -> None:
        """Put `users` in its place, whole or not at all. Raises UsersError."""
        data = msgspec.json.format(msgspec.json.encode(users), indent=2) + b"\n"
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Readable by the owner alone from its first byte, and of the one who may change its folder.
            descriptor, new = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(descriptor)
                if os.geteuid() == 0:
                    # Root writes it for who runs the dashboard: whose it was, or whose folder it is in.
                    told = (self.path if self.path.exists() else self.path.parent).stat()
                    os.chown(new, told.st_uid, told.st_gid)
                Path(new).replace(self.path)
            except BaseException:
                Path(new).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise UsersError(f"cannot write {self.path}: {error.strerror}") from error


class Book:
    """The users as of now, for a server that runs: the file is read again when it is another one.

    One that is damaged while we run changes nothing, and is told in the log: nobody gets in who could not before.
    """

    def __init__(self, file: UsersFile) -> None:
        """Raises UsersError when the file is not in order."""
        self._file = file
        self._stamp = file.stamp()
        self._users = file.read()
        self._closed = self._stamp is not None
        self._problem = ""

    @property
    def closed(self) -> bool:
        """Whether people must sign in: from when there was a file, also if it goes away again."""
        self._look()
        return self._closed

    @property
    def users(self) -> Users:
        """The users and tokens as of now."""
        self._look()
        return self._users

    def _look(self) -> None:
        try:
            stamp = self._file.stamp()
            if stamp != self._stamp:
                self._stamp, self._closed = stamp, True
                self._users = self._file.read()
                self._problem = ""
        except UsersError as error:
            if str(error) != self._problem:
                _log.error("users.unread", error=str(error))
            self._closed, self._problem = True, str(error)
