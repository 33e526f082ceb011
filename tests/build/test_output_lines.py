"""Output of programs: cut into lines the same way, however it comes, and bounded."""

from hypothesis import given
from hypothesis import strategies as st

from tsbus.build.output import Lines, Tail

pieces = st.lists(st.binary(max_size=30) | st.sampled_from([b"\n", b"\r", b"\r\n", b"a\nb", b"\xc3", b"\xa4"]))


def lines_of(chunks, most=10_000):
    lines = Lines(most)
    return [*(line for chunk in chunks for line in lines.feed(chunk)), *lines.end()]


@given(pieces)
def test_how_it_comes_makes_no_difference(chunks):
    """Lines are the same whether output comes at once, as it came, or byte by byte."""
    data = b"".join(chunks)
    whole = lines_of([data])
    assert lines_of(chunks) == whole
    assert lines_of([bytes([byte]) for byte in data]) == whole


@given(
    st.lists(st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=("Cs",)))),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_lines_come_back(texts, end):
    """Lines that were written come back without their ends, whichever these are."""
    assert lines_of(["".join(text + end for text in texts).encode()]) == texts


@given(st.integers(0, 300), st.integers(1, 100), st.integers(1, 50))
def test_long_lines_are_cut(size, most, step):
    """Of a line that is too long the beginning stays, and how much is missing."""
    data = b"x" * size + b"\nnext\n"
    first, last = lines_of([data[at : at + step] for at in range(0, len(data), step)], most)
    assert first == "x" * size if size <= most else first == "x" * most + f" ... ({size - most} bytes more)"
    assert last.startswith("next"[:most])


@given(st.lists(st.text(max_size=20)), st.integers(1, 100))
def test_the_tail_is_the_end(texts, most):
    """What is kept is the end of what was said, at most so much, but always the last line."""
    tail = Tail(most)
    for text in texts:
        tail.add(text)
    kept = str(tail)
    assert "".join(f"{text}\n" for text in texts).endswith(kept)
    assert len(kept) <= most or kept == f"{texts[-1]}\n"
    assert tail.dropped == len(texts) - sum(1 for _ in tail._lines)
