"""What the pages show, without a browser: rows and facts made from a model, differences, folded output, finding."""

from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from told import NOW, Node, balancer, container, figures, model, server, short, status

from tsbus import records
from tsbus.config import Alert
from tsbus.core.accounting import Outcome
from tsbus.core.body import to_body
from tsbus.core.exchanges import Reply
from tsbus.dashboard.answers import Stats
from tsbus.dashboard.eventlog import EventLog
from tsbus.dashboard.views import ContainerView, EventRecord
from tsbus.dashboard.web.pages import (
    alerts,
    balancers,
    bus,
    commands,
    containers,
    events,
    finding,
    node,
    tones,
    tree,
)
from tsbus.dashboard.web.pages import container as page_of_container
from tsbus.dashboard.web.pages.folding import MAX_LINES, Folded
from tsbus.dashboard.web.pages.output import MAX_LINE, Breaker
from tsbus.dashboard.web.pages.sheets import MAX_CELL, Fact, Row, Sheet, cut
from tsbus.records import Sample

EVIL = "<img src=x onerror=alert(1)>"


def by_key(items):
    return {item.key: item for item in items}


# Sheets and output.


@settings(max_examples=60)
@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2), max_size=6), min_size=1, max_size=6))
def test_differences_lead_to_the_same_as_all_of_it(stages):
    """Who applies every difference shows the same items in the same order as who takes the whole at the end."""
    current: dict[str, int] = {}
    sheet = Sheet(lambda model, now_ms: [Fact(key, key, "count", value) for key, value in current.items()])
    shown: dict[str, Fact] = {}
    order: list[str] = []
    for stage in stages:
        current.clear()
        current.update(stage)
        difference = sheet.refresh(model(), NOW)
        shown.update({item.key: item for item in difference.set})
        for key in difference.drop:
            del shown[key]
        order = order if difference.order is None else difference.order
        assert not sheet.refresh(model(), NOW), "nothing has changed, and something is sent"
    assert [shown[key] for key in order] == sheet.whole().set
    assert list(shown.keys() - set(order)) == []


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=40), max_size=8))
def test_lines_do_not_depend_on_how_bytes_come(chunks):
    """However a stream is cut into pieces, its lines are the same."""
    one, other = Breaker("n", "warn"), Breaker("n", "warn")
    in_pieces = [line for chunk in chunks for line in one.feed(chunk)] + one.end()
    assert in_pieces == other.feed(b"".join(chunks)) + other.end()


def test_a_line_without_an_end_is_cut():
    """What never ends a line is shown in pieces, and is not kept."""
    breaker = Breaker()
    lines = breaker.feed(b"x" * (3 * MAX_LINE + 5))
    assert [len(text) for _, text, _ in lines] == [MAX_LINE] * 3
    assert breaker.end() == [("", "xxxxx", "")]


def test_output_of_many_nodes_is_folded():
    """Nodes that wrote the same and ended alike are shown once, by their folded names."""
    folded = Folded()
    folded.begin(frozenset({"web1", "web2", "db", "gone"}))
    for name, text in (("web1", b"ok\n"), ("web2", b"ok\n"), ("db", b"no\n")):
        folded.take(Reply(name, text, second=name == "db"))
    for name in ("web1", "web2"):
        folded.take(Reply(name, to_body({"exit": 0, "signal": None})[0], last=True))
    folded.take(Reply("db", to_body({"exit": 3, "signal": None})[0], status=Outcome.FAILED, last=True))
    folded.take(Reply("gone", b"", status=Outcome.UNREACHABLE, last=True))
    assert folded.ended == 4
    assert folded.lines() == [
        ("db", "exit 3", "warn"), ("", "no", "warn"), ("gone", "unreachable", "bad"),
        ("web[1-2] (2)", "exit 0", "ok"), ("", "ok", ""),
    ]  # fmt: skip


