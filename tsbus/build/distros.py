"""Distros: how packages are installed on each family of distributions, as texts of POSIX sh scripts. Pure.

A script runs as root on standard input, waits for the lock of the package manager up to LOCK_S seconds (then it ends
with `trouble.LOCKED`), asks nobody anything, and ends with a status other than 0 unless all went well. Doing it again
does no harm.
"""

import re
import shlex
from dataclasses import dataclass
from typing import Final, Literal

from tsbus.build.facts import Facts, Init
from tsbus.build.trouble import LOCKED, WAITING

Family = Literal["debian", "rhel", "fedora", "amazon", "suse", "alpine"]
Source = Literal["vendor", "distro"]
LOCK_S: Final = 300
ENGINE_S: Final = 60
"""An engine answers this long after its start at the latest; the first one of a slow machine takes ten seconds."""

_FAMILIES: Final[dict[str, Family]] = {
    **dict.fromkeys(("debian", "ubuntu", "raspbian", "linuxmint"), "debian"),
    **dict.fromkeys(("rhel", "centos", "rocky", "almalinux", "ol"), "rhel"),
    "fedora": "fedora",
    "amzn": "amazon",
    **dict.fromkeys(("sles", "sled", "suse", "opensuse", "opensuse-leap", "opensuse-tumbleweed"), "suse"),
    "alpine": "alpine",
}
_INSTALL: Final[dict[Family, str]] = {
    "debian": "run apt-get -qq -o Acquire::Retries=3 update\n"
    "run apt-get -qq -y --no-install-recommends -o Acquire::Retries=3 install {}",
    "rhel": "run $(command -v dnf || command -v microdnf || echo yum) -q -y install {}",
    "fedora": "run dnf -q -y install {}",
    "amazon": "run $(command -v dnf || echo yum) -q -y install {}",
    "suse": "run zypper --quiet --non-interactive install --no-recommends {}",
    "alpine": "run apk add --quiet --update-cache {}",
}
_REMOVE: Final[dict[Family, str]] = {
    "debian": "run apt-get -qq -y purge {}",
    "rhel": "run $(command -v dnf || command -v microdnf || echo yum) -q -y remove {}",
    "fedora": "run dnf -q -y remove {}",
    "amazon": "run $(command -v dnf || echo yum) -q -y remove {}",
    "suse": "run zypper --quiet --non-interactive remove {}",
    "alpine": "run apk del --quiet {}",
}
_ENGINES: Final = (
    *("docker-ce", "docker-ce-cli", "containerd.io", "docker.io", "docker-cli", "moby-engine", "docker"),
    *("docker-buildx-plugin", "docker-compose-plugin", "docker-ce-rootless-extras", "containerd", "runc"),
)
"""Packages that an engine consists of, whoever has made them."""
_SITE: Final = "https://download.docker.com/linux"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to install something."""

    words: str
    script: str
    conflicts: tuple[str, ...] = ()
    """Packages that cannot stay beside it."""


@dataclass(frozen=True, slots=True)
class PythonPackage:
    """A Python that the distribution has."""

    package: str
    path: str
    """Where it will be."""
    minor: int
    """Of Python 3."""


def family_of(facts: Facts) -> Family | None:
    """Return the family that the distribution belongs to or says it is like."""
    return next((_FAMILIES[name] for name in (facts.os_id, *facts.os_like) if name in _FAMILIES), None)


def packages(family: Family, names: tuple[str, ...]) -> str:
    """Return the script that installs packages of the distribution."""
    return _script(_install(family, names))


def docker(facts: Facts, source: Source, version: str = "") -> Recipe | None:
    """Return how to install Docker, start it now and at boot, and see that it answers; None where we do not know how.

    Where Docker has no packages of its own for the distribution, `source` makes no difference. `version` is for
    Docker's own.
    """
    family = family_of(facts)
    if family is None:
        return None
    recipe = _vendor(family, facts, version) if source == "vendor" else None
    recipe = recipe or _distribution(family)
    if recipe is None:
        return None
    return Recipe(recipe.words, _script(recipe.script + "\n" + _started(facts.init)), recipe.conflicts)


def docker_removal(facts: Facts) -> str:
    """Return the script that removes the engine's packages; "" when there are none. Images and volumes stay."""
    family = family_of(facts)
    there = tuple(name for name in _ENGINES if name in facts.packages)
    return _script(_REMOVE[family].format(" ".join(there))) if family and there else ""


