"""Logging in: with keys of all kinds, an agent, passwords; and what is said when a server lets nobody in."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from console_of_tests import LIMIT_S, TREE, Desk, trouble_of, wait
from targets import Target

from tsbus.build.access import Agent, FirstLine, Given, KeyFile, Output, Password, Variable
from tsbus.config import Secret

KINDS = ("ed25519", "ecdsa -b 521", "rsa -b 2048", "ecdsa -b 256", "rsa -b 2048 -m PEM")
PASSPHRASE = "long enough to keep"


def new_key(folder: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    path = folder / f"id_{kind.replace(' ', '_')}"
    subprocess.run(["ssh-keygen", "-q", "-t", *kind.split(), "-N", passphrase, "-C", "", "-f", path], check=True)
    return path


@pytest.fixture
def admit(server: Target) -> Iterator[object]:
    """A function that lets the user `free` in with the public halves of keys."""
    folder = "/home/free/.ssh"

    def admit(*keys: Path) -> None:
        public = "".join(key.with_name(f"{key.name}.pub").read_text() for key in keys)
        server.run(
            f"mkdir -p -m 700 {folder}; cat >> {folder}/authorized_keys <<'.'\n{public}.\nchown -R free: {folder}"
        )

    yield admit
    server.run(f"rm -rf {folder}")


@contextlib.contextmanager
def agent_at(address: Path) -> Iterator[None]:
    """A real ssh-agent without keys."""
    process = subprocess.Popen(["ssh-agent", "-D", "-a", address], stdout=subprocess.DEVNULL)

    def listens() -> bool:  # its address is there before that
        with socket.socket(socket.AF_UNIX) as link:
            return link.connect_ex(str(address)) == 0

    wait("the agent listens", listens)
    yield
    process.terminate()
    process.wait(LIMIT_S)


@pytest.fixture
def agent(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The address of a real ssh-agent without keys."""
    address = desk.folder / "agent"
    monkeypatch.setenv("SSH_AUTH_SOCK", str(address))
    with agent_at(address):
        yield address


def add(key: Path, passphrase: str = "") -> None:
    """Give a key to the agent."""
    ask = key.parent / "ask"
    ask.write_text(f"#!/bin/sh\necho '{passphrase}'\n")
    ask.chmod(0o700)
    env = {**os.environ, "SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"}
    subprocess.run(["ssh-add", "-q", key], check=True, env=env, stdin=subprocess.DEVNULL)


def test_every_kind_of_key_logs_in(desk, server, admit, tmp_path):
    """Keys of all current kinds and forms are taken from their files, with a passphrase and without."""
    opens = Given(Secret(PASSPHRASE))
    keys = [new_key(tmp_path, kind) for kind in KINDS[:2]], [new_key(tmp_path, kind, PASSPHRASE) for kind in KINDS[2:]]
    admit(*keys[0], *keys[1])
    for way in (*map(KeyFile, keys[0]), *(KeyFile(key, opens) for key in keys[1])):
        with desk.session(server, "free", ways=(way,)) as session:
            assert session.connected


def test_a_key_with_a_passphrase_needs_it(desk, server, admit, tmp_path):
    """A key that cannot be opened says why, whether nobody gave its passphrase or a wrong one."""
    key = new_key(tmp_path, passphrase=PASSPHRASE)
    admit(key)
    for source, reason in ((None, "it has a passphrase"), (Given(Secret("no")), "the passphrase is wrong")):
        trouble = desk.trouble(server, "free", ways=(KeyFile(key, source),))
        assert trouble.kind == "authentication"
        assert f"{key}: {reason}" in trouble.details


def test_missing_and_unusable_key_files_are_named(desk, server, tmp_path):
    """A key that is not there is told when console.toml names it; a file of another form is told with the mend."""
    other = tmp_path / "pkcs8"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", other], check=True, capture_output=True)
    here, there = KeyFile(tmp_path / "named"), KeyFile(tmp_path / "usual", optional=True)
    with desk.session(server, ways=(here, there, KeyFile(other), desk.key)) as session:
        assert session.connected
    text = desk.trouble(server, ways=(here, there, KeyFile(other))).details
    assert "named is not there" in text
    assert "usual" not in text
    assert "ssh-keygen -p" in text


def test_the_agent_logs_in(desk, server, admit, agent, tmp_path):
    """A key of the agent is used where nobody names one, and for a file that has a passphrase and is in the agent."""
    key = new_key(tmp_path, passphrase=PASSPHRASE)
    admit(key)
    add(key, PASSPHRASE)
    for way in (Agent(), KeyFile(key)):
        with desk.session(server, "free", ways=(way,)) as session:
            assert session.connected


def test_an_agent_with_many_keys_does_not_lock_out(desk, server, admit, agent, tmp_path):
    """Of more keys than a server hears, those that are named as files are tried first."""
    for number in range(6):
        (tmp_path / str(number)).mkdir()
        add(new_key(tmp_path / str(number)))
    right = new_key(tmp_path, passphrase=PASSPHRASE)
    admit(right)
    add(right, PASSPHRASE)
    with desk.session(server, "free", ways=(Agent(), KeyFile(right, optional=True))) as session:
        assert session.connected
    assert "not tried, they are too many" in desk.trouble(server, "free", ways=(Agent(),)).details


