"""Lb: `treescale lb`, the balancers of the tree.

They are asked and told through the worker `lb` of their nodes (docs/balancer.md); nothing here knows a kernel.
"""
