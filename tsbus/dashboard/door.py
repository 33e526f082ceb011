"""Door: who is let in, and what he may do. Between the users' book, the sessions and whoever serves HTTP.

It knows no HTTP: cookies and tokens come as texts, the clock is passed in.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from tsbus.dashboard.limits import Limit, neighbourhood
from tsbus.dashboard.sessions import Session, Sessions
from tsbus.dashboard.users import MAX_NAME, Book, Person, Role

OPEN: Final = Person("", Role.VIEW)
"""Whoever reaches the loopback address while nobody has to sign in."""


class SessionEnded(Exception):
    """Whoever asks was signed in and is not any more, or never was."""

    def __init__(self) -> None:
        super().__init__("your session has ended: sign in again")


class NotAllowed(Exception):
    """The person may see, and not act; `mend` says what it takes."""

    def __init__(self, person: Person) -> None:
        who = person.name or "nobody signed in: who comes"
        super().__init__(f"{who} may see, and not change anything")
        self.mend = "it takes a user or token with the role operate: treescale dashboard user add NAME"


class TooOften(Exception):
    """Somebody does something more often than is good; `wait_s` says when to try again."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too often; try again in {max(1, round(wait_s))} s")
        self.wait_s = wait_s


class Visitor:
    """Whoever sent one request. A page keeps it, and asks it again before each thing that is done for it."""

    def __init__(self, door: "Door", cookie: str, token: str | None) -> None:
        self._door = door
        self._cookie = cookie
        self._token = token

    @property
    def person(self) -> Person | None:
        """Who that is at this moment; None who has to sign in."""
        return self._door.person(self._cookie, self._token)

    @property
    def csrf(self) -> str:
        """What this browser shows with each change; empty without a session."""
        session = self._door.session(self._cookie)
        return session.csrf if session else ""

    def sign_out(self) -> None:
        """End the session of this browser."""
        self._door.sign_out(self._cookie)

    def must_operate(self) -> Person:
        """Return the person, who may change things. Raises SessionEnded, NotAllowed."""
        person = self.person
        if person is None:
            raise SessionEnded
        if not person.may_operate:
            raise NotAllowed(person)
        return person


class Door:
    """Lets people and programs in."""

    def __init__(self, book: Book, clock: Callable[[], float], *, may_be_open: bool = True) -> None:
        """`clock`: seconds that only go forward; `may_be_open`: without a users file, whoever comes may see."""
        self._book = book
        self._clock = clock
        self._may_be_open = may_be_open
        self._sessions = Sessions()
        # An address has few tries. A user has more from all addresses together, so that nobody can lock him out alone.
        self._tries_of_address = Limit(burst=10, per_s=1 / 15)
        self._tries_of_user = Limit(burst=100, per_s=1 / 5)
        self._requests = Limit(burst=200, per_s=50)
        self._hashing = asyncio.Lock()

    @property
    def open(self) -> bool:
        """Whether nobody has to sign in."""
        return self._may_be_open and not self._book.closed

    async def sign_in(self, name: str, password: str, address: str) -> str | None:
        """Return what goes into the cookie; None if the name or the password is wrong. Raises TooOften."""
        now, near, name = self._clock(), neighbourhood(address), name[:MAX_NAME]
        # One after the other: an address that has to wait takes nothing away from the user.
        if wait_s := self._tries_of_address.take(near, now) or self._tries_of_user.take(name, now):
            raise TooOften(wait_s)
        async with self._hashing:  # one at a time: each takes 16 MiB
            users = self._book.users
            person = await asyncio.to_thread(users.sign_in, name, password)
        if person is None:
            return None
        self._tries_of_address.give_back(near)
        self._tries_of_user.give_back(name)
        return self._sessions.begin(name, users.users[name].password, self._clock())

    def sign_out(self, cookie: str) -> None:
        """End the session of a cookie."""
        self._sessions.end(cookie)

    def visitor(self, cookie: str, token: str | None) -> Visitor:
        """Return who sends a request with a cookie, or with a token, which counts alone where there is one."""
        return Visitor(self, cookie, token)

    def count(self, visitor: Visitor, address: str) -> None:
        """Count a request. Raises TooOften."""
        person = visitor.person
        key = f"person {person.name}" if person and person.name else f"address {neighbourhood(address)}"
        if wait_s := self._requests.take(key, self._clock()):
            raise TooOften(wait_s)

    def person(self, cookie: str, token: str | None) -> Person | None:
        """Return whose cookie or token that is, at this moment; None of nobody."""
        if token is not None:
            return self._book.users.bearer(token)
        if session := self.session(cookie):
            return self._book.users.person_of(session.name, session.password)
        return OPEN if self.open else None

    def session(self, cookie: str) -> Session | None:
        """Return the session of a cookie."""
        return self._sessions.find(cookie, self._clock()) if cookie else None
