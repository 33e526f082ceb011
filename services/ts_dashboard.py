#!/usr/bin/env python3
"""The dashboard of a node: its tree in a browser and for programs (docs/dashboard.md). supervisord starts it."""

import sys

from tsbus.dashboard.main import main

if __name__ == "__main__":
    sys.exit(main())
