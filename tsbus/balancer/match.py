"""Match: which containers take part in a balancer, and at which address. Pure. docs/balancer.md has the rules."""

from ipaddress import ip_address
from typing import Final, NamedTuple

from tsbus.balancer.table import IP, MAX_WEIGHT, Address
from tsbus.config import Balancer
from tsbus.filters import image_fits, normal_image
from tsbus.records import Container, Endpoint, Image

ENABLE: Final = "treescale.enable"
BALANCER: Final = "treescale.balancer"
PORT: Final = "treescale.port"
WEIGHT: Final = "treescale.weight"
_WORDS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_MAX_PORT: Final = 65_535
RUNNING: Final = ("running", "paused")
"""States in which a container has its addresses."""


class Match(NamedTuple):
    """A container takes part."""

    port: int
    """0: the port that the client came to."""
    weight: int
    rule: str
    """What let it in, in words."""


class LeftOut(ValueError):
    """A container that was meant to take part cannot; the text says why."""


def match(balancer: Balancer, node: str, container: Container, key: tuple[str, str] | None) -> Match | None:
    """Return how `container` takes part in `balancer` of `node`, None if it does not. Raises LeftOut.

    `key` is what `best_key` returns for its image.
    """
    labels = container.labels
    if key is None and BALANCER not in labels:
        return None
    if not _word(labels, ENABLE, default=True):
        return None
    named = [name.strip() for name in labels.get(BALANCER, "").split(",") if name.strip()]
    if named:
        if not {balancer.name, f"{node}/{balancer.name}"} & set(named):
            return None
        rule = f"label {BALANCER} = {labels[BALANCER]}"
    elif key is None:
        return None
    else:
        rule = f"image {key[0]} ({key[1]})"
    configured = balancer.server_weights.get(key[0], 1) if key else 1
    port = _number(labels, PORT, 0, _MAX_PORT)
    if port is None:
        port = balancer.containers[key[0]] if key else _only_port(container, balancer.protocol)
    weight = _number(labels, WEIGHT, 0, MAX_WEIGHT)
    return Match(port, configured if weight is None else weight, rule)


def best_key(balancer: Balancer, image: Image) -> tuple[str, str] | None:
    """Return the key of `containers` that fits the image most precisely, and by what it fits."""
    best: tuple[int, str, str] | None = None
    for key in balancer.containers:
        found = fits(key, image)
        if found and (best is None or found[0] < best[0]):
            best = (found[0], key, found[1])
    return best[1:] if best else None


def fits(key: str, image: Image) -> tuple[int, str] | None:
    """Return how precisely (less is more) and by what `key` names the image, or None."""
    wanted = normal_image(key)
    if not image_fits(wanted, image):
        return None
    if wanted == normal_image(image.repo):
        return 3, "repository"
    if "@" in wanted:
        return 1, "digest"
    if wanted == normal_image(image.given) or wanted.startswith(f"{normal_image(image.repo)}:"):
        return 2, "name and tag"
    return 0, "id"


def place(
    container: Container, balancer: Balancer, port: int, *, local: bool, ips: tuple[IP, ...], node: str
) -> Address:
    """Return where the balancer's node reaches the container's port. `ips`: of the container's node. Raises LeftOut."""
    family = balancer.listens[0].family
    port = port or client_port(balancer)
    if "host" in container.networks:
        return Address(_own(ips, family, node), port)
    return _local(container, balancer, port, family) if local else _published(container, balancer, port, ips, node)


def client_port(balancer: Balancer) -> int:
    """Return the one port that clients come to, or 0 when there are several."""
    ports = {port for each in balancer.listens for port in (each.first, each.last)}
    return ports.pop() if len(ports) == 1 else 0


def _own(ips: tuple[IP, ...], family: int, node: str) -> IP:
    for ip in ips:
        if ip.version == family:
            return ip
    raise LeftOut(f"{node} has no IPv{family} address here")


def _local(container: Container, balancer: Balancer, port: int, family: int) -> Address:
    exposed = [each.ip for each in container.endpoints if each.port == port and each.protocol == balancer.protocol]
    for text in (*exposed, *(container.networks[name] for name in sorted(container.networks))):
        ip = _ip(text)
        if ip and ip.version == family:
            return Address(ip, port)
    raise LeftOut(f"it has no IPv{family} address on a network of this node")


def _published(container: Container, balancer: Balancer, port: int, ips: tuple[IP, ...], node: str) -> Address:
    family = balancer.listens[0].family
    ports = {each.host_port for each in container.endpoints if each.port == each.host_port}
    if port == 0:
        for each in balancer.listens:
            if missing := next((one for one in range(each.first, each.last + 1) if one not in ports), 0):
                raise LeftOut(f"its port {missing} is not published as {missing} on {node}")
        return Address(_own(ips, family, node), 0)
    reasons = [f"its port {port}/{balancer.protocol} is not published on {node}"]
    for endpoint in container.endpoints:
        if endpoint.port != port or endpoint.protocol != balancer.protocol or not endpoint.host_port:
            continue
        ip = _host_ip(endpoint, family)
        if isinstance(ip, str):
            reasons.append(ip)
        else:
            return Address(ip or _own(ips, family, node), endpoint.host_port)
    raise LeftOut(reasons[-1])


def _host_ip(endpoint: Endpoint, family: int) -> IP | str | None:
    """Return the address it is published on, None for all of the node, or why it cannot be used."""
    ip = _ip(endpoint.host_ip)
    if ip is None:
        return None
    if ip.version != family:
        return f"its port {endpoint.port} is published for IPv{ip.version} only"
    if ip.is_loopback:
        return f"its port {endpoint.port} is published on {ip} only, which other nodes cannot reach"
    return None if ip.is_unspecified else ip


def _ip(text: str) -> IP | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _only_port(container: Container, protocol: str) -> int:
    ports = {each.port for each in container.endpoints if each.protocol == protocol}
    if len(ports) == 1:
        return ports.pop()
    found = f"it has {len(ports)} ports" if ports else "it exposes none"
    raise LeftOut(f"which port? Label it with {PORT}: {found}")


def _word(labels: dict[str, str], label: str, *, default: bool) -> bool:
    text = labels.get(label)
    if text is None:
        return default
    if text.strip().lower() not in _WORDS:
        raise LeftOut(f"label {label} must be true or false, not {text[:80]!r}")
    return _WORDS[text.strip().lower()]


def _number(labels: dict[str, str], label: str, low: int, high: int) -> int | None:
    text = labels.get(label)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and low <= int(text) <= high):
        raise LeftOut(f"label {label} must be {low} to {high}, not {text[:80]!r}")
    return int(text)
