"""Balancer records: what the balancer of a node says on the bus and takes as orders, as typed, frozen structs. Pure.

docs/balancer.md is the reference. Fields with their default are left out in JSON.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, field

from tsbus.records import Number

MAX_NAMES: Final = 1000
"""Names of one order."""

_Names = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=MAX_NAMES)]


class _Record(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A frozen struct whose JSON leaves out what has its default."""


class _Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a caller asks for; a key that nobody knows is an error, not ignored."""


# Orders ---------------------------------------------------------------------------------------------------------------


class Stats(_Order, frozen=True, kw_only=True):
    """Of `lb.stats`."""

    balancers: _Names = ()
    """Empty: all."""


class Show(Stats, frozen=True, kw_only=True):
    """Of `lb.show`."""

    servers: _Names = ()
    """Only these, by whole name, id, node or IP:PORT. Empty: all."""


class Watch(Stats, frozen=True, kw_only=True):
    """Of `lb.watch`."""

    every_s: Annotated[float, Meta(ge=0.2, le=3600)] = 1.0


class Select(_Order, frozen=True, kw_only=True):
    """Servers by name."""

    servers: Annotated[_Names, Meta(min_length=1)]
    """Names or ids of containers, nodes, or IP:PORT."""
    balancers: _Names = ()
    """Empty: all."""
    if_here: bool = False
    """A name that fits nothing is no error."""


class Undrain(Select, frozen=True, kw_only=True):
    """Of `lb.undrain`."""

    once: bool = False
    """Only drains that would end with the container's run; what an operator has drained stays so."""


class Wait(_Order, frozen=True, kw_only=True):
    """Of `lb.wait`."""

    servers: Annotated[_Names, Meta(min_length=1)]
    """One that is not known yet is waited for."""
    balancers: _Names = ()
    """Empty: all that know it."""


class Drain(Select, frozen=True, kw_only=True):
    """Of `lb.drain`."""

    once: bool = False
    """It ends with the container's run."""
    for_s: Annotated[float, Meta(ge=0, le=31 * 86400)] = 0.0
    """It ends then; 0: it does not."""
    wait: bool = False
    """Answer when the servers are out of the table."""


class Weigh(Select, frozen=True, kw_only=True):
    """Of `lb.weight`."""

    weight: Annotated[int, Meta(ge=0, le=65535)] | None
    """None: as configured."""


Origin = Literal["remote", "local", "container"]
"""Where a client is: elsewhere, on the balancer's host, or in a container there."""


class Why(_Order, frozen=True, kw_only=True):
    """Of `lb.why`."""

    address: Annotated[str, Meta(min_length=1, max_length=256)]
    """IP:PORT that a client connects to, or the name of a balancer."""
    protocol: Literal["tcp", "udp", "sctp"] = "tcp"
    """With the name of a balancer its own counts."""
    client: Origin = field(default="remote", name="from")


# Answers --------------------------------------------------------------------------------------------------------------


class ProblemRecord(_Record, frozen=True, kw_only=True):
    """Something that a person should know, and what to do. In `lb.check` with its balancer, else empty."""

    balancer: str = ""
    text: str
    mend: str = ""
    note: bool = False
    """Nothing is wrong: it may be meant so, as a balancer without a server."""


class ServerRecord(_Record, frozen=True, kw_only=True):
    """A real server."""

    id: str
    """The container's id, the node's name, "sorry", or '' for one that was found in the kernel."""
    name: str
    node: str = ""
    ip: str
    port: int
    state: str
    """joining, active, out, draining, removed or kept."""
    reason: str = ""
    since_s: Annotated[float, Meta(le=1e12)] = 0.0
    """So long it is in this state."""
    weight: int
    base: int
    rule: str = ""
    """What let it in, in words."""
    connections: int | None = None
    """That are left while it drains, or were left when its time was over; None where they cannot be counted."""


class LeftOut(_Record, frozen=True, kw_only=True):
    """Who was meant to take part and cannot."""

    name: str
    node: str
    reason: str


class Summary(_Record, frozen=True, kw_only=True):
    """A balancer in `lb.ls`."""

    name: str
    addresses: tuple[str, ...]
    protocol: str
    alg: str
    backend: str = ""
    """ipvs or nftables; empty while neither can be used."""
    active: int
    """Servers with a weight."""
    servers: int
    """In the table."""
    state: str
    """ok, empty, sorry, panic, waiting or clash."""
    problems: int
    """How many; `lb.show` has them."""


