"""How the dashboard starts and ends: what can be wrong is one line and an exit code; and its users by command line."""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tsbus.cli.main import cli
from tsbus.config import Alert, Dashboard
from tsbus.dashboard.main import Misconfigured, NotReady, Wanted, prepare
from tsbus.dashboard.users import Role, User, Users, UsersFile
from tsbus.dashboard.web.server import END_S, listen

TREESCALE = (sys.executable, "-c", "from tsbus.cli.main import main; main()")
BARE = Dashboard(host="127.0.0.1", port=0)


def certificate(folder: Path, name: str = "dash") -> tuple[str, str]:
    """Make a certificate for localhost that nobody vouches for."""
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out", paths[0],
            "-keyout", paths[1]]  # fmt: skip
    subprocess.run(argv, check=True, capture_output=True)
    return paths[0].name, paths[1].name


def run(*args: str, **options):
    return CliRunner().invoke(cli, ["dashboard", *args], **options)


def refusal(folder: Path, rules=None, kind: type[NotReady] = Misconfigured, **settings) -> str:
    """Return in which words a dashboard does not start."""
    with pytest.raises(NotReady) as caught:
        prepare(Wanted(replace(BARE, **settings), rules or {}, folder))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_in_order_is_told_before_anything_is_served(tmp_path):
    """Passwords in the clear, nobody who could sign in, a damaged file, a certificate that is none, a wrong rule."""
    assert "in the clear from 0.0.0.0; give certificate and key" in refusal(tmp_path, host="0.0.0.0")  # noqa: S104
    assert "nobody who could sign in; treescale dashboard user add" in refusal(tmp_path, behind_proxy=True)
    one, another = certificate(tmp_path), certificate(tmp_path, "another")
    assert "are no certificate and its key" in refusal(tmp_path, certificate=one[0], key=another[1])
    assert "cannot read" in refusal(tmp_path, certificate="none.pem", key="none.key")
    assert "alerts.web.filters" in refusal(tmp_path, {"web": Alert("web", when="container-down", filters=("x",))})
    users = tmp_path / "dashboard-users.json"
    users.write_text("{}")
    users.chmod(0o644)
    assert "chmod 600" in refusal(tmp_path)
    users.write_text("{")
    users.chmod(0o600)
    assert "is damaged" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        (Dashboard(), "http://127.0.0.1:8800/"),
        (Dashboard(host="::", port=1, certificate="c", key="k"), "https://localhost:1/"),
        (Dashboard(host="fd00::1", behind_proxy=True), "http://[fd00::1]:8800/"),
    ],
)
def test_the_address_for_a_browser(settings, url):
    """What is printed can be opened as it is."""
    assert settings.url == url


