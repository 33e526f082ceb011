"""Units: what starts a node at boot: the texts of a systemd unit and of an OpenRC script. Pure.

Both start supervisord, make the folders of sockets before, and know nothing of a particular node.

What is not in the systemd unit is left out on purpose. The executor is one of these processes, and an administrator
uses it to administer: whatever the unit forbids (ProtectSystem, ProtectHome, PrivateTmp, NoNewPrivileges,
CapabilityBoundingSet, system call filters, RestrictNamespaces and so on) would be forbidden to `treescale exec
--sudo-user root apt-get install` as well, with errors that nobody understands. So each process gives away by itself
what it does not need: see supervision/confine.py.
"""

from collections.abc import Mapping
from typing import Final

from tsbus.build.places import ROOT, SUPERVISOR, USER

RUN: Final = "/run/treescale"
ROUTER_RUN: Final = f"{RUN}/router"
"""The router's own folder for its socket. The folder above is root's, so that nobody can put something else in place
of what root writes there (supervisord's socket and pid, the balancer's state)."""
_SUPERVISORD: Final = f"{ROOT}/current/bin/supervisord"

SYSTEMD: Final = f"""\
# Written by `treescale build`. Changes of your own: systemctl edit treescale
[Unit]
Description=TreeScale node
# The router listens at an address of this machine.
Wants=network-online.target
After=network-online.target
# Without needing Docker, and there before and after it: the last events of containers are told as well.
Before=docker.service
# Never give up.
StartLimitIntervalSec=0

[Service]
# RuntimeDirectory= has one owner for all, and would take away what the balancer knows of the kernel's table.
ExecStartPre=/usr/bin/install -d -o root -g {USER} -m 0750 {RUN}
ExecStartPre=/usr/bin/install -d -o {USER} -g {USER} -m 0750 {ROUTER_RUN}
ExecStartPre=/bin/ln -sfn router/bus {RUN}/bus
ExecStart={_SUPERVISORD} --nodaemon --configuration {SUPERVISOR}
Restart=always
RestartSec=2
# supervisord ends its programs in their order; what is left then, by whomever started, is killed.
KillMode=mixed
TimeoutStopSec=45
# That a program which somebody has let run here was too large is no reason to stop the node.
OOMPolicy=continue
# The executor's programs count too.
TasksMax=infinity
LimitNOFILE=65536:524288
UMask=0027

[Install]
WantedBy=multi-user.target
"""

OPENRC: Final = f"""\
#!/sbin/openrc-run
# Written by `treescale build`.

description="TreeScale node"
supervisor=supervise-daemon
command={_SUPERVISORD}
command_args="--nodaemon --configuration {SUPERVISOR}"
respawn_delay=2
# Never give up.
respawn_max=0
retry="TERM/45/KILL/5"
umask=0027
rc_ulimit="-n 65536"

depend() {{
	need localmount
	# Not docker: the node lives without it, and is there before and after it.
	before docker
	use net
	after firewall
}}

start_pre() {{
	checkpath -d -o root:{USER} -m 0750 {RUN}
	checkpath -d -o {USER}:{USER} -m 0750 {ROUTER_RUN}
	ln -sfn router/bus {RUN}/bus
}}
"""

TEXTS: Final[Mapping[str, str]] = {"systemd": SYSTEMD, "openrc": OPENRC}
