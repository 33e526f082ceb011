"""Salt: one master and its minions over ZeroMQ on one machine, asked through the Python API."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.contestant import Crowd
from bench.harness import CACHE, Fleet, free_ports, output, wait_until

BIN = CACHE / "salt" / "bin"
COMMON = """
user: root
root_dir: {root}
sock_dir: {root}/s
log_level_logfile: quiet
log_level: error
transport: zeromq
"""
MASTER = """
interface: 127.0.0.1
publish_port: {publish}
ret_port: {returns}
auto_accept: true
"""
MINION = """
id: node{number}
master: 127.0.0.1
publish_port: {publish}
master_port: {returns}
"""


class Salt(Crowd):
    name = "salt"

    def version(self) -> str:
        code = "import salt.version; print(salt.version.__version__)"
        return f"salt {output(str(BIN / 'python'), '-c', code)}"

    def start(self, fleet: Fleet, nodes: int) -> None:
        publish, returns = free_ports(2)
        master = self._configure(fleet, "master", MASTER.format(publish=publish, returns=returns))
        fleet.start("master", [str(BIN / "salt-master"), "-c", master], [publish, returns])
        for number in range(1, nodes + 1):
            text = MINION.format(number=number, publish=publish, returns=returns)
            config = self._configure(fleet, "minion", text, f"m{number}")
            fleet.start(f"node {number}", [str(BIN / "salt-minion"), "-c", config])
        self._nodes = nodes
        self._driver = fleet.start("driver", [str(BIN / "python"), "-m", "bench.peers.salt_driver", f"{master}/master"])
        wait_until(lambda: self._all("test.ping")["answered"] == nodes, "all minions answer", 240, every_s=1)

    def _configure(self, fleet: Fleet, kind: str, text: str, name: str = "master") -> str:
        folder = fleet.folder / name
        folder.mkdir()
        (folder / kind).write_text(COMMON.format(root=folder) + text)
        return str(folder)

    def _all(self, function: str, *args: str) -> dict[str, float]:
        self._driver.tell({"function": function, "args": args})
        return self._driver.must_hear(60)

    def _timed(self, function: str, *args: str) -> float:
        answer = self._all(function, *args)
        assert answer["answered"] == self._nodes, answer
        return answer["seconds"]

    def operations(self) -> dict[str, Callable[[], float]]:
        return {"ping": partial(self._timed, "test.ping"), "exec": partial(self._timed, "cmd.run", "/bin/true")}
