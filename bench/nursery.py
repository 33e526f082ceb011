"""Forks a real router and a real executor for every node of a tree, from one parent that has imported everything.

Run as `python -m bench.nursery CONFIG FOLDER`. Forking shares the pages of the interpreter and the libraries, so that
111 nodes fit on a small machine. Each executor also notes when an event of the topic ARRIVAL comes, in a file that the
harness maps too. A router that ends is started anew after a while, as supervisord does. Says its pids in JSON once all
are forked.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.harness import LIBC, PR_SET_PDEATHSIG
from tsbus import log
from tsbus.config import Tree, load
from tsbus.executor.service import make_worker
from tsbus.loop import RouterProcess
from tsbus.transport import read_secret

ARRIVAL = "bench.arrival"
RESTART_S = 1.0
MARK = struct.Struct("d")  # a node's place in the file: when its last event came, on the monotonic clock


def open_marks(path: Path, nodes: int) -> mmap.mmap:
    """Map the file of arrival times, making it if it is not there."""
    with path.open("a+b") as file:
        file.truncate(MARK.size * nodes)
        return mmap.mmap(file.fileno(), MARK.size * nodes)


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a child that dies with this process; returns its pid."""
    pid = os.fork()
    if pid == 0:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            work()
        finally:
            os._exit(1)
    return pid


def run_router(tree: Tree, folder: Path) -> None:
    node = tree.current_node
    RouterProcess(tree, read_secret(folder / f"{node}.key"), folder / node, lambda: tree).run()


def run_executor(tree: Tree, folder: Path, marks: mmap.mmap, place: int) -> None:
    home = folder / tree.current_node
    worker = make_worker(tree, home, str(home / "bus"))
    worker.on(ARRIVAL)(lambda _: MARK.pack_into(marks, MARK.size * place, time.monotonic()))
    worker.run()


def main() -> None:
    config, folder = sys.argv[1], Path(sys.argv[2])
    log.setup("error")
    tree = load(config)
    marks = open_marks(folder / "marks", len(tree.servers))
    gc.freeze()  # the collector must not write to pages that the children share
    local = {node: tree.with_current(node) for node in tree.servers}
    pids: dict[str, list[int]] = {}
    for place, (node, here) in enumerate(local.items()):
        (folder / node).mkdir()
        router = fork(lambda here=here: run_router(here, folder))  # type: ignore[misc]
        executor = fork(lambda here=here, place=place: run_executor(here, folder, marks, place))  # type: ignore[misc]
        pids[node] = [router, executor]
    routers = {pair[0]: node for node, pair in pids.items()}
    print(json.dumps(pids), flush=True)
    while True:
        pid, _ = os.wait()
        node = routers.pop(pid, "")
        if node:
            time.sleep(RESTART_S)
            pid = fork(lambda: run_router(local[node], folder))  # noqa: B023 - the child starts at once
            routers[pid] = node
            print(json.dumps({node: pid}), flush=True)


if __name__ == "__main__":
    main()
