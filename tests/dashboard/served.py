"""Served: three real routers, an executor on one of them, and a real dashboard on the root, spoken to over HTTP."""

import asyncio
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from background import Background
from tree import HOST, Tree, until

from tsbus import Event, Request, Worker
from tsbus.config import Dashboard
from tsbus.dashboard.historyfile import HistoryFile
from tsbus.dashboard.users import Hashed, Role, User, Users, UsersFile

SERVICES = Path(__file__).parents[2] / "services"
PORT = 8802
URL = f"http://{HOST}:{PORT}"
LIMIT_S = 120
PASSWORD = "correct horse"
GONE = "4711ab0c9e21"
"""A container that used 1.5 % on b before the dashboard was started, and is there no more."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def refusal(self, status: int) -> str:
        """Return why the request was refused; it is `{error, mend}` and nothing but what 503 adds."""
        told = self.json()
        assert self.status == status, (self.status, told)
        assert told.keys() - {"since_ms"} == {"error", "mend"}
        assert all(isinstance(told[key], str) and told[key] for key in ("error", "mend")), told
        assert "content-type" in self.headers and self.headers["content-type"] == "application/json"
        return str(told["error"])


def ask(
    path: str, method: str = "GET", *, token: str = "", body: Any = None, form: Any = None, **headers: str
) -> Answer:
    """Send one request; `body` becomes JSON unless it is bytes."""
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if form is not None:
        body, headers["Content-Type"] = urlencode(form).encode(), "application/x-www-form-urlencoded"
    elif body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    connection = http.client.HTTPConnection(HOST, PORT, timeout=LIMIT_S)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, told, answer.read())
    finally:
        connection.close()


def sign_in(name: str = "alice", password: str = PASSWORD, **headers: str) -> tuple[Answer, str]:
    """Sign in; returns the answer and the cookie."""
    answer = ask("/sign-in", "POST", form={"name": name, "password": password, "next": "/events?q=x"}, **headers)
    return answer, answer.headers.get("set-cookie", "").partition(";")[0]


class Stream:
    """Server-Sent Events as curl gets them."""

    def __init__(self, path: str, token: str, last_id: str = "") -> None:
        headers = ["-H", f"Authorization: Bearer {token}", *(["-H", f"Last-Event-ID: {last_id}"] if last_id else [])]
        argv = ["curl", "-sSN", "--max-time", str(2 * LIMIT_S), *headers, URL + path]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        self.last_id = ""
        self.next("")

    def next(self, kind: str = "message") -> Any:
        """Return the data of the next event, which is of this kind; of "" only its id."""
        event, data = "", None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            field, _, value = line.rstrip("\n").partition(": ")
            if field == "id":
                self.last_id = value
            elif field == "event":
                event = value
            elif field == "data":
                data, event = json.loads(value), event or "message"
            elif not field and (data is not None or kind == ""):
                assert event == kind, (event, data)
                return data
        raise AssertionError(f"the stream ended; curl: {self._process.wait()}")

    def close(self) -> None:
        """Leave it."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def stream(path: str, token: str, last_id: str = "") -> Iterator[Stream]:
    """A stream that has begun."""
    one = Stream(path, token, last_id)
    try:
        yield one
    finally:
        one.close()


class Served(Background):
    """The tree "a:b c" with a dashboard on a; an executor on c, a worker on b and c."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: dict[str, str] = {}

    @asynccontextmanager
    async def live(self, folder: Path) -> AsyncIterator[None]:
        password = Hashed.of(PASSWORD, (1024, 1, 1))
        users = Users({"alice": User(Role.OPERATE, password), "victor": User(Role.VIEW, password)})
        for name in ("view", "operate", "fuzz", "flood", "gone"):
            role = Role.VIEW if name in ("view", "gone") else Role.OPERATE
            users, self.tokens[name] = users.with_token(name, role)
        self.users = UsersFile(folder / "users.json")
        self.users.write(users)
        self.tree = tree = Tree("a:b c", folder)
        settings = Dashboard(host=HOST, port=PORT, users="users.json", history_file="history.db")
        tree.config = replace(tree.config, dashboard=settings)
        hours_ago = time.time_ns() // 60_000_000_000 - 90
        HistoryFile(folder / settings.history_file, 7, 1 << 20).put(
            hours_ago, [(("b", GONE), (1.5, 7.0) + (None,) * 4, (4.5, 7.0) + (None,) * 4)]
        )
        async with tree:
            for node in ("b", "c"):
                await tree.run(_greeter(), node)
            self.heard: list[Event] = await tree.collect("c", "shop.>")
            self._begin("executor", "c", "--audit-dir", str(folder))
            self._begin("dashboard", "a")
            try:
                await until("the dashboard answers", self._answers, LIMIT_S)
                await until("the executor serves", self._executes, LIMIT_S)
                yield
            finally:
                for process in (self.executor, self.dashboard):
                    process.terminate()
                codes = [process.wait() for process in (self.executor, self.dashboard)]
                assert "Traceback" not in self.log(), self.log()
                assert codes == [0, 0]

    def _begin(self, service: str, node: str, *more: str) -> None:
        folder = self.tree.folder
        argv = [sys.executable, str(SERVICES / f"ts_{service}.py"), "--config", str(folder / f"{node}.toml")]
        # NiceGUI looks for what tells it that it is tested, and then leaves things out.
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        with (folder / f"{service}.log").open("ab") as log:
            process = subprocess.Popen([*argv, "--bus", self.tree.bus(node), *more], stderr=log, cwd=folder, env=env)
        setattr(self, service, process)

    def log(self) -> str:
        """Return what the dashboard has logged."""
        return (self.tree.folder / "dashboard.log").read_text()

    def audit(self) -> list[dict[str, Any]]:
        """Return the executor's audit log."""
        file = self.tree.folder / "exec-audit.log"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def get(self, path: str, who: str = "view", **more: Any) -> Answer:
        """Ask with a token, by its name."""
        return ask(path, token=self.tokens[who], **more)

    def post(self, path: str, body: Any, who: str = "operate", **more: Any) -> Answer:
        """Post with a token, by its name."""
        return ask(path, "POST", token=self.tokens[who], body=body, **more)

    def wait(self, what: str, is_so: Any) -> Any:
        """Wait until `is_so()`, which is called in this thread."""

        return asyncio.run(until(what, is_so, LIMIT_S))

    def _answers(self) -> bool:
        assert self.dashboard.poll() is None, self.log()
        try:
            return ask("/sign-in").status == 200
        except OSError:
            return False

    async def _executes(self) -> bool:
        client = await self.tree.connect("a")
        return bool((await client.call("c", "exec.jobs")).ok)


def _greeter() -> Worker:
    worker = Worker("greeter")

    @worker.command("hello")
    def hello(call: Request) -> object:
        return {"node": call.node, "person": call.person, "got": call.value()}

    @worker.command("bytes")
    def some(call: Request) -> bytes:
        return bytes([0xFF]) * call.json()

    return worker
