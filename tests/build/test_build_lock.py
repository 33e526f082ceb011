"""The lock of a build, on a real server: one console has it, until it gives it back or has been gone for long."""

import getpass
import json
import shlex
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest
from console_of_tests import LIMIT_S, cutter, wait

from tsbus.build.lock import PLACE, STALE_S, Holder, Lock, look, remove
from tsbus.build.runner import Retry
from tsbus.build.ssh import ServerTrouble

ME = Holder("me", "here", 1, "build", 1000.0)
OTHER = Holder('o\'ther "user"', "there", 2, "upgrade", 2000.0)


@pytest.fixture
def session(desk, server, monkeypatch):
    """A session to look at the root's server with; giving a lock back may take long on a busy machine."""
    monkeypatch.setattr("tsbus.build.lock._GOODBYE_S", LIMIT_S)
    with desk.session(server) as session:
        yield session
    server.run(f"rm -rf {PLACE}*")


@contextmanager
def locking(desk, server, who, user="root", **changes):
    """A lock of somebody."""
    lock = Lock(desk.login(server, user, **changes), desk.shared, who, lambda _: None)
    try:
        yield lock
    finally:
        lock.release()


def test_one_has_it(desk, server, session):
    """Whoever comes second is told who has it and since when; afterwards it is free, and nothing is left."""
    assert look(session) is None
    with locking(desk, server, OTHER, "free") as lock:
        assert lock.take() is None
        with locking(desk, server, ME) as mine:
            held = mine.take()
        assert (held.user, held.host, held.pid, held.what, held.since_s) == (OTHER.user, "there", 2, "upgrade", 2000.0)
        assert held.silent_s < STALE_S
        assert look(session).user == OTHER.user
    assert server.run(f"ls -d {PLACE}*", check=False).startswith("ls: cannot access")


def test_a_connection_that_fails_is_tried_again_but_not_for_ever(desk, server, session):
    """A short failure is written down and waited for; where nobody listens, that is told after some tries."""
    said, way = [], {"host": "127.0.0.1", "host_key": server.host_key}
    with cutter(server) as proxy:
        login = desk.login(server, port=proxy.port, **way)
        proxy.cut_after = 10
        lock = Lock(login, desk.shared, ME, said.append, Retry(first_s=0.01, most_s=0.02))
        assert lock.take() is None
        lock.release()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    lock = Lock(replace(login, port=port), desk.shared, ME, said.append, Retry(first_s=0.01, most_s=0.02))
    with pytest.raises(ServerTrouble, match="refuses the connection"):
        lock.take()
    assert [line.rpartition("; ")[2] for line in said] == ["the lock is tried again in 0 s"] * 3


def test_a_run_that_is_cancelled_gives_it_back(desk, server, session):
    """Ctrl-C cuts all connections but the lock's own, until it is given back."""
    with locking(desk, server, OTHER) as lock:
        assert lock.take() is None
        desk.shared.cancelled.set()
    assert server.run(f"test -e {PLACE} || echo free", check=False) == "free"


def test_a_console_that_is_gone_keeps_it_for_a_while(desk, server, session):
    """When its connection ends without a word, its lock stays: it may come back."""
    with locking(desk, server, OTHER) as lock:
        assert lock.take() is None
        lock._shared.cancelled.set()
        wait("nobody keeps it", lambda: not [each for each in threading.enumerate() if each.name == "build-lock"])
        assert look(session).user == OTHER.user


def test_a_stale_lock_is_taken_over(desk, server, session):
    """Nothing was heard of its holder for long; who comes first of several gets it, and the old one learns of it."""
    server.run(f"mkdir {PLACE}; echo '{{}}' > {PLACE}/who; touch -d '-{STALE_S + 1:.0f} seconds' {PLACE}/who")
    assert look(session).silent_s > STALE_S
    with locking(desk, server, ME) as first, locking(desk, server, OTHER) as second:
        found = [lock.take() for lock in (first, second)]
        assert found[0] is None
        assert found[1].user == "me" and found[1].silent_s < STALE_S


def test_a_holder_that_was_gone_for_too_long(desk, server, session, monkeypatch):
    """It is told that it has lost the lock, and who has it."""
    monkeypatch.setattr("tsbus.build.lock.BEAT_S", 0.2)
    with locking(desk, server, ME) as old:
        assert old.take() is None
        who = shlex.quote(json.dumps(asdict(OTHER)))
        server.run(f"printf '%s another-token\\n' {who} > {PLACE}/who")
        wait("the first knows", lambda: old.lost_to)
        assert (old.lost_to.user, old.lost_to.what, old.is_ours) == (OTHER.user, "upgrade", False)


def test_a_lost_connection_keeps_it(desk, server, session, monkeypatch):
    """A holder whose connection is cut comes back and has it still, or again."""
    monkeypatch.setattr("tsbus.build.lock.BEAT_S", 0.2)
    with locking(desk, server, ME) as lock:
        assert lock.take() is None
        server.run("pkill -f 'sshd: root@nott[y]'", check=False)
        with desk.session(server) as other:
            wait("it is back", lambda: (found := look(other)) is not None and found.user == "me")
        assert lock.is_ours


def test_it_is_given_back_when_its_connection_was_just_cut(desk, server, session):
    """A run that ends before the lock's connection is made anew leaves no lock behind."""
    way = {"host": "127.0.0.1", "host_key": server.host_key}
    with cutter(server) as proxy, locking(desk, server, ME, port=proxy.port, **way) as lock:
        assert lock.take() is None
        proxy.cut()
        desk.shared.cancelled.set()
        lock.release()
        assert server.run(f"test -e {PLACE} || echo free", check=False) == "free"


def test_a_holder_that_hears_nothing(desk, server, session, monkeypatch):
    """When nothing comes back any more, it does not count on the lock after the time in which it may go stale."""
    monkeypatch.setattr("tsbus.build.lock.BEAT_S", 0.1)
    way = {"host": "127.0.0.1", "host_key": server.host_key}
    with cutter(server) as proxy, locking(desk, server, ME, port=proxy.port, **way) as lock:
        assert lock.take() is None
        assert lock.is_ours
        proxy.freeze()
        monkeypatch.setattr("tsbus.build.lock.STALE_S", 1.0)
        monkeypatch.setattr("tsbus.build.lock._GOODBYE_S", 1.0)  # it cannot be given back
        wait("it is no more its own", lambda: not lock.is_ours)
        assert lock.lost_to is None


def test_unlock(desk, server, session):
    """A lock is removed when its holder is gone, or by force; otherwise it is told who has it."""
    server.run(f"mkdir {PLACE}")
    assert remove(session).user == "somebody"
    assert remove(session, force=True) is None
    assert look(session) is None
    assert remove(session) is None


def test_no_place_for_a_lock(desk, server):
    """Where it cannot be made, this is the server's trouble, not somebody's lock."""
    server.run(f"touch {PLACE}")
    try:
        with locking(desk, server, ME) as lock, pytest.raises(ServerTrouble) as caught:
            lock.take()
        assert "File exists" in str(caught.value)
    finally:
        server.run(f"rm {PLACE}")


def test_who_holds_it_is_said_in_a_line():
    """Who, where, what and since when."""
    said = str(Holder(getpass.getuser(), "desk", 7, "build apply", time.time()))
    assert said.startswith(f"{getpass.getuser()}@desk (pid 7), build apply, since {time.strftime('%Y-')}")
