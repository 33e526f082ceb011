"""Tests of the dashboard use the trees of real processes that the system tests have."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "system"))
