"""Cost: what a process takes of the machine, for the counters that it tells. An edge."""

import os
import resource
from typing import Any


def own_cost() -> dict[str, Any]:
    """Return `cpu_s`, the CPU that this process has taken, and `rss_bytes`, the memory that it has now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm") as file:  # noqa: PTH123  (a file of the kernel)
        pages = int(file.read().split()[1])
    return {"cpu_s": round(usage.ru_utime + usage.ru_stime, 3), "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE")}
