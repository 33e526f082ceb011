"""Running scripts on a server: as whom, what comes back, and what can go wrong."""

import threading
import time
import traceback
from pathlib import Path

import pytest
from console_of_tests import TREE, cutter, trouble_of, wait

from tsbus.build.access import Given, Password
from tsbus.build.output import MAX_KEPT, MAX_LINE
from tsbus.build.ssh import Cancelled, ServerTrouble, exchange
from tsbus.config import Secret

WHO = "id -un"


def who(session, **options):
    return session.run(WHO, stage="probe", **options).out.strip()


@pytest.mark.parametrize(
    ("user", "options"),
    [
        ("root", {}),
        ("root", {"sudo": "none"}),
        ("free", {}),
        ("free", {"sudo": "none"}),
        ("free", {"password": TREE, "sudo": "password"}),
        ("tree", {"password": TREE}),
        ("tree", {"password": TREE, "sudo": "password"}),
    ],
)
def test_becoming_root(desk, server, user, options):
    """A script runs as root: of root's login, by a sudo that asks for nothing, and by one that wants a password."""
    with desk.session(server, user, **options) as session:
        assert who(session) == "root"
        assert session.run("echo ${SUDO_USER:-root}", stage="probe").out.strip() == user


@pytest.mark.parametrize(
    ("user", "options", "text"),
    [
        ("tree", {}, "it wants a password, and console.toml has none"),
        ("tree", {"password": TREE, "sudo": "none"}, "a password is required"),
        ("plain", {"password": TREE}, "plain is not in the sudoers file"),
    ],
)
def test_sudo_refuses(desk, server, user, options, text):
    """When sudo does not let somebody be root, the trouble says why, and the session stays usable."""
    with desk.session(server, user, **options) as session:
        trouble = trouble_of(lambda: who(session))
        assert (trouble.kind, trouble.again) == ("sudo", False)
        assert text in trouble.text
        assert trouble_of(lambda: who(session)).text == trouble.text


def test_a_wrong_sudo_password_is_given_once(desk, server):
    """A password that sudo refuses is not tried again, is no command for a shell, and is in nothing that is said."""
    secret = "not;the tree"
    with desk.session(server, "tree", password=Given(Secret(secret))) as session:
        trouble = trouble_of(lambda: who(session))
    assert (trouble.kind, trouble.again) == ("sudo", False)
    assert "the password is wrong" in trouble.text
    assert secret not in repr(trouble)
    wait("sudo has noted it", lambda: "incorrect password attempt" in server.run("journalctl -q -o cat _COMM=sudo"))
    assert "1 incorrect password attempt" in server.run("journalctl -q -o cat _COMM=sudo | grep incorrect | tail -1")


def test_no_sudo_at_all(desk, neighbour):
    """Where there is no sudo and the login is not root's, that is the trouble."""
    neighbour.run("mv /usr/bin/sudo /usr/bin/sudo.away")
    with desk.session(neighbour, "free") as session:
        trouble = trouble_of(lambda: who(session))
    neighbour.run("mv /usr/bin/sudo.away /usr/bin/sudo")
    assert trouble.kind == "sudo"


def test_nothing_secret_is_seen_on_the_server(desk, server):
    """Neither the password nor the script is in the arguments of any process, and the script's input is its own."""
    with desk.session(server, "tree", password=TREE) as session:
        script = "canary=visible; read line; echo got $line; tr '\\0' ' ' < /proc/$PPID/cmdline; ps axww -o args"
        said = session.run(script, stage="probe", stdin=b"tree\n").out
    assert said.startswith("got tree\n")
    assert "canary" not in said
    assert "tree\n" not in said.partition("\n")[2].replace("got tree\n", "").replace("@tree", "")


def test_what_comes_back(desk, server):
    """Both streams come line by line, masked; what is kept to be read is the standard output as it came."""
    lines = []
    with desk.session(server, "tree", password=TREE) as session:
        script = "echo a tree; echo tree >&2; printf end; exit 3"
        outcome = session.run(script, stage="probe", tell=lines.append, check=False)
    assert (outcome.status, outcome.out) == (3, "a tree\nend\n")
    assert sorted(lines) == ["***", "a ***", "end"]
    assert "tree" not in repr(outcome)
    assert "tree" not in outcome.shown


def test_a_program_with_arguments(desk, server):
    """A program gets its arguments as they are."""
    with desk.session(server) as session:
        words = ["a b", "$HOME", "'", "", "*", "\n", "ä"]
        assert session.run(["printf", "<%s>", *words], stage="probe").out == "<a b><$HOME><'><><*><\n><ä>\n"


