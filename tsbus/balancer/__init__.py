"""The balancer: the kernel's layer-4 load balancing, following containers and child servers.

table.py has the values of a kernel's table; plan.py and its neighbours decide what it should hold, steps.py how to get
there without an empty moment; ipvs.py changes the kernel. docs/balancer.md is the reference.
"""
