"""Event lines: how ts-sub and `treescale events` write one event."""

import json
import os
import sys
from datetime import datetime
from typing import Any

import click
import msgspec

from tsbus import Event
from tsbus.cli.terminal import body_line, safe
from tsbus.core.body import body_json
from tsbus.core.message import EventMeta, decode_meta

_encode = msgspec.json.Encoder().encode  # json.dumps takes five times as long, too long for a fast stream
_COLORS = {
    "up": "green", "recovered": "green", "started": "green", "healthy": "green",
    "torpid": "yellow", "slow": "yellow", "draining": "yellow", "repaired": "yellow",
    "lost": "red", "down": "red", "died": "red", "oom": "red", "unhealthy": "red",
    "active": "green", "filled": "green", "solved": "green", "unsorry": "green", "calm": "green",
    "exited": "red", "fatal": "red", "failed": "red", "dropped": "yellow", "firing": "red", "resolved": "green",
    "out": "yellow", "sorry": "yellow", "problem": "red", "empty": "red", "panic": "red",
}  # fmt: skip


def plain(event: Event) -> bytes:
    """Return node, topic and body."""
    return f"{event.origin} {safe(event.topic)} {body_line(event.body)}\n".encode()


def raw(event: Event) -> bytes:
    """Return the body alone."""
    return event.body + b"\n"


def as_json(event: Event) -> bytes:
    """Return everything that is known of the event."""
    meta = decode_meta(EventMeta, event.meta)  # once; the event's own properties would do it for each of them
    about: dict[str, Any] = {
        "topic": event.topic,
        "origin": event.origin,
        "who": event.who,
        "time_ms": meta.time_ms,
        "incarnation": meta.incarnation,
        "seq": meta.seq,
    }
    return _encode(about | body_json(event.body)) + b"\n"


def told(event: Event) -> bytes:
    """Return time, node, topic, and what happened in words."""
    clock = datetime.fromtimestamp(event.time_ms / 1000).strftime("%H:%M:%S.%f")[:-3]
    topic = f"{safe(event.topic):<19}"
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        topic = click.style(topic, fg=_COLORS.get(event.topic.rpartition(".")[2]))
    return f"{clock}  {event.origin:<12}  {topic}  {_words(event)}\n".encode()


def _words(event: Event) -> str:
    """Return what an event of the bus says in words; the body of any other."""
    try:
        facts = json.loads(event.body)
        match event.topic.split("."):
            case ["node", "up"]:
                return safe(f"{facts['node']} below {facts['parent']} ({facts['cause']})")
            case ["node", state]:
                below = f"; its subtree: {facts['nodes']}" if facts["nodes"] != facts["node"] else ""
                return safe(f"{facts['node']} is {state} ({facts['cause']}){below}")
            case ["bus", "slow" | "recovered" as action]:
                keeps = "does not keep up" if action == "slow" else "keeps up again"
                lost = f": {facts['dropped']:,} events were dropped" if facts["dropped"] else ""
                return safe(f"{facts['kind']} {facts['peer']} {keeps}{lost}")
            case ["worker", _]:
                return safe(f"{facts['name']} ({facts['who']})")
            case ["process", action]:
                return safe(_process_words(action, facts))
            case ["handler", "failed"]:
                how = facts["reason"] or (f"signal {facts['signal']}" if facts["signal"] else f"exit {facts['exit']}")
                return safe(f"{facts['name']} for {facts['topic']}: {how}")
            case ["handler", "dropped"]:
                return safe(f"{facts['name']}: {facts['dropped']} events that nobody had time for")
            case ["alert", _]:
                return safe(f"{facts['rule']}: {facts['text']}")
            case ["container", action]:
                return safe(_container_words(action, facts))
            case ["image" | "network", _]:
                container = f", container {facts['container'][:12]}" if facts.get("container") else ""
                return safe((facts.get("name") or facts["id"][:19]) + container)
            case ["docker", "up"]:
                return safe(f"{facts.get('name', '')} {facts.get('version', '')}".strip() or "the engine is there")
            case ["docker", "down"]:
                return safe(facts.get("reason", ""))
            case ["docker", "repaired"]:
                return safe("; ".join(facts["repairs"]))
            case ["lb", "capacity"]:
                alive = (f"{name} {told['capacity']:g}" for name, told in facts["balancers"].items())
                return safe(f"alive: {', '.join(alive) or 'nothing'}")
            case ["lb", action]:
                return safe(_balancer_words(action, facts))
    except (ValueError, KeyError, TypeError):
        pass
    return body_line(event.body)


def _process_words(action: str, facts: dict[str, Any]) -> str:
    how = f"pid {facts['pid']}" if facts["pid"] else ""
    if action == "exited":
        how = how if facts["expected"] else f"{how}, unexpected" if how else "within its first second"
    elif action == "fatal":
        how = "given up, and tried again later: see its log"
    return f"{facts['name']} ({how})" if how else facts["name"]


def _container_words(action: str, facts: dict[str, Any]) -> str:
    about = facts["container"]
    more = []
    if action == "died":
        more = [f"exit {about.get('exit_code', '?')}"] + (["out of memory"] if about.get("oom") else [])
    elif action == "draining":
        more = [f"signal {facts.get('signal', '?')}"]
    elif action == "renamed":
        more = [f"was {facts.get('was', '?')}"]
    if facts.get("cause") == "reconcile":
        more.append("found by comparing")
    return f"{about['name']} ({', '.join([about['image']['given'], *more])})"


def _balancer_words(action: str, facts: dict[str, Any]) -> str:
    """Return whom it concerns, and why or what was done."""
    server, why = facts.get("server"), facts.get("cause", "")
    if action in ("problem", "solved"):
        mend = f"; mend: {facts['mend']}" if facts.get("mend") and action == "problem" else ""
        why = facts["text"] + mend
    elif action == "repaired":
        why = "; ".join(facts["steps"])
    elif server:
        ip = f"[{server['ip']}]" if ":" in server["ip"] else server["ip"]
        place = f"{ip}:{server['port']}" + (f" on {server['node']}" if server.get("node") else "")
        weight = f", weight {server['weight']}" if action in ("active", "weight") else ""
        why = f"{server['name']} ({place}){weight}: {why}"
    return f"{facts['balancer']}: {why}" if facts.get("balancer") else why
