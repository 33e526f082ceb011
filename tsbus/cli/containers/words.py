"""Words: how the state, the ports and the names of containers are told to people. Pure."""

import re
from collections.abc import Iterable
from functools import lru_cache

from tsbus.cli.terminal import duration, safe
from tsbus.records import Container, Endpoint, Image

SHORT_ID = 12
STYLES = {"Up": "green", "Exited": "red", "Dead": "red", "Restarting": "yellow", "Draining": "yellow"}
"""First word of a state -> its colour."""
_ID = re.compile(r"(?:sha256:)?\b([0-9a-f]{12})[0-9a-f]{52}\b")
_DIGITS = re.compile(r"(\d+)")


@lru_cache(4096)
def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Return a key that sorts web2 before web10."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in _DIGITS.split(name))


def count(number: int, thing: str) -> str:
    """Return a number with its thing: `1 node`, `1,000 nodes`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def state_words(container: Container, now_ns: int) -> str:
    """Return the state as Docker's users know it: `Up 3 min (healthy)`, `Exited (1) 2 h ago`."""
    match container.state:
        case "created":
            return "Created"
        case "running":
            words = f"Up {_since(container.started_ns, now_ns)}"
        case "paused":
            words = f"Up {_since(container.started_ns, now_ns)} (paused)"
        case "restarting":
            words = f"Restarting ({_code(container)}) {_since(container.finished_ns, now_ns)} ago"
        case "exited":
            return f"Exited ({_code(container)}) {_since(container.finished_ns, now_ns)} ago"
        case other:
            return other.capitalize()
    if container.health:
        words += " (health: starting)" if container.health == "starting" else f" ({container.health})"
    return f"Draining, u{words[1:]}" if container.draining and words.startswith("Up") else words


def _since(then_ns: int, now_ns: int) -> str:
    # The clocks of two machines may differ: nothing began in the future.
    return duration(max(now_ns - then_ns, 0) / 1e9) if then_ns else "?"


def _code(container: Container) -> str:
    code = "?" if container.exit_code is None else str(container.exit_code)
    return f"{code}, out of memory" if container.oom else code


def port_words(endpoints: Iterable[Endpoint]) -> str:
    """Return the ports as Docker's users know them, each once: `8080->80/tcp, 127.0.0.1:53->53/udp, 9000/tcp`."""
    words: dict[str, None] = {}
    for end in sorted(endpoints, key=lambda end: (not end.host_port, end.host_port, end.port, end.protocol)):
        inner = f"{end.port}/{end.protocol}"
        host = "" if end.host_ip in ("", "0.0.0.0", "::") else f"{_bracketed(end.host_ip)}:"  # noqa: S104  (words)
        words[f"{host}{end.host_port}->{inner}" if end.host_port else inner] = None
    return ", ".join(words)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def image_words(image: Image, *, whole: bool = False) -> str:
    """Return the name of an image as it was given; `whole`: with the digits of what is only an id."""
    return safe(image.given) if whole else shorten_ids(safe(image.given))


def shorten_ids(text: str) -> str:
    """Return `text` with the first digits of the ids in it."""
    return _ID.sub(r"\1", text)
