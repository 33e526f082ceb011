"""Transport: makes the encrypted connection to a host, directly or through another, and knows whom it has reached.

paramiko's Transport, with a limit for everything: names that nobody looks up, hosts that swallow connections, servers
that greet and fall silent, or that greet without end. Nothing here waits longer than it was told, or than a tick after
the run was cancelled.
"""

import contextlib
import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Collection
from typing import Any, Final

import paramiko

from tsbus.build.access import Login
from tsbus.build.known_hosts import HostKey
from tsbus.build.ssh.shared import TICK_S, Shared
from tsbus.build.trouble import Failure

MAX_GREETING: Final = 65_536
"""Bytes before the version of a server."""
KEEPALIVE_S: Final = 15
"""So that no firewall on the way forgets the connection."""
STUCK_S: Final = 30.0
"""How long a server may take nothing of what is sent to it."""
HOST_KEY_KINDS: Final[dict[str, tuple[str, ...]]] = {
    "ssh-ed25519": ("ssh-ed25519",),
    **{kind: (kind,) for kind in ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")},
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}
"""Kinds of host keys and the algorithms that show them, in our order of preference."""
_ORDER: Final = tuple(HOST_KEY_KINDS)
# As OpenSSH has it: nothing that it has given up. GCM first, since it is done in one go: half of the CPU of an upload.
_CIPHERS: Final = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
_MACS: Final = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")

# It logs tracebacks, and with debugging on what is said on the wire. What matters comes as exceptions.
_log = logging.getLogger("paramiko")
_log.propagate = False
_log.setLevel(logging.CRITICAL + 1)


class Fault(Exception):
    """A failure, before it has been classed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text or failure.type)
        self.failure = failure


class NotSsh(paramiko.SSHException):  # type: ignore[misc]  # the library has no types
    """What answers is something else."""


class OtherKind(Fault):
    """The host key is another than the pinned one, and of the kind `shown`; one of another kind may be that one."""

    def __init__(self, failure: Failure, shown: str) -> None:
        super().__init__(failure)
        self.shown = shown


def fault(login: Login, error: BaseException | str, text: str = "", stage: str = "connect") -> Fault:
    """Return what went wrong at `login`: an exception, or the name of its type with a text."""
    if isinstance(error, str):
        return Fault(Failure(stage, login.place, error, text=text))
    for cause in _causes(error):
        # The library wraps what says more: the end of the connection, or that nothing came.
        if isinstance(cause, EOFError | TimeoutError | ConnectionError | NotSsh):
            error = cause
            break
    number, words = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
    return Fault(Failure(stage, login.place, type(error).__name__, number, text or words or str(error)))


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


class Transport(paramiko.Transport):  # type: ignore[misc]
    """A connection to one host. `refusal` is what it said when it last refused a channel, `parting` when it hung up."""

    _active_check_timeout = 1.0
    """How often its thread looks around when nothing comes; data and the end of the connection wake it."""
    _preferred_ciphers = _CIPHERS
    _preferred_macs = _MACS

    def __init__(self, link: Any) -> None:
        super().__init__(link, packetizer_class=_Stream)
        self.refusal = ""
        self.parting = ""

    # The library logs the server's own words, and raises its own.

    def _parse_disconnect(self, message: Any) -> None:
        message.get_int()
        self.parting = message.get_text()
        message.rewind()
        super()._parse_disconnect(message)

    def _parse_channel_open_failure(self, message: Any) -> None:
        message.get_int()
        message.get_int()
        self.refusal = message.get_text()
        message.rewind()
        super()._parse_channel_open_failure(message)


class _Stream(paramiko.Packetizer):  # type: ignore[misc]
    """The bytes of a connection: no greeting without an end, and no waiting for ever at a full pipe."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._link = link
        self._greeting = 0

    def _read_timeout(self, timeout: float) -> bytes:
        data: bytes = super()._read_timeout(timeout)
        self._greeting += len(data)
        if self._greeting > MAX_GREETING:
            raise NotSsh("it says other things than SSH")
        return data

    def write_all(self, out: bytes) -> None:
        """Send all. Raises EOFError when the connection is gone, or nobody has taken anything for STUCK_S."""
        left = memoryview(out)
        until = time.monotonic() + STUCK_S
        while left:
            try:
                sent = self._link.send(left)
            except TimeoutError:
                sent = 0
            except OSError:
                raise EOFError from None
            if sent:
                left = left[sent:]
                until = time.monotonic() + STUCK_S
            elif self.closed or time.monotonic() > until:
                raise EOFError


def dial(login: Login, shared: Shared, until: float) -> socket.socket:
    """Return a TCP connection. Raises Fault."""
    addresses = _look_up(login, shared, until)
    fault_: Fault | None = None
    for number, (family, address) in enumerate(addresses):
        # The others get their share of the time, too.
        share = max(0.0, until - time.monotonic()) / (len(addresses) - number)
        try:
            return _connect(family, address, shared, time.monotonic() + share)
        except OSError as error:
            fault_ = fault(login, error)
    raise fault_ or fault(login, "gaierror", "it has no address")


def _look_up(login: Login, shared: Shared, until: float) -> list[tuple[int, Any]]:
    """Return the addresses. The system's own look-up heeds no limit, so a thread that may be left behind does it."""
    answers: list[list[tuple[int, Any]] | OSError] = []
    done = threading.Event()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(login.host, login.port, type=socket.SOCK_STREAM)
            answers.append([(each[0], each[4]) for each in found])
        except (OSError, UnicodeError) as error:
            answers.append(socket.gaierror(str(error)) if isinstance(error, UnicodeError) else error)
        done.set()

    threading.Thread(target=ask, daemon=True, name="look-up").start()
    if not shared.wait(done, until):
        raise Fault(Failure("connect", login.place, "gaierror", socket.EAI_AGAIN, "the name server does not answer"))
    if isinstance(answers[0], OSError):
        raise fault(login, answers[0])
    return answers[0]


def _connect(family: int, address: Any, shared: Shared, until: float) -> socket.socket:
    """Return a connection. Raises OSError."""
    link = socket.socket(family, socket.SOCK_STREAM)
    try:
        link.setblocking(False)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = link.connect_ex(address)
        poll = select.poll()
        poll.register(link, select.POLLOUT)
        while number == errno.EINPROGRESS:
            shared.check()
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            if poll.poll(min(left, TICK_S) * 1000):
                number = link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
    except BaseException:
        link.close()
        raise
    return link


def through(hop: Transport, hop_login: Login, login: Login, until: float) -> Any:
    """Return a connection to `login` that leads through `hop`. Raises Fault."""
    try:
        return hop.open_channel(
            "direct-tcpip", (login.host, login.port), ("127.0.0.1", 0), timeout=max(0.1, until - time.monotonic())
        )
    except paramiko.ChannelException as error:
        raise _beyond(hop_login, login, error.code, hop.refusal) from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise fault(login, error) from error


_SAID: Final = {
    "refused": errno.ECONNREFUSED,
    "timed out": errno.ETIMEDOUT,
    "no route": errno.EHOSTUNREACH,
    "unreachable": errno.ENETUNREACH,
}


def _beyond(hop: Login, login: Login, code: int, said: str) -> Fault:
    """Return why a host could not be reached from `hop`, by what its sshd said."""
    text = f"{hop.place} says: {said or 'no'}"
    number = next((number for words, number in _SAID.items() if words in said.lower()), None)
    if number is None and any(words in said.lower() for words in ("name or service", "name resolution", "nodename")):
        return Fault(Failure("connect", login.place, "gaierror", text=text))
    if code == 1:  # SSH_OPEN_ADMINISTRATIVELY_PROHIBITED
        text = f"{hop.place} lets nobody through (AllowTcpForwarding in its sshd_config)"
    return Fault(Failure("connect", login.place, "OSError", number or errno.EHOSTUNREACH, text))


def shake_hands(login: Login, link: Any, shared: Shared, until: float, without: Collection[str] = ()) -> Transport:
    """Return an encrypted connection over `link` to the host that `login` means, and no other.

    `without`: kinds of host keys that it need not show. Raises Fault, and OtherKind when another kind may be right.
    """
    transport = Transport(link)
    try:
        _negotiate(transport, login, shared, until, without)
        _check_host_key(login, _key_of(transport), shared)
        transport.set_keepalive(KEEPALIVE_S)
    except BaseException:
        end(transport)
        raise
    return transport


def _negotiate(transport: Transport, login: Login, shared: Shared, until: float, without: Collection[str]) -> None:
    try:
        transport._preferred_keys = tuple(_algorithms(login, shared, without))
    except OSError as error:
        raise _unreadable(login, error) from error
    left = max(0.1, until - time.monotonic())
    # Later than ours: when the library's own limit is first, the connection is taken for lost.
    transport.banner_timeout = transport.handshake_timeout = left + STUCK_S
    done = threading.Event()
    transport.start_client(event=done)
    if not shared.wait(done, until):
        raise fault(login, TimeoutError())
    problem = transport.get_exception()
    if problem is not None:
        raise fault(login, problem) from problem
    if not transport.is_active():
        raise fault(login, EOFError())


def _algorithms(login: Login, shared: Shared, without: Collection[str]) -> list[str]:
    """Return what we ask the server to show: keys of the kinds that we know first, for it may have several."""
    pinned = login.host_key.split()[0] if login.host_key else ""
    known = {line.key.kind for line in shared.known.keys(login) if not line.revoked} | {pinned}
    kinds = sorted(HOST_KEY_KINDS.keys() - set(without), key=lambda kind: (kind not in known, _ORDER.index(kind)))
    return [algorithm for kind in kinds for algorithm in HOST_KEY_KINDS[kind]]


def _key_of(transport: Transport) -> HostKey:
    key = transport.get_remote_server_key()
    return HostKey(key.get_name(), key.asbytes())


def _check_host_key(login: Login, key: HostKey, shared: Shared) -> None:
    """Raise Fault unless `key` is that of the host, or may become it."""
    shown = f"{key.kind} {key.fingerprint}"
    try:
        verdict = shared.known.check(login, key)
        if verdict == "unknown" and login.host_keys == "accept-new" and login.known_hosts:
            verdict = shared.known.record(login, key)
    except OSError as error:
        raise _unreadable(login, error) from error
    if verdict == "unknown":
        raise fault(login, "UnknownHostKey", shown)
    if verdict == "revoked":
        raise fault(login, "BadHostKeyException", f"{shown} is revoked")
    if verdict == "changed":
        failure = fault(login, "BadHostKeyException", f"it shows {shown}, not {_expected(login, shared)}").failure
        # A fingerprint does not say of which kind of key it is.
        raise OtherKind(failure, key.kind) if login.host_key.startswith("SHA256:") else Fault(failure)


def _expected(login: Login, shared: Shared) -> str:
    if login.host_key:
        return "what host_key says"
    return " or ".join(f"{line.key.kind} {line.key.fingerprint}" for line in shared.known.keys(login)[:3])


def _unreadable(login: Login, error: OSError) -> Fault:
    return fault(login, "UnknownHostKey", f"{error.filename or 'known_hosts'}: {error.strerror or error}")


def ping(transport: Transport) -> threading.Event:
    """Ask whether the server is there; returns what its answer sets, whatever it is."""
    answered: threading.Event = threading.Event()
    transport.completion_event = answered
    message = paramiko.Message()
    message.add_byte(paramiko.common.cMSG_GLOBAL_REQUEST)
    message.add_string("keepalive@openssh.com")
    message.add_boolean(True)
    with contextlib.suppress(EOFError, OSError, paramiko.SSHException):
        transport._send_user_message(message)
    return answered


def end(transport: Transport) -> None:
    """Cut a connection at once: what it leads through, its thread and its channels notice."""
    transport.active = False
    link = transport.sock
    with contextlib.suppress(OSError):
        if isinstance(link, socket.socket):
            link.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        transport.packetizer.close()
    for channel in list(transport._channels.values()):
        channel._unlink()
