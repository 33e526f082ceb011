"""One router on real sockets, for the contract tests: FILE (the tree with current_node), SECRET, RUN_DIR."""

import sys
from pathlib import Path

from tsbus.config import load
from tsbus.log import setup
from tsbus.loop import RouterProcess

if __name__ == "__main__":
    file, secret, run_dir = sys.argv[1:]
    setup("warning")
    RouterProcess(load(file), secret, Path(run_dir), reload=lambda: (load(file), secret)).run()