def docker_start(init: Init | None) -> str:
    """Return the script that starts an installed engine now and at boot, and waits until it answers."""
    return _script(_started(init))


def python(facts: Facts) -> PythonPackage | None:
    """Return the Python 3.11 or newer that the distribution has, None if it has none that we know of."""
    family = family_of(facts)
    version = _version(facts.os_version)
    if facts.os_id == "ubuntu":
        return (
            _python("python3", 12) if version >= (24, 4) else _python("python3.11", 11) if version >= (22, 4) else None
        )
    match family:
        case "debian" if facts.os_id == "debian" and version >= (12, 0):
            return _python("python3", 11 if version < (13, 0) else 13)
        case "rhel" if version >= (10, 0):
            return _python("python3", 12)
        case "rhel" if version >= (8, 0):
            return _python("python3.11", 11)
        case "fedora" if version >= (37, 0):
            return _python("python3", _FEDORA.get(version[0], 14))
        case "amazon" if version >= (2023, 0):
            return _python("python3.11", 11)
        case "suse" if (15, 4) <= version < (16, 0):
            return _python("python311", 11)
        case "suse" if version >= (16, 0):
            return _python("python313", 13)
        case "alpine" if version >= (3, 19):
            return _python("python3", 11 if version < (3, 20) else 12)
    return None


PYTHON_SINCE: Final = {
    "debian": "Debian 12", "ubuntu": "Ubuntu 22.04", "rhel": "RHEL 8", "centos": "CentOS Stream 9", "rocky": "Rocky 8",
    "almalinux": "AlmaLinux 8", "ol": "Oracle Linux 8", "fedora": "Fedora 37", "amzn": "Amazon Linux 2023",
    "opensuse-leap": "Leap 15.4", "sles": "SLES 15.4", "alpine": "Alpine 3.19",
}  # fmt: skip
"""Distribution -> its first release that has a Python for a node."""
_FEDORA: Final = {37: 11, 38: 11, 39: 12, 40: 12, 41: 13, 42: 13}
"""Release -> minor version of its python3."""


def _python(package: str, minor: int) -> PythonPackage:
    return PythonPackage(package, f"/usr/bin/python3.{minor}", minor)


def _version(text: str) -> tuple[int, int]:
    found = re.match(r"(\d{1,9})(?:\.(\d{1,4}))?", text)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


# Docker ---------------------------------------------------------------------------------------------------------------


def _vendor(family: Family, facts: Facts, version: str) -> Recipe | None:
    """Return how to install Docker's own packages, None where there are none."""
    match family:
        case "debian":
            return _vendor_apt(facts, version)
        case "rhel" | "fedora":
            site = "fedora" if family == "fedora" else "centos" if facts.os_id == "centos" else "rhel"
            names = [f"{name}-{_dotted(version)}" if version else name for name in ("docker-ce", "docker-ce-cli")]
            script = "\n".join([
                f"fetch {_SITE}/{site}/docker-ce.repo /etc/yum.repos.d/docker-ce.repo",
                _install(family, (*names, "containerd.io")),
            ])  # fmt: skip
            conflicts = ("docker", "docker-engine", "moby-engine", "podman-docker", "runc", "containerd")
            return Recipe(_named("Docker", version, "from Docker's own packages"), script, conflicts)
    return None


def _vendor_apt(facts: Facts, version: str) -> Recipe | None:
    # Derivatives say which Ubuntu they are made from; Debian's do not.
    if facts.ubuntu_codename:
        system, codename = "ubuntu", facts.ubuntu_codename
    elif facts.os_id in ("debian", "ubuntu") and facts.codename:
        system, codename = facts.os_id, facts.codename
    else:
        return None
    if not re.fullmatch("[a-z]{1,30}", codename):
        return None
    names = [f"{name}=5:{_dotted(version)}" if version else name for name in ("docker-ce", "docker-ce-cli")]
    keyring = "/etc/apt/keyrings/docker.asc"
    script = "\n".join([
        _install("debian", ("ca-certificates", "curl")),
        "mkdir -p -m 755 /etc/apt/keyrings",
        f"fetch {_SITE}/{system}/gpg {keyring}",
        f'echo "deb [arch=$(dpkg --print-architecture) signed-by={keyring}] {_SITE}/{system} {codename} stable" '
        ">/etc/apt/sources.list.d/docker.list",
        _install("debian", (*names, "containerd.io")),
    ])  # fmt: skip
    conflicts = ("docker.io", "podman-docker", "containerd", "runc")
    return Recipe(_named("Docker", version, "from Docker's own packages"), script, conflicts)