def test_output_is_bounded():
    """Of a node that writes without an end the last lines are kept, and how many are not is said."""
    folded = Folded()
    folded.take(Reply("a", b"".join(b"%d\n" % number for number in range(MAX_LINES + 7))))
    lines = folded.lines()
    assert lines[:2] == [("a", "runs", "busy"), ("", "  … 7 lines before these", "dim")]
    assert lines[-1] == ("", str(MAX_LINES + 6), "")
    assert len(lines) == MAX_LINES + 2


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (
            Reply(
                "a", b'{"exit": null, "signal": "KILL", "reason": "wrote too much"}', status=Outcome.FAILED, last=True
            ),
            "killed by KILL wrote too much",
        ),
        (Reply("a", b"no such program", status=Outcome.FAILED, last=True), "failed: no such program"),
        (Reply("a", b"the policy has no rule", status=Outcome.REFUSED, last=True), "refused: the policy has no rule"),
        (Reply("a", b"", status=Outcome.NO_SUCH_SERVICE, last=True), "no such service"),
    ],
)
def test_ends_are_told_in_words(reply, words):
    """However a program ends, a line says how."""
    folded = Folded()
    folded.take(reply)
    assert folded.lines()[0][:2] == ("a", words)


# Tones.


@pytest.mark.parametrize("state", get_args(records.State))
@pytest.mark.parametrize("health", get_args(records.Health))
def test_every_state_of_a_container_has_a_tone_and_a_word(state, health):
    """No state that the records know is without a shape or a word."""
    record = container(state=state, health=health, exit_code=1 if state == "exited" else None)
    tone, word = tones.of_container(ContainerView(revision=1, node="a", record=record))
    assert tone in get_args(tones.Tone)
    assert word


def test_what_hurts_is_not_green():
    """Unhealthy, killed for memory, and ended with an error each look different from a container that is well."""
    views = [
        ContainerView(revision=1, node="a", record=record)
        for record in (
            container(health="unhealthy"),
            container(state="exited", oom=True),
            container(state="exited", exit_code=1),
            container(draining=True),
            container(state="exited", exit_code=0),
            container(),
        )
    ]
    assert [tones.of_container(view) for view in views] == [
        ("bad", "unhealthy"), ("bad", "out of memory"), ("warn", "exited 1"), ("busy", "draining"), ("off", "exited"),
        ("ok", "running"),
    ]  # fmt: skip


# Rows.


def test_the_tree_is_drawn_parents_first():
    """Each node stands below its own parent, as deep as it is, and only those with children can be folded."""
    rows = list(tree.rows(model(), NOW))
    assert [(row.key, row.depth, row.kids) for row in rows] == [
        ("root", 0, True), ("a", 1, True), ("a1", 2, False), ("a2", 2, False), ("b", 1, False),
    ]  # fmt: skip


def test_a_lost_node_keeps_its_figures():
    """What was known of a node stays when it is lost: it is grey, and says when it was seen last."""
    told = model()
    Node(told, "a1", container(1))
    told.figures(figures("a1", {1: Sample(cpu=12.0, memory=1 << 20, memory_limit=4 << 20)}), NOW)
    before = by_key(tree.rows(told, NOW))["a1"]
    told.status(status(lost=("a1",)), NOW + 14_000)
    after = by_key(tree.rows(told, NOW + 14_000))["a1"]
    assert after.cells[3:6] == before.cells[3:6]
    assert after.cells[1] == ("lost", "lost")
    assert after.cells[6] == (NOW + 14_000, "last seen ")
    assert (before.tone, after.tone) == ("", "lost")
    assert by_key(containers.Rows()(told, NOW))[f"a1/{short(1)}"].tone == "lost"


def test_texts_from_outside_are_cut():
    """A name or an image of any length takes no more room than a cell has."""
    told = model()
    Node(told, "a", container(1, name="n" * 5000, command=EVIL, labels={"x": "y" * 5000}))
    row = next(containers.Rows()(told, NOW))
    assert len(row.cells[0]) == MAX_CELL
    assert len(row.hay) <= 1000
    facts = by_key(page_of_container.facts(told, NOW, "a", short(1)))
    assert facts["command"].value == EVIL
    assert all(len(label) <= 80 for label in facts["labels"].value)
    assert cut("ab", 2) == "ab"


def test_a_row_is_made_anew_when_its_container_is_another():
    """Whose figures moved has another row, found by the same; whose record changed is found by the new one."""
    told, rows = model(), containers.Rows()
    Node(told, "a", container(1), container(2))
    before = by_key(rows(told, NOW))
    told.figures(figures("a", {1: Sample(cpu=12.0)}), NOW)
    after = by_key(rows(told, NOW))
    moved, still = f"a/{short(1)}", f"a/{short(2)}"
    assert after[still] is before[still]
    assert after[moved].cells[4] == 12.0
    assert after[moved].hay is before[moved].hay
    Node(told, "a", container(1, health="unhealthy"), container(2))
    assert "state:unhealthy" in by_key(rows(told, NOW))[moved].hay
    told.status(status(lost=("a",)), NOW)
    assert {row.tone for row in rows(told, NOW)} == {"lost"}


