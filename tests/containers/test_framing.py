"""The engine's ways to pack a stream: whatever pieces the network makes of it, the same comes out."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsbus.containers.framing import MAX_LINE, Chunks, Frames, FramingError, Lines

cuts = st.lists(st.integers(0, 400), max_size=20)
payloads = st.lists(st.binary(max_size=40), max_size=8)


def cut_up(data: bytes, at: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(one for one in at if one < len(data))})
    return [data[begin:end] for begin, end in pairwise(edges)]


@given(payloads, cuts)
def test_chunks_are_joined(payloads, at):
    """A chunked body carries the bytes of its chunks and says when it has ended; what comes behind is none of it."""
    body = b"".join(b"%x;note=1\r\n%s\r\n" % (len(one), one) for one in payloads if one) + b"0\r\n\r\nbehind"
    chunks = Chunks()
    assert b"".join(piece for data in cut_up(body, at) for piece in chunks.feed(data)) == b"".join(payloads)
    assert chunks.ended


@given(payloads, cuts)
def test_chunks_that_are_cut_off(payloads, at):
    """A chunked body without its last chunk has not ended."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in payloads if one)
    chunks = Chunks()
    assert b"".join(piece for data in cut_up(body, at) for piece in chunks.feed(data)) == b"".join(payloads)
    assert not chunks.ended


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), max_size=8), cuts)
def test_frames_keep_the_outputs_apart(outputs, at):
    """The two outputs that come through one connection come out apart and whole, and in their order."""
    stream = b"".join(
        bytes([2 if second else 1, 0, 0, 0]) + len(one).to_bytes(4, "big") + one for second, one in outputs
    )
    frames = Frames()
    got = [piece for data in cut_up(stream, at) for piece in frames.feed(data)]
    for which in (False, True):
        assert b"".join(one for second, one in got if second is which) == b"".join(
            one for second, one in outputs if second is which
        )
    assert all(piece for _, piece in got)


def test_a_long_frame_is_not_kept():
    """A frame of any length passes through as it comes: nothing waits for its end."""
    frames = Frames()
    assert not list(frames.feed(b"\x01\0\0\0\xff\xff\xff\xff"))
    assert list(frames.feed(b"x" * 1000)) == [(False, b"x" * 1000)]


@given(st.lists(st.text(alphabet="ab {}", max_size=20), max_size=8), cuts)
def test_lines_come_whole(lines, at):
    """Each line comes once it is whole, and empty ones never."""
    stream = "".join(f"{line}\r\n" for line in lines).encode()
    reader = Lines()
    got = [line for data in cut_up(stream, at) for line in reader.feed(data)]
    assert got == [line.strip().encode() for line in lines if line.strip()]


@pytest.mark.parametrize(
    ("decoder", "data"),
    [
        (Chunks(), b"zz\r\n"),
        (Chunks(), b"-1\r\n"),
        (Chunks(), b"1\r\nab\r\n"),
        (Chunks(), b"1" * 300),
        (Frames(), b"\x07\0\0\0\0\0\0\1x"),
        (Frames(), b"\x01\0\1\0\0\0\0\1x"),
        (Lines(), b"x" * (MAX_LINE + 1)),
    ],
    ids=["no size", "negative size", "chunk too long", "size too long", "no output", "no header", "endless line"],
)
def test_what_is_packed_otherwise(decoder, data):
    """Bytes that are packed in another way are an error, and an endless one is never collected."""
    with pytest.raises(FramingError):
        list(decoder.feed(data))
