"""A server in memory that does the steps of a plan: what is known of it afterwards."""

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path

from tsbus.build import distros
from tsbus.build.facts import Facts, Python, Release, Stat, parse
from tsbus.build.places import FILES, KEY

PROBES = {path.stem: path for path in sorted((Path(__file__).parent / "probes").glob("*.txt"))}


@cache
def recorded(name: str) -> Facts:
    """The facts of a recorded probe."""
    return parse(PROBES[name].read_bytes())


def key_of(name: str) -> str:
    """The public key that a server makes itself."""
    return (name + "k" * 40)[:40]


def stat_of(data: dict) -> Stat:
    return Stat(int(data["mode"], 8), data["user"], data["group"])


def apply(step, facts: Facts, name: str = "a", config: str = "") -> Facts:
    """Do one step; `config` is the digest of the copy of the tree when all keys are known."""
    data = step.data
    match step.kind:
        case "python":
            package = distros.python(facts)
            return replace(facts, pythons=(*facts.pythons, Python(package.path, (3, package.minor, 5))))
        case "docker":
            groups = {"docker": frozenset()} | dict(facts.groups)
            socket = Stat(0o660, "root", "docker")
            return replace(facts, docker_client="/usr/bin/docker", docker_engine="28.1.1", docker_socket=socket,
                           groups=groups)  # fmt: skip
        case "packages":
            return replace(facts, tools=facts.tools | {"nft"})
        case "accounts":
            groups = {each: frozenset() for each in data["add"]} | dict(facts.groups)
            for user, names in data["groups"].items():
                groups |= {each: groups.get(each, frozenset()) | {user} for each in names}
            return replace(facts, accounts=facts.accounts | set(data["add"]), groups=groups)
        case "folders":
            return replace(
                facts, stats={**facts.stats, **{path: stat_of(each) for path, each in data["folders"].items()}}
            )
        case "modules":
            return replace(written(facts, data), modules_loaded=facts.modules_loaded | set(data["now"]))
        case "settings":
            return replace(written(facts, data), settings={**facts.settings, **data["now"]})
        case "release":
            others = tuple(each for each in facts.releases if each.name != data["release"])
            return replace(facts, releases=(*others, Release(data["release"], data["python"], 2_000_000_000)))
        case "key":
            stats = {**facts.stats, KEY: stat_of(data)}
            return replace(facts, stats=stats, key=facts.key or key_of(name))
        case "config":
            digests = {path: each["digest"] or config for path, each in data["files"].items()}
            stats = {path: FILES[path] for path in digests}
            return replace(facts, digests={**facts.digests, **digests}, stats={**facts.stats, **stats})
        case "unit":
            unit = facts.unit._replace(loaded=True, enabled=True)
            digests = {**facts.digests, data["path"]: data["digest"]} if data["digest"] else facts.digests
            return replace(facts, unit=unit, digests=digests)
        case "activate":
            unit = facts.unit._replace(active=facts.init != "none")
            return replace(facts, current=data["release"], unit=unit, ours=facts.ours | {4711}, pending="")
        case "prune":
            return replace(facts, releases=tuple(each for each in facts.releases if each.name not in data["releases"]))
    raise AssertionError(step.kind)


def written(facts: Facts, data: dict) -> Facts:
    """Write or remove the file of a step."""
    digests = {path: digest for path, digest in facts.digests.items() if path != data["file"]}
    if data["text"]:
        digests[data["file"]] = hashlib.sha256(data["text"].encode()).hexdigest()
    return replace(facts, digests=digests)


def apply_all(plan, facts: Facts, config: str = "") -> Facts:
    """Do all steps of a plan."""
    for step in plan.steps:
        facts = apply(step, facts, plan.name, config)
    return facts