def test_figures_that_nobody_told_are_not_zero():
    """A container without a sample has no figures at all."""
    told = model()
    Node(told, "a", container(1))
    row = next(containers.Rows()(told, NOW))
    assert row.cells[4:8] == (None, None, None, None)
    assert by_key(tree.rows(told, NOW))["a"].cells[3:5] == (None, None)
    assert by_key(tree.totals(told, NOW))["cpu"].value is None


def test_problems_say_where_to_look():
    """Each problem is a row that leads to what is wrong; on a node's page only its own are shown."""
    told = model(lost=("b",))
    Node(told, "a1", container(1, health="unhealthy"))
    rows = list(tree.troubles(told, NOW))
    assert {row.href for row in rows} == {"/node/b", f"/container/a1/{short(1)}"}
    assert [row.href for row in tree.troubles(told, NOW, "a1")] == [f"/container/a1/{short(1)}"]
    assert by_key(tree.totals(told, NOW))["problems"].value == "2"


def test_a_server_can_be_drained_or_taken_back():
    """The button of a server is the opposite of what it is; who may not act is told why."""
    told = model()
    told.balancing("root", [balancer("web", "ok", server(1), server(2, "draining", weight=0, reason="by alice"))], NOW)
    one, other = balancers.rows(told, NOW, "root", "web", "")
    assert one.cells[-1] == (("drain", "Drain", ""),)
    assert other.cells[-1] == (("undrain", "Undrain", ""),)
    assert other.cells[3] == "by alice"
    assert next(balancers.rows(told, NOW, "root", "web", "view only")).cells[-1] == (("drain", "Drain", "view only"),)
    assert list(balancers.rows(told, NOW, "root", "gone", "")) == []


def test_links_are_told_once():
    """Each link is a row of the node above it; a node's own page has the one to its parent, too."""
    told = model()
    link = {"name": "a", "kind": "link", "role": "child", "state": "up", "since_ms": NOW, "rtt_ms": 1.5}
    up = link | {"name": "root", "role": "parent"}
    told.router("root", msgspec.convert({"links": [link]}, Stats), NOW)
    told.router("a", msgspec.convert({"links": [up]}, Stats), NOW)
    assert [row.cells[0] for row in bus.link_rows(told, NOW)] == ["root → a"]
    assert [row.cells[0] for row in bus.link_rows(told, NOW, "a")] == ["root → a"]
    assert by_key(bus.totals(told, NOW))["median"].value == 1.5
    told.status(status(lost=("a",)), NOW)
    (known,) = bus.link_rows(told, NOW, "a")
    assert (known.cells[1], known.tone) == (("lost", "lost"), "lost"), "what a lost node said of it is over"


def test_the_page_of_a_node_tells_what_is_known():
    """Of a node nobody has told anything there are dashes; of an unknown one nothing."""
    told = model()
    facts = by_key(node.facts(told, NOW, "a"))
    assert facts["parent"].href == "/node/root"
    assert facts["engine"].value is None
    assert list(node.facts(told, NOW, "nowhere")) == []


def test_jobs_tell_who_ran_what():
    """A job's row has the person behind the dashboard, and how it ended."""
    job = {"job": 4, "argv": ["echo", "a b"], "who": "uid:7", "origin": "root", "started_ms": NOW}
    (running,) = commands.jobs("a", {"running": [job], "finished": []})
    (ended,) = commands.jobs("a", {"finished": [job | {"exit": 2, "duration_ms": 5, "person": "alice"}]})
    assert running.cells[:4] == ("echo 'a b'", ("busy", "runs"), "a", "uid:7 at root")
    assert ended.cells[1:6] == (("warn", "exit 2"), "a", "alice by uid:7", None, 5)


# Events.


def happened(topic, body=b"", number=1):
    return EventRecord(number=number, topic=topic, node="a", who="router", time_ms=NOW, arrived_ms=NOW, body=body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"container": {"name": "web1"}, "action": "died"}', "web1 · action died"),
        (b'{"node": "a", "nodes": "b[1-3]", "cause": "heartbeat"}', "cause heartbeat · b[1-3]"),
        (b'{"name": "bridge", "container": "0123456789ab' + b"c" * 52 + b'"}', "bridge · 0123456789ab"),
        (b'{"name": "web1", "action": "thing"}', "web1"),
        (b'{"x": 1}', '{"x": 1}'),
        (b"\xff<b>", "\ufffd<b>"),
        (b"", ""),
    ],
)
def test_an_event_is_summed_up_in_a_line(body, words):
    """What an event says is one line, whatever its body is."""
    assert events.summary(happened("some.thing", body)) == words


