"""Main of the dashboard: reads options and the configuration, then serves the model of a feed until a signal.

`prepare` finds out all that can be wrong before there is a bus; `serve` needs one. `treescale dashboard` uses both.
"""

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tsbus.client import Client
from tsbus.config import Alert, Dashboard, Tree
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
    from tsbus.dashboard.historyfile import HistoryFile
    from tsbus.dashboard.web.server import Listener

NAME: Final = "dashboard"
"""Of the worker, on the bus."""
USERS_NAME: Final = "dashboard-users.json"
_EXTRA: Final = ("nicegui", "fastapi", "starlette", "uvicorn", "prometheus_client")
_log = Log("dashboard")


class NotReady(Exception):
    """The dashboard cannot start; the text says why and what to do."""


class Misconfigured(NotReady):
    """It cannot, because the configuration or the users file is not in order."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a configuration says of a dashboard."""

    settings: Dashboard = field(default_factory=Dashboard)
    rules: Mapping[str, Alert] = field(default_factory=dict)
    folder: Path = Path()
    """Where its relative paths begin."""

    @classmethod
    def of(cls, tree: Tree, folder: Path) -> Self:
        """Return what `tree`, from a file in `folder`, says of the dashboard of its current node."""
        node = tree.current_node
        return cls(tree.dashboard_for(node) if node else tree.dashboard, tree.alerts, folder.absolute())

    @property
    def users(self) -> UsersFile:
        """The users file."""
        return UsersFile(self.folder / (self.settings.users or USERS_NAME))

    @property
    def tls(self) -> tuple[Path, Path] | None:
        """The certificate and its key, if there is one."""
        settings = self.settings
        return (self.folder / settings.certificate, self.folder / settings.key) if settings.certificate else None

    @property
    def history(self) -> "HistoryFile | None":
        """The file that keeps figures longer than an hour, if there is to be one."""
        one = self.settings
        if not one.history_file:
            return None
        from tsbus.dashboard.historyfile import HistoryFile  # with what top and the command line do not need

        return HistoryFile(self.folder / one.history_file, one.history_days, one.history_max_bytes)


@dataclass(frozen=True, slots=True)
class Ready:
    """A dashboard that listens, and has no bus yet."""

    wanted: Wanted
    door: Door
    listener: "Listener"


def prepare(wanted: Wanted) -> Ready:
    """Look at all that is needed, and listen. Raises NotReady."""
    try:
        from tsbus.dashboard.web import server
    except ImportError as error:
        if error.name == "_sqlite3":
            raise NotReady("this Python has no sqlite3: use the one of your distribution") from error
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise NotReady(f"{error.name} is not installed: pip install 'treescale[dashboard]'") from error
    settings = wanted.settings
    try:
        Alerts(wanted.rules)
        book = Book(wanted.users)
        if wanted.tls:
            server.check_certificate(*wanted.tls)
        is_private = is_loopback(settings.host) and not settings.behind_proxy
        _check_reach(wanted, book, is_private)
        listener = server.listen(settings)
    except (RuleError, UsersError, server.CertificateError) as error:
        raise Misconfigured(str(error)) from error
    except server.ListenError as error:
        raise NotReady(str(error)) from error
    return Ready(wanted, Door(book, time.monotonic, may_be_open=is_private), listener)


def _check_reach(wanted: Wanted, book: Book, is_private: bool) -> None:
    """Refuse to send passwords in the clear, and to let others than this machine in without one. Raises NotReady."""
    settings = wanted.settings
    if not (settings.certificate or settings.behind_proxy or is_loopback(settings.host)):
        mend = "give certificate and key in [dashboard], or put it behind a proxy on this machine (behind_proxy = true)"
        raise Misconfigured(f"passwords would go over the network in the clear from {settings.host}; {mend}")
    if not is_private and not book.users.users:
        mend = "treescale dashboard user add NAME --role operate"
        raise Misconfigured(f"others may reach it, and {wanted.users.path} has nobody who could sign in; {mend}")


async def serve(ready: Ready, client: Client, begun: Callable[[str], object]) -> None:
    """Serve what `client` sees until cancelled; `begun` is called with the address once it answers."""
    from tsbus.dashboard.historyfile import keeping
    from tsbus.dashboard.web import server
    from tsbus.dashboard.web.site import Site

    wanted = ready.wanted
    file = wanted.history
    async with (
        Feed(client) as feed,
        Notifier(feed, client, wanted.rules, wanted.folder) as notifier,
        keeping(feed, file) if file else nullcontext() as keeper,
    ):
        site = Site(client, feed, ready.door, Actions(client), notifier, keeper)
        gate = server.application(site, wanted.settings, ready.listener, names=(socket.gethostname(), client.node))
        running = server.Running(gate, ready.listener, wanted.tls, behind_proxy=wanted.settings.behind_proxy)
        await running.run_until_cancelled(lambda: begun(ready.listener.url), site.closing)


def main() -> int:
    """Run the dashboard of a node until a signal. Exit status 1: it cannot listen; 2: the configuration is wrong."""
    parser = parser_of("ts_dashboard", "The dashboard of a node.")
    options = parser.parse_args()
    tree = load_tree(parser, options)
    try:
        ready = prepare(Wanted.of(tree, Path(options.config).parent))
    except Misconfigured as error:
        refuse(parser, error)
    except NotReady as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    begun = lambda url: _log.info("dashboard.ready", url=url)  # noqa: E731
    return run_service(parser.prog, NAME, lambda client: serve(ready, client, begun), options.bus)
