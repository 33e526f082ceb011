"""Incoming: what a node makes of a tree that comes over the bus, and who has to know. Pure; node.py carries it out."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tsbus.config import ConfigError, Tree, loads
from tsbus.copies import digest, own_copy
from tsbus.supervision import SupervisionError


@dataclass(frozen=True, slots=True)
class Incoming:
    """A tree that this node may take."""

    text: str
    """Its own copy."""
    tree: Tree


def text_of(body: Any) -> str:
    """Return the shared text in the body of `node.config`: the text itself, or `{"tree": TEXT, "sha256": HEX}`.

    Raises SupervisionError when it is neither, or has another digest.
    """
    if isinstance(body, str) and body:
        return body
    if not isinstance(body, dict) or not isinstance(body.get("tree"), str):
        raise SupervisionError('send the text of a tree, or {"tree": TEXT, "sha256": HEX}')
    text: str = body["tree"]
    if digest(text) != body.get("sha256"):
        raise SupervisionError("the text of the tree has another sha256 than was sent with it; send it again")
    return text


def check(shared: str, node: str, keys: Collection[str]) -> Incoming:
    """Return what `node`, which has the secret halves of `keys`, may take. Raises SupervisionError with what is wrong.

    A tree is refused that is not in order, does not have the node, or knows it by a key that it has not: with that it
    would be cut off, and could not be told better.
    """
    try:
        text = own_copy(shared, node)
        tree = loads(text, file="the tree", strict=True)
    except ValueError as error:
        raise SupervisionError(f"the tree: {error}") from None
    except ConfigError as error:
        raise SupervisionError(str(error)) from None
    if tree.current_node != node:
        raise SupervisionError(f"the tree makes {tree.current_node or 'nothing'} of this node, which is {node}")
    public_key = tree.servers[node].public_key
    if public_key not in keys:
        raise SupervisionError(
            f"servers.{node}.public_key is {f'not a key that {node} has' if public_key else 'empty'}; "
            f"its own is {' or '.join(keys)}"
        )
    return Incoming(text, tree)


def restarts(before: Tree, after: Tree, node: str) -> list[str]:
    """Return the services that must start anew to follow; each reads the tree once. The router follows as it runs."""
    then, now = _read_by(before, node), _read_by(after, node)
    return [service for service in now if now[service] != then.get(service)]


def _read_by(tree: Tree, node: str) -> dict[str, Any]:
    """Return what each service of a node takes from the tree."""
    if node not in tree.servers:
        return {}
    handlers, balancers, dashboard = tree.handlers_for(node), tree.servers[node].balancers, tree.dashboard_for(node)
    shape = [(name, each.ip, each.tags, each.childs, each.balancers) for name, each in tree.servers.items()]
    return {
        "executor": (tree.executor_for(node), handlers, shape if handlers else ()),
        "docker": tree.docker_for(node),
        "balancer": (tree.balancing_for(node), shape) if balancers else (),
        "dashboard": (dashboard, tree.alerts) if dashboard.enabled else (),
    }
