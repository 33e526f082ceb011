"""Plan: from what a server should be and what it is to the steps in between, or to what keeps it from that. Pure.

Every host is planned alone: neither its steps nor its troubles depend on another one. A host that is as it should be
has no steps. What is compared is the state itself: an answer of the engine, a digest, rights. What the node itself
consists of is here; interpreter.py and prepare.py have what it needs around it, checks.py what keeps it from being.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tsbus.build import interpreter, prepare
from tsbus.build.checks import blind, checks, lock, room, warning
from tsbus.build.facts import Facts, Python
from tsbus.build.places import CONFIG, DASHBOARD_USERS, FILES, KEY, NOBODY, ROOT, SUPERVISOR, UNITS, plain
from tsbus.build.steps import Platform, Step, StepKind
from tsbus.build.trouble import Trouble
from tsbus.build.wanted import Wanted, is_same_code
from tsbus.copies import digest


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What is to be done on one server. There are no steps where a trouble is fatal."""

    name: str
    depth: int
    """Links between it and the root."""
    steps: tuple[Step, ...] = ()
    """In their order."""
    troubles: tuple[Trouble, ...] = ()
    platform: Platform | None = None
    """What its bundle is made for; None where it cannot be built."""
    python: str = ""
    """The interpreter that it runs on, and the installer; empty where it cannot be built."""

    @property
    def can_go(self) -> bool:
        """Whether nothing keeps it from being built."""
        return not any(trouble.fatal for trouble in self.troubles)


def plan(wanted: Wanted, facts: Facts, offset_s: float = 0.0) -> HostPlan:
    """Return the plan of one server; `offset_s` is how far its clock is ahead of the console's."""
    if trouble := blind(facts):
        return HostPlan(wanted.name, wanted.depth, (), (trouble,))
    steps: list[Step] = []
    troubles = list(checks(wanted, facts, offset_s))
    python = _python(facts, steps, troubles)

    def take(found: Iterator[Step | Trouble]) -> None:
        for each in found:
            if isinstance(each, Step):
                steps.append(each)
            else:
                troubles.append(each)

    take(prepare.docker(wanted, facts))
    take(prepare.accounts(wanted, facts, gets_docker=_has(steps, "docker")))
    take(prepare.folders(wanted, facts))
    take(prepare.balancers(wanted, facts))
    if python is not None:
        take(_release(wanted, facts, python))
    take(_key(wanted, facts))
    take(_config(wanted, facts, gets_key=_has(steps, "key") and not facts.key))
    take(_unit(wanted, facts))
    take(_activation(wanted, facts, steps))
    take(_pruning(wanted, facts))
    troubles += [*room(steps, facts), *lock(steps, facts)]
    if python is None or any(trouble.fatal for trouble in troubles):
        return HostPlan(wanted.name, wanted.depth, (), tuple(troubles))
    # Scripts that install packages come first, whichever part asked for them.
    steps.sort(key=lambda step: not step.script)
    platform = _platform(wanted, facts, python)
    return HostPlan(wanted.name, wanted.depth, tuple(steps), tuple(troubles), platform, python.path)


def _has(steps: list[Step], *kinds: StepKind) -> bool:
    return any(step.kind in kinds for step in steps)


def _platform(wanted: Wanted, facts: Facts, python: Python) -> Platform:
    return Platform(facts.machine, facts.libc, python.version[1], wanted.dashboard)


def _python(facts: Facts, steps: list[Step], troubles: list[Trouble]) -> Python | None:
    found = interpreter.choose(facts)
    if found is not None:
        return found
    way = interpreter.install(facts)
    if isinstance(way, Trouble):
        troubles.append(way)
        return None
    steps.append(way[0])
    return way[1]


def _release(wanted: Wanted, facts: Facts, python: Python) -> Iterator[Step]:
    name = wanted.release.name
    there = next((each for each in facts.releases if each.name == name), None)
    if there is not None and there.python == python.path:
        return
    if there is None and wanted.dashboard and is_same_code(facts.current, name):
        why = f"{facts.current} has not the packages of the dashboard"
    elif there is None:
        why = f"it has {facts.current}" if facts.current else "it has none"
    elif there.python:
        why = f"its Python {there.python} cannot be used any more"
    else:
        why = "its installation was not finished"
    platform = _platform(wanted, facts, python)
    data = {"release": name, "python": python.path, "platform": str(platform), "dashboard": platform.dashboard}
    yield Step("release", f"upload and install release {name}", why, data)


