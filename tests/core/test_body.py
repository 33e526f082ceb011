"""Bodies: what a program hands over is what the reader gets (protocol 2.7)."""

from typing import Any

import msgspec
import pytest

from tsbus.core.body import BodyError, Readable, to_body
from tsbus.core.exchanges import Reply
from tsbus.core.message import Content


@pytest.mark.parametrize(
    "value", [b"\x00\xff", "grün", {"a": [1, 2.5, None, True]}, [], 0, False, "", b""], ids=lambda value: repr(value)
)
def test_values_come_back(value: Any) -> None:
    """Bytes, text and data arrive as they were handed over; what is empty arrives as None."""
    body, content = to_body(value)
    assert Reply("n", body, content=content).value() == (None if value in ("", b"") else value)


def test_messagepack_is_read_too() -> None:
    """A body that another language wrote in MessagePack is read by its code."""
    assert Reply("n", msgspec.msgpack.encode({"a": 1}), content=Content.MSGPACK).value() == {"a": 1}


def test_byte_likes_and_none() -> None:
    """Other byte-like objects are copied to bytes, None is empty, and what JSON cannot express is a TypeError."""
    assert to_body(bytearray(b"x")) == (b"x", Content.RAW)
    assert to_body(memoryview(b"x")) == (b"x", Content.RAW)
    assert to_body(None) == (b"", Content.RAW)
    with pytest.raises(TypeError):
        to_body(object())


@pytest.mark.parametrize("read", [Readable.json, Readable.text], ids=["json", "text"])
def test_bad_bodies_name_their_author(read: Any) -> None:
    """A body that is not what the reader expects raises BodyError, which says whose it is."""
    with pytest.raises(BodyError, match="reply of node7: the body is not"):
        read(Reply("node7", b"\xff\xfe{"))
