"""Sessions: who is signed in, on the server's side. Pure but for the random numbers; time is passed in.

A browser has 32 random bytes in a cookie and nothing else; a signature would add nothing to what nobody can guess. Here
only their hash is kept. A restart of the dashboard ends all sessions.
"""

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from tsbus.dashboard.users import Hashed

LIFE_S: Final = 12 * 3600.0
"""A session ends after this, whatever is done with it."""
IDLE_S: Final = 3600.0
"""It ends earlier when nothing has been done with it for this long. An open page does something all the time."""
MAX_SESSIONS: Final = 1000
MAX_OF_ONE: Final = 20
"""Sessions of one user; the one that began first makes room."""


@dataclass(slots=True, eq=False)
class Session:
    """A browser in which somebody has signed in."""

    name: str
    password: Hashed = field(repr=False)
    """What the password was: with another one the session is over."""
    began: float
    used: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """What a request that changes something shows, which no other site can know."""

    def is_over(self, now: float) -> bool:
        """Tell whether it has ended by itself."""
        return now - self.began >= LIFE_S or now - self.used >= IDLE_S


class Sessions:
    """All of them, at most MAX_SESSIONS."""

    def __init__(self) -> None:
        self._by_hash: OrderedDict[bytes, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_hash)

    def begin(self, name: str, password: Hashed, now: float) -> str:
        """Begin one; returns what goes into the cookie."""
        self._forget(now)
        of_one = [key for key, session in self._by_hash.items() if session.name == name]
        if len(of_one) >= MAX_OF_ONE:
            del self._by_hash[of_one[0]]
        elif len(self._by_hash) >= MAX_SESSIONS:
            self._by_hash.popitem(last=False)
        cookie = secrets.token_urlsafe(32)
        self._by_hash[_hash(cookie)] = Session(name, password, now, now)
        return cookie

    def find(self, cookie: str, now: float) -> Session | None:
        """Return the session of a cookie, which is used now; None if there is none or it is over."""
        key = _hash(cookie)
        session = self._by_hash.get(key)
        if session is None:
            return None
        if session.is_over(now):
            del self._by_hash[key]
            return None
        session.used = now
        return session

    def end(self, cookie: str) -> None:
        """End the session of a cookie, if there is one."""
        self._by_hash.pop(_hash(cookie), None)

    def _forget(self, now: float) -> None:
        for key in [key for key, session in self._by_hash.items() if session.is_over(now)]:
            del self._by_hash[key]


def _hash(cookie: str) -> bytes:
    # The table is searched by the hash, so how long that takes tells nothing about cookies.
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).digest()
