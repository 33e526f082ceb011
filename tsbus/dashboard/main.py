"""Main of the dashboard: reads options and the configuration, then serves the model of a feed until a signal.

`prepare` finds out all that can be wrong before there is a bus; `serve` needs one. `treescale dashboard` uses both.
"""

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tsbus.client import Client
from tsbus.config import Alert, Dashboard
from tsbus.config.forms import is_loopback
from tsbus.dashboard.actions import Actions
from tsbus.dashboard.alerts import Alerts, RuleError
from tsbus.dashboard.door import Door
from tsbus.dashboard.feed import Feed
from tsbus.dashboard.notify import Notifier
from tsbus.dashboard.users import Book, UsersError, UsersFile
from tsbus.log import Log
from tsbus.starting import load_tree, parser_of, refuse, run_service

if TYPE_CHECKING:
    from tsbus.dashboard.web.server import Listener

NAME: Final = "dashboard"
"""Of the worker, on the bus."""
USERS_NAME: Final = "dashboard-users.json"
_EXTRA: Final = ("nicegui", "fastapi", "starlette", "uvicorn", "prometheus_client")
NO_ALERTS: Final[Mapping[str, Alert]] = {}
_log = Log("dashboard")


class NotReady(Exception):
    """The dashboard cannot start; the text says why and what to do."""


class Misconfigured(NotReady):
    """It cannot, because the configuration or the users file is not in order."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A dashboard that listens, and has no bus yet."""

    settings: Dashboard
    door: Door
    listener: "Listener"
    alerts: Mapping[str, Alert]
    folder: Path
    """Where relative paths of alerts begin."""


def beside(settings: Dashboard, folder: Path) -> Dashboard:
    """Return `settings` with their paths in full: they are relative to `folder`, that of the configuration."""
    users = str(folder / (settings.users or USERS_NAME))
    if not settings.certificate:
        return replace(settings, users=users)
    return replace(
        settings, users=users, certificate=str(folder / settings.certificate), key=str(folder / settings.key)
    )


def prepare(settings: Dashboard, alerts: Mapping[str, Alert] = NO_ALERTS, folder: Path = Path()) -> Ready:
    """Look at all that is needed, and listen; paths of `settings` are in full. Raises NotReady.

    `alerts` are those of the configuration in `folder`, where this dashboard is the one that watches over them.
    """
    try:
        from tsbus.dashboard.web import server
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise NotReady(f"{error.name} is not installed: pip install 'treescale[dashboard]'") from error
    try:
        book = Book(UsersFile(Path(settings.users)))
    except UsersError as error:
        raise Misconfigured(str(error)) from error
    if not (settings.certificate or settings.behind_proxy or is_loopback(settings.host)):
        mend = "give certificate and key in [dashboard], or put it behind a proxy on this machine (behind_proxy = true)"
        raise Misconfigured(f"passwords would go over the network in the clear from {settings.host}; {mend}")
    try:
        Alerts(alerts)
    except RuleError as error:
        raise Misconfigured(str(error)) from error
    is_private = is_loopback(settings.host) and not settings.behind_proxy
    if not is_private and not book.users.users:
        raise Misconfigured(
            f"others than this machine reach it, and {settings.users} has nobody who could sign in: "
            "treescale dashboard user add NAME --role operate"
        )
    try:
        if settings.certificate:
            server.check_certificate(Path(settings.certificate), Path(settings.key))
        listener = server.listen(settings)
    except server.CertificateError as error:
        raise Misconfigured(str(error)) from error
    except server.ListenError as error:
        raise NotReady(str(error)) from error
    return Ready(settings, Door(book, time.monotonic, may_be_open=is_private), listener, alerts, folder)


async def serve(ready: Ready, client: Client, begun: Callable[[str], object]) -> None:
    """Serve what `client` sees until cancelled; `begun` is called with the address once it answers."""
    from tsbus.dashboard.web import server
    from tsbus.dashboard.web.site import Site

    async with Feed(client) as feed, Notifier(feed, client, ready.alerts, ready.folder) as notifier:
        site = Site(client, feed, ready.door, Actions(client), notifier)
        gate = server.application(site, ready.settings, ready.listener, names=(socket.gethostname(), client.node))
        await server.serve(gate, ready.settings, ready.listener, lambda: begun(ready.listener.url))


def main() -> int:
    """Run the dashboard of a node until a signal. Exit status 1: it cannot listen; 2: the configuration is wrong."""
    parser = parser_of("ts_dashboard", "The dashboard of a node.")
    options = parser.parse_args()
    tree = load_tree(parser, options)
    try:
        folder = Path(options.config).parent
        ready = prepare(beside(tree.dashboard_for(tree.current_node), folder), tree.alerts, folder)
    except Misconfigured as error:
        refuse(parser, error)
    except NotReady as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    begun = lambda url: _log.info("dashboard.ready", url=url)  # noqa: E731
    return run_service(parser.prog, NAME, lambda client: serve(ready, client, begun), options.bus)
