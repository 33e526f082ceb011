"""Containers: the monitor of a node's Docker engine.

monitor.py decides what happened, facts.py reads the engine's words, engine.py talks to it; sampler.py works out
figures, cgroup.py reads the kernel's counters; orders.py understands what callers want, notation.py how containers are
described, policy.py decides what may be made; service.py joins them to the bus. docs/containers.md is for users.
"""
