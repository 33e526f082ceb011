"""The command lines: one module for each command, thin layers over the public client and configuration.

edge.py is where errors become one line and an exit code, terminal.py how text looks; treeview.py and report.py decide
what is shown and are pure.
"""
