"""The gate behind a proxy on this machine, and without one: whom it believes where a request comes from."""

import asyncio
import http.client
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

from fastapi import FastAPI
from starlette.requests import Request

from tsbus.config import Dashboard
from tsbus.dashboard.door import Door
from tsbus.dashboard.users import Book, Hashed, Role, User, Users, UsersFile
from tsbus.dashboard.web import errors, signin
from tsbus.dashboard.web.gate import METRICS, Gate, address_of
from tsbus.dashboard.web.hosts import Hosts
from tsbus.dashboard.web.server import Running, listen

CLIENT = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}


class Small:
    """A gate with sign-in behind it, and a page that tells where its visitor comes from; served in the test's loop."""

    def __init__(self, folder: Path, *, behind_proxy: bool) -> None:
        users, self.token = Users({"alice": User(Role.VIEW, Hashed.of("correct horse", (1024, 1, 1)))}).with_token(
            "t", Role.VIEW
        )
        file = UsersFile(folder / f"{behind_proxy}.json")
        file.write(users)
        door = Door(Book(file), time.monotonic, may_be_open=False)
        app = FastAPI()
        errors.install(app)
        app.include_router(signin.router(door, "small", secure=behind_proxy))

        @app.get("/where")
        async def where(request: Request) -> str:
            return address_of(request)

        self._listener = listen(Dashboard(host="127.0.0.1", port=0))
        gate = Gate(app, door, Hosts(()), "small", secure=behind_proxy, behind_proxy=behind_proxy)
        self._running = Running(gate, self._listener, None, behind_proxy=behind_proxy)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        ready = asyncio.Event()
        task = asyncio.create_task(self._running.run_until_cancelled(ready.set, asyncio.Event()))
        await ready.wait()
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def ask(self, path: str, form: dict[str, str] | None = None, **headers: str) -> http.client.HTTPResponse:
        return await asyncio.to_thread(self._ask, path, form, headers)

    def _ask(self, path: str, form: dict[str, str] | None, headers: dict[str, str]) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self._listener.port, timeout=60)
        body = urlencode(form) if form else None
        more = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
        connection.request("POST" if form else "GET", path, body, headers | more)
        answer = connection.getresponse()
        answer.text = answer.read().decode()
        connection.close()
        return answer


async def test_a_proxy_says_who_asks(tmp_path):
    """Behind a proxy its word counts for the limits, cookies are for TLS alone, and nobody is local."""
    small = Small(tmp_path, behind_proxy=True)
    async with small.served():
        bearer = {"Authorization": f"Bearer {small.token}"}
        assert (await small.ask("/where", **bearer, **CLIENT)).text == '"203.0.113.9"'
        assert (await small.ask(METRICS)).status == 401
        wrong = {"name": "alice", "password": "x" * 8}
        tries = [(await small.ask("/sign-in", wrong, **CLIENT)).status for _ in range(11)]
        assert tries == [401] * 10 + [429]
        right = await small.ask(
            "/sign-in", wrong | {"password": "correct horse"}, **CLIENT | {"X-Forwarded-For": "::1"}
        )
        assert right.status == 303
        assert "secure" in right.headers["set-cookie"].lower()
        assert right.headers["strict-transport-security"]


async def test_without_a_proxy_nobody_chooses_his_address(tmp_path):
    """What a client says of itself in X-Forwarded-For counts for nothing."""
    small = Small(tmp_path, behind_proxy=False)
    async with small.served():
        bearer = {"Authorization": f"Bearer {small.token}"}
        assert (await small.ask("/where", **bearer, **CLIENT)).text == '"127.0.0.1"'
        assert (await small.ask(METRICS)).status == 404  # let in, and there is none here
        right = await small.ask("/sign-in", {"name": "alice", "password": "correct horse"}, **CLIENT)
        assert "secure" not in right.headers["set-cookie"].lower()
