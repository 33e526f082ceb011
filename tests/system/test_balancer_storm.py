"""A storm among the containers of a balancer, with IPVS in a guest."""

import pytest
from machines import Machines
from storm import storm

pytestmark = pytest.mark.guest("docker")


def test_storm(site: Machines) -> None:
    """No client notices starts and drains, only its own clients that a container is killed; nothing is left over."""
    storm(site, 15)
