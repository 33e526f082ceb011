"""The client's session without a network: what it says, what it makes of what it hears (protocol 4, 7, 9 and 10)."""

from typing import Any

import msgspec
import pytest

from tsbus.core import message as wire
from tsbus.core.accounting import Outcome
from tsbus.core.events import Event, Inbox, Sink
from tsbus.core.exchanges import CREDIT, Asked, Served
from tsbus.core.message import Content, Flag, Route, Type
from tsbus.core.session import EVENT_ROOM, MAX_ROUTES, Session
from tsbus.core.target import TargetError, spell
from tsbus.core.topic import TopicError

WALL_MS = 1_700_000_000_000
WINDOW = 1 << 20


class Desk:
    """A session, and a test that plays its router."""

    def __init__(self, *, window: int = WINDOW, welcome: bool = True) -> None:
        self.changes = 0
        self.reports: list[tuple[str, str]] = []
        self.session = Session(
            "test",
            incarnation=5,
            first_call=1000,
            wall_ms=lambda: WALL_MS,
            changed=self._changed,
            report=lambda source, error: self.reports.append((source, str(error))),
            window=window,
        )
        if welcome:
            self.session.up()
            assert [kind for kind, *_ in self.said()] == [Type.HELLO]
            self.welcome()

    def _changed(self) -> None:
        self.changes += 1

    def welcome(self, handle: int = 7, window: int = WINDOW) -> None:
        """Let the router accept."""
        who = {"node": "n", "who": "uid:1", "role": 2, "handle": handle}
        limits = {"window": window, "max_body": 1 << 20}
        body = {"version": 1, **who, **limits, "incarnation": 9, "release": "r"}
        self.hear(wire.local(Type.WELCOME, body))

    def said(self) -> list[tuple[Type, Route, Any, Any]]:
        """Return what the session says now: type, route, meta, body (a map if it is one)."""
        found = []
        for frame in self.frames():
            items = wire.decode_frame(frame)
            for start in range(0, len(items), 3):
                route = wire.decode_route(items[start])
                meta = msgspec.msgpack.decode(items[start + 1])
                body: Any = items[start + 2]
                if route.type < Type.EVENT and body:
                    body = msgspec.msgpack.decode(body)
                found.append((Type(route.type), route, meta, body))
        return found

    def frames(self) -> list[bytes]:
        """Return the frames that the session sends now."""
        frames: list[bytes] = []

        def send(frame: bytes) -> bool:
            frames.append(frame)
            return True

        self.session.pump(send)
        return frames

    def hear(self, *envelopes: list[bytes], now: float = 0.0) -> None:
        """Let the router say these envelopes in one frame."""
        self.session.received(wire.encode_frame([part for envelope in envelopes for part in envelope]), now)

    def event(self, topic: str, body: bytes = b"", origin: str = "far", seq: int = 0) -> list[bytes]:
        route = Route(Type.EVENT, origin, "uid:0", 2, 1, "*", topic)
        return [wire.encode(route), wire.encode(wire.EventMeta(1, seq, WALL_MS, Content.TEXT)), body]

    def ask(self, **options: Any) -> Asked:
        """Begin a call that the router accepts for the nodes a, b1 and b2."""
        call = self.session.exchanges.request("x", "s.c", b"", 0, budget_ms=1000, **options)
        self.hear(wire.local(Type.ACCEPT, wire.Accept("a,b[1-2]"), wire.CallMeta(call.number)))
        self.said()
        return call

    def reply(self, call: Asked, node: str, body: bytes, status: int = 0, flags: int = 0) -> None:
        """Let a node answer."""
        route = Route(Type.REPLY, node, "uid:0", 2, 1, "n", "7")
        self.hear([wire.encode(route), wire.encode(wire.ReplyMeta(call.number, 0, status, flags)), body])

    def request(self, number: int = 1, *, flags: int = 0, credit: int = CREDIT, now: float = 0.0) -> None:
        """Let `far` ask us."""
        self.hear(
            [self.asking(Type.REQUEST), wire.encode(wire.RequestMeta(number, 500, 0, credit, flags)), b"arg"], now=now
        )

    def asking(self, kind: Type) -> bytes:
        """Return the route of a caller on the node far."""
        return wire.encode(Route(kind, "far", "uid:3", 3, 4, "n", "s.c"))


