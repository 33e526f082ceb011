"""Pages: the screens, one module each (docs/dashboard.md, Screens)."""

from nicegui import ui

from tsbus.dashboard.web.site import Site


def install(site: Site) -> None:
    """Make the pages of a site known to NiceGUI."""

    @ui.page("/")
    def tree() -> None:
        ui.label(f"{site.feed.model.here} sees {len(site.feed.model.nodes)} nodes")
