"""Authentication: logs in to a host in the ways that its Login names, each tried once.

A server counts what it refuses and may lock out who tries too much: a password is sent once, keys of the agent that
nobody has named are few, and what the server does not take is not tried, nor its secret read.
"""

import threading
import time
from typing import Any, Final

import paramiko

from tsbus.build.access import KeyFile, Login, Password
from tsbus.build.secrets import SecretUnavailable
from tsbus.build.ssh.keys import Agent, UnusableKey, public_half
from tsbus.build.ssh.shared import Shared
from tsbus.build.ssh.transport import Fault, Transport, fault
from tsbus.build.trouble import Failure

ANSWER_S: Final = 30.0
"""How long a server may think about one attempt."""
MAX_KEYS: Final = 5
"""Keys that are tried: sshd hangs up at the sixth failure (MaxAuthTries)."""
_KEYS: Final = ("publickey",)
_PASSWORDS: Final = ("password", "keyboard-interactive")


class _Lost(Exception):
    """The server has hung up."""


def authenticate(transport: Transport, login: Login, shared: Shared) -> None:
    """Log in. Raises Fault, with all that was tried in its text.

    A connection that ends before anything was refused is lost, and worth another try. A password that was on its way
    then may have been refused, and is not sent again.
    """
    attempt = _Attempt(transport, login, shared)
    try:
        attempt.all()
    except _Lost:
        shared.check()
        if not (transport.parting or attempt.tried or attempt.passwords):
            raise fault(login, EOFError()) from None
        attempt.note(f"it hung up: {transport.parting}" if transport.parting else "it hung up")
    finally:
        attempt.agent_keys = ()
        if attempt.agent:
            attempt.agent.close()
    if not transport.is_authenticated():
        raise attempt.fault()


