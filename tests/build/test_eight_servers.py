"""Eight bare servers, each of which is logged in to in another way, become a tree, pass events, and are bare again."""

import subprocess
from collections.abc import Iterator

import pytest
from console_of_tests import LIMIT_S, wait
from sites import SNAPSHOT, Program
from targets import PASSWORD, Lab, Target
from test_ssh_login import add, agent_at

PASSPHRASE = "long enough to keep"
TREE = {"root": ["west", "east"], "west": ["w1", "w2", "w3"], "east": ["e1", "e2"]}
NAMES = ("root", *TREE["root"], *TREE["west"], *TREE["east"])
WITHOUT_SYSTEMD = "e1"
BEHIND = 2222
"""The port of w2 that lets nobody in who does not come from west."""
CONSOLE = """
[build]
docker = "no"

[ssh.root]                              # root itself, with a key
host = "{root}"
username = "root"
key = "{key}"

[ssh.west]                              # a key that only the agent has opened; sudo asks for nothing
host = "{west}"
username = "free"
key = "{locked}"

[ssh.east]                              # a password, which sudo wants as well
host = "{east}"
username = "tree"
password = "tree"

[ssh.w1]                                # a key, and a password for sudo alone
host = "{w1}"
username = "tree"
key = "{key}"
password_env = "TREE_PASSWORD"

[ssh.w2]                                # through another server of the tree
host = "{w2}"
port = 2222
username = "root"
key = "{key}"
jump = "west"

[ssh.w3]                                # whatever the agent has
host = "{w3}"
username = "free"

[ssh.e1]                                # a key whose passphrase is in a variable
host = "{e1}"
username = "free"
key = "{locked}"
key_passphrase_env = "KEY_PASSPHRASE"

[ssh.e2]                                # as ~/.ssh/config says
host = "far"
"""
SSH_CONFIG = """
Host far
  HostName {e2}
  User root
  IdentityFile {key}
  ProxyJump free@{root}
"""
STATE = (
    "sha256sum /etc/treescale/* /var/lib/treescale/* /etc/systemd/system/treescale.service 2>/dev/null; "
    "readlink /opt/treescale/current; pgrep -f 'bin/ts-[r]outer|[s]upervisord'"
)


@pytest.fixture(scope="module")
def targets(lab: Lab) -> Iterator[dict[str, Target]]:
    """The servers, one of them without systemd."""
    kinds = ["still" if name == WITHOUT_SYSTEMD else "python" for name in NAMES]
    targets = dict(zip(NAMES, lab.targets(*kinds), strict=True))
    targets["w2"].sshd(BEHIND, f"AllowUsers *@{targets['west'].ip}")
    yield targets
    lab.remove(targets.values())


@pytest.fixture(scope="module")
def program(lab: Lab, targets: dict[str, Target], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A console that has never seen these servers, with an agent and the two files."""
    folder = tmp_path_factory.mktemp("console")
    locked, agent = folder / "locked", folder / "agent"
    locked.write_text(lab.key.read_text())
    locked.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSPHRASE, "-f", locked], check=True)
    places = {name: target.ip for name, target in targets.items()} | {"key": str(lab.key), "locked": str(locked)}
    (folder / "console.toml").write_text(CONSOLE.format(**places))
    (folder / "console.toml").chmod(0o600)
    (folder / "treescale.toml").write_text(
        "".join(
            f'[servers.{name}]\nip = "{target.ip}"\nservice_port = 8888\nchilds = {TREE.get(name, [])}\n'
            for name, target in targets.items()
        )
    )
    (folder / ".ssh").mkdir(mode=0o700)
    (folder / ".ssh/config").write_text(SSH_CONFIG.format(**places))
    with agent_at(agent):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSH_AUTH_SOCK", str(agent))
            add(locked, PASSPHRASE)
        yield Program(folder, SSH_AUTH_SOCK=str(agent), TREE_PASSWORD=PASSWORD, KEY_PASSPHRASE=PASSPHRASE)


@pytest.fixture(scope="module")
def before(targets: dict[str, Target]) -> dict[str, set[str]]:
    """All files of each server, before anybody has logged in."""
    return _each(targets, SNAPSHOT)


def test_bare_servers_become_a_tree(program: Program, before: dict[str, set[str]]) -> None:
    """However each is logged in to, all eight are nodes in the end, and answer the root over the bus."""
    assert set(before) == set(NAMES)
    done = program.run("--yes", "--accept-new")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("the tree answers: 8 of 8; median round trip ")


def test_an_event_crosses_the_tree(targets: dict[str, Target], lab: Lab) -> None:
    """Who listens on a leaf hears of what is published on one that is four links away."""
    known_hosts = lab.folder / "known_hosts"
    known_hosts.write_text("".join(target.known_host() for target in targets.values()))

    def ssh(name: str, program: str, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ssh", "-i", lab.key, "-o", f"UserKnownHostsFile={known_hosts}", f"root@{targets[name].ip}",
             f"/opt/treescale/current/bin/{program}", *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    listener = ssh("w1", "ts-sub", "news", "--count", "1", "--timeout", f"{LIMIT_S:.0f}")

    def heard() -> bool:
        said = ssh(WITHOUT_SYSTEMD, "ts-pub", "news", "hello").communicate(timeout=LIMIT_S)[0]
        assert listener.poll() in (None, 0), said
        return listener.poll() is not None

    wait("w1 hears of it", heard)
    assert "hello" in listener.communicate()[0]


def test_the_second_run_changes_nothing(program: Program, targets: dict[str, Target]) -> None:
    """It says so, hears from all eight again, and files and processes of the nodes are the same as before."""
    state = _each(targets, STATE)
    done = program.run("--yes")
    assert done.returncode == 0, done.stderr
    assert "8 as before\n" in done.stderr and "changed" not in done.stderr
    assert "the tree answers: 8 of 8" in done.stderr
    assert _each(targets, STATE) == state


def test_an_uninstall_leaves_what_was_there(
    program: Program, targets: dict[str, Target], before: dict[str, set[str]]
) -> None:
    """The files of each server are those from before the first login, and nothing of a node runs."""
    done = program.run("uninstall", "--yes")
    assert done.returncode == 0, done.stderr
    after = _each(targets, SNAPSHOT)
    assert {name: lines for name in NAMES if (lines := sorted(after[name] ^ before[name]))} == {}
    assert set().union(*_each(targets, "pgrep -f '/opt/treescal[e]'").values()) == set()


def _each(targets: dict[str, Target], script: str) -> dict[str, set[str]]:
    """Return the lines that a script prints on each server."""
    return {name: set(target.run(script, check=False).splitlines()) for name, target in targets.items()}
