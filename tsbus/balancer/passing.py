"""Passing: what the packet rules of a host do with the packets of one question, and what lets them pass. Pure."""

import json
from typing import Final, Literal

from tsbus.balancer import chains, iptables_text, nft_listing
from tsbus.balancer.firewall import Base, Fate, Table
from tsbus.balancer.question import Finding, some
from tsbus.balancer.rules import Needs, Network
from tsbus.balancer.ways import Evidence, Site, Way

_FIREWALLS: Final = ("ufw", "firewalld")
"""Write all rules anew from a configuration of their own."""


class Passing:
    """Of the packets to the address of `site`."""

    def __init__(self, site: Site, needs: Needs, sync: str) -> None:
        """`needs`: what the host should have; `sync`: the command that makes it so."""
        self._site, self._needs, self._sync = site, needs, sync

    def comes_in(self, client: Network | None) -> Finding:
        """Return whether the filters let the request in, before it is balanced."""
        words = chains.to_words(self._site.listen), chains.nft_to_words(self._site.listen)
        return self._judged(self._site.filtered(client), "the packet", words)

    def passes(self, way: Way, hook: Literal["input", "forward", "output"], *, answer: bool) -> Finding:
        """Return whether the filters let a way's packet, or its answer, pass."""
        words = (
            chains.connection_words(self._site.listen, new=not answer),
            chains.nft_connection_words(self._site.listen),
        )
        return self._judged(way.passes(hook, answer=answer), "the answer" if answer else "the packet", words)

    def _judged(self, fate: Fate, what: str, words: tuple[str, str]) -> Finding:
        """Return what filters do. `words`: what iptables and nft call the packets that should pass."""
        if fate.result == "drop":
            return Finding("fail", f"{what} is dropped by {fate.rule}", self._let_in(fate.base, words))
        if fate.result == "unknown":
            text = f"whether {what} is dropped depends on {fate.rule}"
            return Finding("unknown", text, self._let_in(fate.base, words))
        if self._site.evidence.unread:
            return self.blind()
        if fate.but:
            return Finding("warn", f"{what} passes, unless it comes from where {some(fate.but)} says")
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
        version = self._site.listen.version
        if chains.DOCKER_CHAIN not in table.chains:
            return False
        wanted = chains.wanted_parts(self._needs, version, chains.DOCKER_CHAIN).get(table.name, chains.Part())
        jumped = {(name, rule.verdict.target) for name, chain in table.chains.items() for rule in chain.rules}
        return any(
            (jump.origin, jump.chain) not in jumped or not table.chains[jump.chain].rules for jump in wanted.jumps
        )

    def blind(self) -> Finding:
        """Return what can be said where rules could not be read."""
        why = self._site.evidence.unread[0]
        return Finding(
            "unknown", f"not all packet rules can be read: {why}", "run the balancer as root with CAP_NET_ADMIN"
        )


def tables_of(evidence: Evidence) -> tuple[Table, ...]:
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


def deletion(fate: Fate) -> str:
    """Return the command that takes the rule of a fate away."""
    if fate.base is None or fate.base.table.tool == "nft":
        return "nft -a list ruleset` has its handle, `nft delete rule` takes it away: " + fate.rule
    return f"{fate.base.table.tool} {fate.rule.replace('-A ', '-D ', 1)}"


def _belongs(table: Table, firewall: str) -> bool:
    return firewall in table.name or any(name.startswith(f"{firewall}-") for name in table.chains)
