"""Site: what pages and the API are made of, in one place."""

from dataclasses import dataclass

from tsbus.client import Client
from tsbus.dashboard.actions import Actions
from tsbus.dashboard.door import Door
from tsbus.dashboard.feed import Feed
from tsbus.dashboard.notify import Notifier


@dataclass(frozen=True, slots=True)
class Site:
    """One dashboard that runs."""

    client: Client
    feed: Feed
    door: Door
    actions: Actions
    notifier: Notifier
