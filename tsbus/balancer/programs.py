"""Programs: runs the host's own tools for packet rules, by argument list, and says in typed errors what went wrong."""

import re
import subprocess
from pathlib import Path
from typing import Final

LIMIT_S: Final = 10.0
"""How long a tool may take. One that waits for another's lock is slow, not stuck."""
_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
"""Where the tools are. Services may have been started with a shorter one."""
_PACKAGES: Final = {"nft": "nftables"}
_NOT_ALLOWED: Final = re.compile(r"permission denied|operation not permitted|must be root", re.IGNORECASE)
_NO_TABLE: Final = re.compile(r"unable to initialize table", re.IGNORECASE)
"""iptables of the legacy kind says no more, when its module is missing or when it may not open a raw socket."""
_CAP_NET_RAW: Final = 13
_NO_FEATURE: Final = re.compile(
    r"can't initialize|missing kernel module|not supported|no such file or directory|no chain",
    re.IGNORECASE,
)


class HostError(Exception):
    """The host refused a setting or a rule. `text` says what, `mend` what to do."""

    def __init__(self, text: str, mend: str) -> None:
        super().__init__(f"{text}: {mend}")
        self.text = text
        self.mend = mend


class NoProgram(HostError):
    """A tool is not installed."""


class NotAllowed(HostError):
    """This process may not change it."""


class NoFeature(HostError):
    """The kernel lacks what is needed, or a module is not loaded."""


class Failed(HostError):
    """A tool failed for another reason; the text has its words."""


def run(*words: str, text: str = "") -> str:
    """Return what a tool writes, `text` being its input.

    Raises NoProgram, NotAllowed, NoFeature or Failed.
    """
    environment = {"PATH": _PATH, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            words, input=text, capture_output=True, text=True, check=False, timeout=LIMIT_S, env=environment
        )
    except FileNotFoundError as error:
        package = _PACKAGES.get(words[0], "iptables")
        raise NoProgram(f"{words[0]} is not installed", f"`apt-get install {package}`") from error
    except subprocess.TimeoutExpired as error:
        text = f"{words[0]} did not end in {LIMIT_S:g} s"
        raise Failed(text, "see whether another tool holds its lock") from error
    if done.returncode == 0:
        return done.stdout
    raise refusal(words[0], done.stderr or done.stdout)


def refusal(tool: str, words: str) -> HostError:
    """Return what the words mean with which a tool refused."""
    said = f"{tool}: {' '.join(words.split())[:300]}"
    no_table = _NO_TABLE.search(said) is not None
    if _NOT_ALLOWED.search(said) or (no_table and not _may_open_raw_sockets()):
        raw = ", and CAP_NET_RAW, which iptables of the legacy kind needs" if "tables" in tool else ""
        return NotAllowed(said, f"run the balancer as root with CAP_NET_ADMIN{raw}")
    if no_table or _NO_FEATURE.search(said):
        return NoFeature(said, "the kernel lacks it: load its module")
    return Failed(said, "see what else changes the rules of this host")


def _may_open_raw_sockets() -> bool:
    status = Path("/proc/thread-self/status").read_text()
    (effective,) = re.findall(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(int(effective, 16) >> _CAP_NET_RAW & 1)
