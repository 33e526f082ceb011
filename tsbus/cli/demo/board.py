"""Board: the part of the demo about the dashboard, which stays up as long as the tree does."""

import json
import select
import subprocess
import time
import urllib.request
from typing import Final

from tsbus.cli.demo.stage import HERE, Stage, chapter, say
from tsbus.cli.edge import Fault

START_S: Final = 60.0
"""A busy machine takes long to read the library of the pages."""
ANSWER_S: Final = 20.0
_SHOWN: Final = ("nodes", "up", "containers", "running", "balancers")


class Board:
    """The dashboard at the root."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def show(self, stage: Stage) -> None:
        """Start it, and let it tell what it sees as programs would ask it. Raises Fault when it does not."""
        chapter("9. The dashboard")
        argv = ["treescale", "dashboard", "--config", str(stage.file), "--host", HERE, "--port", "0"]
        stage.tell_command(argv, end=" &")
        log = stage.file.with_name("dashboard.log")
        with log.open("w") as file:
            self._process = stage.start(argv, stdout=subprocess.PIPE, stderr=file, text=True)
        url = _first_line(self._process)
        if not url:
            self.stop()
            said = log.read_text().splitlines()
            say(f"Left out: {said[-1] if said else f'it has not started in {START_S:.0f} s'}")
            return
        api = f"{url.rstrip('/')}/api/v1/status"
        stage.tell_command(["curl", "-s", api])
        say(_status(api))
        say(f"\nOpen it while the tree stays up: {url}")

    def stop(self) -> None:
        """End it."""
        if self._process:
            self._process.terminate()
            self._process.wait()


def _first_line(process: "subprocess.Popen[str]") -> str:
    """Return the first line that a program prints; "" when it ends before that, or takes too long."""
    stdout = process.stdout
    return stdout.readline().strip() if stdout and select.select([stdout], [], [], START_S)[0] else ""


def _status(url: str) -> str:
    """Return what the dashboard answers when it has heard from all nodes. Raises Fault when it does not in time."""
    until = time.monotonic() + ANSWER_S
    while True:
        with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:  # noqa: S310  (on this machine)
            told = json.load(answer)
        totals = {key: told["totals"].get(key, 0) for key in _SHOWN}
        if totals["nodes"] == totals["up"] > 0:
            return f"... {json.dumps(totals)} ..."
        if time.monotonic() > until:
            raise Fault(f"the dashboard does not see all nodes: {totals}")
        time.sleep(0.1)
