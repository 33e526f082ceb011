"""Shifted: runs a Python program on a machine whose clock is wrong: `python shifted.py SECONDS PROGRAM ARGUMENTS`."""

import runpy
import sys
import time

ahead_s = int(sys.argv[1])
right, right_ns = time.time, time.time_ns
time.time = lambda: right() + ahead_s
time.time_ns = lambda: right_ns() + ahead_s * 10**9
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
