"""Check: what must hold between the values of a configuration. reader.py has already looked at each value alone.

What holds within the console's file is in console.py.
"""

from collections.abc import Iterator

from tsbus.config.balancing import check_balancers
from tsbus.config.document import Document
from tsbus.config.forms import is_loopback, quote
from tsbus.config.model import MAX_CHILDS, BusSettings, Console, Server, Tree
from tsbus.config.problem import Severity


def check_tree(tree: Tree, document: Document, *, strict: bool) -> None:
    """Note all problems of `tree` in its document. `strict` makes an error of a child that is not defined."""
    if not tree.servers:
        document.note(
            "error", ("servers",), "there is no server", "add a table [servers.NAME] with ip and service_port"
        )
    if tree.current_node and tree.current_node not in tree.servers:
        message = f"no server named {quote(tree.current_node)}"
        document.note_unknown("error", ("current_node",), message, tree.current_node, tree.servers)
    for server in tree.servers.values():
        _check_childs(server, tree, document, strict=strict)
    parents = _check_parents(tree, document)
    _check_shape(tree, parents, document)
    _check_endpoints(tree, document)
    _check_keys(tree, document)
    check_balancers(tree, document)
    _check_bus(tree.bus, document)
    _check_docker(tree, document)
    _check_dashboard(tree, document)
    _check_alerts(tree, document)


def check_together(console: Console, tree: Tree, document: Document) -> None:
    """Note in the console's document which of its entries and of the tree's servers have no counterpart."""
    passed = {console.ssh_for(name).jump for name in console.ssh}
    for name in console.ssh:
        if name not in tree.servers and name not in passed:
            document.note_unknown("info", ("ssh", name), "a spare: no server has this name", name, tree.servers)
    for name in tree.servers:
        if name not in console.ssh:
            document.note("warning", ("ssh",), f"no entry for server {quote(name)}", f"add [ssh.{name}] to build on it")


def _check_childs(server: Server, tree: Tree, document: Document, *, strict: bool) -> None:
    path = ("servers", server.name, "childs")
    for index, child in enumerate(server.childs):
        if child == server.name:
            document.note("error", (*path, index), "a server cannot be its own child", "take it out")
        elif child not in tree.servers:
            severity: Severity = "error" if strict else "warning"
            document.note_unknown(severity, (*path, index), f"no server named {quote(child)}", child, tree.servers)
    if len(server.childs) > MAX_CHILDS:
        message = f"{len(server.childs)} childs are too many"
        hint = f"a server has at most {MAX_CHILDS}; put some of them below another one"
        document.note("error", (*path, MAX_CHILDS), message, hint)


def _check_parents(tree: Tree, document: Document) -> dict[str, str]:
    """Return child -> parent, the first claim winning; note the others."""
    parents: dict[str, str] = {}
    for server in tree.servers.values():
        for index, child in enumerate(server.childs):
            if child == server.name:
                continue
            if child in parents:
                message = f"{quote(child)} is already a child of {quote(parents[child])}"
                hint = "a server has one parent; take it out of one of the two"
                document.note("error", ("servers", server.name, "childs", index), message, hint)
            parents.setdefault(child, server.name)
    return parents


def _check_shape(tree: Tree, parents: dict[str, str], document: Document) -> None:
    for cycle in _cycles(tree, parents):
        message = f"the childs go round in a circle: {' -> '.join([*cycle, cycle[0]])}"
        hint = "one of them must not be a child of the next"
        document.note("error", ("servers", cycle[0], "childs"), message, hint)
    roots = [name for name in tree.servers if name not in parents]
    for name in roots[1:]:
        message = f"is no child of any server, and neither is {quote(roots[0])}: a tree has one root"
        document.note("error", ("servers", name), message, f"add {quote(name)} to the childs of a server")


def _cycles(tree: Tree, parents: dict[str, str]) -> Iterator[list[str]]:
    """Yield each circle of servers once, parent before child."""
    seen: set[str] = set()
    for start in tree.servers:
        trail: list[str] = []
        node: str | None = start
        while node is not None and node not in seen:
            seen.add(node)
            trail.append(node)
            node = parents.get(node)
        if node in trail:
            upwards = trail[trail.index(node) :]
            yield [upwards[0], *upwards[:0:-1]]


