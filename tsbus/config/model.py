"""Model: the configuration as frozen structs. This is the public Python API, and the schema of the files.

A field's name is its key in the file (or `metadata["key"]` where Python reserves the word), its type says what the
reader accepts, its default what a missing key means. forms.py holds the rules of single values, reader.py fills these
structs from a file, check.py looks at the tree as a whole, writer.py writes them back. docs/configuration.md is the
reference for people; a test holds it complete.
"""

import hashlib
import json
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from tsbus.config import forms
from tsbus.config.address import Address, parse_address
from tsbus.config.plain import tree_to_plain
from tsbus.core.roles import Role
from tsbus.core.tree import Topology

MAX_CHILDS = 10
"""Links are kept alive all the time; ten a node keep a restart cheap and 1,000 nodes three links deep."""
MIB = 1 << 20

Name = Annotated[str, forms.name]
Tag = Annotated[str, forms.tag]
Host = Annotated[str, forms.host]
Port = Annotated[int, forms.between(1, 65535)]
ServerPort = Annotated[int, forms.between(0, 65535)]
"""Of a real server; 0 is the port that the client came to."""
Weight = Annotated[int, forms.between(0, 65535)]
Topic = Annotated[str, forms.topic]
Target = Annotated[str, forms.target]
User = Annotated[str, forms.user]
Word = Annotated[str, forms.words]
PublicKey = Annotated[str, forms.public_key]
Argv = Annotated[tuple[Word, ...], forms.argv]
ArgvTemplate = Annotated[tuple[Word, ...], forms.argv_template]
Millis = Annotated[int, forms.between(10, 600_000)]
Seconds = Annotated[float, forms.between(0, 86_400)]
Timeout = Annotated[float, forms.between(0.1, 86_400)]
Bytes = Annotated[int, forms.between(64 << 10, 4 << 30)]
Count = Annotated[int, forms.between(1, 1_000_000)]

_IMPLIED: dict[str, Any] = {"implied": True}
"""The table's own key says it, so the canonical form leaves it out."""
_SHOWN: dict[str, Any] = {"shown": True}
"""Written in the canonical form even when it equals its default: people look for it there."""
_LOCAL: dict[str, Any] = {"local": True}
"""Not in the file: it belongs to this machine or is computed."""


class Secret:
    """A text that no log, traceback or repr shows. Use `reveal()` where it is really needed."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def __repr__(self) -> str:
        return "***" if self._text else "''"

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


@dataclass(frozen=True, slots=True)
class Balancer:
    """One kernel load balancer of a node: a virtual address, and where its connections go. See docs/balancer.md."""

    name: Name = field(metadata=_IMPLIED)
    address: Annotated[str, forms.address]
    """IP:PORT that clients connect to, or IP:FIRST-LAST."""
    alg: Annotated[str, forms.one_of(forms.SCHEDULERS)] = field(default="rr", metadata=_SHOWN)
    """IPVS scheduler."""
    protocol: Annotated[str, forms.one_of(forms.PROTOCOLS)] = "tcp"
    containers: dict[Annotated[str, forms.image], ServerPort] = field(default_factory=dict)
    """Docker image -> port: every container made from the image takes part."""
    servers: dict[Annotated[str, forms.node_or_tag], ServerPort] = field(default_factory=dict)
    """Node name or @tag -> port: these servers take part."""
    addresses: tuple[Annotated[str, forms.address], ...] = ()
    """More of them, with the same servers behind."""
    server_weights: dict[Annotated[str, forms.image], Weight] = field(default_factory=dict)
    """Key of one of the two -> weight of its servers."""
    weights: Annotated[str, forms.one_of(("fixed", "cpu"))] = "fixed"
    subtree: bool = True
    """Whether containers of the nodes below take part, at their published ports."""
    health: bool = True
    """Whether a container's health check decides."""
    start_grace_s: Seconds = 1.0
    """A container without a health check takes part this long after its start."""
    drain_timeout_s: Seconds = 30.0
    hold_s: Seconds = 30.0
    """Servers of a lost node stay in the table this long, without new connections."""
    panic: Annotated[float, forms.between(0, 1)] = 0.5
    """Lost links alone never take out more than this share of the servers."""
    persistence_s: Annotated[int, forms.between(0, 2_678_400)] = 0
    """How long a client stays with its server; 0: not at all. The kernel's own tool has the same bound, 31 days."""
    forward: Annotated[str, forms.one_of(("nat", "dr", "tunnel"))] = "nat"
    sorry_server: Annotated[str, forms.server_address] = ""
    """IP:PORT that gets the connections while no server can."""
    manage_vip: bool = False
    """Whether the balancer gives the node this address."""
    adopt: bool = False
    """Whether it takes over a service that somebody else made at this address."""

    @property
    def listens(self) -> tuple[Address, ...]:
        """All its addresses. Raises ValueError when one cannot be read; of a loaded balancer all can."""
        return tuple(parse_address(text) for text in (self.address, *self.addresses))

    @property
    def keeps_port(self) -> bool:
        """Whether servers are reached at the port that the client came to, because the kernel writes no other there.

        With persistence that is so for a service of several addresses or ports, also with nat.
        """
        one = len(self.listens) == 1 and self.listens[0].first == self.listens[0].last
        return self.forward != "nat" or (self.persistence_s > 0 and not one)


