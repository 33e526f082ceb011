"""The smallest real bus: one router process, for tests that need a socket and no tree."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


class LoneRouter:
    """The router of a tree of one node, `solo`, as a process."""

    def __init__(self, folder: str, more: str = "") -> None:
        """`more` is added to the configuration."""
        self.bus = f"{folder}/bus"
        self._folder = folder
        Path(folder, "treescale.toml").write_text(
            'current_node = "solo"\n[servers.solo]\nname = "solo"\nip = "127.0.0.1"\nservice_port = 4999\n' + more
        )
        self.start()

    def start(self) -> None:
        """Run the process."""
        config = f"{self._folder}/treescale.toml"
        argv = [sys.executable, ROOT / "services/ts_router.py", "--config", config, "--run-dir", self._folder]
        self._process = subprocess.Popen(argv)

    def kill(self) -> None:
        """End it without a word."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Let it say BYE and end."""
        self._process.terminate()
        self._process.wait()