def collect(desk: Desk, pattern: str, scope: str = "all") -> list[Event]:
    """Subscribe and return the list that events go into."""
    events: list[Event] = []
    desk.session.subscribe(Sink(pattern, scope, events.append, lambda _: None))
    return events


# The connection.


def test_nothing_but_hello_before_the_welcome() -> None:
    """A session says HELLO first and nothing else until it is welcome, whatever is asked of it (4.1)."""
    desk = Desk(welcome=False)
    collect(desk, "a.*")
    desk.session.watch("b", lambda: None)
    desk.session.serve("s", {"c": 2}, lambda _: None)
    desk.session.up()
    hello = desk.said()
    assert [kind for kind, *_ in hello] == [Type.HELLO]
    assert hello[0][3] == {"versions": [1, 1], "name": "test", "incarnation": 5, "window": WINDOW}
    assert desk.session.full


def test_everything_is_announced_after_each_welcome() -> None:
    """Subscriptions, services and watches are said after the first WELCOME and again after every other one."""
    desk = Desk(welcome=False)
    collect(desk, "a.*")
    collect(desk, "a.*")
    desk.session.watch("b", lambda: None)
    desk.session.serve("s", {"c": 2}, lambda _: None)
    for _ in range(2):
        desk.session.up()
        desk.said()
        desk.welcome()
        said = [(kind, body) for kind, _, _, body in desk.said()]
        assert said == [
            (Type.SUBSCRIBE, {"pattern": "a.*", "scope": "all"}),
            (Type.SERVE, {"service": "s", "commands": {"c": 2}}),
            (Type.WATCH, {"id": 3, "pattern": "b"}),
        ]


def test_what_waits_is_not_sent_to_the_next_router() -> None:
    """Events and requests that were not sent when the connection ended are not sent on the next one (1.4)."""
    desk = Desk()
    desk.session.publish("a", b"old", 0, "*")
    desk.session.exchanges.request("x", "s.c", b"", 0, budget_ms=1)
    desk.session.down()
    desk.session.up()
    desk.said()
    desk.welcome()
    assert desk.said() == []


def test_bye_ends_the_session() -> None:
    """BYE ends the session like a lost connection, and its reason is kept."""
    desk = Desk()
    ping = desk.session.ping(lambda: None)
    desk.hear(wire.local(Type.BYE, wire.Bye("hello-first", "who are you")))
    assert desk.session.bye == wire.Bye("hello-first", "who are you")
    assert desk.session.welcome is None
    assert ping.lost
    assert desk.session.full


def test_frames_of_other_lanes_before_the_welcome_are_ignored() -> None:
    """What arrives before WELCOME, events for instance, is not delivered."""
    desk = Desk(welcome=False)
    events = collect(desk, ">")
    desk.session.up()
    desk.hear(desk.event("a"))
    assert events == []


def test_pings_are_answered_and_asked() -> None:
    """A PING of the router is answered with its number; ours is done when its PONG comes."""
    desk = Desk()
    desk.hear(wire.local(Type.PING, meta=wire.PingMeta(77, 5)))
    assert [(kind, meta[0]) for kind, _, meta, _ in desk.said()] == [(Type.PONG, 77)]
    ping = desk.session.ping(lambda: None)
    ((kind, _, meta, _),) = desk.said()
    assert kind is Type.PING
    assert not ping.done
    desk.hear(wire.local(Type.PONG, meta=wire.PingMeta(meta[0], 5)))
    assert ping.done


