"""Chains: needed packet rules in the words of iptables and of nft, and the way from what is there to them. Pure.

All rules are in chains of our own (TREESCALE-*), to which one jump leads from each place; with nft in a table of our
own. What others have made is read and left alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tsbus.balancer.rules import Inside, Listen, Needs, Version

TABLE: Final = "treescale"
"""Of nft, family inet."""
PROBE: Final = (
    f"table inet {TABLE}-probe {{ chain post {{ type nat hook postrouting priority srcnat; masquerade; }}; }}\n"
)
"""What a kernel takes that can do it."""
DOCKER_CHAIN: Final = "DOCKER-USER"
"""Docker's place for the rules of others, which it judges first and does not touch."""
_OWN: Final = "TREESCALE-"
_MARK, _POST, _MASQUERADE, _ACCEPT = (f"{_OWN}{name}" for name in ("MARK", "POST", "MASQ", "ACCEPT"))
_FAMILIES: Final[dict[Version, str]] = {4: "ip", 6: "ip6"}
_ALL_ADDRESSES: Final[dict[Version, int]] = {4: 32, 6: 128}

Lines = tuple[str, ...]


class Jump(NamedTuple):
    """From a chain that is not ours to one that is."""

    origin: str
    chain: str

    def __str__(self) -> str:
        return f"{self.origin} -j {self.chain}"


@dataclass(frozen=True, slots=True)
class Part:
    """One table of iptables: our chains and the jumps to them."""

    chains: Mapping[str, Lines] = field(default_factory=dict)
    """Rules without `-A CHAIN`, as iptables-save writes them."""
    jumps: tuple[Jump, ...] = ()


Parts = Mapping[str, Part]
"""By the name of the table."""


def wanted_parts(needs: Needs, version: Version, forward_chain: str) -> dict[str, Part]:
    """Return our chains of one version of IP. Where forwarded packets are judged is `forward_chain`."""
    parts: dict[str, Part] = {}
    if marks := needs.rules_for("mark", version):
        lines = tuple(f"{to_words(rule.listen)} -j MARK --set-xmark {rule.number:#x}/0xffffffff" for rule in marks)
        jumps = (Jump("PREROUTING", _MARK), Jump("OUTPUT", _MARK))
        parts["mangle"] = Part({_MARK: lines}, jumps)
    if masquerade := needs.rules_for("masquerade", version):
        lines = tuple(f"-m conntrack {_tracked(rule.listen)} --ctdir ORIGINAL -j {_MASQUERADE}" for rule in masquerade)
        chains = {_POST: lines, _MASQUERADE: tuple(_masquerade(needs.inside, version))}
        parts["nat"] = Part(chains, (Jump("POSTROUTING", _POST),))
    if accept := needs.rules_for("accept", version):
        lines = tuple(f"{connection_words(rule.listen, new=needs.accept_new)} -j ACCEPT" for rule in accept)
        parts["filter"] = Part({_ACCEPT: lines}, (Jump(forward_chain, _ACCEPT),))
    return parts


def to_words(listen: Listen) -> str:
    """Return what iptables calls the packets to this address."""
    protocol = listen.protocol.name.lower()
    place = f"-d {listen.ip}/{_ALL_ADDRESSES[listen.version]}"
    return f"{place} -p {protocol} -m {protocol} --dport {_ports(listen)}"


def connection_words(listen: Listen, *, new: bool) -> str:
    """Return what iptables calls the connections that were made to this address, with or without the first packet."""
    states = "NEW,RELATED,ESTABLISHED" if new else "RELATED,ESTABLISHED"
    return f"-m conntrack --ctstate {states} {_tracked(listen)}"


def _tracked(listen: Listen) -> str:
    """The connections that were made to this address, whatever has become of their packets since."""
    return f"--ctproto {int(listen.protocol)} --ctorigdst {listen.ip} --ctorigdstport {_ports(listen)}"


def _ports(listen: Listen) -> str:
    return listen.ports.replace("-", ":")


def _masquerade(inside: Iterable[Inside], version: Version) -> Iterable[str]:
    here = [each for each in inside if each.subnet.version == version]
    yield from (f"-s {each.subnet} -o {each.device} -j MASQUERADE" for each in here)
    yield from (f"-o {device} -j RETURN" for device in dict.fromkeys(each.device for each in here))
    yield from ("-o lo -j RETURN", "-j MASQUERADE")


