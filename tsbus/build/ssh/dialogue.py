"""Dialogue: how a script gets into a shell on a server, as root, and what the answers mean. Pure.

The command of the channel is constant but for a mark that nobody can guess. It becomes root if need be, says that it
is ready, reads the script from standard input up to the mark, and only then runs it: half a script never runs. What
comes after the script is the script's own standard input.

sudo asks with the mark in its prompt, so a password is sent only when sudo wants it, once, and never to a shell that
would take it for a command. Secrets and scripts are in no argument.
"""

from typing import Final, Literal

READY: Final = "ready"
ASK: Final = "password"
END: Final = "end"
MAX_NOISE: Final = 65_536
"""Bytes of what comes before the shell is ready, greetings for one; more is no greeting."""

# The user's login shell, of whatever kind, sees only words in single quotes without quotes, backslashes in front of
# these, line ends or exclamation marks: sh, csh and fish agree on them.
_SHELL: Final = (
    'LC_ALL=C; PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin; export LC_ALL PATH; umask 022; echo "$0 ready"; '
    'n=$(printf "\\nx"); n=${n%x}; s=; while IFS= read -r l; do [ "$l" = "$0 end" ] && { eval "$s"; exit; }; '
    "s=$s$l$n; done; exit 1"
)
_AS_ROOT: Final = (
    'LC_ALL=C; export LC_ALL; if [ "$(id -u)" -eq 0 ]; then exec sh -c "$1" "$0"; fi; '
    'exec sudo -S -p "$0 password" sh -c "$1" "$0"'
)
_AS_ROOT_FREELY: Final = _AS_ROOT.replace('-S -p "$0 password"', "-n")

Rights = Literal["root", "root-freely"]
"""root-freely: sudo may not ask for a password."""


def command(mark: str, rights: Rights) -> str:
    """Return the command of the channel."""
    first = _AS_ROOT if rights == "root" else _AS_ROOT_FREELY
    return f"exec sh -c '{first}' {mark} '{_SHELL}'"


def script(mark: str, text: str) -> bytes:
    """Return what is sent when the shell is ready."""
    return f"{text.rstrip()}\n{mark} {END}\n".encode()


class Opening:
    """What a channel says until its shell is ready."""

    def __init__(self, mark: str) -> None:
        self._ready = f"{mark} {READY}\n".encode()
        self._ask = f"{mark} {ASK}".encode()
        self._out = b""
        self._err = b""

    def feed(self, out: bytes, err: bytes) -> bytes | None:
        """Take output; returns what the script itself has said already once the shell is ready, else None."""
        self._out += out
        self._err += err
        before, ready, after = self._out.partition(self._ready)
        if ready:
            return after
        self._out = before[-MAX_NOISE:]
        self._err = self._err[-MAX_NOISE:]
        return None

    @property
    def asked(self) -> int:
        """How often sudo has asked for the password."""
        return self._err.count(self._ask)

    @property
    def said(self) -> str:
        """What people should see of it."""
        text = (self._out + b"\n" + self._err).replace(self._ask, b"\n")
        return text.decode("utf-8", "replace").strip()
