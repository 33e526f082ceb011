"""Lock: nobody else builds meanwhile. A folder on the root's server, which its holder touches as long as it builds.

The holder keeps a session of its own, in which a script has made the folder and reads lines: one every BEAT_S, and one
at the end of the run, Ctrl-C included, upon which it takes the folder away. When the lines end without that, the holder
comes back and goes on; a console that was killed does not, and after STALE_S whoever comes next takes the folder over.
"""

import json
import shlex
import threading
import time
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass
from io import BytesIO
from queue import Empty, SimpleQueue
from secrets import token_hex
from typing import BinaryIO, Final

from tsbus.build.access import Login
from tsbus.build.jobs import Log
from tsbus.build.runner import Retry
from tsbus.build.ssh import Cancelled, ServerTrouble, Session, Shared
from tsbus.build.ssh.exchange import FOR_EVER
from tsbus.build.trouble import Failure, clean

PLACE: Final = "/run/treescale-build.lock"
"""/run is on every server, and empty after a start of the machine."""
BEAT_S: Final = 20.0
STALE_S: Final = 120.0
_HELD: Final = 73
"""Exit status: somebody else has it."""
_MAX_WORD: Final = 200
_GOODBYE_S: Final = 5.0
"""How long giving it back may take: that is a moment, where the connection has to be made anew a little more."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who builds."""

    user: str
    host: str
    """Of the console."""
    pid: int
    what: str
    since_s: float
    """When it began, in seconds since 1970 by the console's clock."""
    silent_s: float = 0.0
    """How long nothing has been heard of it, as the root's server sees it."""

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_s))
        return f"{self.user}@{self.host} (pid {self.pid}), {self.what}, since {since}"


_SCRIPT: Final = """
silent() {
  touched=$(stat -c %Y "$place/who" 2>/dev/null || stat -c %Y "$place" 2>/dev/null) || return
  echo $(($(date +%s) - touched))
}
held() { echo "held $(silent)"; cat "$place/who" 2>/dev/null; exit 73; }
is_stale() { age=$(silent); [ "${age:-0}" -gt "$stale" ]; }
is_mine() { grep -qs "$token" "$place/who"; }
sign() { printf '%s\\n' "$who" >"$place/who.$token" && mv -f "$place/who.$token" "$place/who"; }
"""
_TAKE: Final = """
umask 077
if ! mkdir "$place" 2>/dev/null && ! is_mine; then
  if [ -d "$place" ]; then
    # Of several that find it stale, one makes this folder; and then it may be fresh already.
    is_stale && mkdir "$place/taken" 2>/dev/null || held
    is_stale || { rmdir "$place/taken"; held; }
  else
    mkdir "$place" || exit  # given back just now, or it cannot be made
  fi
fi
sign || exit
rmdir "$place/taken" 2>/dev/null
echo have
while read -r word; do
  is_mine || held
  [ "$word" != over ] || { rm -rf "$place"; break; }
  touch "$place/who" && echo kept
done
exit 0
"""
_LOOK: Final = """
[ -d "$place" ] || exit 0
held
"""
_REMOVE: Final = """
[ -d "$place" ] || exit 0
if is_stale || [ "$force" = yes ]; then
  mkdir "$place.$token" && mv "$place" "$place.$token/" && rm -rf "$place.$token"
else
  held
fi
"""


