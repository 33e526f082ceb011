#!/usr/bin/env python3
"""The event listener of a node's supervisord: puts starts and ends of its programs on the bus (DESIGN section 4)."""

import sys

from tsbus.supervision.listener import main

if __name__ == "__main__":
    sys.exit(main())
