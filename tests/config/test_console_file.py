"""The console's file: what it may say of logins and of building, its defaults, and what can be wrong."""

import base64
import os

import pytest

from tsbus.config import BuildSettings, ConfigError, Secret, check, load_console

BLOB = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0 " + bytes(32)).decode()
PRINT = "SHA256:" + "a" * 43


def load(tmp_path, text):
    """Load a console's file that nobody else can read."""
    path = tmp_path / "console.toml"
    path.write_text(text)
    path.chmod(0o600)
    return load_console(path)


def problems_of(tmp_path, text):
    """What a check says of the text, beside its tree, as place and message."""
    (tmp_path / "treescale.toml").write_text("servers.a = {ip = 'a', service_port = 1}")
    path = tmp_path / "console.toml"
    path.write_text(text)
    path.chmod(0o600)
    found, problems = check(path)
    return found, [str(each).removeprefix(str(path)) for each in problems]


def test_every_key_of_an_entry_and_of_the_build_is_read(tmp_path):
    """All that the reference names loads, and numbers may be in quotes where people write them so."""
    console = load(
        tmp_path,
        f"""
        [ssh.a]
        host = "a"
        port = "2222"
        username = "ops"
        password_command = ["pass", "show", "a"]
        key = "k"
        key_passphrase_env = "PHRASE"
        sudo = "password"
        jump = "ops@bastion:22"
        host_key = "ssh-ed25519 {BLOB} root@a"
        connect_timeout_s = 3
        [build]
        parallel = 5
        upload_parallel = 2
        max_fail = 3
        docker = "distro"
        docker_version = "28.2"
        keep_releases = 2
        wheelhouse = "w"
        """,
    )
    entry = console.ssh["a"]
    assert (entry.port, entry.sudo, entry.jump, entry.connect_timeout_s) == (2222, "password", "ops@bastion:22", 3.0)
    assert entry.password_command == ("pass", "show", "a")
    assert console.build == BuildSettings(5, 2, "3", "distro", "28.2", 2, "w")


def test_defaults_hold_where_an_entry_says_nothing(tmp_path):
    """Each key of an entry goes before that of the defaults, and what neither says stays unsaid."""
    console = load(
        tmp_path,
        "[defaults]\nusername = 'ops'\nport = '2222'\nsudo = 'none'\n"
        "[ssh.a]\nhost = 'a'\nport = 22\n[ssh.b]\nhost = 'b'",
    )
    a, b = console.ssh_for("a"), console.ssh_for("b")
    assert (a.username, a.port, a.sudo, a.connect_timeout_s) == ("ops", 22, "none", None)
    assert (b.username, b.port) == ("ops", 2222)


def test_a_password_of_an_entry_hides_that_of_the_defaults(tmp_path):
    """A password has one place, so that of the entry counts, from wherever it comes."""
    console = load(tmp_path, "[defaults]\npassword = 'x'\n[ssh.a]\nhost = 'a'\npassword_env = 'A'\n[ssh.b]\nhost = 'b'")
    assert console.ssh_for("a").password == Secret()
    assert console.ssh_for("b").password == Secret("x")


def test_the_host_that_all_are_reached_through_is_reached_directly(tmp_path):
    """The defaults may name an entry as the way for all: its own way is direct, and it is no spare."""
    console, problems = problems_of(
        tmp_path,
        "[defaults]\njump = 'door'\n[ssh.door]\nhost = 'd'\n[ssh.a]\nhost = 'a'\n[ssh.b]\nhost = 'a'\njump='none'",
    )
    assert console.ssh_for("a").jump == "door"
    assert console.ssh_for("door").jump == ""
    assert problems == [":7:6: info: ssh.b: a spare: no server has this name; known here: a"]


