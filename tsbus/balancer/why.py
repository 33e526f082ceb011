"""Why: follows a packet of a new connection through a balancer and says, check by check, what becomes of it. Pure.

evidence.py reads what is judged here, ways.py knows the ways, firewall.py the packet rules. docs/balancer.md, section
Why, has all checks; each is a method of _Inquiry with its name, in the order in which a packet meets them.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from tsbus.balancer import chains, iptables_text, nft_listing
from tsbus.balancer.firewall import Base, Fate, Table
from tsbus.balancer.life import State
from tsbus.balancer.report import Problem, Report, ServerReport
from tsbus.balancer.rules import FORWARDING, Backend, Front, Listen, Needs, needs, published, real_server_needs
from tsbus.balancer.steps import Pool
from tsbus.balancer.table import IP, Address, Destination, Entry, Forward
from tsbus.balancer.ways import CLIENT, TRACKING, Evidence, Site, Way
from tsbus.config import Balancer
from tsbus.lb_records import Check, Origin, WhyAnswer
from tsbus.records import Container

MAX_SERVERS: Final = 64
"""So many servers of a balancer are looked at."""
COUNT, MAX = "net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max"
_NEARLY: Final = 0.9
_NO_WEIGHT: Final = "weight 0"
"""What judge.py says of a server whose weight is 0 by an operator, or by the configuration."""
_NAMED: Final = 10
"""Servers that a text names."""
_WHO: Final[Mapping[Origin, str]] = {
    "remote": "a client elsewhere", "local": "a program of this host", "container": "a container of this host",
}  # fmt: skip
_FIREWALLS: Final = ("ufw", "firewalld")
"""Write all rules anew from a configuration of their own."""

Result = Literal["ok", "fail", "warn", "unknown"]


class Finding(NamedTuple):
    """What one check says of one way."""

    result: Result
    text: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A client's packet to a balancer, and what the balancer's process knows."""

    node: str
    balancer: Balancer
    listen: Listen
    """The address and the one port."""
    asked: str
    """The address as the caller gave it."""
    origin: Origin
    front: Front
    """As it is wanted; without servers while that is not known."""
    backend: Backend
    """What balances, or should."""
    report: Report | None = None
    """None while it is not known what should be balanced."""
    loopback: bool = False
    """The caller gave an address of the loopback device."""
    unusable: Problem | None = None
    """Why there is no kernel to balance with."""
    unable: Problem | None = None
    """Why this kernel cannot hold the service."""
    problems: tuple[Problem, ...] = ()
    """Of carrying it out, a clash among them."""
    clash: bool = False
    containers: tuple[Container, ...] = ()
    """Of this node."""


def nobody(asked: str, protocol: str, origin: Origin, known: Iterable[Balancer]) -> WhyAnswer:
    """Return the answer for an address that no balancer has."""
    listed = [f"{each.name} ({each.protocol} {', '.join(map(str, each.listens))})" for each in known]
    text = f"no balancer of this node has {protocol} {asked}; there are {', '.join(listed[:_NAMED])}"
    mend = f'ask for one of these, or add one with address = "{asked}" to the configuration'
    check = Check(name="balancer", result="fail", text=text, mend=mend)
    return _answer("", asked, protocol, origin, [check], "")


def judge(question: Question, evidence: Evidence, accepts: Mapping[Address, str]) -> WhyAnswer:
    """Return what becomes of the packet. `accepts` says of servers that were asked why they refuse, '' if they do not.

    Takes long where there are many thousand packet rules.
    """
    inquiry = _Inquiry(question, evidence, accepts)
    checks = list(inquiry.checks())
    return _answer(
        question.balancer.name, question.asked, question.balancer.protocol, question.origin, checks, inquiry.goes_to()
    )


def servers_of(question: Question, table: Mapping[Any, Entry] | None) -> tuple[Destination, ...]:
    """Return the real servers that are looked at: those that get connections, else all that there should be."""
    pool = question.front.pool
    entry = (table or {}).get(pool.service.key)
    found = list(pool.destinations.values())
    if entry is not None and not question.clash:
        found = list(entry.destinations.values())
    return tuple([each for each in found if each.weight] or found)[:MAX_SERVERS]


