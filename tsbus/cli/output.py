"""Output: what programs on many nodes wrote, as prefixed lines while it comes or folded when all is there."""

import sys
from collections.abc import Callable, Iterator

from tsbus.core.target import fold

KEPT_BYTES = 256 << 20
"""What is kept of all nodes' output together until it is folded."""
MAX_LINE = 64 << 10
"""A longer line is shown in pieces, so that output without any newline does not pile up."""


def behind_node(node: str, second: bool, lines: bytes) -> bytes:
    """Return lines, of which the last has no newline, behind the name of the node that wrote them."""
    prefix = node.encode() + b": "
    return prefix + lines.replace(b"\n", b"\n" + prefix) + b"\n"


class Lines:
    """Cuts the output of many nodes into lines."""

    def __init__(self, shape: Callable[[str, bool, bytes], bytes] = behind_node) -> None:
        """`shape` says how complete lines of a node's first or second stream are shown."""
        self._shape = shape
        self._rest: dict[tuple[str, bool], bytes] = {}

    def feed(self, node: str, second: bool, chunk: bytes) -> bytes:
        """Take a chunk of a node's first or second stream; return the lines that are complete now."""
        whole, newline, rest = (self._rest.pop((node, second), b"") + chunk).rpartition(b"\n")
        if len(rest) > MAX_LINE:
            whole, newline, rest = whole + newline + rest, b"\n", b""
        if rest:
            self._rest[node, second] = rest
        return self._shape(node, second, whole) if newline else b""

    def end(self, node: str, second: bool) -> bytes:
        """Return the last line of a stream that did not end with a newline."""
        rest = self._rest.pop((node, second), b"")
        return self._shape(node, second, rest) if rest else b""


class Kept:
    """The output of many nodes, kept to be folded; `cut` counts the bytes of a node for which there was no room."""

    def __init__(self, nodes: int) -> None:
        """`nodes`: among how many nodes the room is shared."""
        self._room = KEPT_BYTES // max(nodes, 1)
        self._streams: dict[tuple[str, bool], bytearray] = {}
        self.cut: dict[str, int] = {}

    def feed(self, node: str, second: bool, chunk: bytes) -> None:
        """Take a chunk of a node's first or second stream."""
        stream = self._streams.setdefault((node, second), bytearray())
        fits = chunk[: max(self._room - len(stream), 0)]
        stream += fits
        if len(fits) < len(chunk):
            self.cut[node] = self.cut.get(node, 0) + len(chunk) - len(fits)

    def take(self, node: str, second: bool) -> bytes:
        """Return a stream and forget it."""
        return bytes(self._streams.pop((node, second), b""))

    def folded(self, second: bool) -> Iterator[tuple[str, bytes]]:
        """Return each different output of one stream once, with a heading that names the nodes that wrote it."""
        groups: dict[bytes, list[str]] = {}
        for (node, which), stream in self._streams.items():
            if which is second and stream:
                groups.setdefault(bytes(stream), []).append(node)
        for output, nodes in groups.items():
            head = f"{fold(nodes)} ({len(nodes)}):" if len(nodes) > 1 else f"{nodes[0]}:"
            # One line goes behind the names; more lines go below them as they are, ready to be copied.
            gap = "\n" if b"\n" in output.rstrip(b"\n") else " "
            yield head + gap, output + (b"" if output.endswith(b"\n") else b"\n")


def write(second: bool, data: bytes) -> None:
    """Write to standard output, or with `second` to standard error, at once."""
    stream = sys.stderr if second else sys.stdout
    stream.buffer.write(data)
    stream.flush()
