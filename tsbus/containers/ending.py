"""Ending: ends a program in a container whose caller is gone. An edge.

The engine has no call for that, so `docker exec` leaves such programs behind. Where the engine is on this machine its
process can be seen, and a signal reaches it.
"""

import os
import select
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

GRACE_S: Final = 2.0
"""Between SIGTERM and SIGKILL."""


def end_program(pid: int, container: str) -> bool:
    """End the process `pid` if it is one of `container` (its whole id), within GRACE_S. Returns whether it could."""
    with suppress(OSError):
        # The descriptor is of this process whatever becomes of its number; then its cgroup tells whose it is.
        process = os.pidfd_open(pid)
        try:
            if container.encode() not in Path(f"/proc/{pid}/cgroup").read_bytes():
                return False
            signal.pidfd_send_signal(process, signal.SIGTERM)
            if not select.select([process], [], [], GRACE_S)[0]:
                signal.pidfd_send_signal(process, signal.SIGKILL)
            return True
        finally:
            os.close(process)
    return False