@dataclass(frozen=True, slots=True)
class AllowRule:
    """Who, besides a node's ancestors and its own users, may call commands on it."""

    origin: Target = field(metadata={"key": "from"})
    """The nodes the calls may come from."""
    commands: tuple[Topic, ...]
    role: Role = Role.OPERATE
    """The most such a caller may do."""


def _default_users() -> dict[str, Role]:
    return {"root": Role.ADMIN, "@treescale": Role.OPERATE}


@dataclass(frozen=True, slots=True)
class Policy:
    """What the local users of a node and the nodes elsewhere may do on it."""

    users: dict[User, Role] = field(default_factory=_default_users)
    """User name, uid as digits, or "@group" -> role. Anybody else has none."""
    allow: tuple[AllowRule, ...] = ()


@dataclass(frozen=True, slots=True)
class ExecRule:
    """One kind of program that the executor may run, and for whom. The first rule that fits decides."""

    argv: ArgvTemplate
    """`*` fits any one argument, a last `**` any rest, everything else itself only."""
    users: tuple[User, ...] = ()
    """User names, uids, "@group"s or role names (that role or a higher one); empty: everybody who may call at all.
    A role name always means the role: for a user called admin, write the uid."""
    run_as: tuple[User, ...] = ()
    """Users it may run as, "*" for any; empty: only as programs run where nobody names a user."""
    shell: bool = False
    """Whether the rule also allows a command line for the shell."""


DEFAULT_EXEC_RULES = (
    ExecRule(argv=("**",), users=("admin",), run_as=("*",), shell=True),  # noqa: S604  (it runs nothing)
    ExecRule(argv=("**",), users=("operate",)),
)


@dataclass(frozen=True, slots=True)
class ExecutorPolicy:
    """What the executor of a node runs, and its limits."""

    allow: tuple[ExecRule, ...] = DEFAULT_EXEC_RULES
    user: Annotated[str, lambda value: forms.user(value) if value else None] = ""
    """As whom programs run where nobody names a user; empty: treescale-exec on a server that was built, elsewhere as
    the executor itself runs."""
    audit_file: Word = ""
    """Path of the audit log; empty: the executor's own place for it."""
    max_output_bytes: Bytes = 64 * MIB
    """Per call; the program is ended when it writes more."""
    max_jobs: Annotated[int, forms.between(1, 10_000)] = 64
    """Programs running at the same time."""
    kill_grace_s: Seconds = 5.0
    """Between SIGTERM and SIGKILL."""


