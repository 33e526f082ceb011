"""Finding: what the search field offers for some words. Pure."""

from collections.abc import Iterator
from typing import Any, Final

from tsbus.dashboard.state import Model
from tsbus.dashboard.web.pages import containers, tones
from tsbus.dashboard.web.pages.sheets import cut

SHOWN: Final = 12
Hit = tuple[str, str, str, str, tones.Mark | None]
"""What it is, its name, more of it, where it leads, and its state."""


def find(model: Model, words: str) -> dict[str, Any]:
    """Return what fits all words: what is called so comes first, then what has them anywhere."""
    terms = words.lower().split()
    if not terms:
        return {"hits": [], "more": 0}
    found = [
        (_place(hit[1].lower(), terms), hit) for hit, hay in _all(model) if all(term in hay.lower() for term in terms)
    ]
    found.sort(key=lambda one: one[0])
    return {"hits": [hit for _, hit in found[:SHOWN]], "more": max(0, len(found) - SHOWN)}


def _place(name: str, terms: list[str]) -> int:
    if name == terms[0]:
        return 0
    return 1 if name.startswith(terms[0]) else 2 if terms[0] in name else 3


def _all(model: Model) -> Iterator[tuple[Hit, str]]:
    for node in model.nodes.values():
        tags = " ".join("tag:" + tag for tag in node.tags)
        hit: Hit = ("node", node.name, " ".join(node.tags), f"/node/{node.name}", tones.of_node(node))
        yield hit, f"{node.name} node state:{node.state} {tags}"
    for each in model.balancers.values():
        for balancer in each.values():
            place = ", ".join(balancer.addresses)
            hit = ("balancer", balancer.name, f"{place} on {balancer.node}", "/balancers", tones.of_balancer(balancer))
            yield hit, f"{balancer.name} balancer {place} {balancer.node} state:{balancer.state}"
    for group in model.containers.values():
        for one in group.values():
            note = f"{cut(one.record.image.given, 60)} on {one.node}"
            hit = ("container", cut(one.name, 80), note, f"/container/{one.node}/{one.id}", tones.of_container(one))
            yield hit, f"{one.name} {one.node} {containers.hay(one)}"