def test_an_error_belongs_to_the_oldest_ping() -> None:
    """ERROR without a call is about what was said before the oldest ping; without a ping it is reported."""
    desk = Desk()
    first, second = desk.session.ping(lambda: None), desk.session.ping(lambda: None)
    desk.hear(wire.local(Type.ERROR, wire.Error("full", "no more")))
    assert first.error == wire.Error("full", "no more")
    assert second.error is None
    desk.session.down()
    desk.session.up()
    desk.welcome()
    desk.hear(wire.local(Type.ERROR, wire.Error("target", "no node x")))
    assert desk.reports == [("router", "no node x")]


@pytest.mark.parametrize("frame", [b"", b"\x90", b"\x93\x01\x02\x03", b"\x93\xc4\x01\xc1\xc4\x00\xc4\x00"])
def test_malformed_frames_are_protocol_errors(frame: bytes) -> None:
    """Whatever bytes come, the only error is a ProtocolError."""
    with pytest.raises(wire.ProtocolError):
        Desk().session.received(frame, 0.0)


# Events.


def test_published_events_are_valid_and_numbered() -> None:
    """Events leave with the route of this client and a meta that any MessagePack library reads (3)."""
    desk = Desk()
    desk.session.publish("a.b", b"one", Content.RAW, "*")
    desk.session.publish("a.b", b"two", Content.JSON, "@web")
    assert desk.said() == [
        (Type.EVENT, Route(32, "n", "uid:1", 2, 7, "*", "a.b"), [5, 0, WALL_MS, 0], b"one"),
        (Type.EVENT, Route(32, "n", "uid:1", 2, 7, "@web", "a.b"), [5, 1, WALL_MS, 2], b"two"),
    ]


def test_publisher_has_to_wait_when_the_window_is_closed() -> None:
    """With the router's window closed events wait up to a bound, then `full` says so until CREDIT opens it (9.2)."""
    desk = Desk(welcome=False)
    desk.session.up()
    desk.said()
    desk.welcome(window=10)
    sent = 0
    while not desk.session.full:
        desk.session.publish("a", bytes(1000), 0, "*")
        sent += sum(len(frame) for frame in desk.frames())
    assert 0 < desk.session.published < EVENT_ROOM // 1000 + 200
    assert sent < 3000, "one frame crosses the line, no more"
    desk.hear(wire.local(Type.CREDIT, meta=wire.CreditMeta(0, sent)))
    more = desk.frames()
    assert len(more) == 1
    desk.hear(wire.local(Type.CREDIT, meta=wire.CreditMeta(0, sent + 10_000_000)))
    assert desk.frames() == [], "credit for what was never sent is ignored"


def test_bad_topics_are_refused_before_anything_is_queued() -> None:
    """A topic with a wildcard or an empty token raises TopicError and costs no number."""
    desk = Desk()
    for topic in ("a.*", "", "a..b"):
        with pytest.raises(TopicError):
            desk.session.publish(topic, b"", 0, "*")
    assert desk.session.published == 0
    assert desk.said() == []


def test_events_go_to_all_who_want_them_in_order() -> None:
    """Each sink whose pattern and scope fit gets each event once, in the order of subscription."""
    desk = Desk()
    calls: list[str] = []
    for name, pattern, scope in [("1", "a.*", "all"), ("2", ">", "node"), ("3", "a.b", "all"), ("4", "b", "all")]:
        desk.session.subscribe(Sink(pattern, scope, lambda event, name=name: calls.append(name + event.text()), print))  # type: ignore[misc]
    desk.hear(desk.event("a.b", b"x"), desk.event("a.b", b"y", origin="n"), desk.event("c", b"z"))
    assert calls == ["1x", "3x", "1y", "2y", "3y"]


def test_a_failing_callback_is_reported_and_others_are_called() -> None:
    """An error in one callback is reported; the other callbacks and the later events are not affected."""
    desk = Desk()

    def fail(_: Event) -> None:
        raise RuntimeError("broken")

    desk.session.subscribe(Sink("a", "all", fail, lambda _: None))
    events = collect(desk, "a")
    desk.hear(desk.event("a"), desk.event("a"))
    assert len(events) == 2
    assert desk.reports == [("handler", "broken")] * 2


