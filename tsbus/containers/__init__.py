"""Containers: the monitor of a node's Docker engine.

monitor.py decides what happened, facts.py reads the engine's words, engine.py talks to it; sampler.py works out figures,
cgroup.py reads the kernel's counters; orders.py understands what callers want, service.py is the worker.
"""
