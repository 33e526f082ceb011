"""Notify: alerts reach the bus, webhooks and commands; a webhook that fails is tried again, and no secret is shown."""

import asyncio
import http.server
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tree import until

from tsbus import Request, Worker, connect
from tsbus.config import Alert
from tsbus.dashboard import notify
from tsbus.dashboard.feed import Feed
from tsbus.dashboard.notify import Notifier, NotTold, post, secret_of

SECRET = "Bearer s3cr3t-of-the-hook"


class Hook(http.server.ThreadingHTTPServer):
    """A webhook that keeps what it gets, and answers with `codes`, the last of them for ever."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.codes = [204]
        self.got: list[tuple[str | None, dict[str, object]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/T0P53CR3T"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((self.headers.get("Authorization"), body))
        code = self.server.codes.pop(0) if len(self.server.codes) > 1 else self.server.codes[0]
        self.send_response(code)
        self.send_header("Location", "file:///etc/passwd")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@asynccontextmanager
async def notifying(bus: str, rule: Alert, folder: Path) -> AsyncIterator[Notifier]:
    async with (
        connect(bus, name="dashboard", timeout_s=20) as client,
        Feed(client) as feed,
        Notifier(feed, client, {rule.name: rule}, folder) as notifier,
    ):
        yield notifier


async def test_an_alert_reaches_bus_webhook_and_command(lone_bus, hook, tmp_path, monkeypatch):
    """One event of a rule's own topic is told in three ways, with the secret in its header; a 500 is tried again."""
    monkeypatch.setattr(notify, "FIRST_RETRY_S", 0.01)
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    hook.codes = [500, 204]
    rule = Alert(
        name="backup", when="event", on="backup.failed", condition="code > 1", to=(hook.url,), call="pager.ring",
        header="Authorization", secret_file="secret", hold_s=3600.0,
    )  # fmt: skip
    pager, rung = Worker("pager", lone_bus), []

    @pager.command("ring")
    def ring(call: Request) -> None:
        rung.append(call.json())

    async with connect(lone_bus, timeout_s=20) as served, connect(lone_bus) as client:
        serving = asyncio.create_task(pager.serve(served))
        await pager.wait_ready()
        async with (
            notifying(lone_bus, rule, tmp_path) as notifier,
            client.subscribe("alert.firing") as alerts,
        ):
            await client.publish("backup.failed", {"code": 1})
            await client.publish("backup.failed", {"code": 2})
            told = (await alerts.next(20)).json()
            assert (told["rule"], told["text"]) == ("backup", "backup.failed on solo")
            await until("the webhook and the command are told", lambda: len(hook.got) == 2 and rung)
            assert hook.got == [(SECRET, told)] * 2
            assert rung == [told]
            await until("both are noted", lambda: len(notifier.deliveries) == 2)
            assert {one.to: one.error for one in notifier.deliveries} == {"127.0.0.1": "", "pager.ring": ""}
        serving.cancel()


async def test_a_rule_may_be_for_the_dashboard_of_one_node(lone_bus, tmp_path):
    """A dashboard elsewhere leaves it alone, so that two of them do not both tell."""
    for node, taken in (("other", []), ("solo", ["r"])):
        async with notifying(lone_bus, Alert(name="r", when="node-lost", node=node), tmp_path) as notifier:
            assert list(notifier.alerts.rules) == taken


async def test_a_test_tells_what_became_of_it(lone_bus, hook, tmp_path, capfd):
    """The button shows who was told and who was not, and why; neither it nor the log shows a secret."""
    hook.codes = [302]
    rule = Alert(name="r", when="node-lost", to=(hook.url, "http://127.0.0.1:1/x"), call="pager.ring")
    async with notifying(lone_bus, rule, tmp_path) as notifier:
        deliveries = await notifier.test("r")
    assert [(one.to, one.error) for one in deliveries][:2] == [
        ("127.0.0.1", "it is elsewhere now (302): give its new address"),
        ("127.0.0.1", "cannot be reached: Connection refused"),
    ]
    assert "pager" in deliveries[2].error
    assert hook.got[0][1]["test"] is True
    assert "T0P53CR3T" not in capfd.readouterr().err + str(deliveries)


@pytest.mark.parametrize(("code", "again"), [(404, False), (301, False), (429, True), (503, True)])
def test_what_may_pass_is_tried_again(hook, code, again):
    """A server that is busy or broken may be better soon; a wrong address or another place is not."""
    hook.codes = [code]
    with pytest.raises(NotTold) as caught:
        post(hook.url, b"{}", {})
    assert caught.value.again is again


def test_a_secret_is_never_in_an_error(tmp_path, monkeypatch):
    """A file or variable that holds none, or one that no header can carry, is named; what is in it is not."""
    by_file = Alert(name="r", when="node-lost", header="X-Key", secret_file="key")
    by_env = Alert(name="r", when="node-lost", header="X-Key", secret_env="HOOK")
    with pytest.raises(NotTold, match=r"alerts\.r: cannot read key: No such file"):
        secret_of(by_file, tmp_path)
    monkeypatch.setenv("HOOK", "s3cr3t\r\nHost: evil")
    with pytest.raises(NotTold) as caught:
        secret_of(by_env, tmp_path)
    assert str(caught.value) == "alerts.r: $HOOK holds no secret that a header can carry"
    monkeypatch.setenv("HOOK", "good")
    assert secret_of(by_env, tmp_path) == "good"
