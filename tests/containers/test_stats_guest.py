"""The same statistics on a machine with cgroup v2 alone: tests of test_stats_real under a kernel of their own."""

import pytest
from test_stats_real import (  # noqa: F401 - pytest finds the tests and fixtures here
    boxes,
    cgroups,
    engine,
    host,
    loaded,
    test_kills_for_want_of_memory_are_counted,
    test_memory_agrees_with_docker_stats,
    test_our_totals_enclose_the_engines,
    test_without_descriptors_files_are_opened_each_time,
)

pytestmark = pytest.mark.guest("docker")
