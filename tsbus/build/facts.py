"""Facts: what a probe said of a server, as frozen values. Pure and total: whatever the server prints, it is read.

`probe.sh` prints `key=value` lines; keys that are not known, values that make no sense and everything before its first
line are passed over. What a plan needs and the probe did not tell is in `missing`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address, ip_address
from typing import Final, Literal, NamedTuple

from tsbus.build.trouble import clean

MAX_BYTES: Final = 1 << 20
"""Of a probe's output; a busy server prints 20 KiB."""
MAX_ITEMS: Final = 5000
"""Lines of one key."""

Init = Literal["systemd", "openrc", "none"]
Sudo = Literal["root", "free", "password", "refused", "missing", "unknown"]
"""root: the probe ran as root already; free: sudo asks for no password."""
PROBE_END: Final = "all: it was cut off"
MACHINE: Final = "the machine"
LIBC: Final = "the C library"
INIT: Final = "the init system"
RIGHTS: Final = "who it ran as"
_START: Final = "treescale-probe=1"
_ESCAPES: Final = {r"\\": "\\", r"\n": "\n", r"\r": "\r"}
_MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}


class Python(NamedTuple):
    """One interpreter."""

    path: str
    version: tuple[int, int, int]
    implementation: str = "cpython"
    bits: int = 64
    abi: str = ""
    """Flags like t (without the interpreter lock) or d."""
    missing: tuple[str, ...] = ()
    """Modules of the standard library that a node needs and it has not."""

    @property
    def shown(self) -> str:
        """The version as people write it."""
        return ".".join(map(str, self.version))


class Disk(NamedTuple):
    """The room that there is for a folder."""

    free_mb: int
    writable: bool
    mount: str


class Listener(NamedTuple):
    """A TCP port that somebody listens at."""

    ip: str
    """Empty for all addresses."""
    port: int
    pid: int = 0
    program: str = ""


class Holder(NamedTuple):
    """Who holds the lock of the package manager."""

    pid: int
    program: str


class Release(NamedTuple):
    """A release on the node."""

    name: str
    python: str
    """The interpreter that it was installed for; empty: its installation was not finished."""
    since_s: int = 0


class Stat(NamedTuple):
    """The rights of a file or folder."""

    mode: int
    user: str
    group: str


