"""The loop of a router process: poll, handle, flush, tick; until a signal (DESIGN section 4).

A plain loop and no asyncio: a round trip through asyncio costs a router 1.7 to 4 times as much.
"""

import argparse
import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tsbus
from tsbus import log
from tsbus.config import ConfigError, Tree, load
from tsbus.core import message as wire
from tsbus.core.message import Type
from tsbus.identity import role_of
from tsbus.router import Router
from tsbus.transport import Curve, SocketTransport, TransportError, own_secret, public_of

_log = log.Log("router")
_STUCK_MS = 2.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>


class SystemClock:
    """The real clocks."""

    def monotonic_ms(self) -> float:
        """Milliseconds that only go forward."""
        return time.monotonic() * 1000

    def wall_ms(self) -> int:
        """Unix milliseconds."""
        return time.time_ns() // 1_000_000


def allowed_keys(tree: Tree) -> dict[str, str]:
    """Return whose keys may connect to a node's port: the other nodes' and the operators' (protocol 1.2)."""
    others = (server for name, server in tree.servers.items() if name != tree.current_node)
    keys = {key: f"node:{server.name}" for server in others for key in server.public_keys}
    return keys | {operator.public_key: f"operator:{name}" for name, operator in tree.operators.items()}


def endpoint(ip: str, port: int) -> str:
    """Return the ZeroMQ address of a service port; IPv6 addresses need brackets."""
    return f"tcp://[{ip}]:{port}" if ":" in ip else f"tcp://{ip}:{port}"


def dial_addresses(tree: Tree) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the address and the public keys of every node that has one."""
    return {
        name: (endpoint(server.ip, server.service_port), server.public_keys)
        for name, server in tree.servers.items()
        if server.public_keys
    }


def own_keys(tree: Tree, secret: str | None) -> Curve | None:
    """Return the keys of `tree.current_node`. Raises TransportError when it has another, or none and needs one."""
    server = tree.servers[tree.current_node]
    if secret is None:
        if len(tree.servers) > 1:
            raise TransportError("a node of a tree needs its secret key: treescale keys new PATH, then --key PATH")
        return None
    keys = Curve(public_of(secret), secret)
    if server.public_key not in ("", keys.public):
        raise TransportError(
            f"this node's secret key is not that of servers.{server.name}.public_key; one of them is wrong"
        )
    return keys


class RouterProcess:
    """One router on real sockets."""

    def __init__(
        self, tree: Tree, secret: str | None, run_dir: Path, reload: Callable[[], tuple[Tree, str | None]]
    ) -> None:
        """`secret`: this node's secret key, None only for a tree of one node, which then opens no port.

        `reload` reads both again, on SIGHUP; it raises ConfigError or TransportError. The constructor raises
        TransportError when the sockets cannot be opened or the key is not the one of the configuration.
        """
        keys = own_keys(tree, secret)
        clock = SystemClock()
        self.transport = SocketTransport(
            clock,
            keys=keys,
            allowed=allowed_keys(tree),
            dial_addresses=dial_addresses(tree),
            heartbeat_ms=tree.bus.heartbeat_ms,
            heartbeat_timeout_ms=tree.bus.heartbeat_timeout_ms,
        )
        self.router = Router(
            tree,
            self.transport,
            clock,
            role_of=lambda conn: role_of(self.router.tree, conn),
            release=tsbus.__version__,
        )
        self.transport.serve(self.router)
        self.transport.bind_local(run_dir / "bus")
        if keys is not None:
            self.transport.bind_tcp(_port_of(tree))
        self._keys = keys
        self._clock = clock
        self._read_again = reload
        self._reload_due = False
        self._running = True
        self._bus_is_there = True

    def run(self) -> bool:
        """Serve until SIGTERM or SIGINT. Returns False if the workers' socket was taken away before."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_hangup)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # early.py held it back
        router = self.router
        _log.info("router.start", node=router.me, config=router.tree.version, pid=os.getpid())
        router.start()
        try:
            self._loop()
        finally:
            self._say_bye()
            self.transport.stop()
        _log.info("router.stop", node=router.me)
        return self._bus_is_there

    def _loop(self) -> None:
        router, transport, clock = self.router, self.transport, self._clock
        while self._running:
            wait = _STUCK_MS if router.stuck else max(0.0, router.tick_due - clock.monotonic_ms())
            ready = transport.wait(wait)
            router.now = clock.monotonic_ms()
            transport.read(ready)
            if self._reload_due:
                self._reload()
            if router.now >= router.tick_due:
                router.tick()
                self._look_for_bus()
            router.flush()

    def _look_for_bus(self) -> None:
        """End without the file of the workers' socket: those who come would wait forever."""
        if path := self.transport.lost_path():
            self._running = self._bus_is_there = False
            _log.error("bus.gone", path=str(path), hint="somebody removed it; this router ends to be started again")

    def _on_signal(self, *_: object) -> None:
        self._running = False

    def _on_hangup(self, *_: object) -> None:
        self._reload_due = True

    def _reload(self) -> None:
        """Follow the configuration file and the key; what is not in order changes nothing."""
        self._reload_due = False
        router, old = self.router, self.router.tree
        try:
            tree, secret = self._read_again()
            if tree.current_node == old.current_node:
                keys = own_keys(tree, secret)
        except (ConfigError, TransportError) as error:
            router.counters["config-refused"] += 1
            _log.error("config.refused", hint="the running configuration stays", text=str(error))
            return
        if tree.current_node != old.current_node:
            router.counters["config-refused"] += 1
            _log.error("config.refused", hint="restart this router to make it another node", node=tree.current_node)
            return
        if tree.version == old.version and keys == self._keys:
            _log.info("config.unchanged", config=tree.version)
            return
        allowed, is_new_key = allowed_keys(tree), keys != self._keys
        self._keys = keys
        self.transport.follow(keys, _port_of(tree), allowed, dial_addresses(tree))
        router.reload(tree, allowed)
        _log.info("config.loaded", config=tree.version, before=old.version, new_key=is_new_key)

    def _say_bye(self) -> None:
        frame = wire.encode_frame(wire.local(Type.BYE, wire.Bye("bye", f"{self.router.me} stops")))
        for peer in list(self.router.peers):
            self.transport.send(peer.conn, frame)


