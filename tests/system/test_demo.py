"""The demo when it is interrupted. That it goes well to its end is checked by running it: see .ci/run."""

import os
import signal
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def processes_with(text):
    """Return the command lines of processes that have `text` in their arguments or environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                lines = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            except OSError:
                continue
            if any(text.encode() in line for line in lines):
                found.append(lines[0])
    return found


def test_ctrl_c_leaves_nothing():
    """Ctrl-C in the middle of the demo ends it with code 130 and leaves no process and no file behind."""
    with tempfile.TemporaryDirectory(prefix="ts-") as folder:  # short enough for sockets
        env = os.environ | {"TMPDIR": folder, "XDG_RUNTIME_DIR": folder}
        argv = [ROOT / "bin/treescale", "demo"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as demo:
            assert any("7 up" in line for line in demo.stdout)
            demo.send_signal(signal.SIGINT)
            assert "files removed" in demo.stdout.read()
        assert demo.returncode == 130
        assert list(Path(folder).iterdir()) == []
        assert processes_with(folder) == []
