"""Whatever bytes come in, reading them either works or says ProtocolError (protocol section 2)."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hostile import BOMBS, DEEP, Hostile, Me
from hypothesis import example, given
from hypothesis import strategies as st

from tsbus.core import message as wire
from tsbus.core.message import ProtocolError

METAS = (
    wire.EventMeta, wire.RequestMeta, wire.ReplyMeta, wire.InputMeta, wire.CallMeta, wire.PingMeta, wire.CreditMeta,
)  # fmt: skip
BODIES = (
    wire.LinkHello, wire.WorkerHello, wire.WorkerWelcome, wire.Bye, wire.Error, wire.Directory, wire.Interest, wire.Gap,
    wire.Subscribe, wire.Serve, wire.Watch, wire.Notice, wire.Accept, wire.Done,
)  # fmt: skip
DECODERS: dict[str, Callable[[bytes], object]] = {
    "frame": wire.decode_frame,
    "route": wire.decode_route,
    "map": lambda data: wire.decode_body(dict, data),
    **{kind.__name__: lambda data, kind=kind: wire.decode_meta(kind, data) for kind in METAS},  # type: ignore[misc]
    **{kind.__name__: lambda data, kind=kind: wire.decode_body(kind, data) for kind in BODIES},  # type: ignore[misc]
}

scalars = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner), max_leaves=8
)
bodies = st.dictionaries(
    st.sampled_from(
        ("versions", "node", "name", "incarnation", "window", "entries", "interest", "add", "remove", "count", "at",
         "pattern", "scope", "service", "commands", "id", "nodes", "ok", "reason", "code", "clock_ms", "as", "release")
    ),
    values,
)  # fmt: skip


def read(decode: Callable[[bytes], object], data: bytes) -> Any:
    """Decode, letting only ProtocolError pass."""
    try:
        return decode(data)
    except ProtocolError:
        return None


@pytest.mark.parametrize("name", DECODERS)
@given(
    data=st.binary()
    | values.map(wire.encode)
    | st.lists(scalars, max_size=9).map(wire.encode)
    | bodies.map(wire.encode)
)
@example(data=b"\x81\xa1x" + DEEP)
@example(data=b"\x98\x20\xa1a\xa1b\x01\x01\xa1a\xa1a" + DEEP)
@example(data=b"\x92\x20\xa2\xff\xff")
@example(data=b"\x81\xa4node\xa2\xff\xff")
def test_readable_or_protocol_error(name: str, data: bytes) -> None:
    """Every decoder takes any bytes without another error than ProtocolError."""
    read(DECODERS[name], data)


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
@pytest.mark.parametrize("name", DECODERS)
def test_bombs(name: str, bomb: bytes) -> None:
    """Headers that promise billions of elements and arrays nested thousands deep are errors like any other."""
    read(DECODERS[name], bomb)


@given(seed=st.integers(0, 1 << 32))
def test_what_was_read_can_be_sent_on(seed: int) -> None:
    """A route, meta or entry that was accepted can be encoded again, whatever numbers it holds."""
    hostile = Hostile(Random(seed), Me(), pool=20)
    for _ in range(20):
        items = read(wire.decode_frame, hostile.frame()) or []
        for place, data in enumerate(items):
            kinds = ((wire.decode_route,), METAS, BODIES)[place % 3]
            for kind in kinds:
                decode = kind if kind is wire.decode_route else DECODERS[kind.__name__]
                value = read(decode, data)
                if value is not None:
                    wire.encode(value)
