"""Plays the scenarios beside this file and compares what everybody saw with what is written there.

A scenario is text: commands, a line `----`, then what came of them. A blank line ends the block, lines with # are for
the reader. The methods of `Stage` are the commands. After a wanted change, TREESCALE_REWRITE=1 writes the new outcome
into the files: read the difference before you commit it.
"""

import os
from itertools import groupby
from pathlib import Path

import pytest
from memory import Net, Probe

from tsbus.config import BusSettings
from tsbus.core.directory import NodeState
from tsbus.core.roles import Role
from tsbus.core.tree import Topology

SCENARIOS = sorted(Path(__file__).parent.glob("*.txt"))
REWRITE = bool(os.environ.get("TREESCALE_REWRITE"))


class Stage:
    """A tree, its people by name, and what they saw since the last block."""

    net: Net

    def __init__(self) -> None:
        self.people: dict[str, Probe] = {}
        self.seen: list[str] = []
        self.settings = BusSettings()

    def play(self, command: str) -> None:
        """Do what one line says, and let everything arrive."""
        verb, *words = command.split()
        getattr(self, f"do_{verb}")(*words)
        if verb not in ("tree", "set"):
            self.net.run()

    def say(self, who: str, what: str) -> None:
        self.seen.append(f"{who}: {what}")

    # The tree.

    def do_set(self, name: str, value: str) -> None:
        """A setting of the bus, before `tree`: set queue_bytes 65536."""
        kind = type(getattr(self.settings, name))
        self.settings = BusSettings(**{**vars_of(self.settings), name: kind(value)})

    def do_tree(self, *words: str) -> None:
        """Who is below whom, then tags: tree a: b c / b: d / @web: c d."""
        children: dict[str, list[str]] = {}
        tags: dict[str, tuple[str, ...]] = {}
        for part in " ".join(words).split("/"):
            name, _, rest = part.strip().partition(":")
            if name.startswith("@"):
                tags |= {node: (*tags.get(node, ()), name[1:]) for node in rest.split()}
            else:
                children.setdefault(name, []).extend(rest.split())
        for name in [child for below in children.values() for child in below]:
            children.setdefault(name, [])
        self.net = Net(Topology(children), tags=tags, settings=self.settings)

    def do_start(self, *nodes: str) -> None:
        """Start routers: start a b, or all of them: start *."""
        self.net.start(*(self.net.topology.names if nodes == ("*",) else nodes))

    def do_stop(self, node: str) -> None:
        self.net.stop(node)

    def do_cut(self, one: str, two: str) -> None:
        self.net.cut(one, two)

    def do_mend(self, one: str, two: str) -> None:
        self.net.mend(one, two)

    def do_hold(self, one: str, two: str) -> None:
        """Let nothing arrive between two nodes; the connection stays."""
        self.net.hold(one, two)

    def do_release(self, one: str, two: str) -> None:
        self.net.release(one, two)

    def do_wait(self, seconds: str) -> None:
        self.net.advance(int(float(seconds.removesuffix("s")) * 1000))

    def do_see(self, node: str) -> None:
        """What the router of `node` knows of every node."""
        directory = self.net.stations[node].router.directory
        for entry in directory.entries.values():
            state = "here" if entry.node == node else NodeState(entry.state).name.lower()
            reached = "" if entry.node in directory.reachable else ", out of reach"
            below = f" below {entry.parent}" if entry.parent else ""
            self.say(node, f"{entry.node} {state}{below} ({entry.cause}){reached}")

    def do_count(self, node: str, counter: str) -> None:
        """A counter of a router."""
        self.say(node, f"{counter} {self.net.stations[node].router.counters[counter]}")

    # People.

    def do_join(self, who: str, at: str, node: str, role: str = "admin") -> None:
        """A client or worker connects: join alice at a."""
        assert at == "at"
        probe = self.people[who] = self.net.probe(node, who, Role[role.upper()])
        probe.saw = lambda line: self.say(who, line)

    def do_leave(self, who: str) -> None:
        """End like kill -9."""
        self.people[who].leave()

    def do_sub(self, who: str, pattern: str, scope: str = "all") -> None:
        self.people[who].subscribe(pattern, scope)

    def do_unsub(self, who: str, pattern: str, scope: str = "all") -> None:
        self.people[who].unsubscribe(pattern, scope)

    def do_watch(self, who: str, pattern: str) -> None:
        self.people[who].watch(pattern)

    def do_pub(self, who: str, topic: str, target: str = "*", *words: str) -> None:
        """pub alice x.y * some text."""
        self.people[who].publish(topic, " ".join(words).encode(), target)

    def do_flood(self, who: str, topic: str, count: str, size: str) -> None:
        """So many events of so many bytes."""
        for _ in range(int(count)):
            self.people[who].publish(topic, bytes(int(size)))
            self.net.run()

    def do_deaf(self, who: str) -> None:
        """Read nothing any more."""
        self.people[who].deaf = True

    def do_hear(self, who: str) -> None:
        self.people[who].deaf = False

    def do_serve(self, who: str, command: str, how: str = "slowly", role: str = "operate") -> None:
        """Answer a command with its argument, at once or when told to: serve bob svc.echo [at-once|slowly] [ROLE]."""
        service, _, name = command.partition(".")
        self.people[who].answers_at_once = how == "at-once"
        self.people[who].serve(service, name, Role[role.upper()])

    def do_answer(self, who: str, *words: str) -> None:
        """Answer the oldest request."""
        probe = self.people[who]
        probe.answer(next(iter(probe.requests)), " ".join(words).encode())

    def do_call(self, who: str, target: str, command: str, *words: str, within: str = "30s") -> None:
        """call alice b,c svc.echo [within=2s] some text."""
        if words and words[0].startswith("within="):
            within, words = words[0].removeprefix("within="), words[1:]
        budget_ms = int(float(within.removesuffix("s")) * 1000)
        self.people[who].request(target, command, budget_ms, " ".join(words).encode())

    def do_cancel(self, who: str) -> None:
        """Cancel the last call."""
        self.people[who].cancel(max(self.people[who].calls))


def vars_of(settings: BusSettings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


def play(text: str) -> str:
    """Return the text with what really came of its commands."""
    stage, written, is_outcome = Stage(), [], False
    for line in text.splitlines():
        if is_outcome and line:
            continue
        is_outcome = line == "----"
        written.append(line)
        if is_outcome:
            written += [
                line if (count := len(list(same))) == 1 else f"{line} x{count}" for line, same in groupby(stage.seen)
            ]
            stage.seen = []
        elif line and not line.startswith("#"):
            stage.play(line)
    assert not stage.seen, "the last block has no ---- line"
    return "\n".join(written) + "\n"


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path):
    """Everybody sees what the scenario says, in this order."""
    text = path.read_text()
    played = play(text)
    if REWRITE:
        path.write_text(played)
    assert played.splitlines() == text.splitlines()