CASES = {
    "circle": (
        "[ssh.a]\nhost = 'a'\njump = 'b'\n[ssh.b]\nhost = 'b'\njump = 'c'\n[ssh.c]\nhost = 'c'\njump = 'b'",
        ":6:1: error: ssh.b.jump: the jumps go round in a circle: b -> c -> b; "
        'give the outermost of them jump = "none"',
    ),
    "circle by the defaults": (
        "[defaults]\njump = 'a'\n[ssh.a]\nhost = 'a'\njump = 'b'\n[ssh.b]\nhost = 'b'",
        ":5:1: error: ssh.a.jump: the jumps go round in a circle: a -> b -> a; "
        'give the outermost of them jump = "none"',
    ),
    "own jump": (
        "[ssh.a]\nhost = 'a'\njump = 'a'",
        ':3:1: error: ssh.a.jump: the jumps go round in a circle: a -> a; give the outermost of them jump = "none"',
    ),
    "unknown jump": (
        "[ssh.gate]\nhost = 'b'\n[ssh.a]\nhost = 'a'\njump = 'gat'",
        ':5:1: error: ssh.a.jump: no entry named "gat"; did you mean "gate"?',
    ),
    "unknown jump in the defaults": (
        "[defaults]\njump = 'gat'\n[ssh.gate]\nhost = 'b'",
        ':2:1: error: defaults.jump: no entry named "gat"; did you mean "gate"?',
    ),
    "jump that is none": (
        "[ssh.a]\nhost = 'a'\njump = 'ops@h:99999'",
        ':3:1: error: ssh.a.jump: "ops@h:99999" is no way through another host; '
        'write the name of an entry, "user@host" or "user@host:22", or "none"',
    ),
    "host key": (
        f"[ssh.a]\nhost = 'a'\nhost_key = 'ssh-rsa {BLOB}'",
        ":3:1: error: ssh.a.host_key: this is no host key; copy what `ssh-keyscan HOST` prints after the host, "
        'or "SHA256:..." of `ssh-keygen -lf FILE`',
    ),
    "fingerprint": (
        f"[ssh.a]\nhost = 'a'\nhost_key = '{PRINT[:-3]}'",
        ":3:1: error: ssh.a.host_key: this is no host key; copy what `ssh-keyscan HOST` prints after the host, "
        'or "SHA256:..." of `ssh-keygen -lf FILE`',
    ),
    "one address twice": (
        "[ssh.a]\nhost = 'A'\nport = 22\n[ssh.b]\nhost = 'a'",
        ':5:1: error: ssh.b.host: a port 22 is already the address of "a"; '
        "one server is one node: give it an address of its own",
    ),
    "two passwords": (
        "[ssh.a]\nhost = 'a'\npassword = 'x'\npassword_env = 'Y'",
        ":4:1: error: ssh.a.password_env: there is password already; a password has one place: keep one",
    ),
    "variable": (
        "[ssh.a]\nhost = 'a'\npassword_env = '$X'",
        ':3:1: error: ssh.a.password_env: "$X" is no name of a variable; write the name alone, like "SSH_PASSWORD"',
    ),
    "sudo": (
        "[ssh.a]\nhost = 'a'\nsudo = 'pasword'",
        ':3:1: error: ssh.a.sudo: "pasword" is not known; did you mean "password"?',
    ),
    "max_fail": (
        "[build]\nmax_fail = '101%'",
        ':2:1: error: build.max_fail: "101%" is neither a number nor a share; write it like 5 or "10%"',
    ),
    "true is no number of failures": (
        "[build]\nmax_fail = true",
        ":2:1: error: build.max_fail: must be text in quotes",
    ),
    "docker_version": (
        "[build]\ndocker_version = 'latest'",
        ':2:1: error: build.docker_version: "latest" is no version; '
        'write it like "28.2.2", or "28" for the newest of these',
    ),
    "host in the defaults": (
        "[defaults]\nhost = 'a'",
        ':2:1: error: defaults.host: no such key; did you mean "host_key"?',
    ),
    "password nowhere": (
        "[ssh.a]\nhost = 'a'\npassword_command = []",
        ":3:1: error: ssh.a.password_command: no program is named; "
        'write the program and its arguments, like ["systemctl", "restart", "nginx"]',
    ),
}


@pytest.mark.parametrize(("text", "message"), CASES.values(), ids=CASES)
def test_a_fault_of_the_console_file_is_told_with_its_place_and_mend(tmp_path, text, message):
    """Each rule of the console's file gives exactly the expected line, and the only one."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert [str(each) for each in caught.value.problems] == [f"{tmp_path}/console.toml{message}"]


def test_one_address_behind_two_hosts_is_two_servers(tmp_path):
    """The same private address may be that of another machine behind another host."""
    text = "[ssh.a]\nhost='10.0.0.1'\njump='u@x'\n[ssh.b]\nhost='10.0.0.1'\njump='u@y'"
    assert set(load(tmp_path, text).ssh) == {"a", "b"}


def test_files_that_are_not_there_are_warnings(tmp_path):
    """A key, a password's file and a wheelhouse that do not exist are told, and the file loads."""
    found, problems = problems_of(
        tmp_path, "[ssh.a]\nhost = 'a'\nkey = 'k'\npassword_file = 'p'\n[build]\nwheelhouse = 'w'"
    )
    hint = "paths are relative to this file"
    assert found is not None
    assert problems == [
        f":3:1: warning: ssh.a.key: there is no file {tmp_path}/k; {hint}",
        f":4:1: warning: ssh.a.password_file: there is no file {tmp_path}/p; {hint}",
        f":6:1: warning: build.wheelhouse: there is no such folder; {hint}",
    ]


def test_a_secret_that_others_can_read_is_a_warning_and_one_that_they_can_change_an_error(tmp_path):
    """The files that an entry names are looked at like the console's own."""
    secret = tmp_path / "p"
    secret.touch()
    secret.chmod(0o640)
    text = "[ssh.a]\nhost = 'a'\npassword_file = 'p'"
    found, (problem,) = problems_of(tmp_path, text)
    assert found is not None
    assert problem.startswith(
        ":3:1: warning: ssh.a.password_file: others on this machine can read this secret; run chmod"
    )
    secret.chmod(0o602)
    found, (problem,) = problems_of(tmp_path, text)
    assert found is None
    assert problem.startswith(":3:1: error: ssh.a.password_file: others on this machine can change the file that holds")


def test_paths_are_relative_to_the_file_and_home_is_home(tmp_path):
    """A path stands beside the console's file unless it is absolute or begins at home."""
    console = load(tmp_path, "")
    home = tmp_path / "home"
    assert console.beside("k") == tmp_path / "k"
    assert console.beside("/k", home).parts == (os.sep, "k")
    assert console.beside("~/k", home) == home / "k"