def _check_endpoints(tree: Tree, document: Document) -> None:
    taken: dict[str, str] = {}
    for server in tree.servers.values():
        if not (server.ip and server.service_port):
            continue
        endpoint = f"{server.ip}:{server.service_port}"
        if endpoint in taken:
            message = f"{endpoint} is already the endpoint of {quote(taken[endpoint])}"
            hint = "give it another ip or service_port"
            document.note("error", ("servers", server.name, "service_port"), message, hint)
        taken.setdefault(endpoint, server.name)


def _check_keys(tree: Tree, document: Document) -> None:
    """A router knows by the key alone who is there: two with the same one would be one to it."""
    owners: dict[str, str] = {}
    for table, name, key, value in _keys(tree):
        owner = f"{table[:-1]} {quote(name)}"
        if value and owners.setdefault(value, owner) != owner:
            hint = "give each a key pair of its own (treescale keys new FILE)"
            document.note("error", (table, name, key), f"is already the key of {owners[value]}", hint)


def _keys(tree: Tree) -> Iterator[tuple[str, str, str, str]]:
    """Yield table, name, key and value of each public key."""
    for name, server in tree.servers.items():
        yield "servers", name, "public_key", server.public_key
        yield "servers", name, "other_public_key", server.other_public_key
    for name, operator in tree.operators.items():
        yield "operators", name, "public_key", operator.public_key


def _check_docker(tree: Tree, document: Document) -> None:
    own = [(("servers", name, "docker"), server.docker) for name, server in tree.servers.items()]
    for path, docker in [(("docker",), tree.docker), *own]:
        if docker is None:
            continue
        if bool(docker.tls_cert) != bool(docker.tls_key):
            document.note("error", path, "tls_cert and tls_key go together", "give both, or neither")
        if (docker.tls_ca or docker.tls_cert) and not docker.host.startswith("tcp://"):
            document.note("error", path, "TLS is for a host like tcp://10.0.0.1:2376", "give host, or take tls_* out")


def _check_dashboard(tree: Tree, document: Document) -> None:
    own = [(("servers", name, "dashboard"), server.dashboard) for name, server in tree.servers.items()]
    for path, dashboard in [(("dashboard",), tree.dashboard), *own]:
        if dashboard is None:
            continue
        if bool(dashboard.certificate) != bool(dashboard.key):
            document.note("error", path, "certificate and key go together", "give both, or neither")
        elif not (dashboard.certificate or dashboard.behind_proxy or is_loopback(dashboard.host)):
            message = f"would send passwords over the network in the clear from {dashboard.host}"
            hint = "give certificate and key, or put it behind a proxy on this machine (behind_proxy = true)"
            document.note("error", path, message, hint)


def _check_alerts(tree: Tree, document: Document) -> None:
    for name, alert in tree.alerts.items():
        path = ("alerts", name)
        if alert.node and alert.node not in tree.servers:
            message = f"no server named {quote(alert.node)}"
            document.note_unknown("error", (*path, "node"), message, alert.node, tree.servers)
        if (alert.when == "event") != bool(alert.on):
            hint = 'give on a topic, like "backup.failed"' if alert.when == "event" else 'with on goes when = "event"'
            document.note("error", path, "on is the topic of an event", hint)
        if alert.when == "event" and alert.for_s:
            document.note("error", (*path, "for_s"), "an event does not last", "take for_s out; hold_s is for events")
        if bool(alert.header) != bool(alert.secret_env or alert.secret_file) or (
            alert.secret_env and alert.secret_file
        ):
            hint = "give header and one of secret_env and secret_file, or none of them"
            document.note("error", path, "a header and its secret go together", hint)
        if alert.call_target and not alert.call:
            document.note("error", (*path, "call_target"), "there is no command to call", "give call as well")


def _check_bus(bus: BusSettings, document: Document) -> None:
    if bus.heartbeat_timeout_ms <= bus.heartbeat_ms:
        message = f"must be longer than heartbeat_ms ({bus.heartbeat_ms})"
        document.note("error", ("bus", "heartbeat_timeout_ms"), message, "three times as long is usual")
