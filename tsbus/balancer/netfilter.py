"""Netfilter: makes a host as its balancers need it (rules.py), and tells what was not so.

Only differences are written. A restart of Docker or of a firewall rebuilds their rules and may lose the jumps to ours,
so the service compares again with each change and every `reconcile_s`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from os import uname
from pathlib import Path
from typing import Final, Literal

from tsbus.balancer.chains import (
    DOCKER_CHAIN,
    PROBE,
    TABLE,
    Lines,
    difference,
    forward_chain,
    nft_table,
    parse,
    wanted_parts,
)
from tsbus.balancer.devices import Devices
from tsbus.balancer.inventory import DEVICE, Inventory
from tsbus.balancer.nft import generation
from tsbus.balancer.programs import HostError, NoFeature, NoProgram, NotAllowed, run
from tsbus.balancer.report import Problem
from tsbus.balancer.rules import Backend, Host, Needs, Setting, Version

Policy = Literal["set", "check", "leave"]
_SYSCTLS: Final = Path("/proc/sys")
_BRIDGE_FILTERS: Final = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")
_TOOLS: Final[dict[Version, str]] = {4: "iptables", 6: "ip6tables"}
_LEGACY: Final = tuple(Path(f"/proc/thread-self/net/{name}_tables_names") for name in ("ip", "ip6"))
"""The tables of iptables of the legacy kind, whose rules are counted by nobody."""


@dataclass(frozen=True, slots=True)
class Done:
    """What was changed, in words, and what could not be or may not be."""

    changes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


class HostEdge:
    """The host's rules, settings and addresses, of the network namespace in which it is used.

    Blocks while tools run. For one thread.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._iptables = {version: _Iptables(version) for version in _TOOLS}
        self._table = _OwnTable()
        self._devices = Devices()
        self._right: tuple[int, Needs] | None = None
        """When the rules were last found as they should be, by the count of their changes, and how that is."""

    def close(self) -> None:
        """Close the connection to the kernel; everything stays as it is."""
        self._devices.close()

    def read(self) -> Host:
        """Return what is known of the host. Raises HostError."""
        return read_host(self._backend, self._devices, self._devices.look())

    def apply(self, needs: Needs, policy: Policy = "set") -> Done:
        """Make the host as it is needed, and return what that changed; `policy` is about settings alone.

        What fails is a problem and does not keep the rest from being done.
        """
        changes: list[str] = []
        problems = list(needs.problems)
        inventory = self._devices.look()
        work = [
            self._settings(needs, policy, problems),
            self._hairpins(needs, policy, problems, inventory),
            self._addresses(needs, inventory),
            self._rules(needs),
        ]
        for each in work:
            try:
                changes += each
            except HostError as error:
                problems.append(Problem(error.text, error.mend))
        return Done(tuple(changes), tuple(problems))

    def _settings(self, needs: Needs, policy: Policy, problems: list[Problem]) -> Iterator[str]:
        for setting in needs.settings if policy != "leave" else ():
            found = read_sysctl(setting.name)
            if found == setting.value:
                continue
            try:
                if policy == "check":
                    raise HostError(f"{setting.name} is {found}", _command(setting))
                _write_sysctl(setting)
                yield f"{setting.name} was {found} and is {setting.value} now: {setting.why}"
            except HostError as error:
                problems.append(Problem(f"{error.text}; {setting.why}", error.mend))

    def _hairpins(self, needs: Needs, policy: Policy, problems: list[Problem], inventory: Inventory) -> Iterator[str]:
        why = "a container that is given itself as its server"
        for port in inventory.without_hairpin(needs.hairpins) if policy != "leave" else ():
            if policy == "check":
                mend = f"`bridge link set dev {port.name} hairpin on`"
                problems.append(Problem(f"{port.name} keeps packets for {why}", mend))
            elif self._devices.set_hairpin(port):
                yield f"{port.name} sends packets back where they came from now, for {why}"

    def _addresses(self, needs: Needs, inventory: Inventory) -> Iterator[str]:
        held, answered = inventory.held, self._devices.proxies(inventory)
        for proxy in sorted(answered - needs.proxies):
            if proxy.ip in held | needs.held:  # else somebody else's
                self._devices.set_proxy(proxy, on=False)
                yield f"{proxy.device} does not answer for {proxy.ip} any more"
        if held != needs.held:
            self._devices.hold(needs.held)
            yield f"{DEVICE} has {', '.join(sorted(map(str, needs.held))) or 'no address'} now"
        for proxy in sorted(needs.proxies - answered):
            self._devices.set_proxy(proxy, on=True)
            yield f"{proxy.device} answers neighbours that ask for {proxy.ip} now"

    def _rules(self, needs: Needs) -> Iterator[str]:
        """Put the rules where Docker has its own: what nft accepts in one table, iptables may still drop in another.

        Without Docker's chain they are in a table of nft, which no other tool touches. Docker may come later.
        Where nobody has changed a rule since they were found right, no tool is run.
        """
        count = _rule_changes()
        if count is not None and self._right == (count, needs):
            return
        self._right = None
        saved = self._iptables[4].saved()
        with_nft = forward_chain(saved) != DOCKER_CHAIN and self._table.usable()
        right = True
        for change in chain(
            self._table.apply(needs if with_nft else Needs()),
            self._iptables[4].apply(Needs() if with_nft else needs, saved),
            self._iptables[6].apply(Needs() if with_nft else needs),
        ):
            right = False
            yield change
        if right and count is not None:
            self._right = count, needs


