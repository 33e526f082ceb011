"""Reaching a server: directly, through others, and all the ways in which that fails; and knowing that it is the one."""

import socket
import threading

import pytest
from console_of_tests import LIMIT_S, TREE, saying, wait
from targets import NOBODY, Lab

from tsbus.build.access import Local, login
from tsbus.build.ssh import Cancelled, Session, Shared, client_config
from tsbus.config import Console, SshEntry

FROM = "tr '\\0' '\\n' < /proc/$PPID/environ | sed -n s/^SSH_CONNECTION=//p"
"""Says whom sshd has seen, and where: sudo, of which the script is a child, has it in its environment."""


def test_an_unknown_host_key_is_refused(desk, server):
    """Strictly, a server that nobody knows is not logged in to; its fingerprint is told, and nothing is recorded."""
    trouble = desk.trouble(server.ip)
    assert trouble.kind == "host-key-unknown"
    assert server.fingerprint in trouble.text
    assert not desk.known_hosts.exists()


def test_accept_new_records_the_host_key(desk, server):
    """With accept-new an unknown key is taken and recorded for the next time, in a file for this user only."""
    desk.known_hosts = desk.folder / "new" / "known_hosts"
    with desk.session(server, accept_new=True) as session:
        assert session.connected
    assert desk.known_hosts.read_text() == server.known_host()
    assert desk.known_hosts.stat().st_mode & 0o77 == 0
    with desk.session(server.ip) as session:
        assert session.connected


def test_a_changed_host_key_is_fatal(desk, server, neighbour):
    """A server with another key than before is never logged in to, whatever it is: of another kind, or accept-new."""
    desk.known_hosts.write_text(neighbour.known_host(name=server.ip))
    for accept_new in (False, True):
        trouble = desk.trouble(server.ip, accept_new=accept_new)
        assert (trouble.kind, trouble.fatal, trouble.again) == ("host-key-changed", True, False)
        assert server.fingerprint in trouble.text
        assert neighbour.fingerprint in trouble.text
    assert desk.known_hosts.read_text() == neighbour.known_host(name=server.ip)


def test_another_kind_of_host_key_has_changed(desk, server):
    """A server that is known by one kind of key and shows only another has changed: who is in between could choose."""
    server.run("ssh-keygen -q -t ecdsa -N '' -f /run/ecdsa")
    server.sshd(2210, "HostKey /run/ecdsa")
    desk.know(server, 2210)
    assert desk.trouble(server.ip, port=2210).kind == "host-key-changed"


def test_the_known_kind_is_asked_for(desk, server):
    """Of a server with several host keys, the one is asked for that is known."""
    server.run("ssh-keygen -q -t rsa -b 2048 -N '' -f /run/rsa")
    server.sshd(2211, "HostKey /etc/ssh/ssh_host_ed25519_key", "HostKey /run/rsa")
    rsa = server.run("cut -d ' ' -f 1,2 /run/rsa.pub")
    desk.known_hosts.write_text(f"[{server.ip}]:2211 {rsa}\n")
    with desk.session(server.ip, port=2211) as session:
        assert session.connected
    fingerprint = server.run("ssh-keygen -lf /run/rsa.pub").split()[1]
    with desk.session(server.ip, port=2211, host_key=fingerprint) as session:
        assert session.connected


def test_pinned_host_keys(desk, server, neighbour):
    """Where a key is pinned, as itself or by its fingerprint, it alone is right, and known_hosts plays no part."""
    desk.known_hosts.write_text(neighbour.known_host(name=server.ip))
    for pin in (server.host_key, server.fingerprint):
        with desk.session(server.ip, host_key=pin) as session:
            assert session.connected
    for pin in (neighbour.host_key, neighbour.fingerprint):
        trouble = desk.trouble(server.ip, host_key=pin, accept_new=True)
        assert trouble.kind == "host-key-changed"


