"""Rotation: new key pairs for nodes of a tree that goes on running, and keys that are cut off at once.

docs/build.md, Keys, has the steps, and why each leaves a tree that works and is gone on from when the console dies.
"""

import json
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from tsbus.build import fleet, orders
from tsbus.build.bus import ask_root
from tsbus.build.campaign import Campaign, no_node
from tsbus.build.course import LATE, Outcome
from tsbus.build.jobs import Task
from tsbus.build.plan import HostPlan
from tsbus.build.reports import Noted, Opened, Report
from tsbus.build.ssh import ServerTrouble
from tsbus.build.steps import Step
from tsbus.build.trouble import Trouble
from tsbus.build.wanted import Wanted
from tsbus.copies import Copies, digest
from tsbus.core.target import fold

FOLLOW_S: Final = 60.0
"""How long all nodes together may take to follow one text: links to nodes with a new key come back within seconds."""
_AGAIN: Final = "the tree works as it is; run it again when they answer"


class Stopped(Exception):
    """A step has not reached everybody; the text says who is missing, and why."""


class Rotate(Campaign):
    """A run that gives nodes new key pairs; `options.names` are these."""

    done = "given a new key"

    def plan_of(self, name: str, wish: Wanted) -> HostPlan:
        """Return the one step, or why there is none."""
        # That it has another key than last time may be why this is asked for.
        found = super().plan_of(name, replace(wish, key="", revoked=False))
        if not found.can_go:
            return found
        if not self.facts[name].current:
            return no_node(wish)
        step = Step("key", "exchange its key pair", "asked for", reversible=False)
        return HostPlan(name, wish.depth, (step,), python=found.python)

    def apply(self) -> Iterator[Report]:
        """Make the pairs, let all know them, use them, forget the old ones. Raises StoreError."""
        try:
            if self.course.standing:
                yield from self.take_lock()
                if not self.holder:
                    yield from self._rotate()
        finally:
            self.close()

    def _rotate(self) -> Iterator[Report]:
        yield Opened("key", self.course.standing)
        cut_off = [name for name in self.course.standing if name in self.revoked]
        there = [name for name in self.keys if name not in self.revoked]
        try:
            told = self._facts_of(there)
            self.keys = {name: str(facts["public_key"]) for name, facts in told.items()} | self.keys
            new = {
                name: key for name in self.course.standing if (key := _begun(told.get(name), self.keys.get(name, "")))
            }
            yield from self._make(new)
            names = [name for name in self.course.standing if name in new and name not in cut_off]
            if names:
                yield from self._exchange(told, names, new, there)
            if back := {name: new[name] for name in cut_off if name in new}:
                yield from self._bring_back(back, there)
        except Stopped as error:
            for name in self.course.standing:
                yield self.fail(name, "key", Trouble("silent", str(error), _AGAIN))
            return
        yield from self.verify()

    def _facts_of(self, names: Collection[str]) -> dict[str, Any]:
        """Return what nodes tell of themselves. Raises Stopped when one does not: it would know no new key."""
        try:
            answers = ask_root(self, names, "node.facts")
        except ServerTrouble as error:
            raise Stopped(f"the root cannot be asked: {error.trouble.text}") from error
        if answers.refused:
            raise Stopped(_missing(answers.refused))
        return answers.given

    def _make(self, new: dict[str, str]) -> Iterator[Report]:
        """Let those that have none yet make a pair; their public halves come into `new`."""

        def learn(name: str, answer: Mapping[str, Any]) -> None:
            new[name] = str(answer["public_key"])

        tasks = {}
        for name in self.course.standing:
            if name not in new:
                step = Step("key", "make its next key pair", "asked for")
                python = self.plans[name].python
                tasks[name] = Task(self.facts[name].current, python, (step,), (orders.next_key(),))
        yield from self.carry_out(tasks, learn)

    def _exchange(
        self, told: Mapping[str, Any], names: Collection[str], new: Mapping[str, str], there: Collection[str]
    ) -> Iterator[Report]:
        """Let all know, use and forget. Raises Stopped."""
        old = {name: self.keys[name] for name in names}
        using = {name for name in names if told[name]["public_key"] == new[name]}

        def copies(*, both: bool) -> Copies:
            now = {name: new[name] if name in using else old[name] for name in names}
            other = {name: old[name] if name in using else new[name] for name in names}
            return Copies(self.tree, self.valid_keys | now, other if both else {})

        if set(names) - using:
            yield from spread(self, copies(both=True), there, "know the new keys")
        upward = fleet.waves(self.plans[name] for name in names)[::-1]
        for wave in upward:
            for name in wave:
                yield from self.stages.enter(name, "key", time.monotonic(), "use the new key")
            using |= set(wave)
            yield from spread(self, copies(both=True), there, f"let {fold(wave)} use the new key")
        yield from spread(self, copies(both=False), there, "forget the old keys")
        self.keys |= {name: new[name] for name in names}
        self.store.save_keys(self.keys)
        for name in names:
            yield from self.stages.leave(name, time.monotonic())

    def _bring_back(self, new: Mapping[str, str], there: Collection[str]) -> Iterator[Report]:
        """Let revoked nodes come back with their new keys, which they are told of over SSH. Raises Stopped."""
        self.keys |= new
        self.revoked = {name: key for name, key in self.revoked.items() if name not in new}
        self.store.save_keys(self.keys)
        self.store.save_revoked(self.revoked)
        yield from spread(self, Copies(self.tree, self.valid_keys), there, f"know {fold(new)} again")
        self.facts |= {name: replace(self.facts[name], key=key) for name, key in new.items()}
        wishes = self.wishes()
        tasks = {}
        for name, key in new.items():
            release = self.facts[name].current
            late = Task.of(super().plan_of(name, wishes[name]), LATE, release, self.texts(name))
            step = Step("key", "take its new key for the only one", "the old one is revoked")
            tasks[name] = replace(late, steps=(*late.steps, step), orders=(*late.orders, orders.exchange_key(key)))
        yield from self.carry_out(tasks)


