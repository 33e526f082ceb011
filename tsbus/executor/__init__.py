"""The executor: runs programs on a node for those whom the node's policy allows, and for events.

jobs.py decides, process.py runs programs, handlers.py answers events, service.py joins them to the bus.
docs/executor.md is the page for users.
"""
