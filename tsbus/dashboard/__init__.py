"""The dashboard: one model of the tree as it is now, in a browser, for Prometheus and for programs.

docs/dashboard.md says which module does what.
"""