class Unit(NamedTuple):
    """The node's service of the init system."""

    loaded: bool = False
    enabled: bool = False
    active: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one server."""

    time_s: float | None = None
    """Its clock: seconds since 1970."""
    os_id: str = ""
    os_like: tuple[str, ...] = ()
    os_version: str = ""
    codename: str = ""
    ubuntu_codename: str = ""
    os_name: str = ""
    """As it calls itself before people."""
    machine: str = ""
    kernel: str = ""
    libc: str = ""
    """glibc or musl."""
    libc_version: tuple[int, ...] = ()
    init: Init | None = None
    memory_mb: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of the kernel, by their sysctl name."""
    tools: frozenset[str] = frozenset()
    uid: int | None = None
    user: str = ""
    sudo: Sudo = "unknown"
    pythons: tuple[Python, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    """Those of container engines: name -> version."""
    locks: tuple[Holder, ...] = ()
    docker_client: str = ""
    docker_engine: str = ""
    """Version of the engine that answers; empty: none does."""
    docker_socket: Stat | None = None
    modules: frozenset[str] = frozenset()
    """Of the kernel, that are loaded or can be."""
    modules_loaded: frozenset[str] = frozenset()
    disks: Mapping[str, Disk] = field(default_factory=dict)
    addresses: frozenset[str] = frozenset()
    listeners: tuple[Listener, ...] = ()
    ours: frozenset[int] = frozenset()
    """Processes of TreeScale."""
    accounts: frozenset[str] = frozenset()
    """Those of TreeScale's users that there are."""
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Group -> who is in it besides those whose first group it is."""
    current: str = ""
    """The release in use."""
    releases: tuple[Release, ...] = ()
    pending: str = ""
    """What the node's processes have not been told since a build broke off: reload or restart."""
    stats: Mapping[str, Stat] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    """Path -> SHA-256 of a file that a build has made."""
    key: str = ""
    """Its public key."""
    key_error: str = ""
    unit: Unit = field(default_factory=Unit)
    missing: tuple[str, ...] = ()
    """What the probe could not tell, in words."""


def parse(output: bytes) -> Facts:
    """Return the facts in the output of a probe."""
    return _Reading(_lines(output)).facts()


def unescape(value: str) -> str:
    """Return a value as it was before `probe.sh` made one line of it."""
    return re.sub(r"\\[\\nr]", lambda found: _ESCAPES[found[0]], value)


def _lines(output: bytes) -> dict[str, list[str]]:
    text = output[:MAX_BYTES].decode(errors="replace")
    found: dict[str, list[str]] = {}
    started = False
    for line in text.split("\n"):
        line = line.removesuffix("\r")
        if not started:
            started = line == _START
            continue
        key, equals, value = line.partition("=")
        values = found.setdefault(key, []) if equals else []
        if len(values) < MAX_ITEMS:
            values.append(unescape(value))
    return found


class _Reading:
    """Makes facts of the values of each key."""

    def __init__(self, values: dict[str, list[str]]) -> None:
        self._values = values

    def facts(self) -> Facts:
        libc, libc_version = self._libc()
        loaded = frozenset(self._one("modules.loaded").split()) | self._files("modules.builtin")
        facts = Facts(
            time_s=_time(self._one("time")),
            os_id=self._os("ID").lower(),
            os_like=tuple(self._os("ID_LIKE").lower().split()),
            os_version=self._os("VERSION_ID"),
            codename=self._os("VERSION_CODENAME"),
            ubuntu_codename=self._os("UBUNTU_CODENAME"),
            os_name=self._os("PRETTY_NAME"),
            machine=_MACHINES.get(self._line("machine"), self._line("machine")),
            kernel=self._line("kernel"),
            libc=libc,
            libc_version=libc_version,
            init=self._init(),
            memory_mb=_number(self._one("memory.MemTotal")) >> 10,
            settings={key[7:]: self._line(key) for key in self._values if key.startswith("sysctl.")},
            tools=frozenset(self._one("tools").split()),
            uid=_number(self._one("uid")) if self._one("uid").isdecimal() else None,
            user=self._line("user"),
            sudo=_sudo(self._one("sudo")),
            pythons=tuple(self._pythons()),
            packages={name: version for name, version in self._pairs("package") if name},
            locks=tuple(Holder(_number(pid), clean(name)) for pid, name in self._pairs("lock")),
            docker_client=self._line("docker.client"),
            docker_engine=self._line("docker.engine").partition(" ")[0],
            docker_socket=self._socket(),
            modules=self._modules(loaded),
            modules_loaded=loaded,
            disks=dict(self._disks()),
            addresses=frozenset(address.partition("/")[0] for _, address in self._pairs("address")),
            listeners=tuple(each for value in self._all("listen") if (each := _listener(value))),
            ours=frozenset(_number(pid) for pid in self._all("ours")),
            accounts=frozenset(name for name, _ in self._pairs("account")),
            groups=dict(self._groups()),
            current=self._line("current").rpartition("/")[2],
            releases=tuple(self._releases()),
            pending=self._line("pending"),
            stats=dict(self._stats()),
            digests={path: digest for digest, path in self._pairs("digest")},
            key=self._line("key"),
            key_error=clean(self._one("key.error")).strip(),
            unit=self._unit(),
        )
        return _with_missing(facts, complete="end" in self._values)

    def _all(self, key: str) -> list[str]:
        return self._values.get(key, [])

    def _one(self, key: str) -> str:
        return self._values.get(key, [""])[0]

    def _line(self, key: str) -> str:
        """Return the value of a key that is one line to print."""
        return " ".join(clean(self._one(key), 200).split())

    def _pairs(self, key: str) -> Iterator[tuple[str, str]]:
        for value in self._all(key):
            first, _, rest = value.partition(" ")
            yield first, rest.strip()

    def _os(self, key: str) -> str:
        """Return a value of os-release, which is quoted as for a shell."""
        value = self._line(f"os.{key}")
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        return re.sub(r"\\(.)", r"\1", value)

    def _libc(self) -> tuple[str, tuple[int, ...]]:
        text = self._one("libc")
        kind = "glibc" if text.startswith("glibc") else "musl" if "musl" in text else ""
        found = re.search(r"(\d{1,4})\.(\d{1,4})", text) if kind else None
        return kind, (int(found[1]), int(found[2])) if found else ()

    def _init(self) -> Init | None:
        match self._one("init"):
            case "systemd" | "openrc" | "none" as init:
                return init
        return None

    def _pythons(self) -> Iterator[Python]:
        for value in self._all("python"):
            found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3}) (\S+) (\d{1,3}) (\S+) (\S+) (/.*)", value)
            if found:
                major, minor, micro, kind, bits, abi, missing, path = found.groups()
                modules = () if missing == "-" else tuple(clean(missing).split(","))
                version = (int(major), int(minor), int(micro))
                yield Python(path, version, kind, int(bits), abi.replace("-", ""), modules)

    def _modules(self, loaded: frozenset[str]) -> frozenset[str]:
        """Return the modules that are there or can be loaded; modprobe has the last word where it can say."""
        names = self._files("modules.available")
        said = self._one("modprobe")
        if said != "yes" and not re.search(r"invalid option|unrecognized option", said):
            names = frozenset(name for name in names if not name.startswith("ip_vs"))
        return loaded | names

    def _files(self, key: str) -> frozenset[str]:
        """Return the modules in a list of their files."""
        return frozenset(file.removeprefix("/").removesuffix(".ko") for file in self._one(key).split())

    def _disks(self) -> Iterator[tuple[str, Disk]]:
        for folder, rest in self._pairs("disk"):
            found = re.fullmatch(r"\d{1,18} (\d{1,18}) (yes|no) (.+)", rest)
            if found:
                free, writable, mount = found.groups()
                yield folder, Disk(int(free) >> 10, writable == "yes", mount)

    def _groups(self) -> Iterator[tuple[str, frozenset[str]]]:
        for name, rest in self._pairs("group"):
            yield name, frozenset(filter(None, rest.partition(" ")[2].split(",")))

    def _releases(self) -> Iterator[Release]:
        for name, rest in self._pairs("release"):
            since, _, python = rest.partition(" ")
            yield Release(name, python, _number(since))

    def _stats(self) -> Iterator[tuple[str, Stat]]:
        for mode, rest in self._pairs("stat"):
            user, _, rest = rest.partition(" ")
            group, _, path = rest.partition(" ")
            if re.fullmatch("[0-7]{1,4}", mode) and path:
                yield path, Stat(int(mode, 8), user, group)

    def _socket(self) -> Stat | None:
        mode, _, group = self._one("docker.socket").partition(" ")
        return Stat(int(mode, 8), "root", group) if re.fullmatch("[0-7]{1,4}", mode) else None

    def _unit(self) -> Unit:
        def says(key: str, *words: str) -> bool:
            return self._one(f"unit.treescale.{key}") in words

        return Unit(
            loaded=says("LoadState", "loaded"),
            enabled=says("UnitFileState", "enabled", "enabled-runtime"),
            active=says("ActiveState", "active", "activating", "reloading"),
        )


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0


