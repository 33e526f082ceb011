#!/usr/bin/env python3
"""The balancer of a node: keeps its kernel's load balancer in step (docs/balancer.md). supervisord starts it."""

import sys

from tsbus.balancer.main import main

if __name__ == "__main__":
    sys.exit(main())
