"""TreeScale: a tree of servers on an always-alive ZeroMQ bus."""

__version__ = "0.1.0"
