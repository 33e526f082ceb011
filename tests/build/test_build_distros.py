"""Scripts that install packages: that each shell can read them, what they ask for, and how they end."""

import subprocess
import sys
from dataclasses import replace

import pytest
from model_server import PROBES, recorded
from test_build_probe import SHELLS

from tsbus.build import distros
from tsbus.build.trouble import Failure, classify

BARE = {name: replace(recorded(name), docker_engine="", packages={}) for name in PROBES}
SCRIPTS = {
    f"{name} {source} {version}".strip(): recipe.script
    for name, facts in BARE.items()
    for source in ("vendor", "distro")
    for version in ("", "28.2", "28.2.1")
    if (recipe := distros.docker(facts, source, version))
}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_can_read_every_script(shell):
    """No script uses what a POSIX shell does not have."""
    for script in {*SCRIPTS.values(), distros.docker_start("systemd"), distros.packages("alpine", ("a b", "c"))}:
        subprocess.run([*SHELLS[shell], "-n"], input=script.encode(), check=True, timeout=60)


ASKS = {
    "debian-12 vendor": ["https://download.docker.com/linux/debian bookworm stable", "install docker-ce docker-ce-cli"],
    "debian-12 distro": ["install docker.io", "systemctl enable --now docker.service"],
    "debian-13 vendor 28.2": ["'docker-ce=5:28.2.*' 'docker-ce-cli=5:28.2.*' containerd.io"],
    "ubuntu-2204 vendor": ["https://download.docker.com/linux/ubuntu jammy stable"],
    "rhel-9 vendor": ["linux/rhel/docker-ce.repo", "docker-ce docker-ce-cli containerd.io"],
    "alma-9 vendor 28.2.1": ["linux/rhel/docker-ce.repo", "'docker-ce-28.2.1-*'"],
    "fedora-41 vendor": ["linux/fedora/docker-ce.repo"],
    "fedora-41 distro": ["install moby-engine"],
    "amazon-2023 vendor": ["install docker\n"],
    "opensuse-156 vendor": ["zypper --quiet --non-interactive install --no-recommends docker\n"],
    "alpine-321 vendor": ["apk add --quiet --update-cache docker\n", "rc-update -q add docker default"],
}


@pytest.mark.parametrize("name", ASKS)
def test_each_family_asks_its_package_manager(name):
    """Where Docker has packages of its own these are asked for, elsewhere the distribution's."""
    for text in ASKS[name]:
        assert text in SCRIPTS[name]


def test_what_we_do_not_know_has_no_script():
    """RHEL has no Docker of its own, and of an unknown distribution we know nothing."""
    assert distros.docker(BARE["rhel-9"], "distro") is None
    assert distros.docker(replace(BARE["debian-12"], os_id="arch"), "vendor") is None


def test_a_derivative_is_like_what_it_is_made_from():
    """One of Ubuntu gets the packages for that Ubuntu, one of Debian the distribution's own."""
    mint = replace(BARE["ubuntu-2204"], os_id="linuxmint", os_like=("ubuntu", "debian"), codename="virginia")
    assert "ubuntu jammy stable" in distros.docker(mint, "vendor").script
    kali = replace(BARE["debian-12"], os_id="kali", os_like=("debian",), codename="kali-rolling")
    assert "install docker.io" in distros.docker(kali, "vendor").script


def test_a_hostile_codename_is_in_no_script():
    """What a server calls itself never becomes a command."""
    evil = replace(BARE["debian-12"], codename="x;reboot")
    assert "reboot" not in distros.docker(evil, "vendor").script


VERSIONS = [
    ("debian", "11", None), ("debian", "12", 11), ("debian", "13", 13), ("ubuntu", "20.04", None),
    ("ubuntu", "22.04", 11), ("ubuntu", "24.04", 12), ("rocky", "7.9", None), ("rocky", "8.10", 11),
    ("almalinux", "9.5", 11), ("rhel", "10.0", 12), ("fedora", "36", None), ("fedora", "41", 13), ("amzn", "2", None),
    ("amzn", "2023", 11), ("opensuse-leap", "15.6", 11), ("opensuse-leap", "16.0", 13), ("alpine", "3.18.2", None),
    ("alpine", "3.19.1", 11), ("alpine", "3.21.3", 12), ("arch", "", None), ("debian", "x", None),
]  # fmt: skip


