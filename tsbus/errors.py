"""What can go wrong on the bus, as a user of the library meets it.

The type says whose turn it is: the caller's (`UnknownTarget`, `PayloadTooLarge`, `BufferFull`), the far side's
(`Refused`, `CallFailed`) or the network's (`NoRouter`, `ConnectionLost`). Malformed topics and bodies are ValueErrors
of their own (`TopicError`, `BodyError`). Handlers of a worker raise `CommandError` and `RefusedError`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tsbus.calls import Result


class BusError(Exception):
    """The base of all errors of the bus."""


class NoRouter(BusError):
    """No router answers at the address; the text says where and what to try."""


class ConnectionLost(BusError):
    """The connection to the router ended, or this client was closed, before the thing was done."""


class Refused(BusError):
    """The router refused; `reason` is a word of protocol section 12."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{text or 'refused'} ({reason})")
        self.reason = reason
        self.text = text


class UnknownTarget(BusError):
    """The target names a node or tag that the tree does not have, or selects nothing."""


class PayloadTooLarge(BusError):
    """A body is larger than the router takes (1 MiB by default). Send it in chunks."""


class BufferFull(BusError):
    """There is no room towards the router now. Try again later, or use the call that waits."""


class CallFailed(BusError):
    """A call did not end well on every node. `result` is its whole account."""

    def __init__(self, result: "Result") -> None:
        super().__init__(result.explain())
        self.result = result


class CommandError(Exception):
    """Raise it in a command's handler: the call ends as failed with this text, and nothing is logged."""


class RefusedError(Exception):
    """Raise it in a command's handler: the call ends as refused with this text."""