def _key(wanted: Wanted, facts: Facts) -> Iterator[Step | Trouble]:
    there, data = KEY in facts.stats, {"path": KEY, **plain(FILES[KEY])}
    is_other = facts.key != wanted.key if facts.key else not there
    if wanted.revoked:
        mend = f"`treescale build rotate-keys {wanted.name}` gives it a new one"
        yield Trouble("identity", "its key is revoked", f"{mend}; or take it out of the tree")
    elif wanted.key and is_other and not wanted.accept_key:
        what = "has another key than last time" if there else "had a key, and has none any more"
        mend = "if so, build it with --accept-new"
        yield Trouble("identity", f"it {what}: was it made anew?", mend)
    elif facts.key_error:
        text = f"{KEY} cannot be used: {facts.key_error.splitlines()[-1]}"
        yield Trouble("identity", text, "put the right one back, or move it away for a new one")
    elif not there:
        yield Step("key", "make its key pair", "it has none", data)
    elif not facts.key:
        yield Step("key", "read its public key", "no release was there to tell it", data)
    elif facts.stats[KEY] != FILES[KEY]:
        yield Step("key", "set the rights of its key", "it has others", data)


def _config(wanted: Wanted, facts: Facts, *, gets_key: bool) -> Iterator[Step]:
    """Yield what is written; its copy of the tree has no digest before its own key is known."""
    files = {
        path: digest
        for path, digest in ((CONFIG, wanted.config), (SUPERVISOR, wanted.supervisor))
        if digest and (facts.digests.get(path) != digest or facts.stats.get(path) != FILES[path])
    }
    if gets_key:
        files[CONFIG] = ""
    if wanted.dashboard and facts.stats.get(DASHBOARD_USERS) != FILES[DASHBOARD_USERS]:
        files[DASHBOARD_USERS] = digest(NOBODY)
    if files:
        names = {CONFIG: "its copy of the tree", SUPERVISOR: "its supervisord.conf",
                 DASHBOARD_USERS: "a users file for the dashboard"}  # fmt: skip
        why = "what is there is another" if any(path in facts.digests for path in files) else "there is none"
        data = {path: {"digest": digest, **plain(FILES[path])} for path, digest in files.items()}
        if DASHBOARD_USERS in data:
            data[DASHBOARD_USERS]["keep"] = "what is there"
        yield Step("config", f"write {' and '.join(names[path] for path in files)}", why, {"files": data})


def _unit(wanted: Wanted, facts: Facts) -> Iterator[Step | Trouble]:
    init, unit = facts.init or "none", facts.unit
    if init not in UNITS:
        mend = f"start it yourself: {ROOT}/current/bin/supervisord -c {SUPERVISOR}"
        yield warning("platform", "there is no init system that starts the node at boot", mend)
        return
    digest = wanted.release.units.get(init, "")
    is_other = bool(digest) and facts.digests.get(UNITS[init]) != digest
    if is_other or not unit.enabled:
        why = "there is none" if not unit.loaded else "what is there is another" if is_other else "it is switched off"
        yield Step(
            "unit", f"start the node at boot ({init})", why, {"init": init, "path": UNITS[init], "digest": digest}
        )


def _activation(wanted: Wanted, facts: Facts, steps: list[Step]) -> Iterator[Step]:
    name = wanted.release.name
    runs = bool(facts.ours) if facts.init == "none" else facts.unit.active
    if not runs:
        how, words, why = "start", f"start release {name}", "the node does not run"
    elif facts.current != name:
        how, words, why = "restart", f"go on with release {name}", f"it runs {facts.current or 'none'}"
    elif _has(steps, "release", "unit", "accounts") or facts.pending == "restart":
        how, words, why = "restart", "start the node anew", "what it is started with is new"
    elif _has(steps, "config", "key") or facts.pending:
        how, words, why = "reload", "take the new configuration", "links stay up"
    else:
        return
    yield Step("activate", words, why, {"how": how, "release": name, "init": facts.init})


def _pruning(wanted: Wanted, facts: Facts) -> Iterator[Step]:
    """Yield which releases go: not the wanted one, nor the one before, nor the newest of the others."""
    kept = [wanted.release.name, *([facts.current] if facts.current not in ("", wanted.release.name) else [])]
    others = sorted((each for each in facts.releases if each.name not in kept and each.python),
                    key=lambda each: (-each.since_s, each.name))  # fmt: skip
    kept += [each.name for each in others[: max(0, wanted.keep_releases - len(kept))]]
    if gone := sorted(each.name for each in facts.releases if each.name not in kept):
        why = f"{wanted.keep_releases} releases are kept"
        yield Step("prune", f"remove {', '.join(gone)}", why, {"releases": gone}, reversible=False)
