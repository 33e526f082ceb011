"""Strangers, liars and thieves: what they try at a real router, and what comes of it (protocol 1, 4, 6.6, 10.4)."""

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import zmq
from raw import Peer, RawChild, RawParent, RawWorker
from tree import QUICK, Grow, Tree, until
from waiting import LIMIT_S

from tsbus.config import AllowRule, Operator, Policy
from tsbus.core import message as wire
from tsbus.core.message import Content, Flag, Type
from tsbus.core.roles import Role
from tsbus.peer import PeerKind
from tsbus.router import ACCESS
from tsbus.transport import Curve, new_keypair, public_of

NONE, OBSERVE, OPERATE = Role.NONE, Role.OBSERVE, Role.OPERATE
NEW = {Type.HELLO: NONE, Type.WELCOME: NONE, Type.BYE: NONE, Type.PING: NONE, Type.PONG: NONE}
LINK = {
    Type.BYE: NONE, Type.PING: NONE, Type.PONG: NONE, Type.CREDIT: NONE, Type.DIRECTORY: NONE, Type.INTEREST: NONE,
    Type.GAP: NONE, Type.EVENT: NONE, Type.REQUEST: NONE, Type.REPLY: NONE, Type.INPUT: NONE, Type.CANCEL: NONE,
    Type.GRANT: NONE,
}  # fmt: skip
CLIENT = {
    Type.HELLO: OBSERVE, Type.BYE: OBSERVE, Type.PING: OBSERVE, Type.PONG: OBSERVE, Type.CREDIT: OBSERVE,
    Type.SUBSCRIBE: OBSERVE, Type.UNSUBSCRIBE: OBSERVE, Type.WATCH: OBSERVE, Type.REQUEST: OBSERVE,
    Type.INPUT: OBSERVE, Type.CANCEL: OBSERVE, Type.GRANT: OBSERVE, Type.EVENT: OPERATE, Type.REPLY: OPERATE,
}  # fmt: skip
ALLOWED = {
    PeerKind.NEW: NEW,
    PeerKind.CHILD: LINK,
    PeerKind.PARENT: LINK | {Type.HELLO: NONE},
    PeerKind.WORKER: CLIENT | {Type.SERVE: OPERATE},
    PeerKind.OPERATOR: CLIENT,
}
"""The whole table again, written by hand: who may send what, and with which role."""


@pytest.mark.parametrize("kind", PeerKind, ids=lambda kind: kind.name)
def test_access_table(kind: PeerKind) -> None:
    """Every kind of peer may send exactly the listed types, each from the listed role on."""
    found = {type_: role for (one, type_), role in ACCESS.items() if one is kind}
    assert found == ALLOWED[kind]


async def test_nothing_else_is_accepted(grow: Grow) -> None:
    """A worker that sends what is not in its table gets ERROR refused, once for each, and stays connected."""
    tree = await grow("a")
    with RawWorker(tree.bus("a")) as worker:
        await worker.hello()
        forbidden = [kind for kind in Type if kind not in ALLOWED[PeerKind.WORKER]]
        for kind in forbidden:
            worker.local(kind, {})
        await worker.settled()
        errors = [error.map() for error in worker.of(Type.ERROR)]
        assert [error["code"] for error in errors] == ["refused"] * len(forbidden)
        assert all(kind.name in error["text"] for kind, error in zip(forbidden, errors, strict=True))
        assert (await worker.counters())["refused"] == len(forbidden)


async def test_hello_first(grow: Grow) -> None:
    """Whoever speaks before HELLO is told so and heard no more."""
    tree = await grow("a")
    with RawWorker(tree.bus("a")) as worker:
        worker.local(Type.SUBSCRIBE, wire.Subscribe(">"))
        assert (await worker.wait(Type.BYE)).map()["reason"] == "hello-first"


# Keys.


async def test_strangers_key(grow: Grow) -> None:
    """A key that is not in the configuration does not get through the handshake; it is logged and counted."""
    tree = await grow("a:b")
    _, secret = new_keypair()
    with RawWorker(tree.address("b"), tree.keys("b", secret)) as stranger:
        stranger.local(Type.HELLO, wire.WorkerHello(versions=(1, 1), name="x", incarnation=1, window=1))

        async def counted() -> bool:
            return (await tree.counters("b")).get("refused-key", 0) > 0

        await until("refused-key", counted)
        assert "key.refused" in tree.log("b")
        assert not stranger.of(Type.WELCOME)
        assert not stranger.of(Type.BYE)
    await tree.whole()