def test_a_place_that_cannot_be_listened_at(tmp_path):
    """A port that is taken and an address that is not of this machine are told with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = refusal(tmp_path, kind=NotReady, port=port)
    assert words.startswith(f"cannot listen at 127.0.0.1:{port}: Address already in use; give another one with --host")
    ours = certificate(tmp_path)
    UsersFile(tmp_path / "dashboard-users.json").write(Users().with_user("a", Role.VIEW, "long enough"))
    words = refusal(tmp_path, kind=NotReady, host="192.0.2.1", certificate=ours[0], key=ours[1])
    assert words.startswith("cannot listen at 192.0.2.1:0: Cannot assign requested address")


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_connections_send_at_once(host):
    """No part of an answer waits for the acknowledgement of the one before, and `::` is for IPv4 as well."""
    listener = listen(replace(BARE, host=host))
    with listener.socket, socket.create_connection(("127.0.0.1", listener.port)):
        accepted, _ = listener.socket.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--bus", "/nowhere/bus"], 4, "no router"),
        (["--host", "0.0.0.0"], 2, "in the clear"),  # noqa: S104
        (["--port", "99999"], 2, "99999"),
    ],
)
def test_exit_codes(tmp_path, more, code, words):
    """The command line ends with the codes that all others have, and one line."""
    result = run("--config", str(tmp_path / "none.toml"), "--users", str(tmp_path / "users.json"), "--port", "0", *more)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_without_the_extra_it_says_what_to_install(tmp_path):
    """A machine without NiceGUI is told how to get it, and the users can be kept there all the same."""
    code = (
        "import sys; sys.modules['nicegui'] = None; sys.argv[0] = 'treescale'\nfrom tsbus.cli.main import main; main()"
    )
    argv = [sys.executable, "-c", code, "dashboard", "--users", str(tmp_path / "users.json")]
    result = subprocess.run([*argv, "--port", "0"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "treescale: nicegui is not installed: pip install 'treescale[dashboard]'\n"


def test_it_serves_over_tls_until_ctrl_c(tmp_path, lone_bus):
    """`treescale dashboard` prints its address, speaks TLS, and ends soon after Ctrl-C, also while somebody reads."""
    users, token = Users().with_token("t", Role.VIEW)
    UsersFile(tmp_path / "users.json").write(users)
    names = certificate(tmp_path)
    config = tmp_path / "treescale.toml"
    config.write_text(
        '[servers.solo]\nip = "127.0.0.1"\nservice_port = 4999\n[dashboard]\nhost = "localhost"\nusers = "users.json"\n'
        f'certificate = "{names[0]}"\nkey = "{names[1]}"\n'
    )
    argv = [*TREESCALE, "dashboard", "--config", config, "--bus", lone_bus, "--port", "0"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("https://localhost:")
        port = int(url.rstrip("/").rpartition(":")[2])
        context = ssl.create_default_context(cafile=str(tmp_path / names[0]))
        reader, other = (http.client.HTTPSConnection("localhost", port, timeout=60, context=context) for _ in range(2))
        with contextlib.closing(reader), contextlib.closing(other):
            reader.request("GET", "/api/v1/events", headers={"Authorization": f"Bearer {token}"})
            assert reader.getresponse().headers["strict-transport-security"]
            other.request("GET", "/api/v1/status")
            assert other.getresponse().status == 401
            os.kill(process.pid, signal.SIGINT)
            _, told = process.communicate(timeout=60 + END_S)
    finally:
        process.kill()
    assert process.returncode == 130
    assert told.rstrip() == "serving until Ctrl-C"


# Users and tokens.


def test_users_and_tokens_by_command_line(tmp_path):
    """People and programs are added, listed and removed; passwords come from standard input, tokens are shown once."""
    where = ("--users", str(tmp_path / "in" / "users.json"))
    assert run(*where, "user", "ls").stderr == "nobody can sign in\n"
    added = run(*where, "user", "add", "alice", "--role", "operate", input="correct horse\n")
    assert (added.exit_code, added.stdout) == (0, "")
    assert run(*where, "user", "add", "victor", input="battery staple\n").exit_code == 0
    listed = run(*where, "user", "ls", "--json").stdout.splitlines()
    assert list(map(json.loads, listed)) == [{"name": "alice", "role": "operate"}, {"name": "victor", "role": "view"}]
    token = run(*where, "token", "add", "prometheus").stdout.strip()
    file = UsersFile(tmp_path / "in" / "users.json")
    assert file.read().bearer(token).name == "token:prometheus"
    assert run(*where, "token", "ls").stdout.split() == ["NAME", "ROLE", "prometheus", "view"]
    before: User = file.read().users["alice"]
    assert run(*where, "user", "password", "alice", input="another horse\n").exit_code == 0
    assert file.read().users["alice"].password != before.password
    assert run(*where, "user", "remove", "victor").exit_code == 0
    assert run(*where, "token", "remove", "prometheus").exit_code == 0
    assert (list(file.read().users), list(file.read().tokens)) == (["alice"], [])
    for args, words in (
        (("user", "add", "alice"), "there is a user alice already"),
        (("user", "remove", "bob"), "there is no user bob"),
        (("token", "remove", "bob"), "there is no token bob"),
        (("user", "add", "bob"), "a password has 8 to 1024 characters"),
    ):
        refused = run(*where, *args, input="short\n")
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert words in refused.stderr
