"""Runner: does a job on many servers at the same time, each over its own session.

Threads work, the caller draws: all that happens comes out of one queue, in `Runner.each`. A server whose connection
fails is tried again after a while; whatever else is wrong with one is final, and holds up no other.
"""

import queue
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from tsbus.build.access import Login
from tsbus.build.ssh import Cancelled, ServerTrouble, Session, Shared
from tsbus.build.trouble import Failure, Kind, Trouble, classify

PARALLEL: Final = 32
DEADLINE_S: Final = 1800.0
AGAIN: Final[frozenset[Kind]] = frozenset({"name", "refused", "unreachable", "timeout", "lost"})
"""What may be over soon, and hurts nobody when it is tried again. A wrong password would lock the account."""
_MAX_NEWS: Final = 10_000
"""News that nobody has drawn; then those who have more wait."""
_GOODBYE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and after how long, a server is tried again."""

    tries: int = 3
    first_s: float = 1.0
    most_s: float = 15.0
    growth: float = 4.0

    def delay_s(self, failed: int, chance: float) -> float:
        """Return how long to wait after `failed` tries; `chance`, 0 to 1, keeps servers from coming all at once."""
        longest = min(self.most_s, self.first_s * self.growth**failed)
        return self.first_s + (longest - self.first_s) * chance

    def after(self, failed: int, trouble: Trouble) -> float | None:
        """Return how long to wait after so many tries, the last of which ended so; None: it is not tried again."""
        if failed >= self.tries or not trouble.again or trouble.kind not in AGAIN:
            return None
        return self.delay_s(failed, random.random())  # noqa: S311  (no secret)


@dataclass(frozen=True, slots=True)
class Begun:
    """Somebody works on the server."""

    name: str


@dataclass(frozen=True, slots=True)
class Again:
    """The server will be tried again."""

    name: str
    trouble: Trouble
    delay_s: float


@dataclass(frozen=True, slots=True)
class Told:
    """What the job has told by its second argument."""

    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class Done:
    """The job has gone well."""

    name: str
    value: Any
    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The job has not."""

    name: str
    trouble: Trouble
    seconds: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """Too many others have failed, so the server was not begun."""

    name: str


News = Begun | Again | Told | Done | Failed | Skipped
Job = Callable[[Session, Callable[[Any], None]], Any]
"""Gets a session that is logged in, and a function that tells the caller something: a step, bytes of an upload."""


class Runner:
    """The servers of a run and their sessions, which stay from one job to the next."""

    def __init__(
        self, logins: Mapping[str, Login], shared: Shared, *, parallel: int = PARALLEL, retry: Retry | None = None
    ) -> None:
        self._logins = logins
        self._shared = shared
        self._parallel = parallel
        self._retry = retry or Retry()
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def each(
        self, names: Collection[str], job: Job, *, deadline_s: float = DEADLINE_S, max_fail: int | None = None
    ) -> Iterator[News]:
        """Do `job` on these servers, and yield what happens, in the end one Done, Failed or Skipped for each.

        `deadline_s`: for a server, all its tries together. `max_fail`: failures after which no further server is begun.
        Who stops listening, by Ctrl-C for one, cancels the run: all its connections are cut within a second, and
        nothing can be done with it any more.
        """
        if not names:
            return
        work = _Work(self, job, deadline_s, max_fail)
        for name in names:
            work.waiting.put(name)
        threads = [
            threading.Thread(target=work.run, name=f"build-{number}", daemon=True)
            for number in range(min(self._parallel, len(names)))
        ]
        left = len(names)
        try:
            for thread in threads:
                thread.start()
            while left:
                news = work.news.get()
                left -= isinstance(news, Done | Failed | Skipped)
                yield news
        finally:
            if left:
                self.cancel()
            end = time.monotonic() + _GOODBYE_S
            for thread in threads:
                if thread.is_alive():
                    thread.join(max(0.0, end - time.monotonic()))

    def cancel(self) -> None:
        """Cut all connections; whoever waits for anything stops waiting."""
        self._shared.cancelled.set()
        self.close()

    def close(self) -> None:
        """Cut all connections."""
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            session.abort()

    def session(self, name: str, until: float) -> Session:
        """Return the session of a server, logged in. Raises ServerTrouble, Cancelled."""
        with self._lock:
            session = self._sessions.get(name)
            if session is None or not session.connected:
                if session:
                    session.abort()
                session = self._sessions[name] = Session(self._logins[name], self._shared)
        session.until = until
        if not session.connected:
            session.connect()
        return session


class _Work:
    """One call of `each`."""

    def __init__(self, runner: Runner, job: Job, deadline_s: float, max_fail: int | None) -> None:
        self.waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.news: queue.Queue[News] = queue.Queue(_MAX_NEWS)
        self._runner, self._shared, self._retry = runner, runner._shared, runner._retry
        self._job, self._deadline_s, self._max_fail = job, deadline_s, max_fail
        self._failed: list[str] = []

    def run(self) -> None:
        """Work on one server after the other."""
        with suppress(queue.Empty, Cancelled):
            while True:
                self._serve(self.waiting.get_nowait())

    def _serve(self, name: str) -> None:
        if self._max_fail is not None and len(self._failed) >= self._max_fail:
            self._tell(Skipped(name))
            return
        begun = time.monotonic()
        self._tell(Begun(name))
        try:
            value = self._try(name, begun + self._deadline_s)
        except ServerTrouble as error:
            self._failed.append(name)
            self._tell(Failed(name, error.trouble, time.monotonic() - begun))
        else:
            self._tell(Done(name, value, time.monotonic() - begun))

    def _try(self, name: str, until: float) -> Any:
        failed = 0
        while True:
            try:
                return self._job(self._runner.session(name, until), lambda value: self._tell(Told(name, value)))
            except ServerTrouble as error:
                failed += 1
                trouble = error.trouble
                delay_s = self._retry.after(failed, trouble)
                if delay_s is None or time.monotonic() + delay_s >= until:
                    raise
            except (Cancelled, KeyboardInterrupt):
                raise
            except Exception as error:  # a fault of ours, on one server, ends no other's
                text = self._shared.secrets.mask(str(error))
                raise ServerTrouble(classify(Failure("step", name, type(error).__name__, text=text))) from error
            self._tell(Again(name, trouble, delay_s))
            if self._shared.cancelled.wait(delay_s):
                raise Cancelled

    def _tell(self, news: News) -> None:
        while True:
            self._shared.check()
            with suppress(queue.Full):
                self.news.put(news, timeout=0.1)
                return