async def test_a_stranger_that_comes_again(grow: Grow) -> None:
    """A refused key is logged once in an hour, however often it is tried; every time counts."""
    tree = await grow("a:b")
    _, secret = new_keypair()
    for times in range(1, 4):
        with RawWorker(tree.address("b"), tree.keys("b", secret)):

            async def counted(times: int = times) -> bool:
                return (await tree.counters("b")).get("refused-key", 0) >= times

            await until("refused-key", counted)
    assert tree.log("b").count("key.refused") == 1


async def test_no_key(grow: Grow) -> None:
    """Without encryption there is no connection at all."""
    tree = await grow("a:b")
    with RawWorker(tree.address("b")) as stranger:
        monitor = stranger.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED)
        await until("the end of the connection", lambda: monitor.poll(0))
        assert not stranger.of(Type.WELCOME)
        stranger.socket.disable_monitor()
    await tree.whole()


async def test_wrong_server_key(grow: Grow) -> None:
    """A right key that expects another server's key gets no connection: nobody can stand in for a router."""
    tree = await grow("a:b")
    wrong = Curve(public_of(tree.secrets["a"]), tree.secrets["a"], public_of(tree.secrets["a"]))
    with RawWorker(tree.address("b"), wrong) as misled:
        monitor = misled.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        event = await until("an end", lambda: monitor.recv_multipart() if monitor.poll(0) else None)
        assert int.from_bytes(event[0][:2], "little") == zmq.EVENT_DISCONNECTED
        misled.socket.disable_monitor()


async def test_child_with_another_key(grow: Grow) -> None:
    """A parent does not link to a process at the child's address that has not the child's key."""
    tree = await grow("a:b c")
    tree.kill("b")
    tree.secrets["b"], kept = new_keypair()[1], tree.secrets["b"]
    with RawChild(tree, "b") as thief:
        await until("the parent tried", lambda: "dial.refused" in tree.log("a"))
        assert not thief.of(Type.HELLO)
    tree.secrets["b"] = kept
    await tree.wait_seen("a", {"a", "c"})
    tree.start("b")
    await tree.whole()


async def test_claiming_another_name(grow: Grow) -> None:
    """The key says who one is: a node that says HELLO with another name is dismissed (protocol 1.2)."""
    tree = await grow("a:b c")
    tree.kill("a")
    with RawParent(tree, "b", "c") as liar:
        liar.hello(node="a")
        assert (await liar.wait(Type.BYE)).map()["reason"] == "forged"


async def test_parent_by_a_siblings_key(grow: Grow) -> None:
    """A node is not led by one that is neither above it nor the acting root, nor by a child of its own."""
    tree = await grow("a:b c;c:d", bus=QUICK)
    with RawParent(tree, "c", "d") as upstart:
        upstart.hello(as_="adopter")
        assert (await upstart.wait(Type.BYE)).map()["reason"] in ("busy", "loop", "refused")
    await tree.whole()


# Routes.

FORGERIES: dict[str, dict[str, Any]] = {
    "origin": {"origin": "b"}, "who": {"who": "uid:4242"}, "router": {"who": "router", "handle": 0},
    "role": {"role": 2}, "handle": {"handle": 4242},
}  # fmt: skip


@pytest.fixture
async def pair(grow: Grow) -> Tree:
    return await grow("a:b c")


@pytest.mark.parametrize("forged", FORGERIES.values(), ids=FORGERIES)
async def test_worker_forges_its_route(pair: Tree, forged: dict[str, Any]) -> None:
    """A worker whose route names another node, author, role or handle is not heard; it is counted as forged."""
    heard = await pair.collect("a", "x")
    with RawWorker(pair.bus("a")) as worker:
        await worker.hello()
        worker.say(Type.EVENT, "*", "x", wire.EventMeta(1, 1), b"", **forged)
        worker.say(Type.REQUEST, "a", "router.ping", wire.RequestMeta(1, 1000), b"", **forged)
        worker.say(Type.EVENT, "*", "x", wire.EventMeta(1, 2), b"honest")
        await until("the honest event", lambda: heard)
        assert [event.body for event in heard] == [b"honest"]
        assert not worker.of(Type.ACCEPT)
        assert (await worker.counters())["forged"] == 2


@pytest.mark.parametrize("origin", ["a", "c", "nobody"])
async def test_child_forges_an_origin(pair: Tree, origin: str) -> None:
    """What comes from a child in the name of a node that is not below it is dropped and counted (misrouted)."""
    heard = await pair.collect("a", "x")
    pair.kill("b")
    with RawChild(pair, "b", interest=(">",)) as child:
        await child.wait(Type.HELLO)
        child.send(child.routed(Type.EVENT, "*", "x", wire.EventMeta(1, 1), b"", origin=origin))
        child.send(child.routed(Type.EVENT, "*", "x", wire.EventMeta(1, 2), b"honest"))
        await until("the honest event", lambda: heard)
        assert [event.body for event in heard] == [b"honest"]
        assert (await pair.counters("a"))["misrouted"] == 1


