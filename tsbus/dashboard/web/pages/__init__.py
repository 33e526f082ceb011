"""Pages: the screens, one module each, in a frame (docs/dashboard.md, Screens)."""

from tsbus.dashboard.web.pages.frame import install

__all__ = ["install"]