class _Attempt:
    def __init__(self, transport: Transport, login: Login, shared: Shared) -> None:
        self.transport, self.login, self.shared = transport, login, shared
        self.takes: tuple[str, ...] = ()
        """What the server takes, or still wants after one way has gone well."""
        self.tried: list[str] = []
        self.agent: Agent | None = None
        self.agent_keys: tuple[Any, ...] = ()
        self.keys = 0
        self.passwords = 0
        self.seen: set[bytes] = set()

    def fault(self) -> Fault:
        """Return what the server takes, and what was tried."""
        tried = self.tried or ["there is nothing to try"]
        text = f"it takes {' or '.join(self.takes) or 'nothing'}; {'; '.join(tried)}"
        return Fault(
            Failure("connect", self.login.place, "AuthenticationException", text=text, output="\n".join(tried))
        )

    def note(self, text: str) -> None:
        """Remember what has not gone well."""
        if text and text not in self.tried:
            self.tried.append(text)

    def all(self) -> None:
        """Try one way after the other until the server is content."""
        self._try("none")
        for way in self.login.ways * 2:  # again: a server may want two ways, in another order than ours
            if self.transport.is_authenticated():
                return
            if isinstance(way, Password):
                self._password(way)
            elif not self._takes(_KEYS):
                continue
            elif isinstance(way, KeyFile):
                self._file(way)
            else:
                self._any_of_agent()

    def _takes(self, methods: tuple[str, ...]) -> bool:
        return any(method in self.takes for method in methods)

    # Keys.

    def _file(self, way: KeyFile) -> None:
        blob = public_half(way.path)
        from_agent = next((key for key in self._ask_agent() if key.asbytes() == blob), None) if blob else None
        if from_agent:
            self._key(from_agent, f"{way.path} by the agent")
            return
        try:
            key = self.shared.keys.load(way)
        except FileNotFoundError:
            if not way.optional:
                self.note(f"{way.path} is not there")
        except UnusableKey as error:
            self.note(f"{way.path}: {error}")
        else:
            self._key(key, str(way.path))

    def _any_of_agent(self) -> None:
        # Those that are named as files first: the user has given thought to them.
        named = [public_half(way.path) for way in self.login.ways if isinstance(way, KeyFile)]
        for key in sorted(self._ask_agent(), key=lambda key: key.asbytes() not in named):
            if self.transport.is_authenticated() or not self._takes(_KEYS):
                return
            self._key(key, f"the agent's {key.comment or key.get_name()}")
        if self.agent and self.agent.problem:
            self.note(f"agent: {self.agent.problem}")

    def _ask_agent(self) -> tuple[Any, ...]:
        if self.agent is None:
            self.agent = Agent()
            self.agent_keys = self.agent.get_keys()
        return self.agent_keys

    def _key(self, key: Any, name: str) -> None:
        blob = key.asbytes()
        if blob in self.seen:
            return
        self.seen.add(blob)
        if self.keys == MAX_KEYS:
            self.note(f"{name} and further keys: not tried, they are too many (IdentitiesOnly, or `key`)")
        self.keys += 1
        if self.keys > MAX_KEYS:
            return
        if not self._try("publickey", key):
            self.note(f"{name}: refused")

    # Passwords.

    def _password(self, way: Password) -> None:
        if not self._takes(_PASSWORDS):
            self.note("password: it takes none")
            return
        if self.passwords:
            return
        self.passwords += 1
        try:
            secret = self.shared.secrets.get(way.source).reveal()
        except SecretUnavailable as error:
            self.note(f"password: {error}")
            return
        if "password" in self.takes:
            ok, name = self._try("password", secret), "password"
        else:
            ok, name = self._try("keyboard-interactive", secret), "keyboard-interactive"
        if not ok:
            self.note(f"{name}: refused")

    # One attempt.

    def _try(self, method: str, secret: Any = None) -> bool:
        """Whether the server accepts, perhaps as one of several ways that it wants."""
        if not self.transport.is_active():
            raise _Lost
        done = threading.Event()
        # What is left of the last attempt.
        self.transport.saved_exception = None
        try:
            self._send(method, secret, done)
        except (OSError, EOFError, paramiko.SSHException):
            raise _Lost from None
        in_time = self.shared.wait(done, time.monotonic() + ANSWER_S)
        error = self.transport.get_exception()
        if isinstance(error, _OtherQuestion):
            self.note(str(error))
            raise _Lost
        if isinstance(error, paramiko.BadAuthenticationType | paramiko.ssh_exception.PartialAuthentication):
            self.takes = tuple(error.allowed_types)
            return isinstance(error, paramiko.ssh_exception.PartialAuthentication)
        if not in_time:
            self.note(f"it has not answered within {ANSWER_S:g} s")
            raise _Lost
        if not self.transport.is_active():
            self.note("" if error is None or isinstance(error, EOFError | OSError) else str(error))
            raise _Lost
        return bool(self.transport.is_authenticated())

    def _send(self, method: str, secret: Any, done: threading.Event) -> None:
        handler = paramiko.auth_handler.AuthHandler(self.transport)
        self.transport.auth_handler = handler
        user = self.login.user
        if method == "none":
            handler.auth_none(user, done)
        elif method == "publickey":
            handler.auth_publickey(user, secret, done)
        elif method == "password":
            handler.auth_password(user, secret, done)
        else:
            handler.auth_interactive(user, _Answers(secret), done)


class _OtherQuestion(paramiko.SSHException):  # type: ignore[misc]  # the library has no types
    """The server asks for something else than the password."""


class _Answers:
    """Answers what a server asks: its password, once, and nothing else."""

    def __init__(self, password: str) -> None:
        self._password: str | None = password

    def __call__(self, _title: str, _instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
        """Return the answers. Raises _OtherQuestion, which ends the connection, before anything is told."""
        if not prompts:
            return []
        text, shown = prompts[0]
        if len(prompts) > 1 or shown or self._password is None or "passw" not in text.lower():
            asked = "; ".join(prompt.strip().rpartition("\n")[2][:80] for prompt, _ in prompts)
            raise _OtherQuestion(f"keyboard-interactive: it asks for more than a password ({asked!r})")
        password, self._password = self._password, None
        return [password]
