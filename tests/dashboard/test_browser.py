"""The browser of the tests themselves: it must not outlive them."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from waiting import wait

HOLD = "from browser import Browser; held = Browser(); print(held.folder, flush=True); import signal; signal.pause()"


def using(folder: str) -> list[str]:
    """The processes that have a folder in their arguments or environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            told = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
        except OSError:
            continue
        if folder.encode() in told:
            found.append(told.decode(errors="replace")[:200])
    return found


def test_a_browser_ends_with_its_tests() -> None:
    """Where the tests are killed at once, no process of the browser and none of its files is left."""
    with tempfile.TemporaryDirectory(prefix="ts-") as place:  # short: there are sockets in it
        argv, env = [sys.executable, "-c", HOLD], os.environ | {"TMPDIR": place}
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent, env=env) as tests:
            assert tests.stdout
            folder = tests.stdout.readline().strip()
            wait("the browser has all its processes", lambda: len(using(folder)) > 3)
            tests.send_signal(signal.SIGKILL)
        wait("the browser is gone", lambda: not using(folder))
        wait("its files are gone", lambda: not list(Path(place).iterdir()))