@dataclass(frozen=True, slots=True)
class DockerPolicy:
    """Where the Docker engine of a node is, and what callers may make it do that could make them root of the node."""

    enabled: bool = True
    """If not, the engine is left alone; to the tree, this is a node without containers."""
    host: Annotated[str, forms.engine] = ""
    """`unix:///path` or `tcp://host:port`; empty: what DOCKER_HOST says, else /var/run/docker.sock."""
    tls_ca: Word = ""
    """Path of the certificate that the engine's is checked with, of a `tcp://` host."""
    tls_cert: Word = ""
    tls_key: Word = ""
    only: Annotated[str, forms.label] = ""
    """`key=value`, where several nodes share an engine: the containers of this node are those with this label."""
    privileged: bool = False
    """Privileged containers, and privileged programs in others."""
    host_mounts: tuple[Annotated[str, forms.mount], ...] = ()
    """Directories and files of the node that may be mounted into containers."""
    host_namespaces: bool = False
    """The namespaces of the host, or of other containers, for network, processes and IPC."""
    capabilities: tuple[Annotated[str, forms.capability], ...] = ()
    """That may be added; "ALL" for any."""
    devices: tuple[Annotated[str, forms.host_path], ...] = ()
    security_opt: bool = False
    """Options that loosen or change the confinement of a container."""
    audit_file: Word = ""
    """Path of the audit log; empty: the monitor's own place for it."""


@dataclass(frozen=True, slots=True)
class Balancing:
    """How the balancers of a node reach its kernel."""

    backend: Annotated[str, forms.one_of(("ipvs", "nftables", "auto"))] = "ipvs"
    """auto: IPVS where the kernel has it, else nftables."""
    sysctls: Annotated[str, forms.one_of(("set", "check", "leave"))] = "set"
    """What is done about the settings of the kernel that the paths of packets need."""
    reconcile_s: Annotated[float, forms.between(1, 3600)] = 30.0
    """Between two comparisons of the wanted table with the kernel's."""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Where the dashboard of a node listens, and who is let in. See docs/dashboard.md."""

    enabled: bool = False
    """Whether `treescale up` or `treescale build` keeps one running on the node."""
    host: Annotated[str, forms.listen] = "127.0.0.1"
    port: Port = 8800
    users: Word = ""
    """Path of the users file; empty: dashboard-users.json beside the configuration."""
    certificate: Word = ""
    """Path of the certificate that browsers are shown, and those above it."""
    key: Word = ""
    """Path of its key."""
    behind_proxy: bool = False
    """Whether a proxy on this machine speaks TLS for it, and says in X-Forwarded-For who asks."""
    allowed_hosts: tuple[Annotated[str, forms.host], ...] = ()
    """Names that it is reached by, besides localhost, the machine's own name and addresses."""
    history_file: Word = ""
    """Path of the file that keeps figures longer than an hour; empty: none. With one, figures flow all the time."""
    history_days: Annotated[int, forms.between(1, 31)] = 7
    history_max_bytes: Bytes = 256 * MIB
    """Of the file; the oldest goes first."""

    @property
    def url(self) -> str:
        """What a browser on this machine opens."""
        host = "localhost" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104  (words, nothing is bound)
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}/"


@dataclass(frozen=True, slots=True)
class Handler:
    """A program that the executor runs whenever an event arrives."""

    name: Name = field(metadata=_IMPLIED)
    on: Topic
    run: Argv
    origin: Target = field(default="*", metadata={"key": "from"})
    """Only events from these nodes."""
    max_parallel: Annotated[int, forms.between(1, 1000)] = 1
    max_queue: Annotated[int, forms.between(0, 100_000)] = 100
    """Events that wait for their turn; the oldest goes when there are more."""
    timeout_s: Timeout = 60.0
    user: Annotated[str, lambda value: forms.user(value) if value else None] = ""
    """The user it runs as; empty: as programs run where nobody names a user."""


