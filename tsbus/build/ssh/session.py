"""Session: one logged-in connection to a server, which runs scripts as root."""

import shlex
import time
from collections.abc import Sequence
from typing import Final, Self

from tsbus.build.access import Login
from tsbus.build.ssh import dialogue, transport
from tsbus.build.ssh.authentication import authenticate
from tsbus.build.ssh.exchange import FOR_EVER, Exchange, Outcome, Source, Tell
from tsbus.build.ssh.shared import ServerTrouble, Shared
from tsbus.build.ssh.transport import Fault, OtherKind, Transport, fault
from tsbus.build.trouble import Failure, classify

RUN_S: Final = 60.0


class Session:
    """A connection. Its own thread uses it; `abort` is for any."""

    def __init__(self, login: Login, shared: Shared) -> None:
        self.login = login
        self.until = FOR_EVER
        """The time on the monotonic clock when all that is under way ends as a trouble."""
        self._shared = shared
        self._hops: list[Transport] = []
        self._aborted = False

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def __repr__(self) -> str:
        return f"Session({self.login.place})"

    @property
    def connected(self) -> bool:
        """Whether it can be used."""
        return bool(self._hops) and all(hop.is_active() for hop in self._hops)

    def connect(self) -> None:
        """Log in, through other hosts where need be. Raises ServerTrouble, Cancelled."""
        self._shared.acquire(self._shared.handshakes)
        try:
            for login in (*self.login.jumps, self.login):
                self._hop(login)
        except Fault as error:
            self.abort()
            raise self.trouble(error.failure) from error
        except BaseException:
            self.abort()
            raise
        finally:
            self._shared.handshakes.release()

    def abort(self) -> None:
        """Cut the connection, whoever uses it. It does not wait."""
        self._aborted = True
        for hop in self._hops:
            transport.end(hop)

    def run(
        self,
        script: str | Sequence[str],
        *,
        stage: str,
        what: str = "",
        stdin: bytes | Source | None = None,
        tell: Tell | None = None,
        hear: Tell | None = None,
        timeout_s: float = RUN_S,
        check: bool = True,
    ) -> Outcome:
        """Run a shell script, or a program with its arguments, and wait for its end.

        `stage` and `what` (the step in words) are for troubles. `tell` gets each line of output, masked; `hear`
        each of standard output as it came, for programs that read it. A script that is cut off before it has arrived
        whole does not run. Raises ServerTrouble, also for an exit status other than 0 with `check`; Cancelled.
        """
        text = script if isinstance(script, str) else shlex.join(script)
        rights: dialogue.Rights = "root-freely" if self.login.sudo == "none" else "root"
        try:
            if not self.connected:
                raise fault(self.login, EOFError(), stage=stage)
            exchange = Exchange(self._hops[-1], self.login, self._shared, self.until, stage, what, tell, hear)
            return exchange.run(text, stdin, rights, timeout_s, check=check)
        except Fault as error:
            raise self.trouble(error.failure) from error

    def trouble(self, failure: Failure) -> ServerTrouble:
        """Return the failure, classed, with no secret in it."""
        mask = self._shared.secrets.mask
        masked = Failure(
            failure.stage, failure.place, failure.type, failure.errno, mask(failure.text), failure.status,
            mask(failure.output), failure.command,
        )  # fmt: skip
        return ServerTrouble(classify(masked))

    # Inside.

    def _hop(self, login: Login) -> None:
        """Go one host further."""
        other: OtherKind | None = None
        without: set[str] = set()
        while True:
            until = min(self.until, time.monotonic() + login.connect_timeout_s)
            if self._hops:
                before = self.login.jumps[len(self._hops) - 1]
                link = transport.through(self._hops[-1], before, login, until)
            else:
                link = transport.dial(login, self._shared, until)
            try:
                hop = transport.shake_hands(login, link, self._shared, until, without)
                break
            except OtherKind as error:
                other = other or error
                without.add(error.shown)
            except Fault:
                if other:  # it has no further kind
                    raise other from None
                raise
        self._hops.append(hop)
        if self._aborted:
            self._shared.check()
            raise fault(login, EOFError())
        authenticate(hop, login, self._shared)