def _decimal(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,15}(?:\.[0-9]{1,12})?", text) else None


def _time(text: str) -> float | None:
    # Where `date` knows no fractions, something that is no digit stands after the point.
    return _decimal(text) or _decimal(text.partition(".")[0])


def _sudo(text: str) -> Sudo:
    match text:
        case "root" | "free" | "missing" as plain:
            return plain
        case "":
            return "unknown"
    return "password" if "password is required" in text else "refused"


def _listener(text: str) -> Listener | None:
    """Return who listens, from a line of ss, of netstat or of the kernel's table."""
    address, _, who = text.partition(" ")
    host, _, port = address.rpartition(":")
    pid, program = _process(who)
    if re.fullmatch(r"(?:[0-9A-F]{8}|[0-9A-F]{32})", host) and re.fullmatch(r"[0-9A-F]{4}", port):
        return Listener(_kernel_ip(host), int(port, 16), pid, program)
    if not re.fullmatch(r"[0-9]{1,5}", port):
        return None
    ip = host.strip("[]").partition("%")[0]
    return Listener("" if ip in ("*", "", "0.0.0.0", "::") else _plain_ip(ip), int(port), pid, program)  # noqa: S104


def _process(who: str) -> tuple[int, str]:
    """Return the pid and the program that ss or netstat name; 0 and "" where they do not."""
    if found := re.search(r'\(\("([^"]*)",pid=(\d{1,9})', who):
        return int(found[2]), clean(found[1])
    if found := re.search(r"(?:^|\s)(\d{1,9})/(\S+)", who):
        return int(found[1]), clean(found[2])
    return 0, ""


def _kernel_ip(digits: str) -> str:
    """Return an address of /proc/net/tcp, which is in words of the machine's order; it is little-endian everywhere."""
    octets = b"".join(bytes.fromhex(digits[at : at + 8])[::-1] for at in range(0, len(digits), 8))
    return _plain_ip(str(ip_address(octets))) if any(octets) else ""


def _plain_ip(text: str) -> str:
    """Return the address as the system writes it, an IPv4 address in IPv6 as itself."""
    try:
        ip = ip_address(text)
    except ValueError:
        return clean(text)
    return str(ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else str(ip)


def _with_missing(facts: Facts, *, complete: bool) -> Facts:
    told: list[tuple[object, str]] = [
        (complete, PROBE_END),
        (facts.time_s is not None, "the time"),
        (facts.os_id, "the distribution"),
        (facts.machine, MACHINE),
        (facts.libc and facts.libc_version, LIBC),
        (facts.init, INIT),
        (facts.uid is not None, RIGHTS),
        (facts.disks, "the free disk space"),
        (facts.memory_mb, "the memory"),
        (facts.addresses, "the addresses"),
    ]
    return replace(facts, missing=tuple(words for there, words in told if not there))