def _port_of(tree: Tree) -> str:
    server = tree.servers[tree.current_node]
    return endpoint(server.ip, server.service_port)


def _keep_freed_memory() -> None:
    """Let the C library keep what frames leave behind: to give their pages back and fetch them anew, for each large
    frame, is a tenth of the CPU that 4 KiB events cost. Does nothing where there is no mallopt.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 16 * 1024 * 1024)
        mallopt(_M_MMAP_THRESHOLD, 8 * 1024 * 1024)


def _take_all_descriptors() -> None:
    """Raise the limit of open files: libzmq ends the process when there is none left for a new local connection."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> int:
    """Run the router until a signal. Exit status 2: the configuration, the key or the sockets are not in order; 1: its
    socket was taken away.
    """
    parser = argparse.ArgumentParser(prog="ts_router", description="The router of a node.")
    parser.add_argument("--config", default=os.environ.get("TREESCALE_CONFIG", "/etc/treescale/treescale.toml"))
    parser.add_argument("--node", help="this node's name; default: current_node in the configuration")
    parser.add_argument("--key", default=os.environ.get("TREESCALE_KEY"), help="file with this node's secret key")
    parser.add_argument("--run-dir", default=os.environ.get("TREESCALE_RUN_DIR", "/run/treescale"), type=Path)
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    options = parser.parse_args()
    log.setup(options.log_level)
    _take_all_descriptors()

    def read() -> tuple[Tree, str | None]:
        tree = load(options.config, current_node=options.node)
        server = tree.servers.get(tree.current_node)
        return tree, own_secret(options.key, server.public_key if server else "") if options.key else None

    try:
        tree, secret = read()
        if not tree.current_node:
            parser.error("the configuration has no current_node; give --node NAME")
        process = RouterProcess(tree, secret, options.run_dir, read)
    except (ConfigError, TransportError) as error:
        print(f"ts_router: {error}", file=sys.stderr)
        return 2
    _keep_freed_memory()
    return 0 if process.run() else 1
