"""Actions: what people change through the dashboard. Each asks who it is for, and is refused to who may only see.

On the bus the dashboard is the caller, with its own role; the person goes along with each call, and both are in the
audit log of the node where it is done (docs/protocol.md 10.8).
"""

from tsbus.client import Client


class Actions:
    """What can be done through one client."""

    def __init__(self, client: Client) -> None:
        self._client = client
