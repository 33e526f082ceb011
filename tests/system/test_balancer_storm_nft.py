"""The same storm with nftables and an engine, in namespaces of this machine's kernel."""

from machines import NftMachines
from storm import storm


def test_storm_with_nftables() -> None:
    """No client notices starts and drains, only its own clients that a container is killed; nothing is left over."""
    with NftMachines() as site:
        storm(site, 10)