async def test_child_claims_a_sibling(pair: Tree) -> None:
    """A child that says that its sibling hangs below it gets none of the sibling's commands (protocol 6.6)."""
    client = await pair.connect("a")
    pair.kill("b")
    with RawChild(pair, "b") as thief:
        await thief.wait(Type.HELLO)
        claims = [thief.entry("c", "b", epoch=1 << 50), thief.entry("c", "a", epoch=1 << 50, state=3)]
        for claim in claims:
            thief.local(Type.DIRECTORY, wire.Directory([claim]))

        async def doubted() -> bool:
            return (await pair.counters("a")).get("doubted", 0) >= 1

        await until("the router doubts it", doubted)
        assert (await client.call("c", "router.ping")).ok == {"c"}
        assert (await pair.status("a"))["c"]["parent"] == "a"
        assert not thief.of(Type.REQUEST)


# Commands and answers.


async def test_answers_nobody_asked_for(pair: Tree) -> None:
    """Replies from a node that was not asked, or for calls that a worker does not have, reach no caller."""
    pair.kill("b")
    last = wire.ReplyMeta(1, 0, 0, Flag.LAST, Content.TEXT)
    with RawChild(pair, "b") as child, RawWorker(pair.bus("c")) as server, RawWorker(pair.bus("a")) as caller:
        await child.wait(Type.HELLO)
        await server.hello()
        await caller.hello()
        server.local(Type.SERVE, wire.Serve("svc", {"run": 1}))
        await server.settled()
        caller.request("c", "svc.run", 1)
        await server.wait(Type.REQUEST)
        me = str(caller.welcome.handle)
        child.send(child.routed(Type.REPLY, "a", me, last, b"not asked"))
        child.send(child.routed(Type.REPLY, "a", me, last, b"not c", origin="c"))
        server.say(Type.REPLY, "a", me, wire.ReplyMeta(2, 0, 0, Flag.LAST), b"another call")
        server.say(Type.REPLY, "a", str(caller.welcome.handle + 1), last, b"another caller")
        server.say(Type.REPLY, "a", me, last, b"the answer")
        await caller.wait(Type.DONE)
        assert [reply.body for reply in caller.of(Type.REPLY)] == [b"the answer"]
        server.say(Type.REPLY, "a", me, last, b"again")
        await server.settled()
        assert (await server.counters())["late"] == 3


async def test_answers_from_a_bystander(grow: Grow) -> None:
    """A worker cannot answer, or grant, for a call that another worker of its node has."""
    tree = await grow("a")
    with RawWorker(tree.bus("a")) as server, RawWorker(tree.bus("a")) as thief, RawWorker(tree.bus("a")) as caller:
        for peer in (server, thief, caller):
            await peer.hello()
        server.local(Type.SERVE, wire.Serve("svc", {"run": 1}))
        await server.settled()
        caller.request("a", "svc.run", 1)
        await server.wait(Type.REQUEST)
        me = str(caller.welcome.handle)
        thief.say(Type.REPLY, "a", me, wire.ReplyMeta(1, 0, 0, Flag.LAST), b"stolen")
        thief.say(Type.GRANT, "a", me, wire.CallMeta(1, 1 << 30))
        await thief.settled()
        await caller.settled()
        assert not caller.of(Type.REPLY)
        assert not caller.of(Type.GRANT)
        assert (await thief.counters())["late"] == 2


async def test_requests_from_below(grow: Grow) -> None:
    """A request from below counts as role observe, whatever role it claims, unless the policy gives more (10.4)."""
    rule = AllowRule(origin="b", commands=("svc.allowed",), role=Role.OPERATE)
    tree = await grow("a:b c", policy=Policy(allow=(rule,)))
    tree.kill("b")
    with RawChild(tree, "b") as child, RawWorker(tree.bus("a")) as server:
        await child.wait(Type.HELLO)
        await server.hello()
        server.local(Type.SERVE, wire.Serve("svc", {"look": 1, "change": 2, "allowed": 2, "own": 3}))
        await server.settled()

        async def status(command: str, call: int) -> int | None:
            """The status of the router's answer, None if a worker got the request."""
            sent_ms = int(time.monotonic() * 1000)
            child.send(child.routed(Type.REQUEST, "a", command, wire.RequestMeta(call, 10_000, sent_ms, 1)))

            def came() -> Any:
                replies = {(meta := wire.decode_meta(wire.ReplyMeta, one.meta)).call: meta.status
                           for one in child.of(Type.REPLY)}  # fmt: skip
                requests = {wire.decode_meta(wire.RequestMeta, one.meta).call for one in server.of(Type.REQUEST)}
                return ("worker",) if call in requests else (replies[call],) if call in replies else None

            (answer,) = await until(command, came)
            return None if answer == "worker" else answer

        assert await status("svc.look", 1) is None
        assert await status("svc.change", 2) == 4
        assert await status("svc.allowed", 3) is None
        assert await status("svc.own", 4) == 4
        assert await status("router.ping", 5) == 0
        assert await status("svc.none", 6) == 5