@pytest.mark.parametrize(("system", "version", "minor"), VERSIONS)
def test_the_python_of_each_distribution_is_known(system, version, minor):
    """Where a distribution has Python 3.11 or newer, its package is known."""
    found = distros.python(replace(BARE["debian-12"], os_id=system, os_version=version))
    assert (found.minor if found else None) == minor


# How scripts end, in a root of their own with programs that answer at once --------------------------------------------


def run(shell, script, folder, **programs):
    """Run a script where these programs are the only package managers and engines."""
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:/usr/bin:/bin"
    return subprocess.run(
        [*SHELLS[shell], "-s"], input=script, capture_output=True, text=True, timeout=60, env={"PATH": path}
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_ends_with_the_answer_of_the_engine(shell, tmp_path):
    """All is well when the engine has said its version, not when its packages are installed."""
    done = run(shell, distros.docker_start(None), tmp_path, docker="echo 28.1.1")
    assert (done.returncode, done.stdout) == (0, "Docker 28.1.1 answers\n")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_ends_where_a_program_fails(shell, tmp_path):
    """The status and the words of the package manager are those of the script, and nothing comes after them."""
    script = SCRIPTS["alpine-321 vendor"]
    done = run(shell, script, tmp_path, apk="echo 'ERROR: docker (no such package)'; exit 4", docker="touch here")
    assert (done.returncode, done.stdout) == (4, "ERROR: docker (no such package)\n")
    trouble = classify(Failure("docker", status=done.returncode, output=done.stdout, command="install Docker"))
    assert trouble.text == "install Docker: ended with 4: ERROR: docker (no such package)"


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_waits_for_the_lock_no_longer_than_its_limit(shell, tmp_path):
    """While another program holds the lock the script tries again; in the end its status says what it waited for."""
    script = SCRIPTS["alpine-321 vendor"].replace(f"-lt {distros.LOCK_S}", "-lt 0")
    done = run(shell, script, tmp_path, apk="echo 'ERROR: Unable to lock database'; exit 99")
    trouble = classify(Failure("docker", status=done.returncode, output=done.stdout + done.stderr))
    assert (trouble.kind, trouble.again) == ("package-lock", True)


HOLDER = """
import fcntl, subprocess, sys
with open("/var/lib/apt/lists/lock", "w") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    sys.exit(subprocess.run(["dash", "-s"]).returncode)
"""


def test_apt_says_who_holds_its_lock():
    """With the real apt, the trouble names the process that has the lock."""
    script = distros.packages("debian", ("nftables",)).replace(f"-lt {distros.LOCK_S}", "-lt 0")
    enter = 'mount -t tmpfs none /var/lib/apt/lists && exec "$0" -c "$1"'
    argv = ["unshare", "-m", "sh", "-c", enter, sys.executable, HOLDER]
    done = subprocess.run(argv, input=script, capture_output=True, text=True, timeout=120)
    trouble = classify(Failure("docker", status=done.returncode, output=done.stdout))
    assert trouble.kind == "package-lock"
    assert "Could not get lock /var/lib/apt/lists/lock. It is held by process" in trouble.text


def test_a_script_goes_on_when_the_lock_is_free(tmp_path):
    """The second try, after the lock was let go, is as good as the first."""
    script = SCRIPTS["alpine-321 vendor"].replace("sleep 5", "touch ../free").replace("rc-", "true rc-")
    apk = f"[ -e {tmp_path}/free ] || {{ echo 'ERROR: Unable to lock database'; touch {tmp_path}/free; exit 99; }}"
    done = run("dash", script, tmp_path, apk=apk, docker="echo 28.1.1")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-2:] == ["another program holds the package lock: waiting", "Docker 28.1.1 answers"]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_cut_script_installs_nothing(shell, tmp_path):
    """A script of which the end did not arrive does nothing."""
    script = SCRIPTS["alpine-321 vendor"]
    for part in (script[: len(script) // 2], script[: -len("main </dev/null\n") - 1]):
        run(shell, part, tmp_path, apk="touch installed", docker="touch asked")
        assert not (tmp_path / "installed").exists()
