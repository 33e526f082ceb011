#!/usr/bin/env python3
"""The router of a node: what supervisord starts first (DESIGN section 4)."""

import sys

from tsbus.early import main

if __name__ == "__main__":
    sys.exit(main())
