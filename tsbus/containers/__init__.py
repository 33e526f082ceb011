"""Containers: the monitor of a node's Docker engine, which also acts on it for callers.

What the engine says     facts.py, transitions.py, monitor.py with inspections.py, and contact.py decide what telling.py
                         tells; watch.py is the edge
How it is talked to      engine.py; below it api.py, wire.py, streams.py, framing.py, trouble.py, imagenames.py;
                         threads.py for the loop
What callers want        orders.py, notation.py, policy.py, naming.py, pulling.py decide; desk.py, asking.py,
                         acting.py, output.py and ending.py act
What containers take     kernel.py and sampler.py decide; cgroup.py reads, stats.py joins them, measuring.py tells
All on the bus           service.py, main.py

docs/containers.md is for users.
"""
