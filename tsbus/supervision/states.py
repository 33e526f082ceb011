"""States: supervisord's process events in the words of the bus, and when to try again what is FATAL. Pure.

The format is that of http://supervisord.org/events.html.
"""

from typing import Any

_TOPICS = {
    "PROCESS_STATE_RUNNING": "process.started",
    "PROCESS_STATE_EXITED": "process.exited",
    # It ended within its first second: supervisord has no EXITED for that, and does not tell the pid.
    "PROCESS_STATE_BACKOFF": "process.exited",
    "PROCESS_STATE_STOPPED": "process.stopped",
    "PROCESS_STATE_FATAL": "process.fatal",
}
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 300.0


def tokens(text: str) -> dict[str, str]:
    """Return the `name:value` words of a header or a payload."""
    return dict(word.split(":", 1) for word in text.split())


def bus_event(event_name: str, payload: str) -> tuple[str, dict[str, Any]] | None:
    """Return the topic and the facts to publish for an event of supervisord, None for steps on the way."""
    topic = _TOPICS.get(event_name)
    if topic is None:
        return None
    told = tokens(payload)
    return topic, {
        "name": told["processname"],
        "pid": int(told["pid"]) if "pid" in told else None,
        "expected": event_name in ("PROCESS_STATE_RUNNING", "PROCESS_STATE_STOPPED") or told.get("expected") == "1",
        "from_state": told["from_state"],
    }


def is_joined(status: dict[str, Any]) -> bool:
    """Return whether a router is connected to its parent, or needs none, by its own `router.status`."""
    nodes = {node["name"]: node for node in status["nodes"]}
    here = nodes[status["node"]]
    above = nodes.get(here["parent"] or here["home"])
    return above is None or above["state"] == "up"


class Retries:
    """How long to wait before a FATAL program is started again: twice as long each time, until it runs."""

    def __init__(self) -> None:
        self._next_s: dict[str, float] = {}

    def delay_s(self, program: str) -> float:
        """Return the time to wait now."""
        delay = self._next_s.get(program, FIRST_RETRY_S)
        self._next_s[program] = min(2 * delay, LAST_RETRY_S)
        return delay

    def runs(self, program: str) -> None:
        """Begin anew: the program runs."""
        self._next_s.pop(program, None)
