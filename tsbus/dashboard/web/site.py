"""Site: what pages and the API are made of, in one place."""

import asyncio
from dataclasses import dataclass, field

from tsbus.client import Client
from tsbus.dashboard.actions import Actions
from tsbus.dashboard.door import Door
from tsbus.dashboard.feed import Feed
from tsbus.dashboard.historyfile import Keeper
from tsbus.dashboard.notify import Notifier


@dataclass(frozen=True, slots=True)
class Site:
    """One dashboard that runs."""

    client: Client
    feed: Feed
    door: Door
    actions: Actions
    notifier: Notifier
    keeper: Keeper | None = None
    """Of figures that are older than an hour, where they are kept."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server ends: whoever waits for something gives up."""
