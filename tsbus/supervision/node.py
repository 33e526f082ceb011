"""Node: the service `node`, in the process of the event listener. Takes a new tree from the bus, tells what is here.

incoming.py decides; this touches the node's files and asks its supervisord (docs/build.md, Configuration from the bus).
"""

import asyncio
import contextlib
import hashlib
import json
import os
import platform
import stat
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import tsbus
from tsbus import log
from tsbus.audit import AuditError, AuditLog
from tsbus.calls import Request
from tsbus.config import ConfigError, Tree, loads
from tsbus.copies import digest, supervisor_digest
from tsbus.core.body import BodyError
from tsbus.core.message import PROTOCOL
from tsbus.core.roles import Role
from tsbus.errors import CommandError, RefusedError
from tsbus.supervision import SupervisionError
from tsbus.supervision.conf import SERVER_FILES, SERVER_PROGRAMS, SERVER_STATE, NodeFiles
from tsbus.supervision.control import READERS, Supervisord
from tsbus.supervision.following import outdated
from tsbus.supervision.incoming import Incoming, check, text_of
from tsbus.supervision.local import write
from tsbus.transport import TransportError, next_key, public_of, read_secret
from tsbus.worker import Worker

MAX_WAITING: Final = 4
"""Trees that wait for their turn, each up to a body long."""
FOLLOWS: Final = "follow"
"""What the file `pending` says from before a new tree is in place until the processes know of it."""

_log = log.Log("node")


def files_of(environment: Mapping[str, str]) -> NodeFiles:
    """Return the files of the node from the variables that supervisord gives its programs. Raises KeyError."""
    config = Path(environment["TREESCALE_CONFIG"])
    return NodeFiles(
        run_dir=Path(environment["TREESCALE_RUN_DIR"]),
        config=config,
        key=Path(environment["TREESCALE_KEY"]),
        conf=config.with_name("supervisord.conf"),
        conf_dir=config.with_name("conf.d"),
        log_dir=Path(environment["TREESCALE_LOG_DIR"]),
    )


