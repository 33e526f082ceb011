"""Containers: `treescale container`, `image` and `docker`, made of docs/containers.md and the public client only.

finding.py says which containers a name means on which nodes, acts.py follows what is done to them; every other module
is a command or a few that belong together.
"""
