"""Local: the nodes of a tree file that live on this machine. Prepares, starts and stops them (`treescale up`)."""

import fcntl
import hashlib
import os
import re
import resource
import secrets
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tsbus.config import Server, Tree, dump
from tsbus.supervision import SupervisionError, conf, control
from tsbus.supervision.conf import NodeFiles
from tsbus.supervision.control import Program, Supervisord
from tsbus.transport import new_keypair, public_of, read_secret

_MAX_SOCKET_BYTES = 107
_MAX_FILES = 16384
"""Files that the programs of a node may have open; supervisord closes as many in each child, which takes time."""


def default_run_dir(file: Path) -> Path:
    """Return the folder for the nodes of the tree in `file`: one for each path of a tree, below the user's own.

    Raises SupervisionError when somebody else has made the latter.
    """
    user = os.getuid()
    for base in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{user}"):
        if base and Path(base).is_dir():
            above = Path(base, "treescale")
            break
    else:
        above = Path(tempfile.gettempdir(), f"treescale-{user}")
        if above.exists() and (owner := above.stat().st_uid) != user:
            raise SupervisionError(f"{above} belongs to user {owner}; choose another place with --run-dir")
    path = str(file.resolve())
    word = re.sub(r"[^\w-]", "_", file.stem)[:20]
    return above / f"{word}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def start_command(service: str) -> list[str]:
    """Return how to start one of conf.SERVICES: its start file in a checkout, elsewhere the installed program."""
    file = Path(__file__).parents[2] / "services" / f"ts_{service}.py"
    if file.exists():
        return [sys.executable, str(file)]
    return [str(Path(sys.executable).with_name(f"ts-{service}"))]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `LocalTree.start` did to its nodes."""

    started: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """They ran, and followed a changed tree, a new worker, or got stopped programs started."""
    unchanged: list[str] = field(default_factory=list)


class NodeFolder:
    """One node's folder below a run directory."""

    def __init__(self, name: str, folder: Path) -> None:
        """Raises SupervisionError when the path is unfit, or too long for a socket."""
        self.name = name
        self.files = NodeFiles.within(folder)
        # supervisord first binds NAME.PID.
        longest = len(os.fsencode(self.files.control)) + len(".4194304")
        if longest > _MAX_SOCKET_BYTES:
            raise SupervisionError(
                f"{folder} is {longest - _MAX_SOCKET_BYTES} bytes too long for the sockets in it; "
                f"choose a shorter one with --run-dir"
            )

    @property
    def supervisord(self) -> Supervisord:
        """Its supervisord; the node has been prepared before."""
        return Supervisord(self.files, self.password)

    @property
    def password(self) -> str:
        """What supervisord's socket asks for: as its file says, a new one where there is none yet."""
        text = self.files.conf.read_text() if self.files.conf.exists() else ""
        found = re.search(r"^password=(\w+)$", text, re.MULTILINE)
        return found[1] if found else secrets.token_hex(16)

    def programs(self) -> list[Program] | None:
        """Return the programs of the node, None when it does not run."""
        return self.supervisord.programs() if self.files.key.exists() else None

    def make_folders(self) -> None:
        """Make what is missing, closed to others."""
        for folder in (self.files.run_dir.parent.parent, self.files.run_dir.parent, self.files.run_dir):
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        if (owner := self.files.run_dir.stat().st_uid) != os.getuid():
            raise SupervisionError(f"{self.files.run_dir} belongs to user {owner}; choose another with --run-dir")
        for folder in (self.files.log_dir, self.files.conf_dir):
            folder.mkdir(mode=0o750, exist_ok=True)

    def make_key(self, server: Server) -> str:
        """Return the node's public key; make a pair if there is none."""
        if not self.files.key.exists():
            if server.public_key:
                raise SupervisionError(
                    f"servers.{self.name} has a public_key, but its secret key is not at {self.files.key}; "
                    f"put it there, or take public_key out of the tree to get new keys"
                )
            write(self.files.key, new_keypair()[1] + "\n", 0o600)
        public = public_of(read_secret(self.files.key))
        if server.public_key not in ("", public):
            raise SupervisionError(f"the key at {self.files.key} is not that of servers.{self.name}.public_key")
        return public

    def lock_owner(self) -> str:
        """Return the pid of a router on our socket that no supervisord of ours has started; empty if there is none."""
        try:
            with self.files.bus.with_name("bus.lock").open("rb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return lock.read(32).decode(errors="replace").strip() or "unknown"
        except FileNotFoundError:
            pass
        return ""

    def last_words(self, program: str) -> str:
        """Return the last line of a program's log."""
        return last_line(self.files.log_dir / f"{program}.log")

    def clear_sockets(self) -> None:
        """Remove what only a running node has; keys and logs stay."""
        files = self.files
        for path in (files.bus, files.bus.with_name("bus.lock"), files.control, files.pid_file):
            path.unlink(missing_ok=True)


def folders_in(run_dir: Path, only: Sequence[str] = ()) -> list[NodeFolder]:
    """Return the nodes that were once started in `run_dir`; of these `only` some. Raises SupervisionError."""
    found = sorted(path.parent.name for path in run_dir.glob("*/supervisord.conf"))
    if unknown := set(only) - set(found):
        raise SupervisionError(
            f"no node {', '.join(sorted(unknown))} in {run_dir}; there are: {', '.join(found) or 'none'}"
        )
    return [NodeFolder(name, run_dir / name) for name in only or found]


def stop(folders: Sequence[NodeFolder]) -> list[str]:
    """End everything that was started for these nodes, and take their sockets away. Returns those that ran."""
    pids = {folder.name: control.pids_of(folder.files) for folder in folders}
    for supervisords, programs in pids.values():
        # supervisord stops its programs in their order; without it they all get the signal.
        control.terminate(supervisords or programs)
    until = time.monotonic() + control.STOP_S
    for folder in folders:
        supervisords, programs = pids[folder.name]
        # First supervisord, or it would start again what is killed.
        for group in (supervisords, programs):
            control.end(group, patience_s=max(0.0, until - time.monotonic()))
        # What was started in between.
        control.end(control.pids_of(folder.files)[1], patience_s=0)
        folder.clear_sockets()
    return [name for name, (supervisords, programs) in pids.items() if supervisords or programs]


class LocalTree:
    """The nodes of a tree that have an address of this machine."""

    def __init__(self, tree: Tree, run_dir: Path, only: Sequence[str] = ()) -> None:
        """`only` some nodes are started. Raises SupervisionError if one is not here, or none is."""
        self.run_dir = run_dir
        self.tree = tree
        here = [server for server in tree.servers.values() if is_local(server.ip)]
        self.elsewhere = [server for server in tree.servers.values() if server not in here]
        """Nodes on other machines."""
        for name in only:
            if name not in tree.servers:
                raise SupervisionError(f"--node {name}: the tree has no such server")
            if tree.servers[name] not in here:
                raise SupervisionError(f"--node {name}: {tree.servers[name].ip} is not an address of this machine")
        if not here:
            raise SupervisionError("no server of this tree has an address of this machine; is this the right file?")
        self._here = [NodeFolder(server.name, run_dir / server.name) for server in here]
        self.nodes = [folder for folder in self._here if not only or folder.name in only]
        """The nodes to start, in the order of the tree."""

    @property
    def tops(self) -> dict[str, list[str]]:
        """The started nodes that have no started node above them, each with all started nodes below it and itself."""
        topology = self.tree.topology()
        names = [node.name for node in self.nodes]
        tops: dict[str, list[str]] = {}
        for name in names:
            top = name
            while (parent := topology.parent(top)) in names:
                top = parent
            tops.setdefault(top, []).append(name)
        return tops

    def folder(self, name: str) -> NodeFolder:
        """Return the folder of a node to start. Raises KeyError."""
        return {node.name: node for node in self.nodes}[name]

    def start(self, workers: Mapping[str, str]) -> Outcome:
        """Start what does not run; `workers`: name -> command line of further programs for these nodes.

        All is checked before anything is started. Raises SupervisionError, and ConfigError or TransportError for keys.
        """
        for node in self._here:
            node.make_folders()
        self._check_free()
        outcome, starting = Outcome(), []
        tree = self._with_keys()
        for node in self.nodes:
            new_tree = write(node.files.config, dump(tree.with_current(node.name)), 0o640)
            new_conf = self._write_conf(node, workers)
            supervisord = node.supervisord
            if supervisord.programs() is None:
                starting.append((node, supervisord.start()))
                continue
            if new_conf:
                supervisord.follow_conf()
            if new_tree:
                supervisord.follow_tree()
            idle = supervisord.start_idle()
            (outcome.changed if new_tree or new_conf or idle else outcome.unchanged).append(node.name)
        try:
            for node, process in starting:
                node.supervisord.started(process)
                outcome.started.append(node.name)
        except SupervisionError:
            for _, process in starting:
                process.wait()
            stop([node for node, _ in starting])
            raise
        return outcome

    def _check_free(self) -> None:
        """See that ports and sockets are free; end what supervisords that were killed have left running."""
        left = []
        for node in self.nodes:
            if node.programs() is not None:
                continue
            supervisords, programs = control.pids_of(node.files)
            if supervisords:
                raise SupervisionError(
                    f"{node.name}: supervisord (pid {supervisords[0]}) runs but has no socket; end it with "
                    f"`treescale up FILE --down --node {node.name}`"
                )
            left += programs
            if not programs:
                self._check_node(node)
        control.terminate(left)
        control.end(left, patience_s=control.STOP_S)

    def _check_node(self, node: NodeFolder) -> None:
        if owner := node.lock_owner():
            raise SupervisionError(
                f"{node.name}: another router (pid {owner}) runs on {node.files.bus}; stop it, or use another --run-dir"
            )
        server = self.tree.servers[node.name]
        for family, kind, address in _addresses(server.ip, server.service_port):
            if error := _bind_error(family, kind, address):
                raise SupervisionError(
                    f"{node.name}: cannot listen on {server.ip}:{server.service_port}: {os.strerror(error)}; stop what "
                    f"is there (this tree with another --run-dir?), or change servers.{node.name}.service_port"
                )

    def _with_keys(self) -> Tree:
        servers = dict(self.tree.servers)
        for node in self._here:
            servers[node.name] = replace(servers[node.name], public_key=node.make_key(servers[node.name]))
        return replace(self.tree, servers=servers)

    def _write_conf(self, node: NodeFolder, workers: Mapping[str, str]) -> bool:
        """Write the files of supervisord; returns whether they are other than before."""
        hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        # One that has no balancers any more still has to take them out of the kernel: then it removes its file.
        balances = self.tree.servers[node.name].balancers or node.files.balancer_state.exists()
        missing = {"balancer": not balances, "dashboard": not self.tree.dashboard_for(node.name).enabled}
        services = [service for service in conf.SERVICES if not missing.get(service)]
        text = conf.render(
            node.name,
            node.files,
            {service: start_command(service) for service in services},
            password=node.password,
            max_files=_MAX_FILES if hard_limit == resource.RLIM_INFINITY else min(hard_limit, _MAX_FILES),
            as_root=os.getuid() == 0,
        )
        changed = [write(node.files.conf, text, 0o600)]
        for name, command in workers.items():
            text = conf.render_worker(name, node.files, shlex.split(command), Path.cwd())
            changed.append(write(node.files.conf_dir / f"{name}.conf", text, 0o640))
        return any(changed)


def is_local(host: str) -> bool:
    """Return whether `host` is an address of this machine: whether one can bind it."""
    return any(_bind_error(family, kind, address) is None for family, kind, address in _addresses(host, 0))


def port_is_free(host: str, port: int) -> bool:
    """Return whether one can listen at this address."""
    return all(_bind_error(*each) is None for each in _addresses(host, port))


def _addresses(host: str, port: int) -> Iterable[tuple[int, int, Any]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        return []
    return [(family, kind, address) for family, kind, _, _, address in found]


def _bind_error(family: int, kind: int, address: Any) -> int | None:
    with socket.socket(family, kind) as probe:
        # As libzmq does: connections that are about to end do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return error.errno
    return None


def last_line(path: Path) -> str:
    """Return the last line of a file that says anything, "" if there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
            lines = log.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line.strip()), "")


def write(path: Path, text: str, mode: int, *, owner: tuple[int, int] | None = None) -> bool:
    """Write a file in one step, so that nobody sees half of it; returns whether it is other than before.

    `owner`: user and group, if not our own.
    """
    try:
        if path.read_text() == text:
            return False
    except FileNotFoundError:
        pass
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            if owner is not None:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        Path(temporary).replace(path)
        _sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return True


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
