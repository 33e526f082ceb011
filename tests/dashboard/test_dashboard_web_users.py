"""Who may come in: passwords, tokens, their file, sessions and limits, with the time passed in."""

import contextlib
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsbus.dashboard.door import Door, NotAllowed, SessionEnded, TooOften
from tsbus.dashboard.limits import MAX_KEYS, Limit, neighbourhood
from tsbus.dashboard.sessions import IDLE_S, LIFE_S, MAX_OF_ONE, MAX_SESSIONS, Sessions
from tsbus.dashboard.users import Book, Hashed, Person, Role, User, Users, UsersError, UsersFile
from tsbus.dashboard.web.hosts import Hosts

PASSWORD = Hashed.of("correct horse", (1024, 1, 1))
"""Cheap, so that a test may try it often."""
ALICE = Users({"alice": User(Role.OPERATE, PASSWORD)})
DEAR = Users().with_user("alice", Role.OPERATE, "correct horse")


class Clock:
    """Seconds that go forward when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Place:
    """A users file, and a door that reads it."""

    def __init__(self, path, users: Users | None = ALICE) -> None:
        self.file = UsersFile(path)
        if users is not None:
            self.file.write(users)
        self.clock = Clock()
        self.door = Door(Book(self.file), self.clock)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "users.json")


# Passwords and tokens.


def test_a_password_is_kept_as_a_salted_hash():
    """The same password gives another hash each time, and only it fits."""
    again = Hashed.of("correct horse")
    assert again.key != PASSWORD.key
    assert again.fits("correct horse")
    assert not again.fits("Correct horse")


def test_who_signs_in():
    """The right name and password are a person; anything else is nobody, for whatever reason."""
    assert ALICE.sign_in("alice", "correct horse") == Person("alice", Role.OPERATE)
    assert ALICE.sign_in("alice", "correct horse ") is None
    assert ALICE.sign_in("bob", "correct horse") is None


def test_nobody_costs_as_much_as_somebody(monkeypatch):
    """For a name that is not there a password is hashed too, at the same price: time tells nothing about names."""
    prices = []
    real = Hashed.fits

    def fits(self, password):
        prices.append((self.n, self.r, self.p))
        return real(self, password)

    monkeypatch.setattr(Hashed, "fits", fits)
    assert DEAR.sign_in("alice", "no") is DEAR.sign_in("bob", "no") is None
    assert len(set(prices)) == 1 and len(prices) == 2


def test_a_token_is_known_by_its_hash_until_it_is_removed():
    """A token says who it is; it is kept nowhere, and gone when it is removed."""
    users, token = Users().with_token("prometheus", Role.VIEW)
    assert users.bearer(token) == Person("token:prometheus", Role.VIEW)
    assert token not in repr(users)
    assert users.bearer(token[:-1]) is None
    assert users.bearer("") is None
    assert users.without_token("prometheus").bearer(token) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda users: users.with_user("alice", Role.VIEW, "long enough"), "there is a user alice already"),
        (lambda users: users.with_user("a b", Role.VIEW, "long enough"), "'a b' cannot be a name"),
        (lambda users: users.with_user("bob\n", Role.VIEW, "long enough"), "cannot be a name"),
        (lambda users: users.with_user("bob", Role.VIEW, "short"), "8 to 1024 characters"),
        (lambda users: users.with_password("bob", "long enough"), "there is no user bob"),
        (lambda users: users.without_user("bob"), "there is no user bob"),
        (lambda users: users.with_token("<b>", Role.VIEW), "cannot be a name"),
        (lambda users: users.without_token("x"), "there is no token x"),
    ],
)
def test_what_cannot_be_done_to_users(change, words):
    """Each mistake is told in words."""
    with pytest.raises(UsersError, match=words):
        change(ALICE)


# The file.


def test_the_file_is_for_its_owner_alone(place):
    """It is written whole, with 0600, and holds no password; nothing else is left in its folder."""
    path = place.file.path
    assert path.stat().st_mode & 0o777 == 0o600
    assert place.file.read() == ALICE
    assert "correct" not in path.read_text()
    place.file.write(Users())
    assert [each.name for each in path.parent.iterdir()] == ["users.json"]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[" * 100_000, '{"users": {"a": 1}}', '{"users": {"a b": {}}}', '{"more": 1}', "\ud800",
        json.dumps({"users": {"a": {"role": "root", "password": {}}}}),
        json.dumps({"users": {"a": {"role": "view", "password": {"salt": "!", "key": "", "n": 1024, "r": 1, "p": 1}}}}),
        json.dumps({"users": {"a": {"role": "view", "password": {"salt": "A" * 24, "key": "A" * 44, "n": 3000, "r": 1,
                                                                 "p": 1}}}}),
        json.dumps({"tokens": {"a": {"role": "view", "sha256": "x"}}}),
    ],
    ids=range(11),
)  # fmt: skip
def test_a_damaged_file_is_told_in_one_line(tmp_path, text):
    """Whatever is in it, the error names the file and what to do."""
    path = tmp_path / "users.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    path.chmod(0o600)
    with pytest.raises(UsersError) as caught:
        UsersFile(path).read()
    words = str(caught.value)
    assert words.startswith(f"{path} is damaged: ")
    assert "treescale dashboard user add" in words
    assert "\n" not in words


def test_a_file_that_others_may_read_is_refused(place):
    """Hashes are for nobody else's eyes."""
    place.file.path.chmod(0o640)
    with pytest.raises(UsersError, match="chmod 600"):
        place.file.read()


