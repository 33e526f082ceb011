"""Notify: watches over the rules of the configuration, and tells of alerts: on the bus, to webhooks, by commands.

alerts.py decides. Everybody who is told has a bounded queue: who hangs holds up nobody else, and hears all in order.
The address of a webhook and its header are secrets as a rule: of both, only the host is ever logged or shown.
"""

import asyncio
import http.client
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Awaitable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec

from tsbus.client import Client
from tsbus.config import Alert
from tsbus.dashboard.alerts import Alerts, News
from tsbus.dashboard.feed import Feed, unix_ms
from tsbus.errors import BusError
from tsbus.log import Log

CHECK_S: Final = 1.0
"""How often the rules look at the model at least, for times that pass."""
REST_S: Final = 0.2
"""Between two looks, however many events come."""
MAX_WAITING: Final = 500
"""Things to tell one webhook or command; the oldest goes when there are more."""
TRIES: Final = 5
FIRST_RETRY_S: Final = 1.0
"""Twice as long each time."""
TIMEOUT_S: Final = 10.0
MAX_DELIVERIES: Final = 200
"""That are remembered, for people to see."""

_log = Log("dashboard.notify")


class NotTold(Exception):
    """Somebody could not be told; the text says why, without a secret. `again`: it may help to try once more."""

    def __init__(self, text: str, *, again: bool = False) -> None:
        super().__init__(text)
        self.again = again


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of telling somebody."""

    rule: str
    state: str
    to: str
    """The host of a webhook, or the command."""
    error: str
    """Empty when it was told."""
    at_ms: int


class Notifier:
    """Runs the rules and tells what they find, while it is used with `async with`."""

    def __init__(self, feed: Feed, client: Client, rules: Mapping[str, Alert], folder: Path) -> None:
        """Take the rules that are for our node; `folder` is where relative paths of secrets begin. Raises RuleError."""
        rules = {name: rule for name, rule in rules.items() if rule.node in ("", client.node)}
        self.alerts = Alerts(rules)
        self.deliveries: deque[Delivery] = deque(maxlen=MAX_DELIVERIES)
        self.dropped = 0
        """Things that were not told because too many waited."""
        self._feed, self._client, self._folder = feed, client, folder
        self._waiting = {place: asyncio.Queue[News](MAX_WAITING) for rule in rules.values() for place in _places(rule)}
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for topic in self.alerts.topics:
            await self._stack.enter_async_context(self._feed.listening(topic))
        if self.alerts.needs_figures:
            self._stack.enter_context(self._feed.watching())
        self._tasks = [asyncio.create_task(work) for work in (self._watch(), *map(self._tell, self._waiting))]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def test(self, rule: str) -> list[Delivery]:
        """Tell everybody whom a rule tells that this is a test, once; returns what became of it. Raises KeyError."""
        news = self.alerts.test(rule, unix_ms())
        places = _places(self.alerts.rules[rule])
        return list(await asyncio.gather(*(self._deliver(news, place, tries=1) for place in places)))

    async def _watch(self) -> None:
        model, alerts, number = self._feed.model, self.alerts, self._feed.model.events.last
        while True:
            await self._feed.wait_event(number, CHECK_S)
            events, lost = model.events.since(number)
            if lost:
                _log.warning("notify.events-missed", count=lost)
            number = model.events.last
            news = [one for event in events for one in alerts.event(event, model, unix_ms())]
            for one in news + alerts.check(model, unix_ms()):
                await self._announce(one)
            await asyncio.sleep(REST_S)

    async def _announce(self, news: News) -> None:
        _log.warning("alert", state=news.state, rule=news.alarm.rule, text=news.alarm.case.text)
        try:
            await self._client.publish(f"alert.{news.state}", news.body())
        except BusError as error:
            _log.warning("notify.not-published", error=str(error))
        for place in _places(self.alerts.rules[news.alarm.rule]):
            waiting = self._waiting[place]
            if waiting.full():
                waiting.get_nowait()
                self.dropped += 1
                _log.warning("notify.dropped", to=_shown(place))
            waiting.put_nowait(news)

    async def _tell(self, place: str) -> None:
        while True:
            await self._deliver(await self._waiting[place].get(), place, tries=TRIES)

    async def _deliver(self, news: News, place: str, tries: int) -> Delivery:
        rule, error = self.alerts.rules[news.alarm.rule], ""
        for attempt in range(tries):
            try:
                await self._send(rule, news, place)
                error = ""
            except NotTold as failure:
                error = str(failure)
                if failure.again and attempt + 1 < tries:
                    await asyncio.sleep(FIRST_RETRY_S * 2**attempt)
                    continue
            break
        delivery = Delivery(rule.name, news.state, _shown(place), error, unix_ms())
        self.deliveries.append(delivery)
        if error:
            _log.warning("notify.not-told", rule=rule.name, to=delivery.to, error=error)
        return delivery

    def _send(self, rule: Alert, news: News, place: str) -> Awaitable[None]:
        if "://" not in place:
            return self._call(rule, news)
        headers = {"Content-Type": "application/json", "User-Agent": "treescale"}
        if rule.header:
            headers[rule.header] = secret_of(rule, self._folder)
        return asyncio.to_thread(post, place, msgspec.json.encode(news.body()), headers)

    async def _call(self, rule: Alert, news: News) -> None:
        try:
            result = await self._client.call(rule.call_target or ".", rule.call, news.body(), timeout_s=TIMEOUT_S)
        except BusError as error:
            raise NotTold(str(error), again=True) from None
        if not result.complete:
            raise NotTold(result.explain())


def _places(rule: Alert) -> tuple[str, ...]:
    return (*rule.to, *((rule.call,) if rule.call else ()))


def _shown(place: str) -> str:
    return urllib.parse.urlsplit(place).hostname or "?" if "://" in place else place


def secret_of(rule: Alert, folder: Path) -> str:
    """Return the secret of a rule's webhooks. Raises NotTold, with its place and not with itself."""
    if rule.secret_env:
        place, secret = f"${rule.secret_env}", os.environ.get(rule.secret_env, "")
    else:
        place = rule.secret_file
        try:
            lines = (folder / rule.secret_file).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise NotTold(f"alerts.{rule.name}: cannot read {place}: {reason}") from None
        secret = lines[0] if lines else ""
    if not secret or not secret.isascii() or not secret.isprintable():
        raise NotTold(f"alerts.{rule.name}: {place} holds no secret that a header can carry")
    return secret


# HTTP -----------------------------------------------------------------------------------------------------------------


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener that knows HTTP only, and follows nobody elsewhere: the secret is for one place."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


def post(url: str, body: bytes, headers: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> None:
    """Send a POST request. Blocks. Raises NotTold."""
    request = urllib.request.Request(url, body, dict(headers), method="POST")  # noqa: S310  (the opener knows HTTP only)
    try:
        with _opener().open(request, timeout=timeout_s):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        if 300 <= error.code < 400:
            raise NotTold(f"it is elsewhere now ({error.code}): give its new address") from None
        raise NotTold(f"it answers {error.code}", again=error.code >= 500 or error.code == 429) from None
    except urllib.error.URLError as error:
        reason = error.reason
        text = (reason.strerror if isinstance(reason, OSError) else None) or type(reason).__name__
        raise NotTold(f"cannot be reached: {text}", again=True) from None
    except (OSError, http.client.HTTPException) as error:
        raise NotTold(f"the request broke: {type(error).__name__}", again=True) from None
