"""Wanted: what each server should be, from the tree, the console's settings and the release. Pure.

It knows nothing of how a server is now: plan.py compares.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from tsbus.config import Balancer, BuildSettings, Server, Tree
from tsbus.copies import Copies, digest

Docker = Literal["vendor", "distro", "no"]
Backend = Literal["ipvs", "nftables", "auto"]
FORWARDING: Final = "net.ipv4.ip_forward"
TRACKING: Final = "net.ipv4.vs.conntrack"
_WITH_DASHBOARD: Final = "-dashboard"


@dataclass(frozen=True, slots=True)
class Release:
    """What the console installs."""

    name: str
    """VERSION-DIGEST; the digest is that of the code and of the pinned wheels, the same for all platforms."""
    units: Mapping[str, str] = field(default_factory=dict)
    """systemd, openrc -> SHA-256 of the unit that starts a node at boot."""

    @property
    def with_dashboard(self) -> "Release":
        """The same code with the packages of the dashboard: a release of its own, for one never changes."""
        return replace(self, name=self.name + _WITH_DASHBOARD)


@dataclass(frozen=True, slots=True)
class BalancerNeeds:
    """What the balancers of a server need of it."""

    backend: Backend
    modules: tuple[str, ...] = ()
    """Of the kernel, for IPVS; ip_vs is the first."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of the kernel, by their sysctl name."""
    ipvs_settings: Mapping[str, str] = field(default_factory=dict)
    """More of them, where the kernel has IPVS."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one server should be."""

    name: str
    ip: str
    port: int
    depth: int
    """Links between it and the root."""
    release: Release
    config: str
    """SHA-256 of its copy of the tree."""
    supervisor: str = ""
    """SHA-256 of its supervisord.conf, without its password; empty: it is not compared."""
    dashboard: bool = False
    """A dashboard runs there, for which the release has more packages."""
    docker: Docker = "no"
    joins_docker: bool = False
    """Its monitor watches the engine here."""
    docker_version: str = ""
    balancers: BalancerNeeds | None = None
    keep_releases: int = 3
    key: str = ""
    """The public key that it had last time; empty: it has been given none yet."""
    accept_key: bool = False
    """Another key than last time is taken."""
    revoked: bool = False
    """That key is not to be taken any more."""


def wanted(
    tree: Tree,
    settings: BuildSettings,
    release: Release,
    *,
    saved: Mapping[str, str] | None = None,
    probed: Mapping[str, str] | None = None,
    supervisors: Mapping[str, str] | None = None,
    revoked: Collection[str] = (),
    accept_keys: bool = False,
) -> dict[str, Wanted]:
    """Return what each server of the tree should be, in the tree's order.

    `saved` are the public keys of last time, node -> key, `probed` those that the servers have told now;
    `accept_keys` takes these where they differ. The keys of those that are `revoked` are in no copy. `supervisors` are
    the digests of their supervisord.conf.
    Raises ValueError when the servers are no tree; those of a loaded tree are.
    """
    topology = tree.topology()
    before = known_keys(tree, saved or {})
    known = {**before, **(probed or {})} if accept_keys else {**(probed or {}), **before}
    own = Copies(tree, known | dict.fromkeys(revoked, ""))
    return {
        name: Wanted(
            name=name,
            ip=server.ip,
            port=server.service_port,
            depth=topology.depth(name),
            release=release_for(tree, name, release),
            config=digest(own.text(name)),
            supervisor=(supervisors or {}).get(name, ""),
            dashboard=tree.dashboard_for(name).enabled,
            docker=settings.docker if _has_local_engine(tree, name) else "no",  # type: ignore[arg-type]  # by its form
            joins_docker=_has_local_engine(tree, name),
            docker_version=settings.docker_version,
            balancers=_balancer_needs(tree, server),
            keep_releases=settings.keep_releases,
            key=before.get(name, ""),
            accept_key=accept_keys,
            revoked=name in revoked,
        )
        for name, server in tree.servers.items()
    }


def release_for(tree: Tree, name: str, release: Release) -> Release:
    """Return what of a release is for one server."""
    return release.with_dashboard if tree.dashboard_for(name).enabled else release


def is_same_code(one: str, other: str) -> bool:
    """Tell whether two releases, by their names, differ in nothing but the packages of the dashboard."""
    return one.removesuffix(_WITH_DASHBOARD) == other.removesuffix(_WITH_DASHBOARD)


def known_keys(tree: Tree, saved: Mapping[str, str]) -> dict[str, str]:
    """Return the public keys of the servers as of last time: the saved one, otherwise that in the tree's file."""
    found = {name: saved.get(name) or server.public_key for name, server in tree.servers.items()}
    return {name: key for name, key in found.items() if key}


def _has_local_engine(tree: Tree, name: str) -> bool:
    """Tell whether the server's engine is where Docker puts it: one elsewhere, or none, is not the build's business."""
    docker = tree.docker_for(name)
    return docker.enabled and docker.host in ("", "unix:///var/run/docker.sock", "unix:///run/docker.sock")


def _balancer_needs(tree: Tree, server: Server) -> BalancerNeeds | None:
    if not server.balancers:
        return None
    balancers, balancing = list(server.balancers.values()), tree.balancing_for(server.name)
    forwards = balancing.sysctls == "set" and any(each.forward == "nat" and _is_ipv4(each) for each in balancers)
    return BalancerNeeds(
        backend=balancing.backend,  # type: ignore[arg-type]  # its form allows no other
        modules=("ip_vs", *sorted({f"ip_vs_{each.alg}" for each in balancers})),
        # IPv6 is left to the balancer: forwarding makes a host deaf to router advertisements, which it looks after.
        settings={FORWARDING: "1"} if forwards else {},
        ipvs_settings={TRACKING: "1"} if forwards else {},
    )


def _is_ipv4(balancer: Balancer) -> bool:
    return any(listen.family == 4 for listen in balancer.listens)