class _Iptables:
    """The chains of one version of IP."""

    def __init__(self, version: Version) -> None:
        self._version: Version = version
        self._tool = _TOOLS[version]
        self._echoes: dict[Lines, Lines] = {}
        self._clean = False
        """Nothing of ours is there, nor was anything wanted since it was looked for."""

    def saved(self) -> str:
        """Return all rules that there are; empty when this machine has no such tool, or its kernel no such rules."""
        try:
            return run(f"{self._tool}-save")
        except (NoProgram, NoFeature):
            return ""

    def apply(self, needs: Needs, saved: str | None = None) -> Iterator[str]:
        """Make the rules as they are needed, beginning with those that were `saved`."""
        if self._clean and not needs.has_rules(self._version):
            return
        saved = self.saved() if saved is None else saved
        wanted = wanted_parts(needs, self._version, forward_chain(saved))
        self._clean = not wanted
        script = difference(wanted, parse(saved), self._echoes)
        if not script:
            return
        run(f"{self._tool}-restore", "-w", "--noflush", text=script)
        found = parse(run(f"{self._tool}-save")) if wanted else {}
        self._echoes = {
            lines: found[table].chains.get(name, ())
            for table, part in wanted.items()
            for name, lines in part.chains.items()
        }
        yield f"{self._tool}: " + "; ".join(line for line in script.splitlines() if line[0] not in "*:C")


class _OwnTable:
    """Our table of nft, which is replaced as a whole in one transaction."""

    def __init__(self) -> None:
        self._usable: bool | None = None
        self._wanted: str | None = None
        self._echo = ""

    def usable(self) -> bool:
        """Tell whether the tool is here and the kernel would take such a table; nothing is changed."""
        if self._usable is None:
            try:
                run("nft", "--check", "-f", "-", text=PROBE)
                self._usable = True
            except (NoProgram, NoFeature):
                self._usable = False
        return self._usable

    def apply(self, needs: Needs) -> Iterator[str]:
        wanted = nft_table(needs)
        if not self.usable() or not (wanted or self._wanted or self._wanted is None):
            return
        found = _listed()
        if found == self._echo and wanted == self._wanted:
            return
        clear = f"table inet {TABLE}\ndelete table inet {TABLE}\n" if found else ""
        if clear or wanted:
            run("nft", "-f", "-", text=clear + wanted)
            yield f"nft: table inet {TABLE} " + ("is made anew" if wanted else "is gone: nothing needs it")
        self._wanted, self._echo = wanted, _listed() if wanted else ""


def _listed() -> str:
    """Our table without its counts; empty when there is none."""
    try:
        return run("nft", "-s", "list", "table", "inet", TABLE)
    except NoFeature:
        return ""


def _rule_changes() -> int | None:
    """Return a count of all changes to packet rules here; None where there is none."""
    try:
        legacy = any(place.read_text() for place in _LEGACY if place.exists())
    except OSError:
        return None
    return None if legacy else generation()


def read_host(backend: Backend, devices: Devices, inventory: Inventory) -> Host:
    """Return what is known of a host. Raises HostError."""
    return Host(
        backend=backend,
        kernel=_kernel(),
        addresses=inventory.addresses,
        networks=inventory.networks,
        bridge_filter=any(read_sysctl(name) == 1 for name in _BRIDGE_FILTERS),
        advertised=devices.advertised(inventory),
        links=inventory.links,
    )


def read_sysctl(name: str) -> int | None:
    """Return a setting of the kernel; None where it has none of this name."""
    try:
        return int(_place(name).read_text())
    except (OSError, ValueError):
        return None


def _write_sysctl(setting: Setting) -> None:
    try:
        _place(setting.name).write_text(str(setting.value))
    except FileNotFoundError as error:
        module = "ip_vs" if ".vs." in setting.name else "the module it belongs to"
        raise NoFeature(f"the kernel has no {setting.name}", f"load {module}") from error
    except OSError as error:
        raise NotAllowed(f"{setting.name} cannot be set ({error.strerror})", _command(setting)) from error


def _place(name: str) -> Path:
    """As sysctl does it: a dot in the name of a device is written as a slash."""
    return _SYSCTLS / name.translate(str.maketrans("./", "/."))


def _command(setting: Setting) -> str:
    return f"`sysctl -w {setting.name}={setting.value}`"


def _kernel() -> tuple[int, int]:
    major, minor = uname().release.split(".")[:2]
    return int(major), int("".join(filter(str.isdigit, minor)) or 0)
