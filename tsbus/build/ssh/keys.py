"""Keys: private keys of the console, from files and from the agent."""

import base64
import binascii
import os
import socket
import threading
from pathlib import Path
from typing import Any, Final

import paramiko
from paramiko.agent import AgentSSH

from tsbus.build.access import KeyFile
from tsbus.build.secrets import Secrets, SecretUnavailable

AGENT_S: Final = 30.0
"""How long the agent may take: it may have to ask somebody."""
_CLASSES: Final[dict[str, Any]] = {
    "ssh-ed25519": paramiko.Ed25519Key,
    "ssh-rsa": paramiko.RSAKey,
    "RSA": paramiko.RSAKey,
    "EC": paramiko.ECDSAKey,
    **{f"ecdsa-sha2-nistp{bits}": paramiko.ECDSAKey for bits in (256, 384, 521)},
}
_MAGIC: Final = b"openssh-key-v1\0"


class UnusableKey(Exception):
    """A key file that cannot be used; the text says why."""


class Keys:
    """The private keys in files, each read once: to open one with a passphrase takes a fifth of a second of CPU."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._lock = threading.Lock()
        self._loading: dict[KeyFile, threading.Lock] = {}
        self._loaded: dict[KeyFile, Any] = {}

    def load(self, file: KeyFile) -> Any:
        """Return the key in a file. Raises UnusableKey, and FileNotFoundError where there is none."""
        with self._lock:
            loading = self._loading.setdefault(file, threading.Lock())
        with loading:
            if file not in self._loaded:
                try:
                    self._loaded[file] = self._load(file)
                except (UnusableKey, FileNotFoundError) as error:
                    self._loaded[file] = error
        found = self._loaded[file]
        if isinstance(found, Exception):
            raise type(found)(*found.args)
        return found

    def _load(self, file: KeyFile) -> Any:
        try:
            text = file.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise
        except (OSError, UnicodeDecodeError) as error:
            raise UnusableKey(getattr(error, "strerror", None) or "it is no text") from None
        kind = kind_of(text)
        if kind not in _CLASSES:
            raise UnusableKey(_why_not(kind))
        try:
            return _open(_CLASSES[kind], file.path, None)
        except paramiko.PasswordRequiredException:
            pass
        if file.passphrase is None:
            raise UnusableKey("it has a passphrase: add it to the agent, or name a key_passphrase_env")
        try:
            passphrase = self._secrets.get(file.passphrase).reveal()
        except SecretUnavailable as error:
            raise UnusableKey(str(error)) from None
        return _open(_CLASSES[kind], file.path, passphrase)


def _open(key_class: Any, path: Path, passphrase: str | None) -> Any:
    try:
        key = key_class.from_private_key_file(str(path), passphrase)
    except paramiko.PasswordRequiredException:
        raise
    except Exception as error:  # whatever the cryptography below makes of it
        wrong = "the passphrase is wrong" if passphrase is not None else "it cannot be read"
        raise UnusableKey(f"{wrong} ({type(error).__name__})") from None
    certificate = path.with_name(f"{path.name}-cert.pub")
    if certificate.exists():
        try:
            key.load_certificate(str(certificate))
        except Exception as error:
            raise UnusableKey(f"its certificate cannot be read ({type(error).__name__})") from None
    return key


def kind_of(text: str) -> str:
    """Return what kind of key a file holds: as in a public key, or the first word of an older header."""
    lines = text.strip().splitlines()
    header = lines[0].strip("- ") if lines else ""
    if header != "BEGIN OPENSSH PRIVATE KEY":
        return header.removeprefix("BEGIN ").removesuffix("PRIVATE KEY").strip() or header
    blob = _public_blob("".join(lines[1:-1]))
    return blob[4 : 4 + int.from_bytes(blob[:4])].decode("ascii", "replace")


def _public_blob(encoded: str) -> bytes:
    """Return the public half, which stands in the clear in a file of OpenSSH's form; empty where it does not."""
    try:
        data = base64.b64decode(encoded)
    except binascii.Error:
        return b""
    if not data.startswith(_MAGIC):
        return b""
    rest = data[len(_MAGIC) :]
    for _ in range(3):  # cipher, key derivation, its options
        rest = rest[4 + int.from_bytes(rest[:4]) :]
    rest = rest[4:]  # how many keys: always one
    return rest[4 : 4 + int.from_bytes(rest[:4])]


def public_half(path: Path) -> bytes:
    """Return the public half of the key in a file without opening it, for the agent may have it; empty if unknown."""
    try:
        words = path.with_name(f"{path.name}.pub").read_text(encoding="utf-8").split()
        return base64.b64decode(words[1])
    except (OSError, ValueError, IndexError):
        pass
    try:
        return _public_blob("".join(path.read_text(encoding="utf-8").strip().splitlines()[1:-1]))
    except (OSError, ValueError):
        return b""


def _why_not(kind: str) -> str:
    if kind.startswith("sk-"):
        return "keys on security tokens work only through the agent: ssh-add it"
    if kind == "ENCRYPTED" or kind.endswith("PRIVATE KEY"):
        return "its form is PKCS #8: ssh-keygen -p -f FILE rewrites it"
    return f"{kind[:40]!r} is no kind of key that can be used"


class Agent(AgentSSH):  # type: ignore[misc]  # the library has no types
    """The agent of the user, if there is one that answers."""

    def __init__(self) -> None:
        super().__init__()
        self.problem = ""
        """Why there are no keys."""
        path = os.environ.get("SSH_AUTH_SOCK")
        if not path:
            self.problem = "there is none"
            return
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(AGENT_S)
        try:
            link.connect(path)
            self._connect(link)
        except (OSError, paramiko.SSHException, ValueError) as error:
            link.close()
            self.problem = f"it does not answer ({type(error).__name__})"
        else:
            self.problem = "" if self.get_keys() else "it has no keys"

    def close(self) -> None:
        """Let go of it."""
        self._close()
