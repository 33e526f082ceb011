"""Conf: the text of a node's supervisord.conf, and where everything of a node is. Pure.

supervisord.conf.example is made by `example` and compared with it by a test.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tsbus.config import Dashboard, Tree
from tsbus.supervision import SupervisionError

SERVICES = ("router", "executor", "docker", "events", "balancer", "dashboard")
"""All that a node may have: the balancer is for nodes with balancers, the dashboard where the configuration says so."""
USER = "treescale"
"""The name that goes with the password on supervisord's own socket; on a server, the user who is the router as well."""
DOCKER_USER = "treescale-docker"
EXEC_USER = "treescale-exec"
DASHBOARD_USER = "treescale-dashboard"
_PLAIN_PATH = re.compile(r"[\w./@+,=-]+")
_RETRIES = 1_000_000
"""FATAL for ever is wrong for a server. supervisord waits one second longer after each failed start."""
_NOTHING: Mapping[str, Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """Where the things of one node are."""

    run_dir: Path
    """Sockets and the pid file."""
    config: Path
    key: Path
    conf: Path
    """supervisord's configuration."""
    conf_dir: Path
    """Programs of the user's own, one file each."""
    log_dir: Path

    @classmethod
    def within(cls, folder: Path) -> "NodeFiles":
        """Return the files of a node that has everything in one folder. Raises SupervisionError if its path is unfit.

        supervisord reads its file with three quoting rules on top of each other; paths that none of them minds are
        simpler than escapes that all of them understand.
        """
        if not _PLAIN_PATH.fullmatch(str(folder)):
            raise SupervisionError(
                f"{folder}: only letters, digits and ./_@+,=- may stand in this path; choose another with --run-dir"
            )
        return cls(
            run_dir=folder,
            config=folder / "treescale.toml",
            key=folder / "node.key",
            conf=folder / "supervisord.conf",
            conf_dir=folder / "conf.d",
            log_dir=folder / "log",
        )

    @property
    def bus(self) -> Path:
        """The router's socket."""
        return self.run_dir / "bus"

    @property
    def control(self) -> Path:
        """The socket of supervisord itself."""
        return self.run_dir / "ctl"

    @property
    def pid_file(self) -> Path:
        """The pid of supervisord."""
        return self.run_dir / "supervisord.pid"

    @property
    def balancer_state(self) -> Path:
        """The state file of the balancer: while it is there, the kernel may balance for this node."""
        return self.run_dir / "lb-state.json"


SERVER_FILES = NodeFiles(
    run_dir=Path("/run/treescale"),
    config=Path("/etc/treescale/treescale.toml"),
    key=Path("/etc/treescale/node.key"),
    conf=Path("/etc/treescale/supervisord.conf"),
    conf_dir=Path("/etc/treescale/conf.d"),
    log_dir=Path("/var/log/treescale"),
)
"""Where they are on a server."""
SERVER_STATE = Path("/var/lib/treescale")
"""What the builds remember there."""
SERVER_PROGRAMS = Path("/opt/treescale/current/bin")
CONFINE = SERVER_PROGRAMS / "ts-confine"


def render(
    node: str,
    files: NodeFiles,
    commands: Mapping[str, Sequence[str]],
    *,
    password: str,
    max_files: int,
    as_root: bool,
    environments: Mapping[str, Mapping[str, str]] = _NOTHING,
) -> str:
    """Return the supervisord.conf of `node`.

    `commands` has the argv of each of SERVICES, without a balancer or dashboard where there is none; `max_files` is how
    many files its programs may open; `as_root` tells supervisord that running as root is meant; `environments` has
    variables of single services.

    Raises SupervisionError for commands that it could not read.
    """
    return f"""\
; The processes of node {node}, written by TreeScale: programs of your own go into {files.conf_dir}/NAME.conf.
; See them with: supervisorctl -c {files.conf} status

[supervisord]
identifier={node}
pidfile={files.pid_file}
logfile={files.log_dir}/supervisord.log
logfile_maxbytes=20MB
logfile_backups=5
childlogdir={files.log_dir}
umask=027
minfds={max_files}
{"user=root" if as_root else "; user=root  ; only where it must switch users"}
environment=
    TREESCALE_CONFIG="{files.config}",
    TREESCALE_KEY="{files.key}",
    TREESCALE_RUN_DIR="{files.run_dir}",
    TREESCALE_BUS="{files.bus}",
    TREESCALE_LOG_DIR="{files.log_dir}"

; Only on this socket, never on TCP.
[unix_http_server]
file={files.control}
chmod=0700
username={USER}
password={password}

[supervisorctl]
serverurl=unix://{files.control}
username={USER}
password={password}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

; Puts process.started, .exited, .stopped and .fatal on the bus, and tries again what is FATAL.
; Its standard output belongs to supervisord. The default buffer of 10 events overflows when all programs restart.
[eventlistener:events]
command={_command(commands["events"])}
environment=SUPERVISOR_PASSWORD="{password}"
events=PROCESS_STATE
buffer_size=1024
priority=5
autorestart=true
startsecs=1
startretries={_RETRIES}
umask=007
stdout_logfile=NONE
stderr_logfile={files.log_dir}/events.log
stderr_logfile_maxbytes=20MB
stderr_logfile_backups=5

; Owns the links to the node's parent and children and the socket {files.bus}.
[program:router]
command={_command(commands["router"])}
priority=10
{_lasting(files, "router", environments)}

; Runs the commands of `treescale exec`; what they leave behind stops with it.
[program:executor]
command={_command(commands["executor"])}
priority=30
stopasgroup=true
killasgroup=true
{_lasting(files, "executor", environments)}

; Watches and controls the containers of this machine. Without a Docker engine it waits for one.
[program:docker]
command={_command(commands["docker"])}
priority=30
{_lasting(files, "docker", environments)}
{_balancer(files, commands)}{_dashboard(files, commands)}
[include]
files={files.conf_dir}/*.conf
"""


def _balancer(files: NodeFiles, commands: Mapping[str, Sequence[str]]) -> str:
    if "balancer" not in commands:
        return ""
    return f"""
; Keeps the kernel's load balancer in step. Stopped, it leaves the kernel's table as it is.
[program:balancer]
command={_command(commands["balancer"])}
priority=30
{_lasting(files, "balancer")}
"""


def _dashboard(files: NodeFiles, commands: Mapping[str, Sequence[str]]) -> str:
    if "dashboard" not in commands:
        return ""
    return f"""
; Shows the tree from this node down, to browsers and programs.
[program:dashboard]
command={_command(commands["dashboard"])}
priority=40
{_lasting(files, "dashboard")}
"""


def render_worker(name: str, files: NodeFiles, command: Sequence[str], directory: Path) -> str:
    """Return the file for `conf_dir` that runs a worker of the user's own in `directory`."""
    if not re.fullmatch(r"[\w.-]+", name) or name in SERVICES:
        raise SupervisionError(f"{name!r} cannot be the name of a worker: take letters, digits and ._-, and not "
                               f"{', '.join(SERVICES)}")  # fmt: skip
    return f"""\
[program:{name}]
command={_command(command)}
directory={_escaped(str(directory))}
priority=50
stopasgroup=true
killasgroup=true
{_lasting(files, name)}
"""


def _lasting(files: NodeFiles, name: str, environments: Mapping[str, Mapping[str, str]] = _NOTHING) -> str:
    pairs = ",".join(f'{variable}="{value}"' for variable, value in environments.get(name, {}).items())
    environment = f"environment={pairs}\n" if pairs else ""
    return f"""\
{environment}autorestart=true
startsecs=1
startretries={_RETRIES}
stopwaitsecs=15
umask=007
redirect_stderr=true
stdout_logfile={files.log_dir}/{name}.log
stdout_logfile_maxbytes=20MB
stdout_logfile_backups=5"""


def _command(argv: Sequence[str]) -> str:
    return _escaped(shlex.join(argv))


def _escaped(text: str) -> str:
    if re.search(r"[\n\r]|\s[;#]", text):
        raise SupervisionError(f"supervisord cannot read a line break, ' ;' or ' #' in {text!r}; put it into a script")
    return text.replace("%", "%%")


def render_server(
    node: str, *, port: int, balancer: bool, dashboard: Dashboard | None = None, password: str = ""
) -> str:
    """Return the supervisord.conf of a server, where programs run as who they need to be (docs/build.md, On a node).

    `port` is the router's; `dashboard` has the settings of one that runs there. Without a password there is a place for
    one: it is made on the server.
    """

    def as_user(user: str, port: int = 0) -> list[str]:
        low_port = ["--keep", "net_bind_service"] if 0 < port < 1024 else []
        return [str(CONFINE), "--user", user, *low_port, "--"]

    before = {
        "router": as_user(USER, port),
        "docker": as_user(DOCKER_USER),
        "dashboard": as_user(DASHBOARD_USER, dashboard.port if dashboard else 0),
        # As root without the rights that go with it: for it too, the router's socket is that of the group.
        "balancer": [str(CONFINE), "--group", USER, "--keep", "net_admin", "--keep", "net_raw", "--"],
    }
    after = {"executor": ["--user", EXEC_USER]}
    missing = {"balancer": not balancer, "dashboard": dashboard is None}
    commands = {
        service: [*before.get(service, ()), str(SERVER_PROGRAMS / f"ts-{service}"), *after.get(service, ())]
        for service in SERVICES
        if not missing.get(service)
    }
    environments = {
        # Folders of their own: whoever may write where root writes could put a link there.
        "router": {"TREESCALE_RUN_DIR": f"{SERVER_FILES.run_dir}/router"},
        "docker": {"TREESCALE_LOG_DIR": f"{SERVER_FILES.log_dir}/docker"},
    }
    return render(node, SERVER_FILES, commands, password=password, max_files=16384, as_root=True,
                  environments=environments)  # fmt: skip


def render_servers(tree: Tree) -> dict[str, str]:
    """Return the supervisord.conf of every server of a tree, with a place for its password."""
    return {
        name: render_server(
            name,
            port=server.service_port,
            balancer=bool(server.balancers),
            dashboard=dashboard if (dashboard := tree.dashboard_for(name)).enabled else None,
        )
        for name, server in tree.servers.items()
    }


def example() -> str:
    """Return the text of supervisord.conf.example: node1, with balancers."""
    return render_server("node1", port=8888, balancer=True, password="change-me")  # noqa: S106