def _answer(
    balancer: str, asked: str, protocol: str, origin: Origin, checks: list[Check], goes_to: str
) -> WhyAnswer:  # fmt: skip
    failed = next((each for each in checks if each.result == "fail"), None)
    doubt = next((each for each in checks if each.result == "unknown"), None)
    who = f"A packet from {_WHO[origin]} to {protocol} {asked}"
    if failed:
        some = f" for {_some(failed.servers)}" if failed.servers else ""
        verdict = f"{who} ends at the check {failed.name!r}{some}: {failed.text}."
    elif doubt:
        verdict = f"{who} goes {goes_to}, if it passes {doubt.name!r}, which cannot be told: {doubt.text}."
    else:
        verdict = f"{who} goes {goes_to}."
    works = False if failed else None if doubt else True
    return WhyAnswer(
        balancer=balancer, address=asked, protocol=protocol, client=origin, works=works, verdict=verdict,
        checks=tuple(checks),
    )  # fmt: skip


def _some(names: Iterable[str]) -> str:
    found = list(dict.fromkeys(names))
    rest = len(found) - _NAMED
    return ", ".join(found[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


class _Inquiry:
    """One question and all that is known about it."""

    def __init__(self, question: Question, evidence: Evidence, accepts: Mapping[Address, str]) -> None:
        self._question, self._evidence, self._accepts = question, evidence, accepts
        self._listen = question.listen
        self._site = Site(evidence, _tables(evidence), question.listen, question.origin)
        self._entry = (evidence.table or {}).get(question.front.pool.service.key)
        self._servers = servers_of(question, evidence.table)
        pool = Pool(question.front.pool.service, {each.address: each for each in self._servers})
        self._front = replace(question.front, listens=(question.listen,), pool=pool)
        self._needs = needs([self._front], evidence.host)
        self._reports = {each.address: each for each in question.report.servers} if question.report else {}
        self._ways = [
            Way(self._site, client, each, self._name(each.address))
            for client in self._site.clients()
            for each in self._servers
        ]

    def checks(self) -> Iterator[Check]:
        """Yield the checks in their order."""
        question = self._question
        looks: tuple[Callable[[], Iterator[Finding | Check]], ...] = (
            self.balancer, self.backend, self.address, self.loopback, self.published, self.listener, self.input,
            self.service, self.servers, self.forwarding, self.tracking, self.output, self.masquerade, self.answers,
            self.hairpin, self.server,
        )  # fmt: skip
        if question.loopback:
            looks = (self.balancer, self.loopback)
        for look in looks:
            for each in look():
                if isinstance(each, Check):
                    yield each
                else:
                    yield Check(name=look.__name__, result=each.result, text=each.text, mend=each.mend)

    def goes_to(self) -> str:
        """Return to whom the packet goes, and what these see."""
        groups: dict[str, list[Way]] = {}
        for way in self._ways:
            groups.setdefault(way.seen(), []).append(way)
        parts = []
        for seen, ways in groups.items():
            places = list(dict.fromkeys(f"{way.name} ({way.server.address})" for way in ways))
            names = " or ".join(places[:_NAMED]) + (f" or {len(places) - _NAMED} more" if len(places) > _NAMED else "")
            whom = "the client's own address" if seen == CLIENT else f"{seen} as the client's address"
            verb = "sees" if len(places) == 1 else "see"
            parts.append(f"to {names}, which {verb} {whom if seen else 'an address that cannot be told'}")
        return "; or ".join(parts) or "to no server that is known"

    # In the order in which a packet meets them.

    def balancer(self) -> Iterator[Finding]:
        yield Finding("ok", f"{self._question.balancer.name} listens at {self._listen}")
        if not self._site.clients():
            text = "no bridge of this host has containers, so there is no client to follow"
            yield Finding("unknown", text, "ask for one from elsewhere, or from this host")

    def backend(self) -> Iterator[Finding]:
        question = self._question
        for problem in filter(None, (question.unusable, question.unable)):
            yield Finding("fail", problem.text, problem.mend)
            return
        kind = "IPVS" if self._site.ipvs else "nftables"
        yield Finding("ok", f"{kind} with the scheduler {question.balancer.alg}")

    def address(self) -> Iterator[Finding]:
        ip = self._listen.ip
        route = self._evidence.routes.get(ip)
        if route is not None and route.local:
            yield Finding("ok", f"{ip} is an address of this host")
            return
        device = route.device if route else "lo"
        mend = f"`ip address add {ip}/{ip.max_prefixlen} dev {device}`"
        mend += f", or manage_vip = true in balancer {self._question.balancer.name}"
        if self._question.balancer.manage_vip:
            mend = self._sync
        yield Finding("fail", f"{ip} is not an address of this host, so it takes no packets to it", mend)

    def loopback(self) -> Iterator[Finding]:
        if self._question.loopback:
            text = f"{self._question.asked} stays on the loopback device, where nothing is balanced"
            yield Finding("fail", text, f"connect to {Address(self._listen.ip, self._listen.first)}")

    def published(self) -> Iterator[Finding]:
        if not self._site.ipvs:
            return  # our table comes before
        known = next(published([self._front], self._question.containers), None)
        for client in self._site.clients():
            fate = self._site.published(client)
            if fate.result == "translate":
                mend = known.mend if known else f"`{_deletion(fate)}`"
                text = known.text if known else f"{fate.rule} takes the packets to {self._listen}"
                yield Finding("fail", text, mend)
                return
            if fate.result == "unknown":
                yield Finding("unknown", f"it depends on {fate.rule} whether the packet comes to the balancer")
                return
        if self._evidence.unread:
            yield Finding("fail", known.text, known.mend) if known else self._blind()
            return
        yield Finding("ok", f"no rule takes the packets to {self._listen} before the balancer does")

    def listener(self) -> Iterator[Finding]:
        listen = self._listen
        for protocol, ip, port in self._evidence.listeners:
            if (protocol, port) == (listen.protocol, listen.first) and ip in (None, listen.ip):
                kind = protocol.name[0].lower()
                text = f"a program of this host listens at port {port}, too; clients of {listen} do not get it"
                yield Finding("warn", text, f"`ss -Hln{kind}p sport = :{port}` names it: give it another port")
                return
        yield Finding("ok", f"no program of this host listens at {listen}")

    def input(self) -> Iterator[Finding | Check]:
        if self._site.origin == "local":
            yield from self._each("input", self._local_input, "the answers may come in")
        elif self._site.ipvs:
            words = chains.to_words(self._listen), chains.nft_to_words(self._listen)
            found = [self._judged(self._site.filtered(each), "the packet", words) for each in self._site.clients()]
            fine = Finding("ok", f"packets to {self._listen} may come in")
            yield next((each for each in found if each.result != "ok"), fine)
        else:
            yield from self._each("input", self._translated_input, "the packets may come in")

    def _local_input(self, way: Way) -> Finding | None:
        return self._passes(way, "input", answer=True) if not way.direct and way.place != "here" else None

    def _translated_input(self, way: Way) -> Finding | None:
        return self._passes(way, "input", answer=False) if way.place == "here" else None

    def service(self) -> Iterator[Finding]:
        question, entry = self._question, self._entry
        if question.unusable or question.unable:
            return
        if question.clash:
            yield from (Finding("fail", each.text, each.mend) for each in question.problems[-1:])
        elif question.report is None:
            why = next((f": {each.text}" for each in question.problems), "")
            yield Finding("unknown", f"it is not known yet what should be balanced{why}", "ask again in some seconds")
        elif self._evidence.table is None:
            yield Finding("unknown", "the kernel's table cannot be read now", "ask again; see the log of the balancer")
        elif entry is None:
            why = next((f": {each.text}" for each in question.problems), "")
            yield Finding("fail", f"the service is not in the kernel's table{why}", self._sync)
        elif changes := list(_changes(question.front.pool, entry)):
            text = f"another tool has changed the service in the kernel: {'; '.join(changes[:_NAMED])}"
            yield Finding("warn", text, self._sync)
        else:
            yield Finding("ok", "the service is in the kernel's table as it should be")

    def servers(self) -> Iterator[Finding]:
        question = self._question
        report = question.report
        if question.clash or report is None:
            return
        active = [each for each in self._servers if each.weight]
        if active:
            text = _some(f"{self._name(each.address)} ({each.address}, weight {each.weight})" for each in active)
            looked = f"; no more than these {MAX_SERVERS} are looked at" if len(active) == MAX_SERVERS else ""
            out = [each for each in report.servers if each.state not in (State.ACTIVE, State.KEPT)]
            rest = f"; without weight: {_some(map(_state, out))}" if out else ""
            result: Result = "warn" if report.state in ("sorry", "panic") else "ok"
            what = {"sorry": "only the sorry server: ", "panic": "lost servers are kept: "}.get(report.state, "")
            yield Finding(result, f"{what}{text}{rest}{looked}")
            return
        if report.servers:
            first = report.servers[0]
            yield Finding("fail", f"no server has a weight: {_some(map(_state, report.servers))}", self._revive(first))
            return
        missing = [f"{each.name} on {each.node}: {each.reason}" for each in report.left_out]
        name = question.balancer.name
        if missing:
            yield Finding("fail", f"no server can take part: {_some(missing)}", "see the reasons")
            return
        keys = _some((*question.balancer.containers, *question.balancer.servers)) or "nothing"
        text = f"there is no server: {keys} is what the configuration names, and none of it is there"
        yield Finding("fail", text, f"start a container of one of these, or correct balancer {name}")

    def forwarding(self) -> Iterator[Finding | Check]:
        setting = FORWARDING[self._listen.version]
        why = next((each.why for each in self._needs.settings if each.name == setting), "packets are forwarded")

        def look(way: Way) -> Finding | None:
            if not way.needs.forwarding:
                return None
            names = (setting, f"net.ipv4.conf.{way.device.replace('.', '/')}.forwarding")
            for name in names[: 2 if self._listen.version == 4 else 1]:
                if self._evidence.settings.get(name) == 0:
                    return Finding("fail", f"{name} is 0: {why}", f"`sysctl -w {name}=1`")
            return Finding("ok", "")

        yield from self._each("forwarding", look, f"{setting} is 1")

    def tracking(self) -> Iterator[Finding | Check]:
        settings = self._evidence.settings
        why = next((each.why for each in self._needs.settings if each.name == TRACKING), "")

        def look(way: Way) -> Finding | None:
            if not self._site.ipvs or not way.needs.tracking:
                return None
            if settings.get(TRACKING) == 1:
                return Finding("ok", "")
            if TRACKING not in settings:
                text = f"this kernel's IPVS cannot track connections, it has no {TRACKING}: {why}"
                return Finding("fail", text, 'take a kernel with CONFIG_IP_VS_NFCT, or backend = "nftables"')
            return Finding("fail", f"{TRACKING} is {settings[TRACKING]}: {why}", f"`sysctl -w {TRACKING}=1`")

        yield from self._each("tracking", look, f"{TRACKING} is 1")
        count, most = settings.get(COUNT, 0), settings.get(MAX, 0)
        if most and count >= most * _NEARLY:
            full = count >= most
            text = f"{count} of {most} connections that the kernel can track are there"
            text += ": new ones are dropped" if full else ""
            yield Finding("fail" if full else "warn", text, f"`sysctl -w {MAX}={2 * most}`")

    def output(self) -> Iterator[Finding | Check]:
        def look(way: Way) -> Finding | None:
            leaves = self._site.ipvs or self._site.origin == "local"
            return self._passes(way, "output", answer=False) if leaves and not way.direct else None

        yield from self._each("output", look, "the packets may go out to the servers")

    def masquerade(self) -> Iterator[Finding | Check]:
        rule = next((each for each in self._needs.rules if each.kind == "masquerade"), None)

        def look(way: Way) -> Finding | None:
            if not way.needs.masquerade:
                return None
            fate = way.masked()
            if fate.result == "translate":
                return Finding("ok", "")
            if fate.result == "unknown":
                return Finding("unknown", f"it depends on {fate.rule}")
            if self._evidence.unread:
                return self._blind()
            # A bridge that filters what is bridged brings the answers back, too; but not those of the client itself.
            filtered = way.place == "same" and self._evidence.host.bridge_filter
            why = rule.why if rule else f"{way.name} would answer the client directly"
            return Finding("warn" if filtered else "fail", f"the source is not masqueraded: {why}", self._sync)

        yield from self._each("masquerade", look, "a rule brings the answers back through this host")

    def answers(self) -> Iterator[Finding | Check]:
        def look(way: Way) -> Finding | None:
            if not way.needs.forwarding:
                return None
            if not self._site.ipvs:
                found = self._passes(way, "forward", answer=False)
                if found.result not in ("ok", "warn"):
                    return found
            return self._passes(way, "forward", answer=True)

        yield from self._each("answers", look, "the packets may be forwarded")

    def hairpin(self) -> Iterator[Finding | Check]:
        def look(way: Way) -> Finding | None:
            if way.place != "same" or not self._evidence.host.bridge_filter or way.client is None:
                return None
            ports = [port for port in way.client.ports if port in self._evidence.no_hairpin]
            if not ports:
                return Finding("ok", "")
            text = f"{_some(ports)} of {way.client.device} do not send a packet back where it came from"
            mend = " && ".join(f"bridge link set dev {port} hairpin on" for port in ports[:_NAMED])
            return Finding("fail", f"{text}, so a server that is its own client gets nothing", f"`{mend}`")

        yield from self._each("hairpin", look, "the bridges send packets back where they came from")

    def server(self) -> Iterator[Finding | Check]:
        def look(way: Way) -> Finding | None:
            if way.direct:
                return _unseen(way, self._listen.ip)
            why = self._accepts.get(way.server.address)
            if why is None or (why and not way.knocks()):
                return None  # not asked, or it may have been this host's rules
            if not why:
                return Finding("ok", "")
            port = way.server.address.port or self._listen.first
            mend = f"see that its program runs and listens at port {port} of all its addresses, not of 127.0.0.1 alone"
            return Finding("fail", f"{way.name} does not accept a connection at {way.server.address}: {why}", mend)

        yield from self._each("server", look, "each accepts connections from this host")

    # What they have in common.

    def _each(self, name: str, look: Callable[[Way], Finding | None], fine: str) -> Iterator[Check]:
        """Yield what a check says of the ways that it applies to: once what all have in common."""
        found: dict[Finding, list[str]] = {}
        for way in self._ways:
            if (finding := look(way)) is not None:
                found.setdefault(finding, []).append(way.name)
        bad = {finding: names for finding, names in found.items() if finding.result != "ok"}
        if found and not bad:
            yield Check(name=name, result="ok", text=fine)
        everybody = {way.name for way in self._ways}
        for finding, names in list(bad.items())[:_NAMED]:
            some = tuple(dict.fromkeys(names)) if set(names) != everybody else ()
            yield Check(name=name, result=finding.result, text=finding.text, mend=finding.mend, servers=some)

    def _passes(self, way: Way, hook: Literal["input", "forward", "output"], *, answer: bool) -> Finding:
        new = not answer
        words = chains.connection_words(self._listen, new=new), chains.nft_connection_words(self._listen)
        return self._judged(way.passes(hook, answer=answer), "the answer" if answer else "the packet", words)

    def _judged(self, fate: Fate, what: str, words: tuple[str, str]) -> Finding:
        """Return what filters do. `words`: what iptables and nft call the packets that should pass."""
        if fate.result == "drop":
            return Finding("fail", f"{what} is dropped by {fate.rule}", self._let_in(fate.base, words))
        if fate.result == "unknown":
            return Finding(
                "unknown", f"whether {what} is dropped depends on {fate.rule}", self._let_in(fate.base, words)
            )
        if self._evidence.unread:
            return self._blind()
        if fate.but:
            return Finding("warn", f"{what} passes, unless it comes from where {_some(fate.but)} says")
        return Finding("ok", "")

    def _let_in(self, base: Base | None, words: tuple[str, str]) -> str:
        if base is None:
            return ""
        if base.table.tool != "nft" and base.chain == "FORWARD" and self._lacks_ours(base.table):
            return self._sync
        first = _insertion(base, *words)
        own = next((each for each in _FIREWALLS if _belongs(base.table, each)), "")
        return f"`{first}`" + (f", and the same in the configuration of {own}, which would forget it" if own else "")

    def _lacks_ours(self, table: Table) -> bool:
        """Tell whether the accept rules that the balancer keeps in Docker's chain should be there and are not."""
        version = self._listen.version
        if chains.DOCKER_CHAIN not in table.chains:
            return False
        wanted = chains.wanted_parts(self._needs, version, chains.DOCKER_CHAIN).get(table.name, chains.Part())
        jumped = {(name, rule.verdict.target) for name, chain in table.chains.items() for rule in chain.rules}
        return any(
            (jump.origin, jump.chain) not in jumped or not table.chains[jump.chain].rules for jump in wanted.jumps
        )

    def _blind(self) -> Finding:
        why = self._evidence.unread[0]
        return Finding(
            "unknown", f"not all packet rules can be read: {why}", "run the balancer as root with CAP_NET_ADMIN"
        )

    @property
    def _sync(self) -> str:
        return f"`treescale lb sync {self._question.node}`"

    def _revive(self, one: ServerReport) -> str:
        node = self._question.node
        if one.state in (State.DRAINING, State.REMOVED):
            return f"`treescale lb undrain {node} {one.name}`"
        if one.reason == _NO_WEIGHT:
            return f"`treescale lb weight {node} {one.name} {'default' if one.base else 1}`"
        return f"see why {one.name} is so: {one.reason}"

    def _name(self, address: Address) -> str:
        known = self._reports.get(address)
        return known.name if known and known.name else str(address)


def _tables(evidence: Evidence) -> tuple[Table, ...]:
    """Return all packet rules. What iptables shows of a table of nft is not read a second time."""
    tables: list[Table] = []
    skip = set()
    for tool, saved in evidence.saved.items():
        version: Literal[4, 6] = 6 if tool.startswith("ip6") else 4
        found = iptables_text.parse(saved, version)
        tables += found
        if "(nf_tables)" in saved:
            skip |= {("ip6" if version == 6 else "ip", each.name) for each in found}
    if evidence.listed:
        listed = json.loads(evidence.listed)["nftables"]
        tables += nft_listing.parse(listed, nft_listing.texts(evidence.written), skip)
    return tuple(tables)


def _insertion(base: Base, iptables: str, nft: str) -> str:
    if base.table.tool == "nft":
        return f"nft insert rule {base.table.name} {base.chain} {nft} accept"
    table = "" if base.table.name == "filter" else f"-t {base.table.name} "
    return f"{base.table.tool} {table}-I {base.chain} 1 {iptables} -j ACCEPT"


def _deletion(fate: Fate) -> str:
    if fate.base is None or fate.base.table.tool == "nft":
        return "nft -a list ruleset` has its handle, `nft delete rule` takes it away: " + fate.rule
    return f"{fate.base.table.tool} {fate.rule.replace('-A ', '-D ', 1)}"


def _belongs(table: Table, firewall: str) -> bool:
    return firewall in table.name or any(name.startswith(f"{firewall}-") for name in table.chains)


def _state(one: ServerReport) -> str:
    return f"{one.name} is {one.state.value}" + (f" ({one.reason})" if one.reason else "")


def _changes(pool: Pool, entry: Entry) -> Iterator[str]:
    """Yield in which way a service in the kernel is not as it should be."""
    if replace(entry.service, owned=True) != replace(pool.service, owned=True):
        yield f"it has {entry.service.scheduler} with other settings, not {pool.service.scheduler} as configured"
    elif not entry.service.owned:
        yield "our mark is gone"
    for address, wanted in pool.destinations.items():
        found = entry.destinations.get(address)
        if found is None:
            yield f"{address} is missing"
        elif found != wanted:
            yield f"{address} has the weight {found.weight}, not {wanted.weight}, or other settings"
    yield from (f"{address} is there" for address in entry.destinations if address not in pool.destinations)


def _unseen(way: Way, ip: IP) -> Finding:
    """What a server needs that answers by itself, which cannot be seen from here."""
    must: Needs = real_server_needs([ip], way.server.forward)
    settings = [f"{each.name}={each.value}" for each in must.settings]
    kind = "tunnel" if way.server.forward is Forward.TUNNEL else "dr"
    text = f"{way.name} answers the client itself ({kind}), which cannot be seen from here"
    mend = f"it must have the address {ip}, on a device without ARP for it" + "".join(f", {each}" for each in settings)
    return Finding("unknown", text, mend)
