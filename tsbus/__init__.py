"""TreeScale: a tree of servers on an always-alive ZeroMQ bus.

Programs need only this: `connect` (asyncio) or `connect_blocking`, and `Worker`. docs/worker-api.md is the reference.
"""

from tsbus.blocking import BlockingClient, connect_blocking
from tsbus.calls import Call, Request, Result
from tsbus.client import Client, Interest, Subscription, connect
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
    "Gap",
    "Interest",
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
]
