"""Streams: what an engine sends piece by piece, as iterators. engine.py makes them.

One thread iterates; `close` may be called from any other and ends the iteration at once.
"""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

from tsbus.containers.facts import EngineEvent, PullStep, event_of, pull_step_of
from tsbus.containers.framing import Frames, FramingError, Lines
from tsbus.containers.trouble import EngineError, ErrorKind
from tsbus.containers.wire import AnswerError, Wire

Explain = Callable[[BaseException], EngineError]

_ASK_FIRST_S: Final = 0.005
_ASK_LATER_S: Final = 0.25
_REGISTRY: Final = frozenset({ErrorKind.NOT_FOUND, ErrorKind.DENIED, ErrorKind.CONFLICT, ErrorKind.FAILED})


class EventStream(Iterator[EngineEvent]):
    """The events of an engine. It ends when the engine or the connection ends, and after `close`.

    A cut network is silent: whoever hears nothing for long asks `Engine.ping` and closes this one.
    """

    def __init__(self, wire: Wire, take: Callable[[EngineEvent], bool]) -> None:
        """`take` is called with each event and returns whether it is to be passed on."""
        self._wire = wire
        self._take = take
        self._events = self._read()

    def __next__(self) -> EngineEvent:
        return next(self._events)

    def close(self) -> None:
        """End it, from any thread."""
        self._wire.close()

    def _read(self) -> Iterator[EngineEvent]:
        try:
            for raw in _objects(self._wire):
                event = event_of(raw)
                if event and self._take(event):
                    yield event
        except (OSError, FramingError):
            return
        finally:
            self._wire.close()


class Output(Iterator[tuple[bool, bytes]]):
    """What a container or program writes: pairs of whether it is the second output (stderr), and at most 64 KiB.

    With a terminal there is one output only. Raises EngineError when the engine goes away in the middle.
    """

    def __init__(self, wire: Wire, is_raw: bool, explain: Explain) -> None:
        self._wire = wire
        self._explain = explain
        self._pieces = self._read(is_raw)

    def __next__(self) -> tuple[bool, bytes]:
        return next(self._pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, from any thread."""
        self._wire.close()

    def _read(self, is_raw: bool) -> Iterator[tuple[bool, bytes]]:
        frames = Frames()
        try:
            for data in self._wire:
                if is_raw:
                    yield False, data
                else:
                    yield from frames.feed(data)
        except (OSError, FramingError) as error:
            raise self._explain(error) from error
        finally:
            self._wire.close()


class Exec(Output):
    """A program that runs in a container: its output, its input, its end."""

    def __init__(
        self, exec_id: str, wire: Wire, is_raw: bool, explain: Explain, find_exit_code: Callable[[], int | None]
    ) -> None:
        super().__init__(wire, is_raw, explain)
        self.id = exec_id
        self._find_exit_code = find_exit_code
        self._closed = threading.Event()

    def write(self, data: bytes) -> bool:
        """Pass `data` to the program's input, waiting while it does not read. False once nothing takes it any more."""
        try:
            self._wire.write(data)
        except OSError:
            return False
        return True

    def close_input(self) -> None:
        """The program's input ends here; its output still comes."""
        self._wire.close_input()

    def exit_code(self) -> int:
        """Wait for the end of the program, not only of its output, and return its exit code. Raises EngineError."""
        pause_s = _ASK_FIRST_S
        while (code := self._find_exit_code()) is None:
            # The end of the output comes a few milliseconds before the engine knows of the end of the program.
            if self._closed.wait(pause_s):
                raise EngineError(ErrorKind.FAILED, "the program runs on: nobody waits for its end any more")
            pause_s = min(2 * pause_s, _ASK_LATER_S)
        return code

    def close(self) -> None:
        """End the connection, from any thread. A program that reads its input or writes notices; others run on."""
        self._closed.set()
        super().close()


class Pull(Iterator[PullStep]):
    """The steps of fetching an image, to its end. Raises EngineError; `close` ends the fetching."""

    def __init__(self, wire: Wire, explain: Explain, timeout_s: float) -> None:
        """`wire` has not begun; it has `timeout_s` for that."""
        self._wire = wire
        self._explain = explain
        self._steps = self._read(timeout_s)

    def __next__(self) -> PullStep:
        return next(self._steps)

    def close(self) -> None:
        """End it, from any thread."""
        self._wire.close()

    def _read(self, timeout_s: float) -> Iterator[PullStep]:
        try:
            self._wire.begin(timeout_s)
            for raw in _objects(self._wire):
                if error := raw.get("error"):
                    raise EngineError(ErrorKind.REGISTRY, str(error))
                yield pull_step_of(raw)
        except AnswerError as error:
            # The engine says "not found" and "internal error" for what the registry says.
            found = self._explain(error)
            raise EngineError(ErrorKind.REGISTRY, str(found)) if found.kind in _REGISTRY else found from error
        except (OSError, FramingError) as error:
            if not self._wire.is_closed:
                raise self._explain(error) from error
        finally:
            self._wire.close()


def _objects(wire: Wire) -> Iterator[dict[str, Any]]:
    lines = Lines()
    for data in wire:
        for line in lines.feed(data):
            try:
                said = json.loads(line)
            except ValueError as error:
                raise FramingError("a line of the engine's stream is no JSON") from error
            if isinstance(said, dict):
                yield said
