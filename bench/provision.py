"""Eight servers made into nodes, then a second run with nothing to do: ours, pyinfra and Ansible.

The peers do the part of it that they have words for: a user, three folders, a file of 4 MiB, a configuration, a unit
that is enabled. Ours does that and the rest of a build: it unpacks and compiles a release, makes keys, starts the
nodes, and hears from all of them over the bus. Needs `bench/setup`.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path

from bench.harness import ROOT, BenchError
from bench.servers import Servers, servers

SERVERS = 8
TOOLS = ROOT / "bench/.cache/provision/bin"
UNIT = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"


class Provisioner(ABC):
    """One tool."""

    def version(self) -> str:
        return "-"

    def measure(self) -> dict[str, float]:
        with servers(SERVERS) as there:
            (there.folder / "unit").write_text(UNIT)
            (there.folder / "config").write_text("x = 1\n" * 100)
            self.prepare(there)
            figures = {}
            for which in ("first", "second"):
                begun = time.monotonic()
                usage = self.run(there.folder, which)
                figures[f"{which} run s"] = time.monotonic() - begun
                figures[f"{which} CPU s / server"] = (usage.ru_utime + usage.ru_stime) / SERVERS
                figures[f"{which} MiB"] = usage.ru_maxrss / 1024
            return figures

    @abstractmethod
    def prepare(self, there: Servers) -> None:
        """Write the files that the tool wants."""

    @abstractmethod
    def run(self, folder: Path, which: str) -> resource.struct_rusage:
        """Do all of it; the second run must find nothing to do."""


def done(folder: Path, argv: list[str], **more: str) -> tuple[str, resource.struct_rusage]:
    """Run a program; returns what it said, and what it and those that it has waited for took."""
    # Whatever it keeps for next time belongs to this measurement.
    env = {**os.environ, "HOME": str(folder), "PATH": f"{TOOLS}:{os.environ['PATH']}", **more}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise BenchError(f"{argv[0]} ended with {process.returncode}: {text[-1500:]}")
    return text, usage


class OursBuild(Provisioner):
    """`treescale build`."""

    def prepare(self, there: Servers) -> None:
        names = [f"node{number}" for number in range(SERVERS)]
        tree = ["[docker]", "enabled = false"]
        console = ["[defaults]", 'username = "root"', f'key = "{there.key}"', "[build]", 'docker = "no"']
        for name, target in zip(names, there.targets, strict=True):
            tree += [f"[servers.{name}]", f'ip = "{target.ip}"', "service_port = 8888"]
            tree += [f"childs = {names[1:]}".replace("'", '"')] if name == names[0] else []
            console += [f"[ssh.{name}]", f'host = "{target.ip}"', f'host_key = "{target.host_key}"']
        there.folder.joinpath("treescale.toml").write_text("\n".join(tree))
        there.folder.joinpath("console.toml").write_text("\n".join(console))
        there.folder.joinpath("console.toml").chmod(0o600)

    def run(self, folder: Path, which: str) -> resource.struct_rusage:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
        said, usage = done(folder, [str(ROOT / "bin/treescale"), "build", "--yes"], XDG_CACHE_HOME=cache)
        if which == "second" and f"{SERVERS} as before" not in said:
            raise BenchError(f"the second run had something to do: {said[-1500:]}")
        return usage


class Pyinfra(Provisioner):
    """Over paramiko, commands made on the console."""

    def version(self) -> str:
        return done(ROOT, [str(TOOLS / "pyinfra"), "--version"])[0].split()[-1]

    def prepare(self, there: Servers) -> None:
        told = {"ssh_user": "root", "ssh_key": str(there.key), "ssh_known_hosts_file": str(there.known_hosts)}
        there.folder.joinpath("inventory.py").write_text(
            f"servers = {[(target.ip, told) for target in there.targets]!r}\n"
        )
        there.folder.joinpath("deploy.py").write_text("""\
from pyinfra.operations import files, server, systemd
server.group(group="bench", system=True)
server.user(user="bench", group="bench", system=True, create_home=False)
for path in ("/opt/bench", "/etc/bench", "/var/lib/bench"):
    files.directory(path=path, user="root", group="bench", mode="750")
files.put(src="bundle", dest="/opt/bench/bundle", mode="644")
files.put(src="config", dest="/etc/bench/config", user="root", group="bench", mode="640")
files.put(src="unit", dest="/etc/systemd/system/bench.service", mode="644")
systemd.service(service="bench.service", running=True, enabled=True)
""")

    def run(self, folder: Path, which: str) -> resource.struct_rusage:
        said, usage = done(folder, [str(TOOLS / "pyinfra"), "--yes", "inventory.py", "deploy.py"])
        if which == "second" and not re.search(r"Grand total +(\d+) +- +- +\1", said):
            raise BenchError(f"the second run had something to do: {said[-1500:]}")
        return usage


class Ansible(Provisioner):
    """With pipelining and a process for each server, as its own advice for speed is."""

    def version(self) -> str:
        said, _ = done(ROOT, [str(TOOLS / "ansible-playbook"), "--version"])
        return said.split("core ")[1].split("]")[0]

    def prepare(self, there: Servers) -> None:
        hosts = "".join(f"{target.ip} ansible_python_interpreter=/usr/bin/python3\n" for target in there.targets)
        there.folder.joinpath("hosts").write_text(hosts)
        options = f"-o UserKnownHostsFile={there.known_hosts} -o ControlMaster=auto -o ControlPersist=60s"
        there.folder.joinpath("ansible.cfg").write_text(
            f"[defaults]\nforks = {SERVERS}\nremote_user = root\nprivate_key_file = {there.key}\n"
            f"[connection]\npipelining = True\n[ssh_connection]\npipelining = True\nssh_args = {options}\n"
        )
        there.folder.joinpath("play.yml").write_text("""\
- hosts: all
  gather_facts: false
  tasks:
    - group: {name: bench, system: true}
    - user: {name: bench, group: bench, system: true, create_home: false}
    - file: {path: "{{ item }}", state: directory, owner: root, group: bench, mode: "0750"}
      loop: [/opt/bench, /etc/bench, /var/lib/bench]
    - copy: {src: bundle, dest: /opt/bench/bundle, mode: "0644"}
    - copy: {src: config, dest: /etc/bench/config, owner: root, group: bench, mode: "0640"}
    - copy: {src: unit, dest: /etc/systemd/system/bench.service, mode: "0644"}
    - systemd: {name: bench, state: started, enabled: true, daemon_reload: true}
""")

    def run(self, folder: Path, which: str) -> resource.struct_rusage:
        said, usage = done(folder, [str(TOOLS / "ansible-playbook"), "-i", "hosts", "play.yml"], ANSIBLE_NOCOLOR="1")
        # daemon_reload counts as no change.
        if which == "second" and re.search(r"changed=[1-9]", said):
            raise BenchError(f"the second run had something to do: {said[-1500:]}")
        return usage
