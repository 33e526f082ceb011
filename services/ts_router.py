#!/usr/bin/env python3
"""The router of a node: what supervisord starts first (DESIGN section 4)."""

import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # a reload may be asked for now; the loop lets it in

from tsbus.loop import main  # noqa: E402 - takes long beside a signal

if __name__ == "__main__":
    sys.exit(main())
