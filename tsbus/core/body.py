"""Bodies: how a value that a program hands over becomes bytes with a content code, and how it is read back.

Events, replies and requests are all read with `Readable`; clients and workers write with `to_body` (protocol 2.7).
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from tsbus.core.message import Content

_to_json: Final = msgspec.json.Encoder().encode
_from_json: Final = msgspec.json.Decoder().decode
_from_msgpack: Final = msgspec.msgpack.Decoder().decode


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


def body_json(body: bytes) -> dict[str, object]:
    """Return a body for a JSON object: as `body` when it is JSON or text, as `base64` when it is neither."""
    try:
        return {"body": _from_json(body)}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"base64": msgspec.to_builtins(body)}


class Readable:
    """Reading the `body` of whatever has one: `_content` is its code, `_source` says in errors what and whose it is."""

    __slots__ = ()
    body: bytes

    def value(self) -> Any:
        """Return what the author handed over: bytes, text or data; None for an empty body. Raises BodyError."""
        content = self._content()
        if not self.body:
            return None
        if content == Content.TEXT:
            return self.text()
        if content == Content.JSON:
            return self.json()
        return self._read("MessagePack", _from_msgpack) if content == Content.MSGPACK else self.body

    def text(self) -> str:
        """Return the body as text. Raises BodyError unless it is UTF-8."""
        try:
            return self.body.decode()
        except UnicodeDecodeError as error:
            raise BodyError(f"{self._source()}: the body is not UTF-8 text: {error}") from None

    def json(self) -> Any:
        """Return what the body says in JSON; None for an empty one. Raises BodyError."""
        return self._read("JSON", _from_json) if self.body else None

    def _read(self, form: str, read: Callable[[bytes], Any]) -> Any:
        try:
            return read(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BodyError(f"{self._source()}: the body is not {form}: {error}") from None

    def _content(self) -> int:
        raise NotImplementedError

    def _source(self) -> str:
        raise NotImplementedError
