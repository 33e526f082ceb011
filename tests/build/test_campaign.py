"""The whole run of a build, on real servers: bare ones become a tree that answers, and then there is nothing to do."""

import pytest
from sites import Site


@pytest.fixture(scope="module")
def site(lab, tmp_path_factory):
    """Three servers: a, b below a, c below b."""
    targets = {name: lab.target() for name in "abc"}
    yield Site(targets, tmp_path_factory.mktemp("console"), lab.key)
    for target in targets.values():
        target.remove()


def test_bare_servers_become_a_tree_that_answers(site):
    """Everything goes well, and every node answers."""
    campaign = site.build()
    print(*site.said, sep="\n")
    print(campaign.outcome)
    assert campaign.outcome.exit_code == 0
    assert set(campaign.outcome.answered) == set("abc")