def parse(saved: str) -> dict[str, Part]:
    """Return what of ours, and which jumps to it, there is in what iptables-save says."""
    parts: dict[str, Part] = {}
    for block in saved.split("\n*")[0 if saved.startswith("*") else 1 :]:
        table, *lines = block.removeprefix("*").splitlines()
        chains: dict[str, list[str]] = {line[1:].split()[0]: [] for line in lines if line.startswith(f":{_OWN}")}
        jumps = []
        for line in lines:
            if not line.startswith("-A "):
                continue
            _, chain, rule = line.split(" ", 2)
            if chain in chains:
                chains[chain].append(rule)
            elif rule.startswith(f"-j {_OWN}"):
                jumps.append(Jump(chain, rule.removeprefix("-j ")))
        parts[table] = Part({name: tuple(rules) for name, rules in chains.items()}, tuple(jumps))
    return parts


def forward_chain(saved: str) -> str:
    """Return where rules for forwarded packets belong: in Docker's chain for this, else with all others."""
    return DOCKER_CHAIN if f"\n:{DOCKER_CHAIN} " in saved else "FORWARD"


def difference(wanted: Parts, found: Parts, echoes: Mapping[Lines, Lines]) -> str:
    """Return what iptables-restore must be told, with --noflush; empty when all is as it should be.

    `echoes`: how this iptables spelt rules when they were read back, where that is not as they were written.
    """
    blocks = []
    for table in sorted({*wanted, *found}):
        want, have = wanted.get(table, Part()), found.get(table, Part())
        changed = [
            name
            for name, lines in want.chains.items()
            if have.chains.get(name) not in (lines, echoes.get(lines, lines))
        ]
        lines = [f":{name} - [0:0]" for name in changed]
        lines += [f"-A {name} {line}" for name in changed for line in want.chains[name]]
        lines += [f"-I {jump.origin} 1 -j {jump.chain}" for jump in want.jumps if jump not in have.jumps]
        extra = list(have.jumps)
        for jump in want.jumps:
            if jump in extra:
                extra.remove(jump)
        lines += [f"-D {jump}" for jump in extra]
        gone = [name for name in have.chains if name not in want.chains]
        lines += [f"-F {name}" for name in gone] + [f"-X {name}" for name in gone]
        if lines:
            blocks.append("\n".join((f"*{table}", *lines, "COMMIT", "")))
    return "".join(blocks)


# ---- nft ----


def nft_table(needs: Needs) -> str:
    """Return our table for nft, empty when nothing is needed.

    An accept rule here would not override the drop of another table, so there is none.
    """
    chains: dict[str, list[str]] = {"marks": [], "post": [], "masq": []}
    for version, family in _FAMILIES.items():
        for rule in needs.rules_for("mark", version):
            chains["marks"].append(f"{nft_to_words(rule.listen)} meta mark set {rule.number:#x}")
        masquerade = needs.rules_for("masquerade", version)
        for rule in masquerade:
            chains["post"].append(f"ct direction original {nft_connection_words(rule.listen)} jump masq")
        if masquerade:
            here = [each for each in needs.inside if each.subnet.version == version]
            lines = [f'{family} saddr {each.subnet} oifname "{each.device}" masquerade' for each in here]
            lines += [f'meta nfproto ipv{version} oifname "{each.device}" return' for each in here]
            chains["masq"] += lines
    if not any(chains.values()):
        return ""
    if chains["post"]:
        chains["masq"] += ['oifname "lo" return', "masquerade"]
    hooks = {
        "masq": "",
        "marks": "type filter hook prerouting priority mangle",
        "post": "type nat hook postrouting priority srcnat - 5",
    }
    texts = [_chain(name, hook, chains[name]) for name, hook in hooks.items()]
    texts.append(_chain("marks-here", "type route hook output priority mangle", chains["marks"]))
    return f"table inet {TABLE} {{\n{''.join(texts)}}}\n"


def nft_to_words(listen: Listen) -> str:
    """Return what nft calls the packets to this address."""
    return f"meta l4proto {int(listen.protocol)} {_FAMILIES[listen.version]} daddr {listen.ip} th dport {listen.ports}"


def nft_connection_words(listen: Listen) -> str:
    """Return what nft calls the connections that were made to this address."""
    match = f"meta l4proto {int(listen.protocol)} ct original {_FAMILIES[listen.version]} daddr {listen.ip}"
    return f"{match} ct original proto-dst {listen.ports}"


def _chain(name: str, hook: str, lines: list[str]) -> str:
    head = [f"{hook}; policy accept;"] if hook else []
    return "\n".join((f"\tchain {name} {{", *(f"\t\t{line}" for line in (*head, *lines)), "\t}", ""))
