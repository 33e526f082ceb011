#!/usr/bin/env python3
"""The executor of a node: runs programs for callers and for events (docs/executor.md). supervisord starts it."""

import sys

from tsbus.executor.main import main

if __name__ == "__main__":
    sys.exit(main())