def _distribution(family: Family) -> Recipe | None:
    """Return how to install the distribution's engine; None for those that have none."""
    match family:
        case "debian":
            # Where the client is a package of its own, the engine does not bring it.
            script = "\n".join([
                _install(family, ("docker.io",)),
                f"if ! command -v docker >/dev/null; then\n{_install(family, ('docker-cli',))}\nfi",
            ])  # fmt: skip
            conflicts: tuple[str, ...] = ("docker-ce", "podman-docker", "containerd.io")
        case "fedora":
            script, conflicts = _install(family, ("moby-engine",)), ("docker-ce", "podman-docker", "containerd.io")
        case "amazon" | "suse":
            script, conflicts = _install(family, ("docker",)), ("podman-docker",)
        case "alpine":
            script, conflicts = _install(family, ("docker",)), ()
        case _:
            return None
    return Recipe("Docker from the distribution's packages", script, conflicts)


def _started(init: Init | None) -> str:
    """Return the lines that start the engine and wait for its answer."""
    start = {
        "systemd": "systemctl enable --now docker.service",
        "openrc": "rc-update -q add docker default\nrc-service -q docker start || rc-service -q docker status",
    }.get(init or "", "")
    return f"""\
{start}
unset DOCKER_HOST DOCKER_CONTEXT
waited=0
until version=$(docker version --format '{{{{.Server.Version}}}}' 2>&1); do
  if [ "$waited" -ge {ENGINE_S} ]; then
    echo "$version" >&2
    exit 1
  fi
  sleep 1
  waited=$((waited + 1))
done
echo "Docker $version answers"
"""


def _dotted(version: str) -> str:
    """Return the pattern of the packages of a version: 28.2 stands for 28.2.1, never for 28.20."""
    return f"{version}-*" if version.count(".") == 2 else f"{version}.*"


def _named(what: str, version: str, source: str) -> str:
    return f"{what}{f' {version}' if version else ''} {source}"


# Scripts --------------------------------------------------------------------------------------------------------------


def _install(family: Family, names: tuple[str, ...]) -> str:
    return _INSTALL[family].format(" ".join(map(shlex.quote, names)))


def _script(body: str) -> str:
    """Return a whole script: nothing of it runs before all of it has arrived."""
    return f"""\
set -eu
export LC_ALL=C DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l ZYPP_LOCK_TIMEOUT={LOCK_S}
begun=$(date +%s)

# locked: whether another package manager is at work, of those that would wait for it without end
locked() {{
  for file in /var/cache/dnf/metadata_lock.pid /var/lib/dnf/rpmdb_lock.pid /run/yum.pid; do
    pid=
    [ ! -r "$file" ] || read -r pid <"$file" || :
    [ -z "$pid" ] || [ ! -d "/proc/$pid" ] || return 0
  done
  return 1
}}

# run PROGRAM ...: once more while another program holds the lock
run() {{
  while :; do
    status={LOCKED} output=
    if ! locked; then
      status=0
      output=$("$@" 2>&1) || status=$?
      [ -z "$output" ] || printf '%s\n' "$output"
      [ "$status" != 0 ] || return 0
    fi
    case $status:$output in
      {LOCKED}:* | *"Could not get lock"* | *"nable to acquire"* | *"nable to lock"* | *"another process"* | \
        *"management is locked"* | *"frontend lock"*) ;;
      *) return "$status" ;;
    esac
    [ $(($(date +%s) - begun)) -lt {LOCK_S} ] || return {LOCKED}
    echo "{WAITING}"
    sleep 5
  done
}}

# fetch URL FILE: the file is there whole or not at all
fetch() {{
  if command -v curl >/dev/null; then
    curl -fsSL --retry 3 --max-time 60 -o "$2.part" "$1"
  else
    wget -q -T 60 -O "$2.part" "$1"
  fi
  chmod 644 "$2.part"
  mv "$2.part" "$2"
}}

main() {{
{body}
}}

main </dev/null
"""
