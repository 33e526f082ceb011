"""Access: how the console logs in to a server, from console.toml and from what ~/.ssh/config says. Pure.

console.toml comes first: the entry, then its defaults. Then ~/.ssh/config, which the edge reads and gives as a
function from a host to its options. Nothing is looked up, opened or asked for here: secrets are named by where they
are.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tsbus.build.trouble import Trouble
from tsbus.config import Console, Secret, SshEntry
from tsbus.config.forms import quote, split_jump

Lookup = Callable[[str], Mapping[str, Any]]
"""The options of a host in ~/.ssh/config: names in lower case, values as text, `identityfile` a list of texts."""
Sudo = Literal["auto", "none", "password"]
HostKeys = Literal["pinned", "strict", "accept-new"]
CONNECT_S: Final = 10.0
MAX_HOPS: Final = 8
"""Hosts on the way; more are a mistake, and a circle has no end."""
_DEFAULT_KEYS: Final = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
_KNOWN_HOSTS: Final = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")


class AccessError(Exception):
    """What is written about a login cannot be used; `trouble` says where and what to do."""

    def __init__(self, text: str, mend: str) -> None:
        self.trouble = Trouble("access", text, mend)
        super().__init__(str(self.trouble))


@dataclass(frozen=True, slots=True)
class Given:
    """The secret itself stands in console.toml."""

    secret: Secret


@dataclass(frozen=True, slots=True)
class Variable:
    """The secret is in an environment variable of the console."""

    name: str


@dataclass(frozen=True, slots=True)
class FirstLine:
    """The secret is the first line of a file."""

    path: Path


@dataclass(frozen=True, slots=True)
class Output:
    """A program prints the secret on its first line."""

    argv: tuple[str, ...]


Source = Given | Variable | FirstLine | Output
"""Where a secret is."""


@dataclass(frozen=True, slots=True)
class KeyFile:
    """Log in with the key in a file, or with the same key in the agent."""

    path: Path
    passphrase: Source | None = None
    optional: bool = False
    """It may be missing: nobody has named it in console.toml."""


@dataclass(frozen=True, slots=True)
class Agent:
    """Log in with any key of the agent."""


@dataclass(frozen=True, slots=True)
class Password:
    """Log in with a password."""

    source: Source


Way = KeyFile | Agent | Password


@dataclass(frozen=True, slots=True)
class Login:
    """Everything that is needed to log in to one host."""

    name: str
    """For people: that of the entry, or as the host is written in a jump."""
    host: str
    port: int
    user: str
    ways: tuple[Way, ...]
    """In the order in which they are tried."""
    password: Source | None = None
    """For sudo."""
    sudo: Sudo = "auto"
    host_key: str = ""
    """The one that is pinned."""
    accept_new: bool = False
    """An unknown host key is taken and recorded."""
    known_as: str = ""
    """Its name in known_hosts, where it is not the host's."""
    known_hosts: tuple[Path, ...] = ()
    """New keys are recorded in the first."""
    connect_timeout_s: float = CONNECT_S
    jumps: tuple["Login", ...] = ()
    """The hosts on the way, the one next to the console first."""

    @property
    def place(self) -> str:
        """As user@host:port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{self.port}"

    @property
    def host_keys(self) -> HostKeys:
        """What decides whether a host key is right. One that has changed is never."""
        return "pinned" if self.host_key else "accept-new" if self.accept_new else "strict"


@dataclass(frozen=True, slots=True)
class Local:
    """Who sits at the console."""

    user: str
    home: Path


def login(console: Console, name: str, lookup: Lookup, local: Local, *, accept_new: bool = False) -> Login:
    """Return how to log in to the server `name`.

    Raises AccessError, also when there is no entry for it.
    """
    if name not in console.ssh:
        raise AccessError(f"console.toml has no entry for {quote(name)}", f"add [ssh.{name}] with its host")
    return _Ways(console, lookup, local, accept_new).entry(name, ())


def logins(
    console: Console, names: Iterable[str], lookup: Lookup, local: Local, *, accept_new: bool = False
) -> tuple[dict[str, Login], dict[str, Trouble]]:
    """Return the logins of these servers, and the troubles of those that have none."""
    found: dict[str, Login] = {}
    troubles: dict[str, Trouble] = {}
    for name in names:
        try:
            found[name] = login(console, name, lookup, local, accept_new=accept_new)
        except AccessError as error:
            troubles[name] = error.trouble
    return found, troubles


@dataclass(frozen=True, slots=True)
class _Ways:
    console: Console
    lookup: Lookup
    local: Local
    accept_new: bool

    def entry(self, name: str, trail: tuple[str, ...]) -> Login:
        """Return the login of an entry; `trail` are the hosts that are reached through it."""
        entry = self.console.ssh_for(name)
        options = self.lookup(entry.host)
        trail = _longer(trail, name)
        if entry.jump == "none":
            jumps: tuple[Login, ...] = ()
        elif entry.jump:
            jumps = self._through(entry.jump, trail)
        else:
            jumps = self._proxies(entry.host, options, trail)
        password = self._password(entry)
        return Login(
            name=name,
            host=str(options.get("hostname", entry.host)),
            port=entry.port or _port(entry.host, options),
            user=entry.username or str(options.get("user", self.local.user)),
            ways=self._ways(entry, password, options),
            password=password,
            sudo=entry.sudo or "auto",  # type: ignore[arg-type]  # its form allows no other
            host_key=entry.host_key,
            connect_timeout_s=entry.connect_timeout_s or _timeout(options),
            jumps=jumps,
            **self._known(options),
        )

    def _host(self, text: str, trail: tuple[str, ...], jumps: tuple[Login, ...] | None = None) -> Login:
        """Return the login of a host that is only written out, in a jump; None for its own way: the configured one."""
        try:
            user, host, port = split_jump(text.removeprefix("ssh://").rstrip("/"))
        except ValueError:
            raise AccessError(f"{quote(text)} is no host to go through", "write it like user@host:22") from None
        options = self.lookup(host)
        trail = _longer(trail, text)
        return Login(
            name=text,
            host=str(options.get("hostname", host)),
            port=port or _port(host, options),
            user=user or str(options.get("user", self.local.user)),
            ways=self._usual_ways(options),
            sudo="none",
            connect_timeout_s=_timeout(options),
            jumps=self._proxies(host, options, trail) if jumps is None else jumps,
            **self._known(options),
        )

    def _through(self, jump: str, trail: tuple[str, ...]) -> tuple[Login, ...]:
        if "@" in jump:
            last = self._host(jump, trail)
        elif jump in self.console.ssh:
            last = self.entry(jump, trail)
        else:
            raise AccessError(f"console.toml has no entry {quote(jump)} to go through", f"add [ssh.{jump}]")
        return (*last.jumps, last)

    def _proxies(self, host: str, options: Mapping[str, Any], trail: tuple[str, ...]) -> tuple[Login, ...]:
        """Return the hosts on the way that ~/.ssh/config names."""
        text = str(options.get("proxyjump", "none"))
        if text.lower() == "none":
            if str(options.get("proxycommand", "none")).lower() != "none":
                raise AccessError(
                    f"the ProxyCommand of {quote(host)} in your SSH configuration cannot be used",
                    "write ProxyJump there, or `jump` in console.toml",
                )
            return ()
        hops: tuple[Login, ...] = ()
        for number, hop in enumerate(text.split(",")):
            # As with OpenSSH, only the first of a list has a way of its own.
            found = self._host(hop.strip(), trail, hops if number else None)
            trail = _longer(trail, hop)
            hops = (*found.jumps, found)
        return hops

    def _password(self, entry: SshEntry) -> Source | None:
        if entry.password:
            return Given(entry.password)
        if entry.password_env:
            return Variable(entry.password_env)
        if entry.password_file:
            return FirstLine(self.console.beside(entry.password_file, self.local.home))
        return Output(entry.password_command) if entry.password_command else None

    def _ways(self, entry: SshEntry, password: Source | None, options: Mapping[str, Any]) -> tuple[Way, ...]:
        """Return the ways to log in, what console.toml names first.

        A password may be there for sudo alone, so it does not rule out the agent.
        """
        by_password = (Password(password),) if password else ()
        passphrase = Variable(entry.key_passphrase_env) if entry.key_passphrase_env else None
        if entry.key:
            return (KeyFile(self.console.beside(entry.key, self.local.home), passphrase), *by_password)
        return (*by_password, *self._usual_ways(options, passphrase))

    def _usual_ways(self, options: Mapping[str, Any], passphrase: Source | None = None) -> tuple[Way, ...]:
        named = options.get("identityfile") or _DEFAULT_KEYS
        names = [named] if isinstance(named, str) else list(named)
        files = tuple(KeyFile(self._path(str(name)), passphrase, optional=True) for name in names)
        return files if _is_yes(options, "identitiesonly") else (Agent(), *files)

    def _known(self, options: Mapping[str, Any]) -> dict[str, Any]:
        given = _split(str(options.get("userknownhostsfile", "")))
        files = [*given, _KNOWN_HOSTS[1]] if given else _KNOWN_HOSTS
        return {
            "known_hosts": tuple(self._path(name) for name in files if name.lower() != "none"),
            "known_as": str(options.get("hostkeyalias", "")),
            "accept_new": self.accept_new,
        }

    def _path(self, name: str) -> Path:
        return self.local.home / name.removeprefix("~/")


def _longer(trail: tuple[str, ...], name: str) -> tuple[str, ...]:
    if len(trail) > MAX_HOPS:
        shown = " <- ".join(trail[:3])
        raise AccessError(f"{shown} ... is reached through more than {MAX_HOPS} hosts", "is it a circle of jumps?")
    return (*trail, name)


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _is_yes(options: Mapping[str, Any], key: str) -> bool:
    return str(options.get(key, "no")).lower() in ("yes", "true")


def _port(host: str, options: Mapping[str, Any]) -> int:
    text = str(options.get("port", "22"))
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) <= 65535):
        raise AccessError(f"the Port of {quote(host)} in your SSH configuration is {quote(text)}", "give 1 to 65535")
    return int(text)


def _timeout(options: Mapping[str, Any]) -> float:
    text = str(options.get("connecttimeout", ""))
    return float(text) if text.isascii() and text.isdigit() and 0 < int(text[:6]) <= 600 else CONNECT_S
