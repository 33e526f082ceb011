"""The runner: many servers at the same time, none of which holds up another."""

import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from console_of_tests import LIMIT_S, TREE, cutter, saying, wait
from hypothesis import given
from hypothesis import strategies as st

from tsbus.build.access import Given
from tsbus.build.runner import Again, Begun, Done, Failed, Retry, Runner, Skipped, Told
from tsbus.build.ssh import Cancelled, ServerTrouble
from tsbus.build.trouble import Trouble
from tsbus.config import Secret

AT_ONCE = Retry(first_s=0, most_s=0)
LOST = ServerTrouble(Trouble("lost", "the connection was lost", "build again", again=True))


def ids(session, tell):
    tell("here")
    return session.run("id -u", stage="probe").out.strip()


@pytest.fixture
def logins(desk, server, neighbour):
    """Eight logins on two servers."""
    pairs = [(target, user) for target in (server, neighbour) for user in ("root", "free", "tree", "root")]
    return {
        f"web{n}": desk.login(target, user, name=f"web{n}", password=TREE) for n, (target, user) in enumerate(pairs)
    }


def results(news):
    """The last news of each server."""
    return {each.name: each for each in news if isinstance(each, Done | Failed | Skipped)}


def test_a_job_on_many_servers(desk, logins):
    """Each server gets the job, says what it tells, and comes to one end."""
    with Runner(logins, desk.shared) as runner:
        news = list(runner.each(logins, ids))
        assert Counter(map(type, news)) == {Begun: 8, Told: 8, Done: 8}
        assert {each.value for each in results(news).values()} == {"0"}
        for name in logins:
            mine = [each for each in news if each.name == name]
            assert [type(each) for each in mine] == [Begun, Told, Done]


def test_sessions_stay(desk, logins, server):
    """The next job uses the sessions of the last: a server is logged in to once in a run."""
    with cutter(server) as proxy:
        desk.know(server)
        login = desk.login("127.0.0.1", port=proxy.port, known_as=server.ip)
        with Runner({"one": login}, desk.shared) as runner:
            for _ in range(3):
                assert isinstance(results(runner.each(["one"], ids))["one"], Done)
        assert proxy.connections == 1


def test_one_that_fails_holds_up_no_other(desk, logins, server):
    """Servers that cannot be reached fail with their troubles, and the others go on."""
    logins["wrong"] = desk.login(server, "tree", ways=())
    logins["closed"] = desk.login(server, port=9)
    with Runner(logins, desk.shared, retry=AT_ONCE) as runner:
        ends = results(runner.each(logins, ids))
    assert {name for name, end in ends.items() if isinstance(end, Failed)} == {"wrong", "closed"}
    assert ends["wrong"].trouble.kind == "authentication"
    assert ends["closed"].trouble.kind == "refused"


def test_connections_are_tried_again(desk, logins):
    """A connection that is lost is made anew, three times in all, and the job begun again."""
    tries = Counter()

    def job(session, tell):
        tries[session.login.name] += 1
        if tries[session.login.name] < 3:
            session.abort()
        return ids(session, tell)

    with Runner(logins, desk.shared, retry=AT_ONCE) as runner:
        news = list(runner.each(logins, job))
    assert all(isinstance(end, Done) for end in results(news).values())
    assert sum(isinstance(each, Again) for each in news) == 2 * len(logins)


@pytest.mark.parametrize(
    ("trouble", "tries"),
    [
        (LOST.trouble, 3),
        (Trouble("authentication", "no", "look", again=False), 1),
        (Trouble("host-key-changed", "no", "look"), 1),
        (Trouble("package-lock", "held", "wait", again=True), 1),
        (Trouble("sudo", "no", "look"), 1),
    ],
)
def test_what_is_tried_again(desk, logins, trouble, tries):
    """Only what a connection has done is tried again: a refused password would lock the account."""
    count = Counter()

    def job(session, tell):
        count["tries"] += 1
        raise ServerTrouble(trouble)

    with Runner(logins, desk.shared, retry=AT_ONCE) as runner:
        (end,) = results(runner.each(["web0"], job)).values()
    assert end.trouble == trouble
    assert count["tries"] == tries


@given(st.integers(1, 10), st.floats(0, 1), st.floats(0, 10), st.floats(0, 30))
def test_delays(failed, chance, first, more):
    """A delay is between the shortest and the longest, and these grow up to a bound."""
    retry = Retry(first_s=first, most_s=first + more)
    assert first <= retry.delay_s(failed, chance) <= first + more + 1e-6
    assert retry.delay_s(failed, chance) <= retry.delay_s(failed + 1, chance) + 1e-6