def test_a_silent_agent_is_passed_over(desk, server, agent):
    """Where SSH_AUTH_SOCK leads nowhere, other ways are tried, and the trouble tells of it."""
    agent.unlink()
    with desk.session(server, ways=(Agent(), desk.key)) as session:
        assert session.connected
    assert "agent: it does not answer" in desk.trouble(server, ways=(Agent(),)).text


def test_passwords_log_in_from_wherever_they_are(desk, server, tmp_path, monkeypatch):
    """A password comes from console.toml, a variable, the first line of a file, or a program."""
    file = tmp_path / "password"
    file.write_text("tree\nsomething else\n")
    monkeypatch.setenv("TREE_PASSWORD", "tree")
    for source in (TREE, Variable("TREE_PASSWORD"), FirstLine(file), Output(("echo", "tree"))):
        with desk.session(server, "tree", ways=(Password(source),)) as session:
            assert session.connected


def test_a_wrong_password_is_tried_once(desk, server):
    """A refused password is sent once, is no reason to try again, and is not in what is said of it."""
    secret = "correct horse battery"
    failures = "journalctl -q -o cat _COMM=sshd | grep -c 'Failed password for tree ' || true"
    before = int(server.run(failures))
    trouble = desk.trouble(server, "tree", ways=(Password(Given(Secret(secret))),))
    assert (trouble.kind, trouble.again) == ("authentication", False)
    assert "password: refused" in trouble.text
    assert secret not in repr(trouble)
    wait("the journal has it", lambda: int(server.run(failures)) > before)
    assert int(server.run(failures)) == before + 1


def test_a_secret_is_read_only_when_it_is_needed(desk, server, tmp_path):
    """A program that prints the password is not run where a key is enough, or where the server takes none."""
    asked = tmp_path / "asked"
    source = Output(("sh", "-c", f"touch {asked}; echo tree"))
    with desk.session(server, "tree", ways=(desk.key, Password(source))):
        assert not asked.exists()
    server.sshd(2201, "PasswordAuthentication no")
    assert "password: it takes none" in desk.trouble(server, "tree", port=2201, ways=(Password(source),)).text
    assert not asked.exists()


def test_a_secret_that_is_nowhere_is_told(desk, server, tmp_path):
    """When a secret cannot be read, the trouble says where it should be."""
    missing = tmp_path / "missing"
    for source, text in (
        (Variable("NOBODY_SETS_THIS"), "the variable NOBODY_SETS_THIS is not set"),
        (FirstLine(missing), f"{missing} cannot be read: No such file"),
        (Output(("false",)), "false ended with 1"),
    ):
        trouble = desk.trouble(server, "tree", ways=(Password(source),))
        assert trouble.kind == "authentication"
        assert text in trouble.text


def test_keyboard_interactive_is_told_the_password_only(desk, server):
    """A server that asks for the password in a dialogue gets it; one that asks for anything else gets nothing."""
    server.sshd(2202, "KbdInteractiveAuthentication yes", "AuthenticationMethods keyboard-interactive")
    with desk.session(server, "tree", port=2202, ways=(Password(TREE),)) as session:
        assert session.connected
    server.run("chage -d 0 plain")  # an expired password: it wants a new one
    trouble = desk.trouble(server, "plain", port=2202, ways=(Password(TREE),))
    server.run("chage -d 20000 plain")
    assert trouble.kind == "authentication"
    assert "it asks for more than a password ('Current password:')" in trouble.details


def test_two_ways_that_a_server_wants_together(desk, server):
    """A server that wants a key and then a password gets both, in whatever order they are written."""
    server.sshd(2203, "AuthenticationMethods publickey,password")
    for ways in ((desk.key, Password(TREE)), (Password(TREE), desk.key)):
        with desk.session(server, "tree", port=2203, ways=ways) as session:
            assert session.connected
    trouble = desk.trouble(server, "tree", port=2203, ways=(desk.key,))
    assert "it takes password" in trouble.text


def test_nothing_to_log_in_with(desk, server):
    """Without any way the trouble says so, and what the server takes."""
    trouble = desk.trouble(server, ways=())
    assert "it takes publickey or password; there is nothing to try" in trouble.text


def test_a_key_is_opened_once(desk, server, admit, tmp_path):
    """A key with a passphrase is opened once for all servers."""
    key = new_key(tmp_path, passphrase=PASSPHRASE)
    admit(key)
    way = KeyFile(key, Given(Secret(PASSPHRASE)))
    desk.shared.keys.load(way)
    key.unlink()
    with desk.session(server, "free", ways=(way,)) as session:
        assert session.connected


def test_a_session_that_is_not_connected(desk, server):
    """Before it is connected, and after it was cut, a session says that there is no connection."""
    session = desk.session(server)
    assert trouble_of(lambda: session.run("true", stage="probe")).kind == "lost"
    session.connect()
    session.abort()
    assert trouble_of(lambda: session.run("true", stage="probe")).kind == "lost"
