#!/usr/bin/env python3
"""The container monitor of a node: watches and controls its engine (docs/containers.md). supervisord starts it."""

import sys

from tsbus.containers.main import main

if __name__ == "__main__":
    sys.exit(main())