def test_no_retry_after_the_deadline(desk, logins):
    """A server whose time is over by then is not tried again."""

    def job(session, tell):
        raise LOST

    with Runner(logins, desk.shared, retry=Retry(first_s=100, most_s=100)) as runner:
        (end,) = results(runner.each(["web0"], job, deadline_s=50)).values()
    assert end.trouble == LOST.trouble


def test_a_deadline_ends_what_is_under_way(desk, logins):
    """A server that takes longer than it may ends as a trouble."""
    with Runner(logins, desk.shared, retry=AT_ONCE) as runner:
        assert isinstance(results(runner.each(["web0"], ids))["web0"], Done)  # its login has no part in the two seconds
        (end,) = results(
            runner.each(["web0"], lambda session, _: session.run("sleep 99", stage="docker"), deadline_s=2)
        ).values()
    assert "not ended in time" in end.trouble.text


def test_too_many_failures(desk, logins):
    """After so many failures no further server is begun; those that are go on."""

    def job(session, tell):
        raise ServerTrouble(Trouble("disk", "full", "make room"))

    with Runner(logins, desk.shared, parallel=1) as runner:
        ends = results(runner.each(logins, job, max_fail=2))
    assert Counter(map(type, ends.values())) == {Failed: 2, Skipped: 6}


def test_no_more_than_so_many_at_a_time(desk, logins):
    """No more servers are worked on at the same time than allowed."""
    now, most, lock = [], [], threading.Lock()

    def job(session, tell):
        with lock:
            now.append(1)
            most.append(len(now))
        session.run("true", stage="probe")
        with lock:
            now.pop()

    with Runner(logins, desk.shared, parallel=2) as runner:
        list(runner.each(logins, job))
    assert max(most) <= 2
    assert len(most) == len(logins)


def test_a_fault_of_ours(desk, logins):
    """A job that breaks is a trouble of its server, without the secrets that its words have."""
    secret = "a very secret word"
    desk.shared.secrets.get(Given(Secret(secret)))

    def job(session, tell):
        raise ValueError(f"bad {secret}")

    with Runner(logins, desk.shared) as runner:
        (end,) = results(runner.each(["web0"], job)).values()
    assert end.trouble.kind == "step"
    assert "ValueError: bad ***" in end.trouble.text
    assert secret not in repr(end)


def test_who_stops_listening_cancels(desk, logins):
    """Whoever leaves the news ends all connections, at once, and nothing can be done with the run any more."""
    with Runner(logins, desk.shared) as runner:
        for news in runner.each(logins, lambda session, tell: (tell(1), session.run("sleep 99", stage="docker"))):
            if isinstance(news, Told):
                break
        assert desk.shared.cancelled.is_set()
        wait("no thread works", lambda: not [t for t in threading.enumerate() if t.name.startswith("build-")])
        with pytest.raises(Cancelled):
            runner.session("web0", time.monotonic() + 1)


def test_nobody(desk):
    """Without servers there is no news."""
    assert list(Runner({}, desk.shared).each([], ids)) == []


def test_ctrl_c(desk, lab, server, tmp_path):
    """Ctrl-C ends a process that runs, connects and waits for many servers within a second or so."""
    desk.know(server)
    with saying(b"SSH-2.0-silent\r\n") as port:
        program = f"""
import sys
from pathlib import Path
from tsbus.build.access import KeyFile, Login
from tsbus.build.runner import Retry, Runner, Told
from tsbus.build.ssh import Shared

def login(host, port=22):
    ways, known = (KeyFile(Path({str(lab.key)!r})),), (Path({str(desk.known_hosts)!r}),)
    return Login("x", host, port, "root", ways, known_hosts=known, connect_timeout_s=60)

def job(session, tell):
    tell("runs")
    session.run("sleep 99", stage="docker")

places = [login({server.ip!r}), login({lab.swallowed!r}), login("127.0.0.1", {port}), login({server.ip!r}, 9)]
logins = {{f"{{n}}-{{i}}": each for n in range(4) for i, each in enumerate(places)}}
with Runner(logins, Shared(), retry=Retry(first_s=60, most_s=60)) as runner:
    for news in runner.each(logins, job):
        if isinstance(news, Told):
            print("runs", flush=True)
"""
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert [process.stdout.readline() for _ in range(4)] == [b"runs\n"] * 4
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode in (-signal.SIGINT, 1, 130)
    assert said.strip().endswith(b"KeyboardInterrupt")
    sessions = "ps axww -o args | grep -c '^sshd: root@notty' || true"
    wait("its connections are gone", lambda: server.run(sessions) == "0")