def test_root_writes_the_file_for_its_owner(place):
    """A file that root changes stays that of who runs the dashboard, and a new one is his whose folder it is in."""
    assert os.getuid() == 0, "make test runs as root"
    os.chown(place.file.path, 1234, 1234)
    place.file.write(Users())
    assert (place.file.path.stat().st_uid, place.file.path.stat().st_gid) == (1234, 1234)
    folder = place.file.path.parent / "of-another"
    folder.mkdir()
    os.chown(folder, 1235, 1235)
    UsersFile(folder / "users.json").write(Users())
    assert (folder / "users.json").stat().st_uid == 1235


def test_a_running_door_follows_the_file(place):
    """A change counts at once; a file that is damaged or gone lets nobody in who could not come in before."""
    users, token = ALICE.with_token("t", Role.VIEW)
    place.file.write(users)
    assert place.door.person("", token) == Person("token:t", Role.VIEW)
    place.file.path.write_text("{")
    assert place.door.person("", token) == Person("token:t", Role.VIEW)
    place.file.write(ALICE)
    assert place.door.person("", token) is None
    place.file.path.unlink()
    assert not place.door.open
    assert place.door.person("", None) is None


# The door.


async def test_who_comes_before_there_are_users_may_see(tmp_path):
    """Without a users file whoever reaches it may look and not act, until there is one, and never behind a proxy."""
    place = Place(tmp_path / "users.json", None)
    visitor = place.door.visitor("", None)
    assert visitor.person == Person("", Role.VIEW)
    with pytest.raises(NotAllowed, match="nobody signed in"):
        visitor.must_operate()
    assert place.door.visitor("", "wrong").person is None
    assert Door(Book(place.file), place.clock, may_be_open=False).person("", None) is None
    place.file.write(ALICE)
    assert visitor.person is None
    with pytest.raises(SessionEnded):
        visitor.must_operate()


async def test_a_session_ends_with_its_time_its_password_its_user_and_its_wish(place):
    """Whoever is signed in is not any more when any of these is over; the role is that of now."""
    door, file = place.door, place.file

    async def visitor():
        return door.visitor(await door.sign_in("alice", "correct horse", "10.0.0.1"), None)

    one = await visitor()
    assert one.must_operate().name == "alice"
    file.write(Users({"alice": User(Role.OPERATE, Hashed.of("another", (1024, 1, 1)))}))
    assert one.person is None
    file.write(ALICE)
    one = await visitor()
    file.write(Users({"alice": User(Role.VIEW, PASSWORD)}))
    with pytest.raises(NotAllowed, match="alice may see"):
        one.must_operate()
    assert len(one.csrf) >= 32
    one.sign_out()
    assert one.person is None
    assert one.csrf == ""
    one = await visitor()
    place.clock.now += IDLE_S - 1
    assert one.person
    place.clock.now += IDLE_S
    assert one.person is None
    one = await visitor()
    file.write(Users())
    assert one.person is None


