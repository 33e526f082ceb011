"""Exchange: one channel of a connection, from the moment that its shell starts until that shell has ended."""

import contextlib
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from secrets import token_hex
from typing import Any, BinaryIO, Final

import paramiko

from tsbus.build.access import Login
from tsbus.build.output import Lines, Tail
from tsbus.build.secrets import SecretUnavailable
from tsbus.build.ssh import dialogue
from tsbus.build.ssh.shared import Shared
from tsbus.build.ssh.transport import Fault, Transport, end, fault, ping
from tsbus.build.trouble import Failure

OPENING_S: Final = 30.0
"""How long it may take until a shell is ready: sudo asks a directory that may be far away."""
ALIVE_S: Final = 15.0
"""A server that has been silent for so long is asked whether it is there, and has as long to answer."""
FOR_EVER: Final = float("inf")
_CHUNK: Final = 32_768
_IDLE_S: Final = 0.5
"""How often a session looks around that waits for output, which wakes it: hundreds of them wait for minutes."""
_SOON_S: Final = 0.02
"""How often one looks that waits for what nothing wakes it for: room to send, an exit status after the last output."""
_OPEN_TRIES: Final = 5
_LINGER_S: Final = 2.0
"""After a script's end, how long to wait for those it has left behind with its output open."""

Tell = Callable[[str], None]
Source = Callable[[str], BinaryIO]
"""Says what to send to a script, when it has said its first line."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a script has come to."""

    status: int
    out: str = field(repr=False)
    """The last megabyte of its standard output, as it came: it may hold secrets."""
    shown: str
    """The last megabyte of all its output, masked."""


