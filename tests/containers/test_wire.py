"""The wire: an answer that is waited for as a whole, and does not come."""

import socket
from pathlib import Path

import pytest

from tsbus.containers.wire import Address, Wire


@pytest.mark.parametrize("rest", [b"", b"HTTP/1.1 200 OK\r\n\r\n[1, "], ids=["nothing", "the half"])
def test_an_answer_that_does_not_end(tmp_path: Path, rest: bytes) -> None:
    """What does not come in time is a timeout, also in the middle of the answer."""
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(tmp_path / "engine"))
        engine.listen()
        wire = Wire(Address(path=str(tmp_path / "engine")), "GET /", timeout_s=10, headers={})
        with engine.accept()[0] as end:
            end.sendall(rest)
            with pytest.raises(TimeoutError):
                wire.whole(0.2)
        wire.close()