def test_a_feed_gets_each_event_once():
    """A page is sent what came before it was opened, then only what is new, the newest first."""
    told, drawing = model(), events.Drawing()
    told.events.append(happened("node.lost", number=1))
    first = drawing(told, NOW)
    assert [row.key for row in first["add"]] == ["1"]
    assert drawing(told, NOW) is None
    for number in (2, 3):
        told.events.append(happened("node.up", number=number))
    assert [row.key for row in drawing(told, NOW)["add"]] == ["3", "2"]
    assert events.find(told.events, "2").number == 2
    assert events.find(told.events, "9") is None
    assert events.find(told.events, "gap 3") is None


def test_a_feed_says_what_it_missed():
    """Events that were forgotten before a page could show them are a row of their own."""
    told, drawing = model(), events.Drawing()
    told.events = EventLog(max_events=2)
    told.events.append(happened("a.b", number=1))
    drawing(told, NOW)
    for number in range(2, 7):
        told.events.append(happened("a.b", number=number))
    rows = drawing(told, NOW)["add"]
    assert [row.key for row in rows] == ["6", "5", "gap 1"]
    assert rows[-1].cells[1] == "3 events came too fast to show"


def test_events_are_downloaded_as_lines():
    """The download has one line of JSON for each event."""
    log = EventLog()
    log.append(happened("a.b", b'{"x": 1}', 1))
    log.append(happened("a.c", b"\xff", 2))
    lines = b"".join(events.download(log)).splitlines()
    assert len(lines) == 2
    assert b'"topic":"a.b"' in lines[0]
    assert b'"base64"' in lines[1]


# Finding and alerts.


def test_search_finds_by_name_tag_image_state_and_address():
    """Whatever somebody knows of a thing leads to it, and what is called so comes first."""
    told = model(a1={"tags": ("canary",)})
    Node(told, "a1", container(1, name="web", health="unhealthy", networks={"bridge": "172.17.0.9"}))
    Node(told, "b", container(2, name="a"), container(3, name="x", image=records.Image(given="redis:7")))
    told.balancing("root", [balancer("front")], NOW)

    def paths(words):
        return [hit[3] for hit in finding.find(told, words)["hits"]]

    assert paths("a")[0] == "/node/a"
    assert paths("tag:canary") == ["/node/a1"]
    assert paths("state:unhealthy") == [f"/container/a1/{short(1)}"]
    assert paths("172.17.0.9") == [f"/container/a1/{short(1)}"]
    assert paths("redis b") == [f"/container/b/{short(3)}"]
    assert paths("10.0.0.1:80") == ["/balancers"]
    assert paths("  ") == []
    assert finding.find(told, "nginx")["more"] == 0


def test_search_shows_a_handful():
    """Of many finds the first are shown, and how many more there are."""
    told = model()
    Node(told, "a", *(container(number) for number in range(1, 31)))
    found = finding.find(told, "nginx")
    assert (len(found["hits"]), found["more"]) == (finding.SHOWN, 30 - finding.SHOWN)


def test_an_alert_is_told_without_its_secret():
    """A rule is told in words, and of a webhook only the host: the rest of its address may be a secret."""
    rule = Alert(
        "hot", "memory-over", target="@web", over=80, for_s=30, to=("https://chat.example/secret",), call="x.y"
    )
    assert alerts.words(rule) == "memory over 80 % of the limit · on @web · for 30 s"
    assert alerts.tells(rule) == ["the bus", "chat.example", "x.y"]


def test_rows_are_plain_values():
    """A row has nothing in it but texts, numbers and lists of them: nothing that a browser could take for markup."""

    def is_plain(value):
        return value is None or isinstance(value, (str, int, float, bool)) or all(map(is_plain, value))

    told = model()
    Node(told, "a", container(1, name=EVIL, image=records.Image(given=EVIL), labels={EVIL: EVIL}))
    rows: list[Row] = [*tree.rows(told, NOW), *containers.Rows()(told, NOW)]
    assert all(is_plain(cell) for row in rows for cell in row.cells)
