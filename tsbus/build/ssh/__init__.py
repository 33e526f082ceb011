"""SSH: the edge between the console and its servers, and the only home of paramiko.

A `Session` is one logged-in connection: it runs scripts as root. Everything that can go wrong comes
out as a `ServerTrouble`. What all sessions of a run share, from secrets to limits, is in `Shared`; the runner
(runner.py) has many sessions at once.

transport.py makes connections, authentication.py logs in, dialogue.py says what a shell is told and what its answers
mean (pure), session.py puts them together; client_config.py reads ~/.ssh/config.
"""

from tsbus.build import NotAConsole

try:
    import paramiko  # noqa: F401
except ModuleNotFoundError as error:
    mend = "build from one, or make one of it: pip install paramiko"
    raise NotAConsole(f"this machine is no console, {error.name} is not installed; {mend}", name=error.name) from error

from tsbus.build.ssh.client_config import client_config
from tsbus.build.ssh.exchange import Outcome
from tsbus.build.ssh.session import Session
from tsbus.build.ssh.shared import Cancelled, ServerTrouble, Shared

__all__ = ["Cancelled", "Outcome", "ServerTrouble", "Session", "Shared", "client_config"]
