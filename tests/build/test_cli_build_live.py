"""`treescale build` as people and scripts use it, on two real servers."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from node_bundle import CACHE
from sites import RUN_S
from targets import Lab, Target
from terminals import Terminal

from tsbus.build.lock import PLACE

ROOT = Path(__file__).parents[2]


class Console:
    """Somebody's folder with the two files, for a root and a leaf below it."""

    def __init__(self, folder: Path, key: Path, root: Target, leaf: Target) -> None:
        self.folder, self.root, self.leaf = folder, root, leaf
        # A checkout of its own: what is built is the code as it is now, whoever changes that meanwhile.
        checkout = folder / "checkout"
        for part in ("bin", "tsbus"):
            shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
        (checkout / ".venv").symlink_to(ROOT / ".venv")
        self._build = (checkout / "bin/treescale", "build")
        cache = folder / "cache"
        cache.mkdir()
        (cache / "treescale").symlink_to(CACHE)
        self.env = {"HOME": str(folder), "XDG_CACHE_HOME": str(cache), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        (folder / "treescale.toml").write_text(
            f'[servers.root]\nip = "{root.ip}"\nservice_port = 8888\nchilds = ["leaf"]\n'
            f'[servers.leaf]\nip = "{leaf.ip}"\nservice_port = 8888\ntags = ["web"]\n'
        )
        logins = [
            f'[ssh.{name}]\nhost = "{target.ip}"\nhost_key = "{target.host_key}"\n'
            for name, target in (("root", root), ("leaf", leaf))
        ]
        head = f'[defaults]\nusername = "root"\nkey = "{key}"\n[build]\ndocker = "no"\n'
        (folder / "console.toml").write_text("".join([head, *logins]))

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        """As a script would: without a terminal."""
        return subprocess.run([*self._build, *options], cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=RUN_S, check=False)  # fmt: skip

    def terminal(self, *options: str) -> Terminal:
        """As a person would."""
        return Terminal([*self._build, *options], self.env, self.folder, (24, 80))


@pytest.fixture(scope="module")
def console(lab: Lab, tmp_path_factory: pytest.TempPathFactory):
    """Two bare servers."""
    root, leaf = lab.target(), lab.target()
    yield Console(tmp_path_factory.mktemp("console"), lab.key, root, leaf)
    root.remove()
    leaf.remove()


def test_a_script_must_say_yes(console: Console) -> None:
    """Where nobody can be asked, the plan is shown, and nothing is done."""
    done = console.run()
    assert done.returncode == 2
    assert "2 hosts: the same" in done.stdout and done.stdout.endswith("2 servers: 2 to change\n")
    assert "Nobody can be asked here: say --yes" in done.stderr
    assert console.root.run("ls /opt") == ""


def test_one_console_at_a_time(console: Console) -> None:
    """Who builds already, and since when, is told, and nothing is done."""
    who = {"user": "alice", "host": "desk", "pid": 7, "what": "build", "since_s": 1.7e9}
    console.root.run(f"mkdir {PLACE} && echo '{json.dumps(who)} token' >{PLACE}/who")
    done = console.run("apply", "--yes")
    console.root.run(f"rm -r {PLACE}")
    assert done.returncode == 6
    assert "alice@desk (pid 7), build, since 2023-11-14" in done.stderr and "build unlock" in done.stderr
    assert console.leaf.run("ls /opt") == ""


def test_a_person_sees_the_plan_and_the_run_and_may_stop_it(console: Console) -> None:
    """A no changes nothing; Ctrl-C ends a run, and the next one goes on and ends with a tree that answers."""
    with console.terminal() as terminal:
        terminal.read_until("2 servers: 2 to change", "Apply to 2 servers? [y/N]: ")
        terminal.type("n\n")
        code, said = terminal.end()
        assert code == 130 and "nothing was changed" in said
    with console.terminal() as terminal:
        terminal.read_until("Apply to 2 servers? [y/N]: ")
        terminal.type("y\n")
        terminal.read_until("bundle", "2 working", "at work for longest")
        terminal.type("\x03")
        code, said = terminal.end()
        assert code == 130
        assert "interrupted; finished: no server. Run it again" in said
    with console.terminal("--yes") as terminal:
        terminal.read_until("Building 2 servers")
        code, said = terminal.end()
        assert code == 0
        assert "activate   ━━━━━" in said and "2/2" in said
        assert "the tree answers: 2 of 2; median round trip" in said
        assert all(len(line) < 80 for line in said.splitlines())


def test_the_second_run_changes_nothing(console: Console) -> None:
    """It says so in an object for each report, each plan and the end, and still asks the tree."""
    done = console.run("--json")
    assert done.returncode == 0
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["steps"] for each in told if "steps" in each] == [[], []]
    assert told[-1]["summary"] == {"ok": ["root", "leaf"], "waiting": {}, "failed": {}, "skipped": {}}
    assert told[-1]["changed"] == {} and set(told[-1]["answered_ms"]) == {"root", "leaf"}
    assert {"answered", "left"} <= {each.get("report") for each in told}