class Exchange:
    """A shell becomes root, takes a script, says things, ends."""

    def __init__(
        self,
        link: Transport,
        login: Login,
        shared: Shared,
        until: float,
        stage: str,
        what: str,
        tell: Tell | None,
        hear: Tell | None,
    ) -> None:
        self._link, self._login, self._shared = link, login, shared
        self._stage, self._what, self._tell, self._raw = stage, what, tell, hear
        self._last = until
        self._mark = f"ts-{token_hex(16)}"
        self._out, self._err = Lines(), Lines()
        self._kept, self._shown = Tail(), Tail()
        self._first: str | None = None
        self._heard = time.monotonic()
        self._pinged: Any = None
        self._limit(OPENING_S)

    def run(
        self, text: str, stdin: bytes | Source | None, rights: dialogue.Rights, timeout_s: float, *, check: bool
    ) -> Outcome:
        """Go through all of it; see Session.run. Raises Fault, Cancelled."""
        self._channel = self._open()
        self._poll = select.poll()
        self._poll.register(self._channel.fileno(), select.POLLIN)
        try:
            self._become(rights)
            self._limit(timeout_s)
            self._send_all(BytesIO(dialogue.script(self._mark, text)))
            if callable(stdin):
                with self._first_line(stdin) as source:
                    self._send_all(source)
            elif stdin:
                self._send_all(BytesIO(stdin))
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                self._channel.shutdown_write()
            status = self._end()
        finally:
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                self._channel.close()
        self._hear(self._out.end(), kept=True)
        self._hear(self._err.end(), kept=False)
        if status is None or (status and check):
            raise self._failed(status)
        return Outcome(status, str(self._kept), str(self._shown))

    # The channel.

    def _open(self) -> Any:
        try:
            for _ in range(_OPEN_TRIES):
                # Where sshd allows one session at a time, it may not have put away the last one yet.
                with contextlib.suppress(paramiko.ChannelException):
                    return self._link.open_session(timeout=self._left())
                self._shared.wait(threading.Event(), time.monotonic() + 0.1)
            raise self._fault("ChannelException", f"it allows no session: {self._link.refusal}")
        except (paramiko.SSHException, EOFError, OSError) as error:
            self._shared.check()
            raise fault(self._login, error, stage=self._stage) from error

    def _become(self, rights: dialogue.Rights) -> None:
        """Wait until the shell is ready, as who it should be."""
        self._request(dialogue.command(self._mark, rights))
        opening = dialogue.Opening(self._mark)
        answered = False
        while True:
            out, err = self._receive()
            rest = opening.feed(out, err)
            if rest is not None:
                self._take(rest, b"")
                return
            if opening.asked > answered:
                if answered:
                    raise self._sudo("the password is wrong")
                self._answer_sudo()
                answered = True
            elif self._ended():
                raise self._not_ready(opening)
            elif not out and not err and not self._wait():
                if time.monotonic() >= self._last:
                    raise self._too_long()
                raise self._not_ready(opening, f"no shell within {OPENING_S:g} s")

    def _request(self, command: str) -> None:
        """Ask for the program without waiting for the answer, for which the library's own call has no limit."""
        message = paramiko.Message()
        message.add_byte(paramiko.common.cMSG_CHANNEL_REQUEST)
        message.add_int(self._channel.remote_chanid)
        message.add_string("exec")
        message.add_boolean(True)
        message.add_string(command)
        with contextlib.suppress(EOFError, OSError, paramiko.SSHException):
            self._link._send_user_message(message)

    def _answer_sudo(self) -> None:
        if self._login.password is None:
            raise self._sudo("it wants a password, and console.toml has none for this server")
        try:
            secret = self._shared.secrets.get(self._login.password)
        except SecretUnavailable as error:
            raise self._sudo(str(error)) from None
        self._limit(OPENING_S)  # somebody may have had to unlock it
        self._send_all(BytesIO(f"{secret.reveal()}\n".encode()), take=False)

    def _send_all(self, source: BinaryIO, *, take: bool = True) -> None:
        """Send, and take what is said meanwhile: whoever waits for us to read does not read."""
        self._channel.setblocking(0)
        while data := source.read(_CHUNK):
            while data:
                try:
                    sent = self._channel.send(data)
                except TimeoutError:
                    sent = 0
                except (OSError, EOFError, paramiko.SSHException):  # it has ended without wanting all
                    return
                data = data[sent:]
                if self._ended():
                    return
                took = take and self._take(*self._receive())
                if not sent and not took and not self._wait(_SOON_S):
                    raise self._too_long()

    def _first_line(self, source: Source) -> BinaryIO:
        """Wait for the first line of output, and return what `source` has for it; nothing if none comes."""
        while self._first is None:
            if not self._take(*self._receive()):
                if self._ended():
                    return BytesIO()
                if not self._wait():
                    raise self._too_long()
        return source(self._first)

    def _end(self) -> int | None:
        """Wait for the end; returns the exit status, None when the connection or a signal took it."""
        while not self._channel.exit_status_ready() and self._link.is_active():
            if not self._take(*self._receive()) and not self._wait():
                raise self._too_long()
        # A daemon that it has started may keep its output open for ever.
        linger = time.monotonic() + _LINGER_S
        while self._take(*self._receive()) or (self._is_open() and time.monotonic() < linger and self._wait(_SOON_S)):
            pass
        status: int = self._channel.exit_status
        return status if status >= 0 else None

    def _receive(self) -> tuple[bytes, bytes]:
        """Return what has come."""
        out = self._channel.recv(_CHUNK) if self._channel.recv_ready() else b""
        err = self._channel.recv_stderr(_CHUNK) if self._channel.recv_stderr_ready() else b""
        if out or err:
            self._heard = time.monotonic()
        return out, err

    def _ended(self) -> bool:
        """Whether no more output can come."""
        self._shared.check()
        over = self._channel.closed or self._channel.eof_received or not self._link.is_active()
        return over and not self._channel.recv_ready() and not self._channel.recv_stderr_ready()

    def _is_open(self) -> bool:
        return not self._channel.closed and self._link.is_active()

    def _wait(self, idle_s: float = _IDLE_S) -> bool:
        """Wait a little for something to happen; False when the time is over. Raises Fault when nobody is there."""
        self._shared.check()
        left = self._left()
        if left <= 0:
            return False
        if self._channel.eof_received:  # the end of output is always ready to be read
            time.sleep(min(left, _SOON_S))
        else:
            self._poll.poll(min(left, idle_s) * 1000)
        self._check_alive()
        return True

    def _check_alive(self) -> None:
        """Ask a silent server whether it is there: a frozen one, or one behind a broken way, is silent for ever."""
        now = time.monotonic()
        if self._pinged is not None and self._pinged.is_set():
            self._heard, self._pinged = now, None
        elif now > self._heard + ALIVE_S:
            if self._pinged is not None:
                end(self._link)
                raise self._fault("EOFError", "it does not answer any more")
            self._heard = now
            self._pinged = ping(self._link)

    def _limit(self, seconds: float) -> None:
        self._until = min(self._last, time.monotonic() + seconds)

    def _left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    # What it says.

    def _take(self, out: bytes, err: bytes) -> bool:
        """Take output; returns whether there was any."""
        self._hear(self._out.feed(out), kept=True)
        self._hear(self._err.feed(err), kept=False)
        return bool(out or err)

    def _hear(self, lines: list[str], *, kept: bool) -> None:
        for line in lines:
            if kept:
                self._kept.add(line)
                self._first = line if self._first is None else self._first
                if self._raw:
                    self._raw(line)
            masked = self._shared.secrets.mask(line)
            self._shown.add(masked)
            if self._tell:
                self._tell(masked)

    # What can go wrong.

    def _fault(self, kind: str, text: str = "") -> Fault:
        return Fault(Failure(self._stage, self._login.place, kind, text=text, command=self._what))

    def _too_long(self) -> Fault:
        self._shared.check()
        return self._fault("Timeout", "it has not ended in time")

    def _failed(self, status: int | None) -> Fault:
        self._shared.check()
        if status is None and self._link.is_active():
            return self._fault("Killed", "it was ended by a signal")
        place = self._login.place
        return Fault(Failure(self._stage, place, status=status, output=str(self._shown), command=self._what))

    def _sudo(self, text: str) -> Fault:
        return Fault(Failure(self._stage, self._login.place, status=1, output=f"sudo: {text}"))

    def _not_ready(self, opening: dialogue.Opening, why: str = "") -> Fault:
        """Return why there is no shell: the connection, sudo, or an account that has none."""
        if not self._link.is_active():
            return self._fault("EOFError")
        self._channel.status_event.wait(_IDLE_S)  # it comes a moment after the end of output
        output = "\n".join(filter(None, (opening.said, why)))
        status = max(1, self._channel.exit_status)
        return Fault(Failure(self._stage, self._login.place, status=status, output=output, command="a shell"))
