"""Places: where everything of a node is, whose it is, and with which rights. docs/build.md has the tables."""

from collections.abc import Mapping
from typing import Final

from tsbus.build.facts import Stat

ROOT: Final = "/opt/treescale"
ETC: Final = "/etc/treescale"
CONFIG: Final = f"{ETC}/treescale.toml"
KEY: Final = f"{ETC}/node.key"
SUPERVISOR: Final = f"{ETC}/supervisord.conf"
DASHBOARD_USERS: Final = f"{ETC}/dashboard-users.json"
MANIFEST: Final = "/var/lib/treescale/manifest.json"
UNITS: Final[Mapping[str, str]] = {
    "systemd": "/etc/systemd/system/treescale.service",
    "openrc": "/etc/init.d/treescale",
}
MODULES_FILE: Final = "/etc/modules-load.d/treescale.conf"
SETTINGS_FILE: Final = "/etc/sysctl.d/90-treescale.conf"

USER: Final = "treescale"
DOCKER_USER: Final = "treescale-docker"
EXEC_USER: Final = "treescale-exec"
DASHBOARD_USER: Final = "treescale-dashboard"
USERS: Final = (USER, DOCKER_USER, EXEC_USER)
"""Those of every node; where there is a dashboard, it has its own."""

FOLDERS: Final[Mapping[str, Stat]] = {
    ROOT: Stat(0o755, "root", "root"),
    f"{ROOT}/releases": Stat(0o755, "root", "root"),
    ETC: Stat(0o750, "root", USER),
    f"{ETC}/conf.d": Stat(0o750, "root", USER),
    "/var/lib/treescale": Stat(0o750, "root", "root"),
    # The group may read logs. Only root may make files where root writes: somebody else could put a link there.
    "/var/log/treescale": Stat(0o2750, "root", USER),
    "/var/log/treescale/docker": Stat(0o2750, DOCKER_USER, USER),
}
"""What a build makes; /run/treescale is made by the unit at each start."""
DASHBOARD_FOLDERS: Final = {"/var/lib/treescale-dashboard": Stat(0o750, DASHBOARD_USER, USER)}
"""And where there is a dashboard: for its `history_file`."""
FILES: Final[Mapping[str, Stat]] = {
    CONFIG: Stat(0o640, "root", USER),
    SUPERVISOR: Stat(0o600, "root", "root"),
    KEY: Stat(0o600, USER, USER),
    DASHBOARD_USERS: Stat(0o600, DASHBOARD_USER, USER),
}
NOBODY: Final = "{}\n"
"""The first text of DASHBOARD_USERS: whoever is local to a server must not see a tree for that alone."""


def plain(stat: Stat) -> dict[str, str]:
    """Return rights as plain data."""
    return {"mode": f"{stat.mode:04o}", "user": stat.user, "group": stat.group}