class NodeService:
    """The node as others see and configure it."""

    def __init__(self, files: NodeFiles, supervisord: Supervisord) -> None:
        """`supervisord` is used by this service alone, in a thread."""
        self._files = files
        self._supervisord = supervisord
        self._state = SERVER_STATE if files.config == SERVER_FILES.config else files.run_dir
        self._audit = AuditLog(files.log_dir / "node-audit.log")
        self._started_ms = time.time_ns() // 1_000_000
        self._waiting = 0
        self._owed = {"router", *READERS} if self._pending() == FOLLOWS else set[str]()
        """Programs that do not know yet of the tree that is in place."""
        self._configured = ("", "")
        """The digest of its copy of the tree, and its public key in there: to read a large tree takes half a second."""
        # One tree after the other, and never in the loop: supervisord must not wait for its listener.
        self._thread = ThreadPoolExecutor(1, "node-config")
        self._facts_thread = ThreadPoolExecutor(1, "node-facts")
        self.worker = Worker("node")
        self.worker.command("config", role="admin")(self.take)
        self.worker.command("facts", role="observe")(self.tell_facts)
        self.worker.start(self._follow)

    # A new tree -------------------------------------------------------------------------------------------------------

    async def take(self, call: Request) -> None:
        """Take the tree in the call's body, answer, then let the processes follow: `node.config`."""
        if self._waiting >= MAX_WAITING:
            raise CommandError(f"{self._waiting} trees wait already; try again")
        self._waiting += 1
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._take, call)
            # What follows may cut the way back: the answer must be with the router before.
            await call.answer(answer)
            await self.worker.client.flush()
        except (SupervisionError, BodyError, OSError) as error:
            raise CommandError(str(error)) from None
        finally:
            self._waiting -= 1
            self._follow()  # also if nobody waits for the answer any more: the tree is taken all the same

    def _take(self, call: Request) -> dict[str, Any]:
        """Check and write the tree of a call; returns the answer. Raises SupervisionError, BodyError, OSError."""
        self._write_down(call, "start")
        try:
            answer = self._put(check(text_of(call.value()), call.node, self._public_keys()))
        except Exception as error:
            self._write_down(call, "end", ok=False, error=str(error)[:1000])
            raise
        self._write_down(call, "end", ok=True, **answer)
        return answer

    def _put(self, incoming: Incoming) -> dict[str, Any]:
        config = self._files.config
        before = _text(config)
        if before != incoming.text:
            told = outdated(config, incoming.tree)
            found = config.stat()
            if not self._pending():
                write(self._state / "pending", FOLLOWS, 0o644)
            try:
                write(config, incoming.text, stat.S_IMODE(found.st_mode), owner=(found.st_uid, found.st_gid))
            except OSError:
                self._nothing_new()
                raise
            self._owed |= {"router", *told}
        self._settle_key(incoming.tree)
        return {
            "changed": before != incoming.text,
            "before": digest(before),
            "after": digest(incoming.text),
            "tells": {name: "reload" if name == "router" else "restart" for name in sorted(self._owed)},
        }

    def _settle_key(self, tree: Tree) -> None:
        """Let the next key be the key, once the tree knows no other of this node any more."""
        server, following = tree.servers[tree.current_node], next_key(self._files.key)
        if not server.other_public_key and _public(following) == server.public_key:
            following.replace(self._files.key)
            _log.info("key.exchanged", public_key=server.public_key)

    def _public_keys(self) -> list[str]:
        """Return the public keys whose secret halves are here: the key's, and that of the next one if there is one."""
        return [key for path in (self._files.key, next_key(self._files.key)) if (key := _public(path))]

    def _follow(self) -> None:
        """Let the processes follow the tree that is in place, also one that a process before this one put there."""
        self._thread.submit(self._tell)

    def _tell(self) -> None:
        owed = sorted(self._owed)
        if not owed:
            return
        try:
            self._supervisord.follow_tree(owed)
        except Exception as error:  # nobody looks at what this thread returns
            _log.error("config.not-followed", error=str(error), hint="it is pending: send it again, or build")
            return
        self._owed.clear()
        self._nothing_new()
        _log.info("config.followed", told=owed)

    def _pending(self) -> str:
        """Return what the processes do not know of yet: FOLLOWS, or a word of the installer, which must stay."""
        with contextlib.suppress(OSError):
            return (self._state / "pending").read_text().strip()
        return ""

    def _nothing_new(self) -> None:
        if not self._owed and self._pending() == FOLLOWS:
            (self._state / "pending").unlink(missing_ok=True)

    def _write_down(self, call: Request, record: str, **more: Any) -> None:
        """Write a line of the audit log. Without a trace nothing is done: raises RefusedError."""
        line = {
            "time": time.time(),
            "record": record,
            "node": call.node,
            "who": call.who,
            **({"person": call.person} if call.person else {}),
            "origin": call.origin,
            "role": Role(call.role).name.lower(),
            "handle": call.handle,
            "call": call.call,
            "command": call.command,
            **more,
        }
        try:
            self._audit.write(line)
        except AuditError as error:
            if record == "start":
                raise RefusedError(str(error)) from error
            _log.error("audit.failed", error=str(error), record=line)

    # What is here -----------------------------------------------------------------------------------------------------

    async def tell_facts(self, call: Request) -> dict[str, Any]:
        """Return what the build wants to know of this node: `node.facts`."""
        return await asyncio.get_running_loop().run_in_executor(self._facts_thread, self._facts, call.node)

    def _facts(self, node: str) -> dict[str, Any]:
        files = self._files
        text, conf = _text(files.config), _text(files.conf)
        public_key, other = self._own_keys(node, text)
        return {
            "node": node,
            "version": tsbus.__version__,
            "protocol": PROTOCOL,
            "release": _release(),
            "config": digest(text) if text else "",
            "supervisor": supervisor_digest(conf) if conf else "",
            "public_key": public_key,
            "other_public_key": other,
            "manifest": _manifest(self._state / "manifest.json"),
            "pending": self._pending(),
            "started_ms": self._started_ms,
            "python": platform.python_version(),
            "kernel": platform.release(),
            "machine": platform.machine(),
        }

    def _own_keys(self, node: str, text: str) -> tuple[str, str]:
        """Return the public key that its copy of the tree names, and the other one whose secret half is here, or ""."""
        if self._configured[0] != digest(text):
            with contextlib.suppress(ConfigError, KeyError):
                self._configured = digest(text), loads(text).servers[node].public_key
        keys = [*self._public_keys(), "", ""][:2]
        if self._configured[1] == keys[1]:
            keys.reverse()
        return keys[0], keys[1]


def _text(path: Path) -> str:
    """Return the text of a file, "" when it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _public(path: Path) -> str:
    """Return the public half of a secret key file, "" when there is none that can be used."""
    try:
        return public_of(read_secret(path))
    except TransportError:
        return ""


def _release() -> str:
    """Return the name of the release in use on a server; "" where this is none of them."""
    current = SERVER_PROGRAMS.parent
    is_release = Path(sys.prefix).is_relative_to(current.parent)
    return os.path.basename(os.path.realpath(current)) if is_release else ""  # noqa: PTH119 (a missing link is no error)


def _manifest(path: Path) -> dict[str, Any] | None:
    """Return how much the builds have made here, and the digest by which to tell whether that has changed."""
    try:
        data = path.read_bytes()
        return {"made": len(json.loads(data)["made"]), "digest": hashlib.sha256(data).hexdigest()}
    except (OSError, ValueError, KeyError):
        return None