class Revoke(Campaign):
    """A run that cuts nodes off at once, whoever has their keys; `options.names` are these, never the root."""

    @property
    def outcome(self) -> Outcome:
        """How it has ended. Nobody needs to be reached over SSH but the root."""
        return replace(super().outcome, reached=True)

    def look(self) -> Iterator[Report]:
        """Look at nobody: a server that is to be cut off may be in anybody's hands."""
        yield from ()

    def apply(self) -> Iterator[Report]:
        """Let all others have a tree without these keys. Raises StoreError."""
        try:
            yield from self.take_lock()
            if self.holder:
                return
            self.revoked |= {name: self.keys[name] for name in self.names if name in self.keys}
            self.store.save_revoked(self.revoked)  # first: what a console that dies has told some must stay so
            yield Opened("key", self.names)
            others = [name for name in self.keys if name not in self.revoked]
            try:
                yield from spread(
                    self, Copies(self.tree, self.valid_keys), others, f"forget the key of {fold(self.names)}"
                )
            except Stopped as error:
                mend = "it may still be let in there: `treescale build` with --limit brings them the tree over SSH"
                for name in self.names:
                    yield self.fail(name, "key", Trouble("silent", str(error), mend))
        finally:
            self.close()


def spread(run: Campaign, copies: Copies, names: Collection[str], what: str) -> Iterator[Report]:
    """Send a text until all have it and follow it; `what` is told. Raises Stopped with who does not."""
    yield Noted("", f"all others {what}")
    text = json.dumps(copies.sealed)
    left = dict.fromkeys(names, "nothing was heard")
    until = time.monotonic() + FOLLOW_S
    while left:
        try:
            left |= ask_root(run, left, "node.config", text).refused
            answers = ask_root(run, left, "node.facts")
        except ServerTrouble as error:
            raise Stopped(f"the root cannot be asked: {error.trouble.text}") from error
        for name, facts in answers.given.items():
            if facts["config"] == digest(copies.text(name)) and not facts["pending"]:
                run.configs[name] = facts["config"]
                del left[name]
        if left and time.monotonic() > until:
            raise Stopped(_missing(left))


def _begun(facts: Mapping[str, Any] | None, old: str) -> str:
    """Return the new key of a node whose rotation had been begun; "" for none."""
    if facts is None:
        return ""
    return str(facts["public_key"]) if facts["public_key"] != old else str(facts["other_public_key"])


def _missing(why: Mapping[str, str]) -> str:
    reasons = sorted(set(why.values()))
    return f"{fold(why)} did not take the new tree: {'; '.join(reasons[:3])}"
