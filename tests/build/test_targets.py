"""The lab of targets: servers as real as they need to be, and nothing of them when it is over."""

import signal
import subprocess
import sys
from pathlib import Path

from console_of_tests import wait


def test_what_targets_are(lab, server, neighbour):
    """A target runs systemd, or has never heard of it; with Python, or without; each has its own host key."""
    assert server.run("systemctl is-system-running --wait") == "running"
    assert server.run("python3 -c 'print(6 * 7)'") == "42"
    assert neighbour.run("systemctl is-system-running; command -v python3", check=False) == "offline"
    assert server.host_key != neighbour.host_key
    assert server.run(f"timeout 9 bash -c 'head -c 4 < /dev/tcp/{neighbour.ip}/22'") == "SSH-"


def test_packages_come_into_targets(neighbour):
    """The archive that a target's apt names is reached through the lab, as apt would."""
    _, archive, suite, *_ = neighbour.run("cat /etc/apt/sources.list").split()
    neighbour.run(f"/usr/lib/apt/apt-helper download-file {archive.rstrip('/')}/dists/{suite}/Release /tmp/release")
    assert f"Codename: {suite}" in neighbour.run("cat /tmp/release; rm /tmp/release")


def test_nothing_is_left_when_tests_are_killed():
    """When the process that has a lab is killed, its engine, network and files are gone a little later."""
    program = "import sys, targets; lab = targets.Lab(); print(lab.folder, lab.link, flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    assert process.stdout
    folder, link = process.stdout.readline().decode().split()
    wait("its engine is there", lambda: list(Path(folder).glob("ts-engine-*/docker.sock")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait("its files are gone", lambda: not Path(folder).exists())
    wait("its network is gone", lambda: subprocess.run(["ip", "link", "show", link], capture_output=True).returncode)
    wait("its processes are gone", lambda: not [line for line in _arguments() if folder in line])


def _arguments() -> list[str]:
    return subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
