"""Why: follows a packet of a new connection through a balancer and says, check by check, what becomes of it. Pure.

question.py says what is asked, evidence.py reads what is judged here, ways.py knows the ways, passing.py the filters on
them. docs/balancer.md, section Why, has all checks; each is a method of _Inquiry with its name.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Final

from tsbus.balancer.life import State
from tsbus.balancer.passing import Passing, deletion, tables_of
from tsbus.balancer.question import MAX_SERVERS, NAMED, Finding, Question, Result, answer_of, servers_of, some
from tsbus.balancer.report import ServerReport
from tsbus.balancer.rules import FORWARDING, Needs, needs, published, real_server_needs
from tsbus.balancer.steps import Pool
from tsbus.balancer.table import IP, Address, Entry, Forward
from tsbus.balancer.ways import CLIENT, COUNT, MAX, TRACKING, Evidence, Site, Way
from tsbus.lb_records import Check, WhyAnswer

_NEARLY: Final = 0.9
_NO_WEIGHT: Final = "weight 0"
"""What judge.py says of a server whose weight is 0 by an operator, or by the configuration."""
_FINE: Final = Finding("ok", "")


def judge(question: Question, evidence: Evidence, accepts: Mapping[Address, str]) -> WhyAnswer:
    """Return what becomes of the packet. `accepts` says of servers that were asked why they refuse, '' if they do not.

    Takes long where there are many thousand packet rules.
    """
    inquiry = _Inquiry(question, evidence, accepts)
    checks = list(inquiry.checks())
    return answer_of(
        question.balancer.name, question.asked, question.balancer.protocol, question.origin, checks, inquiry.goes_to()
    )


class _Inquiry:
    """One question and all that is known about it."""

    def __init__(self, question: Question, evidence: Evidence, accepts: Mapping[Address, str]) -> None:
        self._question, self._evidence, self._accepts = question, evidence, accepts
        self._listen = question.listen
        self._site = Site(evidence, tables_of(evidence), question.listen, question.origin)
        self._entry = (evidence.table or {}).get(question.front.pool.service.key)
        self._servers = servers_of(question, evidence.table)
        pool = Pool(question.front.pool.service, {each.address: each for each in self._servers})
        self._front = replace(question.front, listens=(question.listen,), pool=pool)
        self._needs = needs([self._front], evidence.host)
        self._sync = f"`treescale lb sync {question.node}`"
        self._passing = Passing(self._site, self._needs, self._sync)
        self._reports = {each.address: each for each in question.report.servers} if question.report else {}
        self._ways = [
            Way(self._site, client, each, self._name(each.address))
            for client in self._site.clients()
            for each in self._servers
        ]

    def checks(self) -> Iterator[Check]:
        """Yield the checks in their order."""
        once, each = self._once, self._each
        if self._question.loopback:
            yield from chain(once("balancer", self.balancer), once("loopback", self.loopback))
            return
        yield from chain(
            once("balancer", self.balancer),
            once("backend", self.backend),
            once("address", self.address),
            once("published", self.published),
            once("listener", self.listener),
            self.input(),
            once("service", self.service),
            once("servers", self.servers),
            each("forwarding", self.forwarding, f"{FORWARDING[self._listen.version]} is 1"),
            each("tracking", self.tracking, f"{TRACKING} is 1"),
            once("tracking", self.room),
            each("output", self.output, "the packets may go out to the servers"),
            each("masquerade", self.masquerade, "a rule brings the answers back through this host"),
            each("answers", self.answers, "the packets may be forwarded"),
            each("hairpin", self.hairpin, "the bridges send packets back where they came from"),
            each("server", self.server, "each accepts connections from this host"),
        )

    def goes_to(self) -> str:
        """Return to whom the packet goes, and what these see."""
        groups: dict[str, list[Way]] = {}
        for way in self._ways:
            groups.setdefault(way.seen(), []).append(way)
        parts = []
        for seen, ways in groups.items():
            places = list(dict.fromkeys(f"{way.name} ({way.server.address})" for way in ways))
            names = " or ".join(places[:NAMED]) + (f" or {len(places) - NAMED} more" if len(places) > NAMED else "")
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
        text = f"{self._question.asked} stays on the loopback device, where nothing is balanced"
        yield Finding("fail", text, f"connect to {Address(self._listen.ip, self._listen.first)}")

    def published(self) -> Iterator[Finding]:
        if not self._site.ipvs:
            return  # our table comes before
        known = next(published([self._front], self._question.containers), None)
        for client in self._site.clients():
            fate = self._site.published(client)
            if fate.result == "translate":
                mend = known.mend if known else f"`{deletion(fate)}`"
                text = known.text if known else f"{fate.rule} takes the packets to {self._listen}"
                yield Finding("fail", text, mend)
                return
            if fate.result == "unknown":
                yield Finding("unknown", f"it depends on {fate.rule} whether the packet comes to the balancer")
                return
        if self._evidence.unread:
            yield Finding("fail", known.text, known.mend) if known else self._passing.blind()
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

    def input(self) -> Iterator[Check]:
        if self._site.origin == "local":
            return self._each("input", self._local_input, "the answers may come in")
        if self._site.ipvs:
            return self._once("input", self._first_input)
        return self._each("input", self._translated_input, "the packets may come in")

    def _local_input(self, way: Way) -> Finding | None:
        return self._passing.passes(way, "input", answer=True) if not way.direct and way.place != "here" else None

    def _first_input(self) -> Iterator[Finding]:
        found = map(self._passing.comes_in, self._site.clients())
        fine = Finding("ok", f"packets to {self._listen} may come in")
        yield next((each for each in found if each.result != "ok"), fine)

    def _translated_input(self, way: Way) -> Finding | None:
        return self._passing.passes(way, "input", answer=False) if way.place == "here" else None

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
            text = f"another tool has changed the service in the kernel: {'; '.join(changes[:NAMED])}"
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
            text = some(f"{self._name(each.address)} ({each.address}, weight {each.weight})" for each in active)
            looked = f"; no more than these {MAX_SERVERS} are looked at" if len(active) == MAX_SERVERS else ""
            out = [each for each in report.servers if each.state not in (State.ACTIVE, State.KEPT)]
            rest = f"; without weight: {some(map(_state, out))}" if out else ""
            result: Result = "warn" if report.state in ("sorry", "panic") else "ok"
            what = {"sorry": "only the sorry server: ", "panic": "lost servers are kept: "}.get(report.state, "")
            yield Finding(result, f"{what}{text}{rest}{looked}")
            return
        if report.servers:
            first = report.servers[0]
            yield Finding("fail", f"no server has a weight: {some(map(_state, report.servers))}", self._revive(first))
            return
        missing = [f"{each.name} on {each.node}: {each.reason}" for each in report.left_out]
        name = question.balancer.name
        if missing:
            yield Finding("fail", f"no server can take part: {some(missing)}", "see the reasons")
            return
        keys = some((*question.balancer.containers, *question.balancer.servers)) or "nothing"
        text = f"there is no server: {keys} is what the configuration names, and none of it is there"
        yield Finding("fail", text, f"start a container of one of these, or correct balancer {name}")

    def forwarding(self, way: Way) -> Finding | None:
        if not way.needs.forwarding:
            return None
        setting = FORWARDING[self._listen.version]
        names = (setting, f"net.ipv4.conf.{way.device.replace('.', '/')}.forwarding")
        for name in names[: 2 if self._listen.version == 4 else 1]:
            if self._evidence.settings.get(name) == 0:
                text = f"{name} is 0: {self._why_set(setting, 'packets are forwarded')}"
                return Finding("fail", text, f"`sysctl -w {name}=1`")
        return _FINE

    def tracking(self, way: Way) -> Finding | None:
        if not self._site.ipvs or not way.needs.tracking:
            return None
        found, why = self._evidence.settings.get(TRACKING), self._why_set(TRACKING, "")
        if found is None:
            text = f"this kernel's IPVS cannot track connections, it has no {TRACKING}: {why}"
            return Finding("fail", text, 'take a kernel with CONFIG_IP_VS_NFCT, or backend = "nftables"')
        return _FINE if found == 1 else Finding("fail", f"{TRACKING} is {found}: {why}", f"`sysctl -w {TRACKING}=1`")

    def room(self) -> Iterator[Finding]:
        count, most = (self._evidence.settings.get(name, 0) for name in (COUNT, MAX))
        if most and count >= most * _NEARLY:
            full = count >= most
            text = f"{count} of {most} connections that the kernel can track are there"
            text += ": new ones are dropped" if full else ""
            yield Finding("fail" if full else "warn", text, f"`sysctl -w {MAX}={2 * most}`")

    def output(self, way: Way) -> Finding | None:
        leaves = self._site.ipvs or self._site.origin == "local"
        return self._passing.passes(way, "output", answer=False) if leaves and not way.direct else None

    def masquerade(self, way: Way) -> Finding | None:
        if not way.needs.masquerade:
            return None
        fate = way.masked()
        if fate.result == "translate":
            return _FINE
        if fate.result == "unknown":
            return Finding("unknown", f"it depends on {fate.rule}")
        if self._evidence.unread:
            return self._passing.blind()
        # A bridge that filters what is bridged brings the answers back, too; but not those of the client itself.
        filtered = way.place == "same" and self._evidence.host.bridge_filter
        rule = next((each for each in self._needs.rules if each.kind == "masquerade"), None)
        why = rule.why if rule else f"{way.name} would answer the client directly"
        return Finding("warn" if filtered else "fail", f"the source is not masqueraded: {why}", self._sync)

    def answers(self, way: Way) -> Finding | None:
        if not way.needs.forwarding:
            return None
        if not self._site.ipvs:
            found = self._passing.passes(way, "forward", answer=False)
            if found.result not in ("ok", "warn"):
                return found
        return self._passing.passes(way, "forward", answer=True)

    def hairpin(self, way: Way) -> Finding | None:
        if way.place != "same" or not self._evidence.host.bridge_filter or way.client is None:
            return None
        ports = [port for port in way.client.ports if port in self._evidence.no_hairpin]
        if not ports:
            return _FINE
        text = f"{some(ports)} of {way.client.device} do not send a packet back where it came from"
        mend = " && ".join(f"bridge link set dev {port} hairpin on" for port in ports[:NAMED])
        return Finding("fail", f"{text}, so a server that is its own client gets nothing", f"`{mend}`")

    def server(self, way: Way) -> Finding | None:
        if way.direct:
            return _unseen(way, self._listen.ip)
        why = self._accepts.get(way.server.address)
        if why is None or (why and not way.knocks()):
            return None  # not asked, or it may have been this host's rules
        if not why:
            return _FINE
        port = way.server.address.port or self._listen.first
        mend = f"see that its program runs and listens at port {port} of all its addresses, not of 127.0.0.1 alone"
        return Finding("fail", f"{way.name} does not accept a connection at {way.server.address}: {why}", mend)

    # What they have in common.

    def _once(self, name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Check]:
        for each in look():
            yield Check(name=name, result=each.result, text=each.text, mend=each.mend)

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
        for finding, names in list(bad.items())[:NAMED]:
            some = tuple(dict.fromkeys(names)) if set(names) != everybody else ()
            yield Check(name=name, result=finding.result, text=finding.text, mend=finding.mend, servers=some)

    def _why_set(self, setting: str, usual: str) -> str:
        return next((each.why for each in self._needs.settings if each.name == setting), usual)

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