def test_a_step_that_fails(desk, server):
    """A script that fails is a trouble with the step, its status and its last lines."""
    with desk.session(server) as session:
        trouble = trouble_of(lambda: session.run("echo one; echo two >&2; exit 7", stage="docker", what="start Docker"))
        assert trouble.kind == "step"
        assert trouble.text.startswith("start Docker: ended with 7")
        assert set(trouble.details.splitlines()) == {"one", "two"}
        killed = trouble_of(lambda: session.run("kill -9 $$", stage="docker", what="start Docker"))
        assert killed.kind == "step"


def test_a_full_disk(desk, lab):
    """A server without room is told as such."""
    full = lab.target("plain", tmpfs={"/opt": "size=64k"})
    with desk.session(full) as session:
        trouble = trouble_of(lambda: session.run("head -c 200000 /dev/zero > /opt/x", stage="install"))
    full.remove()
    assert trouble.kind == "disk"


def test_greetings_are_no_output(desk, server):
    """Banners, messages of the day and what a user's shell says at its start are not taken for output."""
    server.run(r"printf '\033]0;owned\007 banner\n%.0s' $(seq 200) > /run/banner")
    server.run("echo 'echo noise; echo more >&2' > /home/free/.bashrc")
    server.sshd(2220, "Banner /run/banner", "PrintMotd yes")
    lines = []
    with desk.session(server, "free", port=2220) as session:
        assert session.run("echo said", stage="probe", tell=lines.append).out == "said\n"
    server.run("rm /home/free/.bashrc")
    assert lines == ["said"]


def test_an_account_without_a_shell(desk, server):
    """An account that may not log in says so in the trouble."""
    server.run("usermod -s /usr/sbin/nologin plain")
    with desk.session(server, "plain") as session:
        trouble = trouble_of(lambda: who(session))
    server.run("usermod -s /bin/bash plain")
    assert trouble.kind == "step"
    assert "not available" in trouble.details


def test_much_output_is_bounded(desk, server):
    """Of lines without end and of many lines a bounded part is kept, and the rest is read and let go."""
    lines = []
    with desk.session(server) as session:
        script = "head -c 5000000 /dev/zero | tr '\\0' x; echo; seq 200000; echo end"
        outcome = session.run(script, stage="probe", tell=lines.append)
    assert len(lines) == 200_002
    assert max(map(len, lines)) < MAX_LINE + 100
    assert lines[0].endswith(f"... ({5_000_000 - MAX_LINE} bytes more)")
    assert len(outcome.out) <= MAX_KEPT
    assert outcome.out.endswith("200000\nend\n")


def test_it_talks_while_it_is_sent_to(desk, server):
    """A script that answers more than fits while it is still being sent to holds nobody up."""
    data = b"x" * 6_000_000
    with desk.session(server) as session:
        outcome = session.run("tee /dev/stderr | wc -c", stage="probe", stdin=data)
    assert outcome.out == "6000000\n"


def test_a_program_that_does_not_want_its_input(desk, server):
    """A script that ends without reading what it is sent has its own status."""
    with desk.session(server) as session:
        assert session.run("exit 4", stage="probe", stdin=b"x" * 9_000_000, check=False).status == 4


def test_what_a_script_leaves_behind(desk, server):
    """A daemon that a script starts and that keeps its output open does not keep the session."""
    with desk.session(server) as session:
        outcome = session.run("sleep 1000 & echo $!", stage="probe")
        session.run(f"kill {int(outcome.out)}", stage="probe")


def test_a_script_that_does_not_end(desk, server):
    """A script that takes too long is a trouble of its step; so is one that takes longer than its server may."""
    with desk.session(server) as session:
        assert "not ended in time" in trouble_of(lambda: session.run("sleep 99", stage="docker", timeout_s=0.5)).text
        session.until = time.monotonic() + 0.5
        assert "not ended in time" in trouble_of(lambda: session.run("sleep 99", stage="docker")).text


def test_half_a_script_does_not_run(desk, server):
    """A script that is cut off while it is sent does nothing, and its session says that it was lost."""
    filler = "# " + "x" * 100 + "\n"
    with cutter(server) as proxy, desk.session("127.0.0.1", port=proxy.port, known_as=_known(desk, server)) as session:
        proxy.cut_after = proxy.sent + 40_000
        script = "touch /run/half\n" + filler * 1000
        trouble = trouble_of(lambda: session.run(script, stage="install"))
    assert (trouble.kind, trouble.again) == ("lost", True)
    assert server.run("ls /run/half 2>/dev/null || echo nothing") == "nothing"


