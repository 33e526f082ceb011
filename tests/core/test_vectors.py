"""The byte vectors that other languages check themselves against (protocol 2 to 4): Python agrees with every one."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tsbus.core import message as wire
from tsbus.core.message import Type

VECTORS = Path(__file__).parents[1] / "vectors"
FRAMES = json.loads((VECTORS / "frames.json").read_text())
MALFORMED = json.loads((VECTORS / "malformed.json").read_text())
METAS: dict[Type, type] = {
    Type.PING: wire.PingMeta,
    Type.PONG: wire.PingMeta,
    Type.CREDIT: wire.CreditMeta,
    Type.EVENT: wire.EventMeta,
    Type.REQUEST: wire.RequestMeta,
    Type.REPLY: wire.ReplyMeta,
    Type.INPUT: wire.InputMeta,
}
BODIES: dict[Type, tuple[type, ...]] = {
    Type.HELLO: (wire.WorkerHello, wire.LinkHello),
    Type.WELCOME: (wire.WorkerWelcome, wire.LinkHello),
    Type.BYE: (wire.Bye,),
    Type.DIRECTORY: (wire.Directory,),
    Type.INTEREST: (wire.Interest,),
    Type.GAP: (wire.Gap,),
    Type.SUBSCRIBE: (wire.Subscribe,),
    Type.UNSUBSCRIBE: (wire.Subscribe,),
    Type.SERVE: (wire.Serve,),
    Type.WATCH: (wire.Watch,),
    Type.NOTICE: (wire.Notice,),
    Type.ACCEPT: (wire.Accept,),
    Type.DONE: (wire.Done,),
    Type.ERROR: (wire.Error,),
}


def _numbers(value: Any) -> Any:
    """Return `value` with the numbers that JSON programs cannot hold, which the vectors write as text."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return int(value) if isinstance(value, str) and value.isdigit() and int(value) >= 2**53 else value


def _envelope(items: list[bytes], kind: Type, vector: dict[str, Any]) -> dict[str, Any]:
    """Read one envelope back into what its vector says."""
    route = msgspec.msgpack.decode(items[0])
    shown = {"type": kind.name, "route": route, "meta": msgspec.msgpack.decode(items[1])}
    if "body" in vector:
        return shown | {"body": msgspec.msgpack.decode(items[2])}
    return shown | {"body_hex": items[2].hex()}


@pytest.mark.parametrize("vector", FRAMES, ids=[vector["name"] for vector in FRAMES])
def test_frames(vector: dict[str, Any]) -> None:
    """A frame decodes to the meaning beside it, fits the structures of the code, and encodes to the same bytes."""
    frame = bytes.fromhex(vector["frame"])
    items = wire.decode_frame(frame)
    parts = [items[start : start + 3] for start in range(0, len(items), 3)]
    assert len(parts) == len(vector["envelopes"])
    for part, meaning in zip(parts, vector["envelopes"], strict=True):
        route = wire.decode_route(part[0])
        kind = Type(route.type)
        assert _envelope(part, kind, meaning) == _numbers(meaning)
        meta = wire.decode_meta(METAS.get(kind, wire.CallMeta), part[1])
        fields = [getattr(meta, name) for name in meta.__struct_fields__]
        expected = _numbers(meaning["meta"])
        assert fields[: len(expected)] == expected
        if kind in BODIES:
            assert any(_reads(shape, part[2]) for shape in BODIES[kind])
        assert part[0] == (wire.encode(route) if kind >= Type.EVENT else wire.LOCAL_ROUTE[kind])
    assert wire.encode_frame(items) == frame


def test_every_type_has_a_vector() -> None:
    """No type of the protocol is without a vector."""
    assert {envelope["type"] for vector in FRAMES for envelope in vector["envelopes"]} == {kind.name for kind in Type}


@pytest.mark.parametrize("vector", MALFORMED, ids=[vector["name"] for vector in MALFORMED])
def test_malformed_frames(vector: dict[str, Any]) -> None:
    """Bytes that are no frame are refused as malformed (protocol 2.1)."""
    with pytest.raises(wire.ProtocolError) as caught:
        wire.decode_frame(bytes.fromhex(vector["frame"]))
    assert caught.value.reason == "malformed"


def _reads(shape: type, body: bytes) -> bool:
    try:
        wire.decode_body(shape, body)
    except wire.ProtocolError:
        return False
    return True
