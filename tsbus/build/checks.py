"""Checks: what keeps a server from being built, or is worth a word, before anything is done. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Final

from tsbus.build.facts import INIT, LIBC, MACHINE, PROBE_END, RIGHTS, Facts
from tsbus.build.steps import Step, StepKind
from tsbus.build.trouble import Kind, Trouble
from tsbus.build.wanted import Wanted

MACHINES: Final = ("x86_64", "aarch64")
MIN_LIBC: Final = {"glibc": (2, 28), "musl": (1, 2)}
"""Of the wheels with native code."""
MIN_MEMORY_MB: Final = 300
"""The processes of a node take about 200."""
CLOCK_WARN_S: Final = 60
CLOCK_MAX_S: Final = 3600
NEEDS_MB: Final[Mapping[StepKind, Mapping[str, int]]] = {
    "python": {"/var": 200},
    "docker": {"/var": 1000},
    "packages": {"/var": 100},
    "release": {"/opt": 150},
    "config": {"/etc": 5},
    "folders": {"/var": 200},
}
"""Free disk that a step needs: packages with what is downloaded for them, a release and its bundle, the first logs."""
DASHBOARD_MB: Final = 100
"""What the packages of the dashboard take besides."""
ESSENTIAL: Final = frozenset({PROBE_END, MACHINE, LIBC, INIT, RIGHTS})
"""What a server cannot be judged without."""
_SUDO: Final[Mapping[str, str]] = {
    "free": "the probe was run without sudo",
    "password": "sudo asks for a password",
    "refused": "sudo does not let it",
    "missing": "there is no sudo",
    "unknown": "sudo does not answer",
    "root": "sudo made it no root",
}


def warning(kind: Kind, text: str, mend: str) -> Trouble:
    """Return a trouble that keeps nothing from being done."""
    return Trouble(kind, text, mend, fatal=False)


def blind(facts: Facts) -> Trouble | None:
    """Return why these facts are not enough to judge a server by, None if they are."""
    if facts.uid not in (0, None):
        text = f"{facts.user or 'the login'} is not root: {_SUDO[facts.sudo]}"
        return Trouble("sudo", text, "check `sudo` and the password in console.toml, and the sudoers there")
    if lacking := [words for words in facts.missing if words in ESSENTIAL]:
        text = f"the probe could not tell {', '.join(lacking)}"
        return Trouble(
            "probe", text, "look at its transcript; /proc must be mounted, and sh, df, uname and id be there"
        )
    return None


def checks(wanted: Wanted, facts: Facts, offset_s: float) -> Iterator[Trouble]:
    """Yield what is wrong with the server itself. `offset_s` is how far its clock is ahead."""
    if facts.missing:
        text = f"the probe could not tell {', '.join(facts.missing)}"
        yield warning("probe", text, "what depends on it is not checked")
    yield from _platform(facts)
    yield from _address(wanted, facts)
    yield from _port(wanted, facts)
    if abs(offset_s) > CLOCK_WARN_S:
        text = f"its clock is {_duration(abs(offset_s))} {'ahead' if offset_s > 0 else 'behind'}"
        mend = "set it, and keep it right with NTP: logs and the certificates of package archives go by it"
        yield Trouble("clock", text, mend, fatal=abs(offset_s) > CLOCK_MAX_S)


def _platform(facts: Facts) -> Iterator[Trouble]:
    if facts.machine not in MACHINES:
        mend = f"there are packages for {' and '.join(MACHINES)} only"
        yield Trouble("platform", f"it is a machine of the kind {facts.machine}", mend)
    least = MIN_LIBC[facts.libc]
    if facts.libc_version < least:
        text = f"its {facts.libc} {'.'.join(map(str, facts.libc_version))} is too old"
        mend = f"{'.'.join(map(str, least))} is needed: take a newer release of the distribution"
        yield Trouble("platform", text, mend)
    if 0 < facts.memory_mb < MIN_MEMORY_MB:
        mend = f"a node takes 200 MB; {MIN_MEMORY_MB} MB are little already"
        yield warning("platform", f"it has {facts.memory_mb} MB of memory", mend)


def _address(wanted: Wanted, facts: Facts) -> Iterator[Trouble]:
    # A name is looked up by the server itself.
    if facts.addresses and _is_ip(wanted.ip) and _canonical(wanted.ip) not in facts.addresses:
        own = ", ".join(sorted(facts.addresses - {"127.0.0.1", "::1"})[:6]) or "it has none"
        mend = f"mend `ip` of servers.{wanted.name}: its router listens there"
        yield Trouble("address", f"{wanted.ip} is none of its addresses ({own})", mend)


def _port(wanted: Wanted, facts: Facts) -> Iterator[Trouble]:
    for each in facts.listeners:
        # Where no process can be told, one that runs here is taken for it.
        is_ours = each.pid in facts.ours if each.pid else bool(facts.ours)
        if each.port == wanted.port and each.ip in ("", _canonical(wanted.ip)) and not is_ours:
            who = f"{each.program} (pid {each.pid})" if each.pid else "another program"
            mend = f"stop it, or choose another service_port for {wanted.name}"
            yield Trouble("port", f"port {wanted.port} is in use by {who}", mend)
            return


def room(steps: Iterable[Step], facts: Facts) -> Iterator[Trouble]:
    """Yield where there is too little disk for these steps, adding up those of one file system."""
    needs: dict[str, dict[str, int]] = {}
    for step in steps:
        for folder, megabytes in NEEDS_MB.get(step.kind, {}).items():
            if folder in facts.disks:
                folders = needs.setdefault(facts.disks[folder].mount, {})
                more = DASHBOARD_MB if step.data.get("dashboard") else 0
                folders[folder] = folders.get(folder, 0) + megabytes + more
    for mount, folders in needs.items():
        disk, where = facts.disks[next(iter(folders))], " and ".join(folders)
        if not disk.writable:
            yield Trouble("disk", f"{where} cannot be written (file system {mount})", "mount it for writing")
        elif disk.free_mb < sum(folders.values()):
            text = f"{sum(folders.values())} MB are needed in {where}, and {disk.free_mb} MB are free on {mount}"
            yield Trouble("disk", text, "make room there")


def lock(steps: Iterable[Step], facts: Facts) -> Iterator[Trouble]:
    """Yield a word about who is waited for, if the steps need the package manager."""
    if facts.locks and any(step.kind in ("python", "docker", "packages") for step in steps):
        holder = facts.locks[0]
        text = f"{holder.program or 'a program'} (pid {holder.pid}) holds the package lock"
        yield warning("package-lock", text, "it is waited for, up to 5 minutes")


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _canonical(text: str) -> str:
    """Return an address as the system writes it, a name as it is."""
    return str(ip_address(text)) if _is_ip(text) else text


def _duration(seconds: float) -> str:
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.0f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
