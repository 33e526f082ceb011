"""Prepare: what a server needs around a node: the Docker engine, users, folders, and a kernel for balancers. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from tsbus.build import distros
from tsbus.build.checks import warning
from tsbus.build.facts import Facts
from tsbus.build.places import (
    DASHBOARD_FOLDERS,
    DASHBOARD_USER,
    DOCKER_USER,
    FOLDERS,
    MODULES_FILE,
    SETTINGS_FILE,
    USER,
    USERS,
    plain,
)
from tsbus.build.steps import Step
from tsbus.build.trouble import Trouble
from tsbus.build.wanted import BalancerNeeds, Wanted
from tsbus.copies import digest

Found = Step | Trouble

MIN_ENGINE: Final = (19, 3)
_ENGINES: Final = ("docker-ce", "docker.io", "moby-engine", "docker", "docker-engine")


def docker(wanted: Wanted, facts: Facts) -> Iterator[Found]:
    """Yield how the server gets an engine that answers. One that answers is left as it is."""
    if wanted.docker == "no":
        return
    if facts.docker_engine:
        yield from _engine(wanted, facts)
    elif facts.init == "none":
        mend = "start dockerd yourself, or build with --no-docker"
        yield warning("docker", "no init system starts a Docker engine here, and none answers", mend)
    elif facts.docker_client and any(name in facts.packages for name in _ENGINES):
        why, script = "it is installed, and its engine does not answer", distros.docker_start(facts.init)
        yield Step("docker", "start Docker, now and at boot", why, {"install": False}, script)
    else:
        yield _docker_install(wanted, facts)


def _engine(wanted: Wanted, facts: Facts) -> Iterator[Trouble]:
    version, asked = numbers(facts.docker_engine), numbers(wanted.docker_version)
    if (0, 0, 0) < version < MIN_ENGINE:
        text = f"its Docker engine {facts.docker_engine} is too old"
        yield Trouble("docker", text, "upgrade it by hand: its containers stop then")
    elif version[: len(asked)] != asked:
        text = f"its Docker engine is {facts.docker_engine}, and docker_version says {wanted.docker_version}"
        yield warning("docker", text, "upgrade it by hand if you mean it: its containers stop then")
    if facts.docker_socket is not None and facts.docker_socket.group in ("root", ""):
        mend = f"give it to a group of its own: then {DOCKER_USER} becomes a member"
        yield warning("docker", "only root may use the engine's socket", mend)


def _docker_install(wanted: Wanted, facts: Facts) -> Found:
    recipe = distros.docker(facts, "distro" if wanted.docker == "distro" else "vendor", wanted.docker_version)
    name = facts.os_name or "it"
    if recipe is None and distros.family_of(facts) is None:
        text = f"we cannot install Docker on {name}"
        return Trouble("docker", text, "install Docker by hand, then build with --no-docker")
    if recipe is None:
        return Trouble("docker", f"{name} has no Docker of its own", 'build with docker = "vendor"')
    if clash := [each for each in recipe.conflicts if each in facts.packages]:
        text = f"{', '.join(clash)} cannot stay beside {recipe.words}"
        return Trouble("docker", text, "remove them, choose the other `docker` in [build], or build with --no-docker")
    why = "no engine answers" if facts.docker_client else "there is no engine"
    return Step("docker", f"install {recipe.words}", why, {"install": True}, recipe.script, reversible=False)


def accounts(wanted: Wanted, facts: Facts, *, gets_docker: bool) -> Iterator[Step]:
    """Yield how the server gets the users of a node, and these their groups.

    Who may use the engine's socket is as good as root, so nobody gets it who has no business there.
    """
    users = [*USERS, *([DASHBOARD_USER] if wanted.dashboard else [])]
    groups = {user: [USER] for user in users if user in (DOCKER_USER, DASHBOARD_USER)}
    socket = facts.docker_socket.group if facts.docker_socket is not None else "docker"
    if wanted.joins_docker and socket not in ("root", "") and (gets_docker or socket in facts.groups):
        groups[DOCKER_USER].append(socket)
    absent = [name for name in users if name not in facts.accounts]
    lacking = {
        user: found
        for user, names in groups.items()
        if (found := [each for each in names if user not in facts.groups.get(each, frozenset())])
    }
    if absent:
        words, why = f"add the users {', '.join(absent)}", "they are not there"
    else:
        said = [f"put {user} into the group {', '.join(names)}" for user, names in lacking.items()]
        words, why = ", ".join(said), "it is no member"
    if absent or lacking:
        yield Step("accounts", words, why, {"add": absent, "groups": lacking})


def folders(wanted: Wanted, facts: Facts) -> Iterator[Step]:
    """Yield how the server gets the folders of a node."""
    needed = {**FOLDERS, **(DASHBOARD_FOLDERS if wanted.dashboard else {})}
    wrong = {path: each for path, each in needed.items() if facts.stats.get(path) != each}
    absent = [path for path in wrong if path not in facts.stats]
    if wrong:
        words = f"make {', '.join(absent)}" if absent else f"set the rights of {', '.join(wrong)}"
        why = "they are not there" if absent else "they have others"
        yield Step("folders", words, why, {"folders": {path: plain(each) for path, each in wrong.items()}})


def balancers(wanted: Wanted, facts: Facts) -> Iterator[Found]:
    """Yield what the kernel needs for balancers; where there are none, what was made for some goes."""
    needs = wanted.balancers
    ipvs = needs is not None and needs.backend != "nftables" and "ip_vs" in facts.modules
    if needs is not None and needs.backend == "ipvs" and not ipvs:
        text = f"its kernel {facts.kernel} has no IPVS, and balancers need it"
        yield Trouble("kernel", text, 'take a kernel with the module ip_vs, or backend = "nftables"')
        return
    yield from _modules(needs if ipvs else None, facts)
    settings = {} if needs is None else {**needs.settings, **(needs.ipvs_settings if ipvs else {})}
    yield from _settings(settings, facts)
    if needs is not None and not facts.tools & ({"nft", "iptables"} if ipvs else {"nft"}):
        yield _firewall(facts)


def _modules(needs: BalancerNeeds | None, facts: Facts) -> Iterator[Found]:
    names = needs.modules if needs is not None else ()
    if missing := [name for name in names if name not in facts.modules]:
        text = f"its kernel {facts.kernel} has no {', '.join(missing)}"
        yield Trouble("kernel", text, "choose another `alg`, or take a kernel that has them")
        return
    text, absent = _boot_file(names), [name for name in names if name not in facts.modules_loaded]
    if absent or facts.digests.get(MODULES_FILE, "") != _digest(text):
        words = f"load {', '.join(names)}, now and at boot" if names else "load no kernel modules at boot any more"
        why = "its balancers need them" if names else "there are no balancers that need any"
        yield Step("modules", words, why, {"file": MODULES_FILE, "text": text, "now": absent})


def _settings(settings: Mapping[str, str], facts: Facts) -> Iterator[Step]:
    text = _boot_file(f"{name} = {value}" for name, value in settings.items())
    wrong = {name: value for name, value in settings.items() if facts.settings.get(name) != value}
    if wrong or facts.digests.get(SETTINGS_FILE, "") != _digest(text):
        words = (
            f"set {', '.join(settings)}, now and at boot" if settings else "set nothing of the kernel at boot any more"
        )
        why = "its balancers need it" if settings else "there are no balancers that need it"
        yield Step("settings", words, why, {"file": SETTINGS_FILE, "text": text, "now": wrong})


def _firewall(facts: Facts) -> Found:
    family = distros.family_of(facts)
    if family is None:
        return Trouble("kernel", "balancers need the program nft", "install nftables by hand")
    script = distros.packages(family, ("nftables",))
    return Step("packages", "install nftables", "its balancers need nft", {"packages": ["nftables"]}, script,
                reversible=False)  # fmt: skip


def _boot_file(lines: Iterable[str]) -> str:
    """Return the text of a file with these lines, "" for none: without lines there is no file."""
    said = list(lines)
    return "\n".join(["# For TreeScale's balancers, written by `treescale build`.", *said, ""]) if said else ""


def _digest(text: str) -> str:
    return digest(text) if text else ""


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with."""
    found: list[int] = []
    for part in version.partition("-")[0].partition("+")[0].split("."):
        if not part.isdecimal():
            break
        found.append(int(part[:9]))
    return tuple(found)