ALERTS_WHEN = (
    "node-lost", "container-down", "restart-loop", "memory-over", "balancer-empty", "slow-consumer", "event",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule that the dashboard watches over, and whom it tells. See docs/dashboard.md, Alerts."""

    name: Name = field(metadata=_IMPLIED)
    when: Annotated[str, forms.one_of(ALERTS_WHEN)]
    node: Annotated[str, lambda value: forms.name(value) if value else None] = ""
    """Whose dashboard watches over it; empty: every dashboard that runs does."""
    target: Target = "*"
    """Only what is so on these nodes."""
    filters: tuple[Annotated[str, forms.container_filter], ...] = ()
    """Only containers that fit, as `treescale container ls --filter` has them."""
    over: Annotated[float, forms.between(1, 100)] = 90.0
    """Of memory-over: percent of the container's limit."""
    starts: Annotated[int, forms.between(2, 20)] = 3
    """Of restart-loop: so often within `within_s`."""
    within_s: Annotated[float, forms.between(1, 86_400)] = 300.0
    on: Annotated[str, lambda value: forms.topic(value) if value else None] = ""
    """Of event: its topic."""
    condition: Annotated[str, forms.condition] = ""
    """Of event: what its body must say, like `level == high`; empty: anything."""
    for_s: Seconds = 0.0
    """It must be so for this long before it fires."""
    hold_s: Seconds = 0.0
    """It must be over for this long before it is resolved."""
    to: tuple[Annotated[str, forms.webhook], ...] = ()
    """Webhooks that are told."""
    header: Annotated[str, forms.header] = ""
    """Of the webhooks' requests, with the secret as its value."""
    secret_env: Annotated[str, forms.variable] = ""
    """Environment variable of the dashboard that holds the secret."""
    secret_file: Word = ""
    """File whose first line it is."""
    call: Annotated[str, lambda value: forms.topic(value) if value else None] = ""
    """Command, SERVICE.COMMAND, that is called with the alert as its body."""
    call_target: Annotated[str, lambda value: forms.target(value) if value else None] = ""
    """Where; empty: on the dashboard's own node."""


@dataclass(frozen=True, slots=True)
class BusSettings:
    """Times and limits of the bus; the same on every node."""

    heartbeat_ms: Millis = 500
    heartbeat_timeout_ms: Millis = 1500
    ping_ms: Millis = 500
    """Between two PINGs of the loop itself, which a hung program does not answer."""
    torpid_after: Annotated[int, forms.between(1, 100)] = 3
    """Unanswered PINGs after which a peer counts as torpid."""
    reset_after_s: Timeout = 30.0
    """A torpid link is closed after this."""
    steady_s: Seconds = 5.0
    """A parent's link must have been up this long before an adopted child goes home."""
    adopt_after_s: Seconds = 2.0
    """An orphan is adopted after this."""
    queue_bytes: Bytes = 8 * MIB
    """Event lane of one link."""
    stream_queue_bytes: Bytes = 16 * MIB
    """Reply lane of one link."""
    control_queue_bytes: Bytes = 4 * MIB
    """Control lane of one link."""
    window_bytes: Bytes = MIB
    """Bytes a stream may have under way before the caller grants more."""
    max_body_bytes: Bytes = MIB
    max_workers: Count = 1000
    """Per node."""
    max_subscriptions: Count = 10_000
    """Per worker."""
    slow_after_ms: Millis = 250
    """A reader that lags this long is announced as slow."""


@dataclass(frozen=True, slots=True)
class Server:
    """One node of the tree. The sections below it hold for this node only and override those of the tree."""

    name: Name
    ip: Host
    service_port: Port
    tags: tuple[Tag, ...] = field(default=(), metadata=_SHOWN)
    childs: tuple[Name, ...] = field(default=(), metadata=_SHOWN)
    public_key: PublicKey = ""
    other_public_key: PublicKey = ""
    """While its key is exchanged: the one before or after, which the other nodes know it by as well."""
    balancers: dict[str, Balancer] = field(default_factory=dict)
    policy: Policy | None = None
    executor: ExecutorPolicy | None = None
    docker: DockerPolicy | None = None
    balancing: Balancing | None = None
    dashboard: Dashboard | None = None
    handlers: dict[str, Handler] = field(default_factory=dict)

    @property
    def public_keys(self) -> tuple[str, ...]:
        """The keys that others know it by; none: nobody has a link to it."""
        return tuple(key for key in (self.public_key, self.other_public_key) if key)


@dataclass(frozen=True, slots=True)
class Operator:
    """A person with a key, who may connect to any node from outside the tree."""

    name: Name = field(metadata=_IMPLIED)
    public_key: Annotated[str, forms.required_key]
    role: Role = Role.OPERATE


@dataclass(frozen=True, slots=True)
class Tree:
    """The whole configuration of a tree."""

    servers: dict[str, Server] = field(default_factory=dict)
    """By name, in the order of the file. A loaded tree has at least one."""
    current_node: str = field(default="", metadata=_SHOWN)
    """The node whose copy this is; empty on the console."""
    operators: dict[str, Operator] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    executor: ExecutorPolicy = field(default_factory=ExecutorPolicy)
    docker: DockerPolicy = field(default_factory=DockerPolicy)
    balancing: Balancing = field(default_factory=Balancing)
    dashboard: Dashboard = field(default_factory=Dashboard)
    handlers: dict[str, Handler] = field(default_factory=dict)
    alerts: dict[str, Alert] = field(default_factory=dict)
    bus: BusSettings = field(default_factory=BusSettings)
    path: Path | None = field(default=None, compare=False, metadata=_LOCAL)
    """The file it was read from."""
    version: str = field(init=False, compare=False, metadata=_LOCAL)
    """12 hex digits, equal on two nodes when their configurations are, `current_node` aside. Order counts, because
    the order of servers decides who stands in for whom."""

    def __post_init__(self) -> None:
        shared = tree_to_plain(self) | {"current_node": ""}
        digest = hashlib.sha256(json.dumps(shared).encode()).hexdigest()
        object.__setattr__(self, "version", digest[:12])

    def topology(self) -> Topology:
        """Return who is whose child, and the tags. Raises ValueError when that is no tree; a loaded one always is."""
        servers = self.servers.items()
        return Topology({name: each.childs for name, each in servers}, {name: each.tags for name, each in servers})

    def policy_for(self, node: str) -> Policy:
        """Return the policy in force on `node`. Raises KeyError for an unknown node."""
        return self.servers[node].policy or self.policy

    def executor_for(self, node: str) -> ExecutorPolicy:
        """Return the executor's policy in force on `node`. Raises KeyError for an unknown node."""
        return self.servers[node].executor or self.executor

    def docker_for(self, node: str) -> DockerPolicy:
        """Return where the engine of `node` is and what it may do. Raises KeyError for an unknown node."""
        return self.servers[node].docker or self.docker

    def balancing_for(self, node: str) -> Balancing:
        """Return how the balancers of `node` reach its kernel. Raises KeyError for an unknown node."""
        return self.servers[node].balancing or self.balancing

    def dashboard_for(self, node: str) -> Dashboard:
        """Return where the dashboard of `node` listens. Raises KeyError for an unknown node."""
        return self.servers[node].dashboard or self.dashboard

    def handlers_for(self, node: str) -> dict[str, Handler]:
        """Return the handlers of `node`: its own override the tree's by name. Raises KeyError for an unknown node."""
        return self.handlers | self.servers[node].handlers

    def with_current(self, node: str) -> "Tree":
        """Return the copy of this tree for `node`. Raises KeyError for an unknown node."""
        return replace(self, current_node=self.servers[node].name)


@dataclass(frozen=True, slots=True, kw_only=True)
class SshDefaults:
    """How the console logs in to servers, where their own entry does not say. None and empty: it is not said here."""

    port: Port | None = None
    """22, unless the SSH configuration of the console says another."""
    username: Word = ""
    """Empty: as the SSH configuration says."""
    password: Secret = Secret()  # noqa: RUF009  (immutable)
    password_env: Annotated[str, forms.variable] = ""
    """Environment variable of the console that holds the password."""
    password_file: Word = ""
    """File whose first line it is, relative to console.toml."""
    password_command: Annotated[tuple[Word, ...], forms.argv] = ()
    """Program that prints it."""
    key: Word = ""
    """Path of the private key, relative to console.toml."""
    key_passphrase_env: Annotated[str, forms.variable] = ""
    """Environment variable of the console that holds the passphrase of the key."""
    sudo: Annotated[str, forms.one_of(("auto", "none", "password"))] | None = None
    jump: Annotated[str, forms.jump] = ""
    """Name of another entry, USER@HOST or USER@HOST:PORT, or none."""
    host_key: Annotated[str, forms.host_key] = ""
    """The only host key that is accepted: as in known_hosts, or its SHA256 fingerprint."""
    connect_timeout_s: Annotated[float, forms.between(0.1, 600)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SshEntry(SshDefaults):
    """How the console reaches one server over SSH."""

    name: Name = field(metadata=_IMPLIED)
    host: Host


PASSWORD_KEYS = ("password", "password_env", "password_file", "password_command")
"""Where a password may come from; a table has one of them."""


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How the tree is built."""

    parallel: Annotated[int, forms.between(1, 1000)] = 32
    """Servers at the same time."""
    upload_parallel: Annotated[int, forms.between(1, 1000)] = 8
    """Uploads at the same time."""
    max_fail: Annotated[str, forms.share] = ""
    """Failed servers, N or N%, after which no further one is begun; empty: all are tried."""
    docker: Annotated[str, forms.one_of(("vendor", "distro", "no"))] = "vendor"
    """Whose packages the engine is installed from where there is none."""
    docker_version: Annotated[str, forms.version] = ""
    """Of Docker's own packages; empty: the newest."""
    keep_releases: Annotated[int, forms.between(2, 100)] = 3
    """On each node; the one in use and the one before are always kept."""
    wheelhouse: Word = ""
    """Folder with the wheels of the bundle, relative to console.toml; empty: they are downloaded."""


@dataclass(frozen=True, slots=True)
class Console:
    """The console's own file: where the tree is, and how to log in to its servers."""

    tree: Word = "treescale.toml"
    """Path of the tree's file, relative to this one."""
    ssh: dict[str, SshEntry] = field(default_factory=dict)
    defaults: SshDefaults = field(default_factory=SshDefaults)
    build: BuildSettings = field(default_factory=BuildSettings)
    path: Path | None = field(default=None, compare=False, metadata=_LOCAL)

    @property
    def tree_path(self) -> Path:
        """Where the tree's file is."""
        return self.beside(self.tree)

    def beside(self, name: str, home: Path | None = None) -> Path:
        """Return the path that `name` in this file means: relative to it; `~/` is `home`, where one is given."""
        if home is not None and name.startswith("~/"):
            return home / name[2:]
        return (self.path.parent if self.path else Path()) / name

    def ssh_for(self, name: str) -> SshEntry:
        """Return the entry `name` with the defaults in it. Raises KeyError for an unknown entry.

        A password of the entry hides that of the defaults, wherever each comes from. A server that all others are
        reached through is not reached through itself.
        """
        entry = self.ssh[name]
        own = {spec.name for spec in fields(entry) if getattr(entry, spec.name) != _unsaid(spec)}
        if own.intersection(PASSWORD_KEYS):
            own.update(PASSWORD_KEYS)
        missing = {spec.name: getattr(self.defaults, spec.name) for spec in fields(SshDefaults) if spec.name not in own}
        if missing.get("jump") == name:
            del missing["jump"]
        return replace(entry, **missing)


def _unsaid(spec: Field[Any]) -> Any:
    return None if spec.default is MISSING else spec.default