class Details(_Record, frozen=True, kw_only=True):
    """A balancer in `lb.show`; more servers than MAX_SERVERS come in further pieces, with the name."""

    name: str
    addresses: tuple[str, ...] = ()
    protocol: str = ""
    alg: str = ""
    backend: str = ""
    state: str = ""
    servers: tuple[ServerRecord, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    problems: tuple[ProblemRecord, ...] = ()


class Traffic(_Record, frozen=True, kw_only=True):
    """What the kernel has counted; `_s` is per second. Of one server with its id, of a balancer without."""

    id: str = ""
    name: str = ""
    ip: str = ""
    port: Number = 0
    weight: Number = 0
    active: Number = 0
    inactive: Number = 0
    connections: Number = 0
    in_packets: Number = 0
    out_packets: Number = 0
    in_bytes: Number = 0
    out_bytes: Number = 0
    cps: Number = 0
    in_pps: Number = 0
    out_pps: Number = 0
    in_bps: Number = 0
    out_bps: Number = 0
    """Bytes per second, as `in_bps`."""


class BalancerTraffic(Traffic, frozen=True, kw_only=True):
    """A balancer in `lb.stats` and `lb.watch`: its sums, and its servers."""

    servers: tuple[Traffic, ...] = ()


class Touched(_Record, frozen=True, kw_only=True):
    """A server that an order of an operator concerned."""

    id: str
    name: str
    balancer: str
    state: str
    connections: int | None = None
    """As in ServerRecord."""


class Cost(_Record, frozen=True, kw_only=True):
    """Answer of `lb.cost`: what the balancer's process has done since it began, and what it takes."""

    turns: int = 0
    turn_ms: float = 0.0
    """How long the last one took, the kernel's part included."""
    worst_ms: float = 0.0
    compares: int = 0
    """Comparisons of the whole host, each `reconcile_s` or by `lb.sync`."""
    compare_ms: float = 0.0
    """How long the last one took."""
    steps: int = 0
    """Changes of the kernel's table."""
    repairs: int = 0
    """Those of them that mended what somebody else had changed."""
    refusals: int = 0
    """How often a service could not be made as it is wanted."""
    published: int = 0
    dropped: int = 0
    """Events that the router did not take."""
    watched: int = 0
    """Containers whose end the kernel tells."""
    cpu_s: float = 0.0
    rss_bytes: int = 0


class Check(_Record, frozen=True, kw_only=True):
    """What `lb.why` found out about one part of a packet's way."""

    name: str
    """docs/balancer.md, Why, has all of them, in their order."""
    result: Literal["ok", "fail", "warn", "unknown"]
    text: str
    mend: str = ""
    """A command or a line of the configuration."""
    servers: tuple[str, ...] = ()
    """Those that it concerns; empty: all."""


class WhyAnswer(_Record, frozen=True, kw_only=True):
    """What happens to the first packet of a new connection."""

    balancer: str = ""
    """Empty: no balancer of this node has the address."""
    address: str
    protocol: str
    client: Origin = field(name="from")
    works: bool | None
    """None: it cannot be told, because a check is `unknown`."""
    verdict: str
    """One sentence."""
    checks: tuple[Check, ...]


# Events ---------------------------------------------------------------------------------------------------------------


class LbEvent(_Record, frozen=True, kw_only=True):
    """Body of the `lb.*` events but `lb.capacity`."""

    node: str
    balancer: str = ""
    """Empty: of the node as a whole."""
    time_ns: int
    """Unix nanoseconds of the node's clock."""
    cause: str = ""
    server: ServerRecord | None = None
    was: str = ""
    """The server's state before."""
    text: str = ""
    """With `lb.problem` and `lb.solved`."""
    mend: str = ""
    steps: tuple[str, ...] = ()
    """With `lb.repaired`: what was done."""


class Alive(_Record, frozen=True, kw_only=True):
    """What is alive behind one balancer."""

    addresses: tuple[str, ...]
    protocol: str
    capacity: float
    """In servers of weight 1, or of full weight where weights follow the CPU."""


class CapacityEvent(_Record, frozen=True, kw_only=True):
    """Body of `lb.capacity`, event and answer."""

    node: str
    balancers: dict[str, Alive]
