"""TreeScale: a tree of servers on an always-alive ZeroMQ bus.

Programs need only this: `connect` (asyncio) or `connect_blocking`, and `Worker`. docs/worker-api.md is the reference.
Names are imported when they are first used: a short command such as ts-pub needs few of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tsbus.blocking import BlockingClient, connect_blocking
    from tsbus.calls import Call, Request, Result
    from tsbus.client import Client, connect
    from tsbus.core.accounting import Outcome
    from tsbus.core.body import BodyError
    from tsbus.core.events import Event
    from tsbus.core.exchanges import Reply
    from tsbus.core.message import Gap
    from tsbus.core.roles import Role
    from tsbus.core.topic import TopicError
    from tsbus.errors import (
        BufferFull,
        BusError,
        CallFailed,
        CommandError,
        ConnectionLost,
        NoRouter,
        PayloadTooLarge,
        Refused,
        RefusedError,
        UnknownTarget,
    )
    from tsbus.filters import Filter
    from tsbus.live_mirror import follow
    from tsbus.mirror import Mirror
    from tsbus.subscription import Interest, Subscription
    from tsbus.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "BlockingClient",
    "BodyError",
    "BufferFull",
    "BusError",
    "Call",
    "CallFailed",
    "Client",
    "CommandError",
    "ConnectionLost",
    "Event",
    "Filter",
    "Gap",
    "Interest",
    "Mirror",
    "NoRouter",
    "Outcome",
    "PayloadTooLarge",
    "Refused",
    "RefusedError",
    "Reply",
    "Request",
    "Result",
    "Role",
    "Subscription",
    "TopicError",
    "UnknownTarget",
    "Worker",
    "connect",
    "connect_blocking",
    "follow",
]

_HOMES = {
    "tsbus.blocking": (
        "BlockingClient",
        "connect_blocking",
    ),
    "tsbus.calls": (
        "Call",
        "Request",
        "Result",
    ),
    "tsbus.client": (
        "Client",
        "connect",
    ),
    "tsbus.core.accounting": ("Outcome",),
    "tsbus.core.body": ("BodyError",),
    "tsbus.core.events": ("Event",),
    "tsbus.core.exchanges": ("Reply",),
    "tsbus.core.message": ("Gap",),
    "tsbus.core.roles": ("Role",),
    "tsbus.core.topic": ("TopicError",),
    "tsbus.errors": (
        "BufferFull",
        "BusError",
        "CallFailed",
        "CommandError",
        "ConnectionLost",
        "NoRouter",
        "PayloadTooLarge",
        "Refused",
        "RefusedError",
        "UnknownTarget",
    ),
    "tsbus.filters": ("Filter",),
    "tsbus.live_mirror": ("follow",),
    "tsbus.mirror": ("Mirror",),
    "tsbus.subscription": (
        "Interest",
        "Subscription",
    ),
    "tsbus.worker": ("Worker",),
}


def __getattr__(name: str) -> object:
    """Import a public name from its home (PEP 562)."""
    for home, names in _HOMES.items():
        if name in names:
            value: object = getattr(import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module tsbus has no attribute {name!r}")
