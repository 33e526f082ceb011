"""Keys: CURVE key pairs, in memory and in files (protocol 1.2)."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import zmq

from tsbus.transport.options import Socket, TransportError


@dataclass(frozen=True, slots=True)
class Curve:
    """Keys of one side of a connection, Z85 text of 40 characters each. The secret never shows."""

    public: str
    secret: str
    server: str = ""
    """The public key that the other side must have (for those who connect)."""

    def __repr__(self) -> str:
        return f"Curve(public={self.public!r}, server={self.server!r})"


def as_client(socket: Socket, keys: Curve) -> None:
    """Let a socket that connects prove that it has `keys`, and want the other side to have `keys.server`."""
    socket.curve_publickey = keys.public.encode()
    socket.curve_secretkey = keys.secret.encode()
    socket.curve_serverkey = keys.server.encode()


def as_server(socket: Socket, keys: Curve) -> None:
    """Let a socket that is bound take only those whose key the ZAP handler lets in."""
    socket.curve_server = True
    socket.curve_publickey = keys.public.encode()
    socket.curve_secretkey = keys.secret.encode()
    socket.zap_domain = b"treescale"


def new_keypair() -> tuple[str, str]:
    """Return a new (public, secret) pair as Z85 text."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def public_of(secret: str) -> str:
    """Return the public key that belongs to a secret one. Raises TransportError when it is no key."""
    try:
        return zmq.curve_public(secret.encode()).decode()
    except (ValueError, zmq.ZMQError) as error:
        raise TransportError(f"not a secret key of 40 Z85 characters: {error}") from None


def read_secret(path: str | os.PathLike[str]) -> str:
    """Read a secret key file: one line. Raises TransportError when it is missing, no key, or readable by others."""
    file = Path(path)
    try:
        mode = file.stat().st_mode
        secret = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TransportError(f"no secret key at {file}: {error}; make one with: treescale keys new {file}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise TransportError(f"{file} can be read by others (mode {mode & 0o777:04o}); do: chmod 600 {file}")
    public_of(secret)
    return secret


def own_secret(path: str | os.PathLike[str], public_key: str) -> str:
    """Read the secret key that belongs to `public_key`: that in the file, or else the next one beside it, PATH.next.

    So the configuration alone says when a node goes on with its next key (docs/build.md, Keys). Where neither fits, and
    where there is no `public_key`, it is that in the file. Raises TransportError like `read_secret`.
    """
    secret, following = read_secret(path), next_key(path)
    if public_key not in ("", public_of(secret)) and following.exists():
        other = read_secret(following)
        return other if public_of(other) == public_key else secret
    return secret


def next_key(path: str | os.PathLike[str]) -> Path:
    """Return where the key is that follows the one at `path`."""
    return Path(f"{os.fspath(path)}.next")
