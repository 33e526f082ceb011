"""Envelopes and frames: what is written is what is read, and the page says the same (protocol sections 2 and 3)."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsbus.core import message as wire
from tsbus.core.message import Content, Flag, ProtocolError, Route, Type

PAGE = (Path(__file__).parents[2] / "docs/protocol.md").read_text()
METAS = {
    wire.EventMeta: "EVENT",
    wire.RequestMeta: "REQUEST",
    wire.ReplyMeta: "REPLY",
    wire.InputMeta: "INPUT",
    wire.PingMeta: "PING",
    wire.CreditMeta: "CREDIT",
}

text = st.text(max_size=20)
numbers = st.integers(0, (1 << 63) - 1)
routes = st.builds(Route, st.sampled_from(Type), text, text, numbers, numbers, text, text)


def rows():
    """The rows of the table of types in section 3: number, name, lane, direction, meta, body."""
    found = re.findall(r"^\| (\d+) \| ([A-Z]+) \| (\w+) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", PAGE, re.MULTILINE)
    return [(int(number), name, lane, meta) for number, name, lane, _, meta, _ in found]


def test_the_page_and_the_code_have_the_same_types():
    """Numbers, names and lanes of all types are those of the table in section 3."""
    assert {(number, name) for number, name, *_ in rows()} == {(kind.value, kind.name) for kind in Type}
    assert {name: lane for _, name, lane, _ in rows()} == {kind.name: wire.LANE_OF[kind].name.lower() for kind in Type}


@pytest.mark.parametrize("kind", METAS, ids=lambda kind: kind.__name__)
def test_the_page_and_the_code_have_the_same_meta(kind):
    """The elements of meta are those of the table, in its order."""
    written = next(meta for _, name, _, meta in rows() if name == METAS[kind])
    assert re.findall(r"\w+", written) == list(kind.__struct_fields__)


def test_the_page_and_the_code_have_the_same_bounds():
    """The sizes of section 2.3 and of the flags and contents are those of the code."""
    assert f"closes a batch at {wire.BATCH_BYTES >> 10} KiB" in PAGE
    assert f"A body is at most 1 MiB ({wire.MAX_BODY:,} bytes)" in PAGE
    assert f"route at most {wire.MAX_ROUTE >> 10} KiB, meta at most {wire.MAX_META} bytes" in PAGE
    assert f"MAXMSGSIZE {wire.MAX_FRAME >> 20} MiB" in PAGE
    assert [(flag.name, flag.value) for flag in Flag] == [("LAST", 1), ("SECOND", 2), ("INPUT", 4)]
    assert [content.value for content in Content] == [0, 1, 2, 3]


@given(st.lists(st.tuples(st.binary(), st.binary(), st.binary()), min_size=1))
def test_a_frame_is_read_as_it_was_written(envelopes):
    """Whatever the parts are, a frame gives them back in order."""
    items = [part for envelope in envelopes for part in envelope]
    assert wire.decode_frame(wire.encode_frame(items)) == items


@given(routes)
def test_a_route_is_read_as_it_was_written(route):
    """Every route with a known type survives the wire, and equal routes are equal bytes (2.5)."""
    data = wire.encode(route)
    assert wire.decode_route(data) == route
    assert wire.encode(wire.decode_route(data)) == data


@given(st.sampled_from(list(METAS)), st.data())
def test_meta_is_read_as_it_was_written(kind, data):
    """Every meta survives the wire, also with elements at its end that nobody knows yet (2.6)."""
    meta = kind(**{name: data.draw(text if name == "person" else numbers) for name in kind.__struct_fields__})
    values = [getattr(meta, name) for name in kind.__struct_fields__]
    assert wire.decode_meta(kind, wire.encode(meta)) == meta
    assert wire.decode_meta(kind, wire.encode([*values, "new"])) == meta


def test_unknown_keys_of_a_body_are_ignored():
    """A map may carry keys of a later version (2.6)."""
    body = wire.encode({"pattern": "a", "scope": "node", "colour": "red"})
    assert wire.decode_body(wire.Subscribe, body) == wire.Subscribe("a", "node")


def test_a_local_envelope_is_three_elements():
    """A hop-local type has a route of one element, and empty parts where it says nothing."""
    route, meta, body = wire.local(Type.BYE, wire.Bye("loop"))
    assert wire.decode_route(route) == Route(Type.BYE)
    assert (meta, wire.decode_body(dict, body)) == (wire.EMPTY_META, {"reason": "loop", "text": ""})
    assert wire.local(Type.PING, meta=wire.PingMeta(1, 2))[1:] == [wire.encode([1, 2]), b""]


@pytest.mark.parametrize(
    ("read", "data", "reason"),
    [
        (wire.decode_frame, b"", "malformed"),
        (wire.decode_frame, wire.encode([]), "malformed"),
        (wire.decode_frame, wire.encode([b"", b""]), "malformed"),
        (wire.decode_frame, wire.encode(["text", b"", b""]), "malformed"),
        (wire.decode_frame, wire.encode([b""] * 3 * (wire.MAX_ENVELOPES + 1)), "malformed"),
        (wire.decode_route, wire.encode([]), "malformed"),
        (wire.decode_route, wire.encode([31]), "unknown-type"),
        (wire.decode_route, wire.encode([32, "x" * wire.MAX_ROUTE]), "oversize"),
        (lambda data: wire.decode_meta(wire.PingMeta, data), wire.encode([1]), "malformed"),
        (lambda data: wire.decode_meta(wire.PingMeta, data), wire.encode([1, 2, b"x" * 256]), "oversize"),
        (lambda data: wire.decode_body(wire.Bye, data), wire.encode({"text": "x"}), "malformed"),
        (lambda data: wire.decode_body(dict, data), wire.encode([1]), "malformed"),
    ],
)
def test_what_is_not_allowed_has_a_reason(read, data, reason):
    """Bytes that break section 2 raise a ProtocolError with the name of its counter (section 12)."""
    with pytest.raises(ProtocolError) as caught:
        read(data)
    assert caught.value.reason == reason