@pytest.mark.parametrize(
    ("role", "may_publish"),
    [(Role.OBSERVE, False), (Role.OPERATE, True), (Role.ADMIN, True)],
    ids=lambda role: str(role),
)
async def test_operators(grow: Grow, role: Role, may_publish: bool) -> None:
    """An operator's key has the role of the configuration on every node: it may ask, and publish if that allows it."""
    public, secret = new_keypair()
    tree = await grow("a:b", operators={"alice": Operator("alice", public, role)})
    heard = await tree.collect("a", "x")
    with RawWorker(tree.address("b"), tree.keys("b", secret)) as console:
        await console.hello("console")
        assert (console.welcome.who, console.welcome.role) == ("operator:alice", role)
        await until("interest", lambda: any_interest(tree))
        console.say(Type.EVENT, "*", "x", wire.EventMeta(1, 1), b"hello")
        console.local(Type.SERVE, wire.Serve("svc", {"run": 1}))
        console.request("a", "router.ping", 1)
        await console.wait(Type.DONE)
        codes = [error.map()["code"] for error in console.of(Type.ERROR)]
        assert codes == ["refused"] * (1 if may_publish else 2)
        if may_publish:
            await until("the event", lambda: heard)
            assert (heard[0].who, heard[0].role, heard[0].origin) == ("operator:alice", role, "b")
    assert may_publish or not heard


async def any_interest(tree: Tree) -> bool:
    """Whether `b` knows that somebody above wants something."""
    return any(link["interest"] for link in (await tree.ask("b", "router.stats"))["links"])


# Local users.


def as_user(uid: int, action: Callable[[], str]) -> str:
    """Return what `action` returns in a process of another user. It must not touch this process's sockets or loop."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(writing, action().encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        return answer.read()


@pytest.mark.parametrize(("users", "answer"), [({}, "refused"), ({"4242": Role.OBSERVE}, "uid:4242 1")])
async def test_local_users(grow: Grow, users: dict[str, Role], answer: str) -> None:
    """The kernel says who a local process is: a user without a role is refused, others get theirs (protocol 1.3)."""
    tree = await grow("a", policy=Policy(users=users))
    for path, mode in ((tree.folder, 0o755), (tree.folder / "a", 0o755), (tree.folder / "a/bus", 0o777)):
        path.chmod(mode)  # otherwise the file system alone keeps it out

    def try_it() -> str:
        with Peer(tree.bus("a")) as peer:
            peer.local(Type.HELLO, wire.WorkerHello(versions=(1, 1), name="x", incarnation=1, window=1 << 20))
            assert peer.socket.poll(LIMIT_S * 1000)
            peer.listen()
            heard = peer.heard[0]
            body = heard.map()
            return body["reason"] if heard.type is Type.BYE else f"{body['who']} {body['role']}"

    assert as_user(4242, try_it) == answer


async def test_socket_is_not_for_everybody(grow: Grow) -> None:
    """The socket and its folder are closed to users outside the router's group."""
    tree = await grow("a")
    assert (tree.folder / "a").stat().st_mode & 0o777 == 0o750
    assert (tree.folder / "a/bus").stat().st_mode & 0o007 == 0


async def test_a_newer_release_still_speaks_the_version_before(grow: Grow) -> None:
    """A router and a worker that can do one version more are welcomed with the highest that both have."""
    tree = await grow("a:b")
    tree.kill("a")
    with RawWorker(tree.bus("b")) as worker, RawParent(tree, "b", "a") as parent:
        worker.local(Type.HELLO, wire.WorkerHello(versions=(1, 2), name="x", incarnation=1, window=1))
        assert (await worker.wait(Type.WELCOME)).map()["version"] == 1
        parent.hello(versions=(1, 2))
        welcome = (await parent.wait(Type.WELCOME)).map()
        assert (welcome["node"], tuple(welcome["versions"])) == ("b", (1, 1))


async def test_wrong_version(grow: Grow) -> None:
    """A peer of another protocol version is told so, on the bus and on the service port."""
    tree = await grow("a:b")
    with RawWorker(tree.bus("a")) as worker, RawParent(tree, "b", "a") as parent:
        worker.local(Type.HELLO, wire.WorkerHello(versions=(2, 9), name="x", incarnation=1, window=1))
        assert (await worker.wait(Type.BYE)).map()["reason"] == "version"
        parent.hello(versions=(2, 9))
        assert (await parent.wait(Type.BYE)).map()["reason"] == "version"
    await tree.whole()