def test_many_record_their_host_keys_at_the_same_time(desk, server, neighbour):
    """Sessions that record keys at the same time lose none and write none twice."""
    logins = [desk.login(target, accept_new=True) for target in (server, neighbour)] * 4
    sessions = [Session(login, desk.shared) for login in logins]
    threads = [threading.Thread(target=session.connect) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert all(session.connected for session in sessions)
    for session in sessions:
        session.abort()
    assert sorted(desk.known_hosts.read_text().splitlines(keepends=True)) == sorted(
        [server.known_host(), neighbour.known_host()]
    )


def test_through_two_hosts(desk, server, neighbour):
    """A server behind two others is reached through them, each with its own login and host key."""
    hops = (desk.login(neighbour, "tree"), desk.login(server, "free"))
    with desk.session(neighbour, "tree", jumps=hops, password=TREE) as session:
        said = session.run(FROM, stage="probe").out
    assert said.split()[0] == server.ip
    assert said.split()[2] == neighbour.ip


def test_jumps_of_the_ssh_configuration(desk, server, neighbour):
    """ProxyJump, User, Port and the rest of ~/.ssh/config and what it includes are heeded."""
    folder = desk.folder / ".ssh"
    (folder / "conf.d").mkdir(parents=True)
    server.sshd(2212)
    desk.know(server, 2212)
    desk.know(neighbour)
    (folder / "config").write_text("Include conf.d/*\nHost *\n  User nobody\n")
    common = f"  IdentityFile {desk.key.path}\n  UserKnownHostsFile {desk.known_hosts}\n  ConnectTimeout 60\n"
    (folder / "conf.d/mine").write_text(
        f"Host far\n  HostName {neighbour.ip}\n  User free\n  ProxyJump near\n{common}"
        f"Host near\n  HostName {server.ip}\n  Port 2212\n  User plain\n{common}"
    )
    console = Console(ssh={"one": SshEntry(name="one", host="far")})
    found = login(console, "one", client_config(desk.folder), Local("me", desk.folder))
    with Session(found, desk.shared) as session:
        said = session.run(f"echo $SUDO_USER; {FROM}", stage="probe").out
    assert said.split()[:2] == ["free", server.ip]


@pytest.mark.parametrize("way", ["direct", "jump"])
def test_nobody_listens(desk, server, neighbour, way):
    """A closed port is told as refused, directly and behind another host."""
    jumps = (desk.login(neighbour),) if way == "jump" else ()
    trouble = desk.trouble(server, port=9, jumps=jumps)
    assert (trouble.kind, trouble.again) == ("refused", True)
    assert f"root@{server.ip}:9" in trouble.text


@pytest.mark.parametrize("way", ["direct", "jump"])
def test_no_such_name(desk, server, way):
    """A name that nobody has is told as such, directly and behind another host."""
    jumps = (desk.login(server),) if way == "jump" else ()
    trouble = desk.trouble("no.such.host.invalid", jumps=jumps)
    assert trouble.kind == "name"


@pytest.mark.parametrize("way", ["direct", "jump"])
def test_an_address_that_swallows_packets(desk, lab: Lab, server, way):
    """Where no answer comes at all, the time limit ends it, directly and behind another host."""
    server.run(f"ip neigh replace {lab.swallowed} lladdr {NOBODY} dev eth0 nud permanent")
    jumps = (desk.login(server),) if way == "jump" else ()
    trouble = desk.trouble(lab.swallowed, jumps=jumps, connect_timeout_s=1.0)
    assert (trouble.kind, trouble.again) == ("timeout", True)


def test_a_host_that_forbids_jumps(desk, server, neighbour):
    """A host that lets nobody through is told by name."""
    server.sshd(2213, "AllowTcpForwarding no")
    jump = desk.login(server, port=2213)
    trouble = desk.trouble(neighbour, jumps=(jump,))
    assert trouble.kind == "unreachable"
    assert "root@" + server.ip + ":2213 lets nobody through" in trouble.text


def test_a_jump_that_fails_is_named(desk, server, neighbour):
    """When the way to a server fails at a host in between, this host is named."""
    jump = desk.login(server, "nobody", ways=())
    trouble = desk.trouble(neighbour, jumps=(jump,))
    assert trouble.kind == "authentication"
    assert f"nobody@{server.ip}" in trouble.text


def test_a_server_that_says_nothing_after_its_banner(desk):
    """A server that greets and falls silent, or says nothing at all, is told as not answering."""
    for said in (b"SSH-2.0-OpenSSH_9.2\r\n", b""):
        with saying(said) as port:
            trouble = desk.trouble("127.0.0.1", port=port, connect_timeout_s=1.0)
        assert trouble.kind == "timeout"


def test_servers_that_are_none(desk):
    """Other protocols, noise without end and escape sequences end quickly, with nothing of it on the terminal."""
    with saying(b"HTTP/1.0 400 \x1b]0;owned\x07\x1b[2J\r\n" * 120) as port:
        assert "\x1b" not in repr(desk.trouble("127.0.0.1", port=port))
    with saying(again=b"x" * 4096) as port:
        trouble = desk.trouble("127.0.0.1", port=port)
    assert "it says other things than SSH" in trouble.text


def greeted(host, port):
    """A connection to an sshd that has greeted; None when it has hung up."""
    link = socket.create_connection((host, port), timeout=LIMIT_S)
    if link.recv(4) == b"SSH-":
        return link
    link.close()
    return None


def test_a_server_that_hangs_up_is_tried_again(desk, server):
    """Where sshd takes no more logins at a time (MaxStartups), it hangs up: lost, and another try may go well."""
    server.sshd(2214, "MaxStartups 1:100:1", "LoginGraceTime 60")
    with wait("a turn", lambda: greeted(server.ip, 2214)):
        trouble = desk.trouble(server, port=2214)
    assert (trouble.kind, trouble.again) == ("lost", True)
    wait("a turn", lambda: greeted(server.ip, 2214)).close()


def test_a_name_server_that_is_silent(desk, monkeypatch):
    """A look-up that takes for ever ends at the limit."""
    asked = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: asked.wait(LIMIT_S) and [])
    trouble = desk.trouble("slow.example", connect_timeout_s=0.3)
    asked.set()
    assert (trouble.kind, trouble.again) == ("name", True)


def test_cancelling_ends_a_connection_that_is_being_made(desk, lab: Lab):
    """When the run is cancelled, whoever is connecting stops."""
    session = desk.session(lab.swallowed)
    ended = threading.Event()

    def connect() -> None:
        with pytest.raises(Cancelled):
            session.connect()
        ended.set()

    threading.Thread(target=connect, daemon=True).start()
    desk.shared.cancelled.set()
    assert ended.wait(LIMIT_S)


def test_logins_take_turns(desk, server):
    """No more logins are under way at the same time than allowed."""
    desk.shared = Shared(handshakes=1)
    desk.shared.handshakes.acquire()
    session = desk.session(server)
    thread = threading.Thread(target=session.connect)
    thread.start()
    desk.shared.handshakes.release()
    thread.join(LIMIT_S)
    assert session.connected
    session.abort()
    assert desk.shared.handshakes.acquire(blocking=False)
