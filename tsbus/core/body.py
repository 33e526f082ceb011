"""Bodies: how a value that a program hands over becomes bytes with a content code, and how it is read back.

Events, replies and requests are all read with `Readable`; clients and workers write with `to_body` (protocol 2.7).
"""

from typing import Any, Final

import msgspec

from tsbus.core.message import Content

_to_json: Final = msgspec.json.Encoder().encode
_from_json: Final = msgspec.json.Decoder().decode


class BodyError(ValueError):
    """The author of a body sent something else than the reader expects; the text says who and what."""


def to_body(value: object) -> tuple[bytes, Content]:
    """Return the bytes and the content code of `value`: bytes are raw, str is text, None is empty, the rest is JSON.

    Raises TypeError for a value that JSON cannot express.
    """
    if isinstance(value, bytes):
        return value, Content.RAW
    if isinstance(value, str):
        return value.encode(), Content.TEXT
    if value is None:
        return b"", Content.RAW
    if isinstance(value, bytearray | memoryview):
        return bytes(value), Content.RAW
    return _to_json(value), Content.JSON


class Readable:
    """Reading the `body` of whatever has one. `_source` says in errors what it is and where it comes from."""

    __slots__ = ()
    body: bytes

    def text(self) -> str:
        """Return the body as text. Raises BodyError unless it is UTF-8."""
        try:
            return self.body.decode()
        except UnicodeDecodeError as error:
            raise BodyError(f"{self._source()}: the body is not UTF-8 text: {error}") from None

    def json(self) -> Any:
        """Return what the body says in JSON; None for an empty one. Raises BodyError."""
        if not self.body:
            return None
        try:
            return _from_json(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BodyError(f"{self._source()}: the body is not JSON: {error}") from None

    def _source(self) -> str:
        return type(self).__name__.lower()