def test_consumed_events_are_acknowledged_each_quarter_window() -> None:
    """Frames whose events all callbacks have seen count as acknowledged, told once for each quarter of the window."""
    desk = Desk(window=400)
    collect(desk, "a")
    frame = wire.encode_frame(desk.event("a"))
    told = []
    for _ in range(12):
        desk.session.received(frame, 0.0)
        told += [meta for kind, _, meta, _ in desk.said() if kind is Type.CREDIT]
    step = -(-100 // len(frame)) * len(frame)
    assert told == [[0, step * (number + 1)] for number in range(12 * len(frame) // step)]


def test_events_in_an_inbox_are_acknowledged_when_they_are_taken() -> None:
    """A frame is acknowledged when the last inbox has taken its last event, and an inbox that is dropped counts."""
    desk = Desk(window=1)
    inboxes = [Inbox(lambda: None), Inbox(lambda: None)]
    sinks = [Sink("a", "all", inbox.put, inbox.put, inbox) for inbox in inboxes]
    for sink in sinks:
        desk.session.subscribe(sink)
    desk.said()
    frame = wire.encode_frame(desk.event("a", b"1") + desk.event("a", b"2"))
    desk.session.received(frame, 0.0)
    for expected in (b"1", b"2"):
        item = inboxes[0].take()
        assert isinstance(item, Event)
        assert item.body == expected
    assert inboxes[0].take() is None
    assert desk.said() == [], "the other inbox has taken nothing"
    desk.session.unsubscribe(sinks[1])
    assert (Type.CREDIT, [0, len(frame)]) in [(kind, meta) for kind, _, meta, _ in desk.said()]


def test_gaps_reach_every_subscription() -> None:
    """A GAP is told to every sink, for nobody knows which topics are missing (9.3)."""
    desk = Desk()
    gaps: list[wire.Gap] = []
    inbox = Inbox(lambda: None)
    desk.session.subscribe(Sink("a", "all", lambda _: None, gaps.append))
    desk.session.subscribe(Sink("b", "node", inbox.put, inbox.put, inbox))
    desk.hear(wire.local(Type.GAP, wire.Gap(3, "x>y")))
    assert gaps == [wire.Gap(3, "x>y")]
    assert inbox.take() == wire.Gap(3, "x>y")


def test_a_subscription_is_said_once_and_taken_back_with_the_last() -> None:
    """Equal subscriptions share one SUBSCRIBE; UNSUBSCRIBE follows the last of them."""
    desk = Desk()
    sinks = [Sink("a", "all", print, print) for _ in range(2)]
    for sink in sinks:
        desk.session.subscribe(sink)
    assert [kind for kind, *_ in desk.said()] == [Type.SUBSCRIBE]
    desk.session.unsubscribe(sinks[0])
    assert desk.said() == []
    desk.session.unsubscribe(sinks[1])
    assert [kind for kind, *_ in desk.said()] == [Type.UNSUBSCRIBE]


def test_remembered_routes_are_bounded() -> None:
    """However many routes come and go, the memories for them stay bounded."""
    desk = Desk()
    events = collect(desk, ">")
    for number in range(MAX_ROUTES + 10):
        desk.hear(desk.event(f"t{number}"))
        desk.session.publish(f"t{number}", b"", 0, "*")
    assert len(events) == MAX_ROUTES + 10
    assert len(desk.session._ways) <= MAX_ROUTES
    assert len(desk.session._event_routes) <= MAX_ROUTES


def test_notices_change_a_watch() -> None:
    """A watch knows nothing before the first NOTICE, then what the latest says, and nothing more once it is ended."""
    desk = Desk()
    wakes: list[int] = []
    wish = desk.session.watch("a", lambda: wakes.append(1))
    assert wish.wanted is None
    desk.hear(wire.local(Type.NOTICE, wire.Notice(wish.id, True)))
    assert wish.wanted is True
    desk.said()
    desk.session.unwatch(wish)
    assert [(kind, body) for kind, _, _, body in desk.said()] == [(Type.WATCH, {"id": wish.id})]
    desk.hear(wire.local(Type.NOTICE, wire.Notice(wish.id, False)))
    assert (wish.wanted, wakes) == (True, [1])


# Calls that we make.


def test_a_call_ends_with_its_account_closed() -> None:
    """ACCEPT opens the account, the last reply of each node enters it, DONE ends the call (10.2)."""
    desk = Desk()
    call = desk.ask()
    assert call.resolved == {"a", "b1", "b2"}
    desk.reply(call, "a", b"piece")
    desk.reply(call, "a", b"end", flags=Flag.LAST)
    desk.reply(call, "a", b"too late")
    desk.reply(call, "stranger", b"not asked")
    desk.reply(call, "b1", b"bad", Outcome.FAILED, Flag.LAST)
    done = wire.Done(ok="a", failed="b1", timeout="b2")
    desk.hear(wire.local(Type.DONE, done, wire.CallMeta(call.number)))
    assert call.done
    exchanges = desk.session.exchanges
    replies = []
    while (reply := exchanges.take(call)) is not None:
        replies.append((reply.node, reply.body, reply.last, reply.status))
    assert replies == [
        ("a", b"piece", False, Outcome.OK),
        ("a", b"end", True, Outcome.OK),
        ("b1", b"bad", True, Outcome.FAILED),
        ("b2", b"", True, Outcome.TIMEOUT),
    ]


def test_readers_grant_half_a_credit_at_a_time() -> None:
    """A node is granted what was read of its replies once that is half of the credit; the last costs nothing (9.4)."""
    desk = Desk()
    call = desk.ask(credit=100)
    for _ in range(3):
        desk.reply(call, "a", bytes(30))
    desk.reply(call, "a", bytes(1000), flags=Flag.LAST)
    said = []
    while desk.session.exchanges.take(call) is not None:
        said += [(kind, route.target, meta) for kind, route, meta, _ in desk.said()]
    assert said == [(Type.GRANT, "a", [call.number, 60])]


def test_a_node_that_answers_beyond_its_credit_has_failed() -> None:
    """Nothing more is kept of a node that sends without credit (9.4); the others go on, then the router is told."""
    desk = Desk()
    call = desk.ask(credit=100)
    desk.reply(call, "a", bytes(60))
    assert desk.session.exchanges.take(call) is not None  # grants 60 bytes
    for _ in range(1000):
        desk.reply(call, "a", bytes(120))
        desk.reply(call, "b1", b"")
    assert [(len(reply.body), reply.last) for reply in call.replies][:-1] == [(120, False)]
    failed = call.replies[-1]
    assert (failed.node, failed.status, failed.last) == ("a", Outcome.FAILED, True)
    assert b"9.4" in failed.body
    desk.reply(call, "b1", b"", flags=Flag.LAST)
    assert Type.CANCEL not in [kind for kind, *_ in desk.said()]
    desk.reply(call, "b2", b"", flags=Flag.LAST)
    assert [kind for kind, *_ in desk.said()] == [Type.CANCEL]
    desk.hear(wire.local(Type.DONE, wire.Done(ok="b[1-2]", cancelled="a"), wire.CallMeta(call.number)))
    assert call.done
    assert call.account is not None
    assert call.account.summary()[Outcome.FAILED] == {"a"}


def test_a_lost_connection_ends_calls_at_once() -> None:
    """Without ACCEPT a call is an error; after it, the nodes that still owe an answer are unreachable."""
    desk = Desk()
    accepted = desk.ask()
    desk.reply(accepted, "a", b"", flags=Flag.LAST)
    early = desk.session.exchanges.request("x", "s.c", b"", 0, budget_ms=1)
    desk.session.down()
    assert early.done
    assert early.error is not None
    assert accepted.done
    assert accepted.account is not None
    assert accepted.account.summary()[Outcome.UNREACHABLE] == {"b1", "b2"}


def test_cancel_waits_for_accept() -> None:
    """A call cancelled before ACCEPT is cancelled right after it, even when its caller has left."""
    desk = Desk()
    call = desk.session.exchanges.request("x", "s.c", b"", 0, budget_ms=1)
    desk.session.exchanges.cancel(call)
    desk.session.exchanges.forget(call)
    assert [kind for kind, *_ in desk.said()] == [Type.REQUEST]
    desk.hear(wire.local(Type.ACCEPT, wire.Accept("a"), wire.CallMeta(call.number)))
    ((kind, route, meta, _),) = desk.said()
    assert (kind, route.target, meta[0]) == (Type.CANCEL, "a", call.number)


def test_input_waits_for_the_slowest_node() -> None:
    """Input may be sent while every node that still works has credit; a node that has ended holds nobody up."""
    desk = Desk()
    call = desk.ask(with_input=True)
    assert call.input_room()
    desk.session.exchanges.send_input(call, bytes(CREDIT))
    assert not call.input_room()
    for node in ("a", "b1"):
        route = wire.encode(Route(Type.GRANT, node, "uid:0", 2, 1, "n", "7"))
        desk.hear([route, wire.encode(wire.CallMeta(call.number, 10)), b""])
    assert not call.input_room()
    desk.reply(call, "b2", b"", flags=Flag.LAST)
    assert call.input_room()


# Calls that we answer.


def serving(desk: Desk) -> list[Served]:
    """Serve s.c and return the list that requests go into."""
    calls: list[Served] = []
    desk.session.serve("s", {"c": 2}, calls.append)
    desk.said()
    return calls


def test_a_request_is_answered_to_its_caller() -> None:
    """Replies go to the node and the handle of the request, numbered, the last with the status (3.2)."""
    desk = Desk()
    calls = serving(desk)
    desk.request(9)
    (call,) = calls
    assert (call.body, call.budget_ms, call.caller) == (b"arg", 500, ("far", "uid:3", 3, 4))
    desk.session.exchanges.reply(call, b"piece", second=True)
    desk.session.exchanges.finish(call, Outcome.FAILED, b"why", Content.TEXT)
    route = Route(Type.REPLY, "n", "uid:1", 2, 7, "far", "4")
    assert desk.said() == [
        (Type.REPLY, route, [9, 0, 0, Flag.SECOND, 0], b"piece"),
        (Type.REPLY, route, [9, 1, Outcome.FAILED, Flag.LAST, 1], b"why"),
    ]
    desk.session.exchanges.finish(call, Outcome.OK)
    assert desk.said() == [], "a call ends once"


def test_a_request_that_was_seen_is_refused_for_ten_minutes() -> None:
    """The same (origin, handle, call) does not start a second time, while the memory of it lasts (10.6)."""
    desk = Desk()
    calls = serving(desk)
    for now in (0.0, 599.0):
        desk.request(now=now)
    assert len(calls) == 1
    ((_, _, meta, _),) = desk.said()
    assert meta[2] == Outcome.REFUSED
    for number, now in ((2, 601.0), (1, 602.0)):
        desk.request(number, now=now)
    assert len(calls) == 3


def test_a_request_for_nothing_we_serve_says_so() -> None:
    """A request for a command that this client does not serve ends as no such service."""
    desk = Desk()
    desk.request()
    ((_, _, meta, _),) = desk.said()
    assert meta[2:4] == [Outcome.NO_SUCH_SERVICE, Flag.LAST]


def test_cancel_and_loss_end_what_is_served() -> None:
    """CANCEL, and the end of the connection, mark a call as cancelled and wake its handler."""
    desk = Desk()
    calls = serving(desk)
    wakes: list[int] = []
    for number in (1, 2):
        desk.request(number)
        calls[-1].wake = lambda: wakes.append(1)
    desk.hear([desk.asking(Type.CANCEL), wire.encode(wire.CallMeta(1)), b""])
    assert [call.cancelled for call in calls] == [True, False]
    desk.session.down()
    assert [call.cancelled for call in calls] == [True, True]
    assert wakes


def test_credit_of_the_caller() -> None:
    """Replies take from the caller's credit, its GRANT adds to it (9.4)."""
    desk = Desk()
    calls = serving(desk)
    desk.request(credit=10)
    desk.session.exchanges.reply(calls[0], bytes(25))
    assert calls[0].credit == -15
    desk.hear([desk.asking(Type.GRANT), wire.encode(wire.CallMeta(1, 40)), b""])
    assert calls[0].credit == 25


def test_input_is_granted_as_it_is_taken() -> None:
    """Chunks of input wait in order; taking half of the credit grants it to the caller; LAST ends them."""
    desk = Desk()
    calls = serving(desk)
    desk.request(flags=Flag.INPUT)
    (call,) = calls
    for seq in range(2):
        desk.hear([desk.asking(Type.INPUT), wire.encode(wire.InputMeta(1, seq)), bytes([seq]) * (CREDIT // 2)])
    desk.said()
    assert desk.session.exchanges.take_input(call) == bytes(CREDIT // 2)
    ((kind, route, meta, _),) = desk.said()
    assert (kind, route.target, route.topic, meta) == (Type.GRANT, "far", "4", [1, CREDIT // 2])
    desk.hear([desk.asking(Type.INPUT), wire.encode(wire.InputMeta(1, 2, Flag.LAST)), b""])
    assert call.input_ended
    assert desk.session.exchanges.take_input(call) == b"\x01" * (CREDIT // 2)
    assert desk.session.exchanges.take_input(call) is None


def test_input_beyond_its_credit_ends_the_call() -> None:
    """A caller that sends input without credit (9.4) gets its call back as failed, and nothing of it is kept."""
    desk = Desk()
    calls = serving(desk)
    desk.request(flags=Flag.INPUT)
    (call,) = calls
    sizes = [CREDIT // 2, CREDIT // 2 - 1, CREDIT]  # the chunk that crosses the line may be sent
    for seq, size in enumerate(sizes):
        desk.hear([desk.asking(Type.INPUT), wire.encode(wire.InputMeta(1, seq)), bytes(size)])
    assert [len(chunk) for chunk in call.chunks] == sizes
    desk.said()
    for seq in range(3, 1000):
        desk.hear([desk.asking(Type.INPUT), wire.encode(wire.InputMeta(1, seq)), bytes(CREDIT)])
    assert (call.cancelled, call.over, call.input_ended, list(call.chunks)) == (True, True, True, [])
    ((meta, body),) = [(meta, body) for kind, _, meta, body in desk.said() if kind is Type.REPLY]
    assert meta[2:4] == [Outcome.FAILED, Flag.LAST]
    assert b"9.4" in body


@pytest.mark.parametrize(
    ("folded", "names"),
    [
        ("", set()),
        ("a", {"a"}),
        ("a,b-1", {"a", "b-1"}),
        ("n[1-3,07],web", {"n1", "n2", "n3", "n07", "web"}),
        ("r[1-2]n[1-2]", {"r1n1", "r1n2", "r2n1", "r2n2"}),
    ],
)
def test_folded_sets_are_spelled_out(folded: str, names: set[str]) -> None:
    """The sets of ACCEPT and DONE are read without knowing the tree."""
    assert spell(folded) == names


@pytest.mark.parametrize("folded", ["n[1-99999999]", "n[1-999]x[1-999]y[1-999]", "n[1-2/0]"])
def test_sets_that_cannot_be_are_malformed(folded: str) -> None:
    """A router's set that would fill the memory, or that cannot be read, is a ProtocolError; the call goes on."""
    with pytest.raises(TargetError):
        spell(folded)
    desk = Desk()
    call = desk.session.exchanges.request("x", "s.c", b"", 0, budget_ms=1000)
    with pytest.raises(wire.ProtocolError):
        desk.hear(wire.local(Type.ACCEPT, wire.Accept(folded), wire.CallMeta(call.number)))
    desk.hear(wire.local(Type.ACCEPT, wire.Accept("a"), wire.CallMeta(call.number)))
    assert call.resolved == {"a"}
    with pytest.raises(wire.ProtocolError):
        desk.hear(wire.local(Type.DONE, wire.Done(ok=folded), wire.CallMeta(call.number)))
    assert not call.done