async def test_guessing_is_limited_for_each_address(place):
    """After ten wrong tries an address waits, other addresses do not; right ones in between count for nothing."""
    for _ in range(10):
        assert await place.door.sign_in("alice", "correct horse", "10.0.0.1")
        assert await place.door.sign_in("alice", "x", "10.0.0.1") is None
    with pytest.raises(TooOften) as caught:
        await place.door.sign_in("alice", "correct horse", "10.0.0.1")
    assert await place.door.sign_in("alice", "correct horse", "10.0.0.2")
    place.clock.now += caught.value.wait_s
    assert await place.door.sign_in("alice", "correct horse", "10.0.0.1")


async def test_nobody_locks_a_user_out_alone(place):
    """Tries that an address may not make any more count against nobody: the user gets in from elsewhere."""
    for _ in range(300):
        with contextlib.suppress(TooOften):
            await place.door.sign_in("alice", "x", "10.0.0.1")
    assert await place.door.sign_in("alice", "correct horse", "10.0.0.2")


# Sessions and limits alone.


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, LIFE_S)), max_size=40))
def test_sessions_end_in_time_and_are_bounded(steps):
    """Whenever sessions begin, none outlives either of its times, and one user has so many at most."""
    sessions, now, begun = Sessions(), 0.0, []
    for name, pause in steps:
        now += pause
        begun.append((sessions.begin(name, PASSWORD, now), now, name))
        for cookie, began, _ in begun:
            if (session := sessions.find(cookie, now)) is not None:
                assert now - began < LIFE_S
                assert session.used == now
        names = [name for cookie, _, name in begun if sessions.find(cookie, now)]
        assert all(names.count(name) <= MAX_OF_ONE for name in names)


def test_a_session_in_use_ends_all_the_same():
    """Whoever asks every minute is signed out after its whole life."""
    sessions = Sessions()
    cookie = sessions.begin("a", PASSWORD, 0)
    minutes = range(60, round(LIFE_S), 60)
    assert all(sessions.find(cookie, now) for now in minutes)
    assert sessions.find(cookie, LIFE_S) is None


def test_the_oldest_session_makes_room():
    """There are never more than the bound, whoever signs in."""
    sessions = Sessions()
    cookies = [sessions.begin(f"user{number}", PASSWORD, 0) for number in range(MAX_SESSIONS + 5)]
    assert len(sessions) == MAX_SESSIONS
    assert sessions.find(cookies[4], 0) is None
    assert sessions.find(cookies[5], 0)
    assert sessions.find("\ud800", 0) is None


@given(st.lists(st.floats(0, 100), max_size=60))
def test_a_limit_holds_over_any_time(pauses):
    """In any stretch of time no more is let through than the burst and what that time gives; waiting as told helps."""
    limit, now, passed = Limit(burst=5, per_s=0.5), 0.0, []
    for pause in pauses:
        now += pause
        wait_s = limit.take("a", now)
        if not wait_s:
            passed.append(now)
            assert all(
                len([one for one in passed if one >= first]) <= 5 + (now - first) * 0.5 + 1e-6 for first in passed
            )
    now += limit.take("a", now) + 1e-6
    assert limit.take("b", now) == 0


def test_a_limit_forgets_who_was_quiet_longest():
    """A flood of names takes a bounded table, and the flooder stays in it."""
    limit = Limit(burst=1, per_s=0.001)
    limit.take("flooder", 0)
    for number in range(MAX_KEYS * 2):
        limit.take(f"name{number}", 0)
        assert limit.take("flooder", 0) > 0


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("10.0.0.1", "10.0.0.1"), ("::ffff:10.0.0.1", "10.0.0.1"), ("fd00::1:2:3:4", "fd00::/64"),
        ("fe80::1%eth0", "fe80::/64"), ("somewhere", "somewhere"),
    ],
)  # fmt: skip
def test_what_counts_as_one_address(address, key):
    """An IPv6 customer has a /64 full of addresses, and counts once."""
    assert neighbourhood(address) == key


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ("localhost:8800", True), ("LOCALHOST.", True), ("127.0.0.1:8800", True), ("[::1]:8800", True), ("::1", False),
        ("node1", True), ("dash.example", True), ("evil.example", False), ("localhost.evil.example", False),
        ("", False),
        ("evil.example:127.0.0.1", False), ("localhost:evil", False), ("127.0.0.1.evil.example", False),
        ("evil@localhost", False), ("[::1", False),
    ],
)  # fmt: skip
def test_which_hosts_are_ours(header, known):
    """Addresses, localhost and the names that were given; what an attacker's name server can say does not count."""
    assert Hosts(("node1", "Dash.Example", "")).has(header) is known