def test_a_connection_that_is_cut(desk, server):
    """A connection that ends while a script runs is a lost one, and may be tried again."""
    with cutter(server) as proxy, desk.session("127.0.0.1", port=proxy.port, known_as=_known(desk, server)) as session:
        trouble = trouble_of(lambda: session.run("echo here; sleep 99", stage="docker", tell=lambda _: proxy.cut()))
    assert (trouble.kind, trouble.again) == ("lost", True)


def test_a_login_that_is_cut(desk, server):
    """Wherever a connection is cut before it has logged in it is a lost one, too: nobody was refused."""
    with cutter(server) as proxy:
        place = {"port": proxy.port, "known_as": _known(desk, server)}
        with desk.session("127.0.0.1", **place):
            whole = proxy.sent
        for after in range(1, whole, whole // 20):
            proxy.cut_after = proxy.sent + after
            trouble = trouble_of(lambda: _log_in_and_out(desk, **place))
            assert (trouble.kind, trouble.again) == ("lost", True), (after, trouble)


def _log_in_and_out(desk, **place):
    with desk.session("127.0.0.1", **place) as session:
        session.run("true", stage="install")


def _known(desk, server):
    desk.know(server)
    return server.ip


def test_a_server_that_is_frozen(desk, server, monkeypatch):
    """A server that nothing comes from any more is lost after a while; one that is only quiet is not."""
    monkeypatch.setattr(exchange, "ALIVE_S", 2.0)
    with cutter(server) as proxy, desk.session("127.0.0.1", port=proxy.port, known_as=_known(desk, server)) as session:
        assert session.run("sleep 5; echo quiet", stage="probe").out == "quiet\n"
        monkeypatch.setattr(exchange, "ALIVE_S", 0.3)
        trouble = trouble_of(lambda: session.run("echo; sleep 99", stage="docker", tell=lambda _: proxy.freeze()))
    assert trouble.kind == "lost"


def test_a_server_without_room_for_sessions(desk, server):
    """Where sshd allows no session (MaxSessions), this is told, and the login was right."""
    server.sshd(2221, "MaxSessions 0")
    with desk.session(server, port=2221) as session:
        assert trouble_of(lambda: who(session)).kind == "lost"
    server.sshd(2222, "MaxSessions 1")
    with desk.session(server, port=2222) as session:
        assert [who(session) for _ in range(3)] == ["root"] * 3


def test_cancelling_ends_a_script(desk, server):
    """When the run is cancelled, whoever waits for a script stops."""
    with desk.session(server) as session, pytest.raises(Cancelled):
        session.run("echo; sleep 99", stage="docker", tell=lambda _: desk.shared.cancelled.set())


def test_nothing_is_left_behind(desk, server):
    """Sessions that are over have no threads and no open files."""
    before = threading.active_count(), len(_files())
    for _ in range(3):
        with desk.session(server) as session:
            assert who(session) == "root"
    del session
    wait("threads and files are gone", lambda: (threading.active_count(), len(_files())) <= before)


def _files():
    return list(Path("/proc/self/fd").iterdir())


def test_no_secret_in_anything_that_is_said(desk, server, caplog, capfd):
    """Whatever goes wrong with passwords, they are in no log, no error and its causes, no repr and no output."""
    caplog.set_level(0)
    said = []
    secrets = "canary of the right", "canary of the wrong"
    right, wrong = (Given(Secret(text)) for text in secrets)
    server.run(f"echo 'tree:{secrets[0]}' | chpasswd")
    for password, script in ((wrong, "true"), (right, f"echo '{secrets[0]}' >&2; exit 3"), (right, "kill -9 $$")):
        session = desk.session(server, "tree", ways=(desk.key, Password(password)), password=password)
        with session, pytest.raises(ServerTrouble) as caught:
            session.run(script, stage="probe", what="say it", tell=said.append)
        said += [*traceback.format_exception(caught.value), repr(caught.value.trouble), repr(session)]
    with pytest.raises(ServerTrouble) as caught:
        desk.session(server, "tree", ways=(Password(wrong),)).connect()
    server.run("echo tree:tree | chpasswd")
    said += [*traceback.format_exception(caught.value), repr(vars(desk.shared)), caplog.text, *capfd.readouterr()]
    assert "***" in "".join(said)
    assert not any(text in "".join(said) for text in secrets)