class Lock:
    """The lock of one run. `take` and `release` are for one thread; the keeping has its own."""

    def __init__(self, login: Login, shared: Shared, holder: Holder, log: Log, retry: Retry = Retry()) -> None:  # noqa: B008
        """`login`: to the root's server; `holder`: who we are; `retry`: until the lock is there for the first time."""
        self._login, self._run, self._log, self._retry = login, shared, log, retry
        # Ctrl-C cuts all other connections of the run; on this one the lock is given back.
        self._shared = copy(shared)
        self._shared.cancelled = threading.Event()
        self._script = _script(_TAKE, json.dumps(asdict(holder)))
        self._released = threading.Event()
        self._answers: SimpleQueue[Holder | ServerTrouble | None] = SimpleQueue()
        self._has = False
        self._thread = threading.Thread(target=self._keep, name="build-lock", daemon=True)
        self._kept = 0.0
        self.lost_to: Holder | None = None
        """Who has it now, although we have not given it back: we were gone for too long."""

    @property
    def is_ours(self) -> bool:
        """Whether nobody can have taken it over since `take`."""
        return self._has and self.lost_to is None and time.monotonic() < self._kept + STALE_S

    def take(self) -> Holder | None:
        """Take it; returns who has it, None when it is ours. Raises ServerTrouble, Cancelled."""
        self._thread.start()
        while True:
            self._run.check()
            try:
                answer = self._answers.get(timeout=1.0)
            except Empty:
                continue
            if isinstance(answer, ServerTrouble):
                raise answer
            return answer

    def release(self) -> None:
        """Give it back. When its server cannot be reached any more, it goes stale by itself."""
        self._released.set()
        if self._thread.is_alive():
            self._thread.join(_GOODBYE_S)
        self._shared.cancelled.set()

    def _keep(self) -> None:
        last, failed = False, 0
        while True:
            try:
                with Session(self._login, self._shared) as session:
                    outcome = session.run(
                        self._script, stage="lock", what="take the lock", stdin=self._beats, hear=self._hear,
                        timeout_s=FOR_EVER, check=False,
                    )  # fmt: skip
                    if outcome.status not in (0, _HELD):
                        raise session.trouble(
                            Failure("lock", self._login.place, status=outcome.status, output=outcome.shown,
                                    command=f"make {PLACE}")
                        )  # fmt: skip
            except Cancelled:
                return
            except ServerTrouble as error:
                if not self._has:
                    failed += 1
                    delay_s = self._retry.after(failed, error.trouble)
                    if delay_s is None:
                        self._answers.put(error)
                        return
                    self._log(f"{error.trouble.text}; the lock is tried again in {delay_s:.0f} s")
                    if self._released.wait(delay_s):
                        return
                    continue
                if last:
                    return
                # The connection was lost: come back before it is stale, be it to give it back.
                last = self._released.wait(BEAT_S / 4)
            else:
                if outcome.status == _HELD:
                    self._held_by(_parse(outcome.out))
                    return
                if self._released.is_set():
                    return

    def _held_by(self, holder: Holder) -> None:
        if self._has:
            self.lost_to = holder
        else:
            self._answers.put(holder)

    def _hear(self, line: str) -> None:
        if line in ("have", "kept"):
            self._kept = time.monotonic()
        else:
            self._log(line)

    def _beats(self, line: str) -> BinaryIO:
        if line != "have":
            return BytesIO()
        if not self._has:
            self._has = True
            self._answers.put(None)
        return _Beats(lambda: self._shared.wait(self._released, time.monotonic() + BEAT_S))


class _Beats(BytesIO):
    """A line every BEAT_S, and the last one when the lock is released."""

    def __init__(self, wait_over: Callable[[], bool]) -> None:
        super().__init__()
        self._wait_over = wait_over
        self._ended = False

    def read(self, _size: int | None = -1) -> bytes:
        if self._ended:
            return b""
        self._ended = self._wait_over()
        return b"over\n" if self._ended else b"\n"


def look(session: Session) -> Holder | None:
    """Return who has the lock, None for nobody. Raises ServerTrouble, Cancelled."""
    outcome = session.run(_script(_LOOK), stage="lock", what="look at the lock", check=False)
    return _parse(outcome.out) if outcome.status == _HELD else None


def remove(session: Session, *, force: bool = False) -> Holder | None:
    """Remove a stale lock, or any with `force`; returns who has it still. Raises ServerTrouble, Cancelled."""
    head = f"force={'yes' if force else 'no'}\n"
    outcome = session.run(head + _script(_REMOVE), stage="lock", what="remove the lock", check=False)
    return _parse(outcome.out) if outcome.status == _HELD else None


def _script(body: str, who: str = "") -> str:
    values = {"place": PLACE, "stale": f"{STALE_S:.0f}", "token": token_hex(16), "who": who}
    values["who"] = f"{values['who']} {values['token']}"
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()) + _SCRIPT + body


def _parse(said: str) -> Holder:
    """Return who the server says it is; whatever it says, it is somebody."""
    first, _, rest = said.partition("held ")[2].partition("\n")
    silent_s = float(first) if first.isascii() and first.isdigit() else 0.0
    try:
        told = json.loads(rest.strip().rpartition(" ")[0])
        words = (clean(str(told[key]))[:_MAX_WORD] for key in ("user", "host"))
        user, host = words
        what = clean(str(told["what"]))[:_MAX_WORD]
        return Holder(user, host, int(told["pid"]), what, float(told["since_s"]), silent_s)
    except (ValueError, KeyError, TypeError, OverflowError):
        return Holder("somebody", "somewhere", 0, "who has not said more yet", time.time() - silent_s, silent_s)
