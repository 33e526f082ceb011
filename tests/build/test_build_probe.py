"""The probe, run for real in three shells: here, where nothing can be written, and where there is only busybox."""

import fcntl
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_server import PROBES

from tsbus.build import facts as facts_module
from tsbus.build.facts import MAX_ITEMS, Holder, Listener, Python, Release, Stat, parse, unescape
from tsbus.build.places import CONFIG, KEY, SUPERVISOR
from tsbus.copies import digest, supervisor_digest

SCRIPT = (Path(facts_module.__file__).parent / "probe.sh").read_text()
FUNCTIONS = SCRIPT.removesuffix("probe </dev/null 2>/dev/null\n")
SHELLS = {"bash": ["bash"], "dash": ["dash"], "busybox": ["busybox", "ash"]}
KEY_TEXT = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


def probe(argv, **options):
    """The facts that the probe tells when it is given to a shell on standard input."""
    done = subprocess.run([*argv, "-s"], input=SCRIPT.encode(), capture_output=True, check=True, timeout=120, **options)
    assert done.stderr == b""
    return parse(done.stdout)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_probe_tells_what_this_machine_is(shell):
    """In each shell, what it tells is what Python knows of this machine, and nothing is missing."""
    before = time.time()
    found = probe(SHELLS[shell])
    assert found.missing == ()
    assert before - 1 <= found.time_s <= time.time() + 1
    system = platform.freedesktop_os_release()
    assert (found.os_id, found.os_version, found.os_name) == (
        system["ID"], system.get("VERSION_ID", ""), system["PRETTY_NAME"])  # fmt: skip
    assert (found.machine, found.kernel) == (platform.machine(), platform.release())
    assert (found.libc, ".".join(map(str, found.libc_version))) == platform.libc_ver()
    assert found.uid == os.geteuid()
    assert abs(found.disks["/var"].free_mb - (shutil.disk_usage("/var").free >> 20)) < 2048
    assert found.disks["/var"].writable
    assert {"127.0.0.1"} <= found.addresses
    assert {"root"} <= set(found.groups)


def test_every_python_of_the_system_is_told_with_what_it_lacks():
    """The interpreters in the system's folders are asked themselves; links to one are one."""
    found = probe(["dash"])
    paths = [each.path for each in found.pythons]
    there = {str(each.resolve()) for folder in ("/usr/bin", "/usr/local/bin") for each in Path(folder).glob("python3*")
             if each.name[7:].replace(".", "").isdigit()}  # fmt: skip
    assert set(paths) == there
    assert len(paths) == len(set(paths))
    for each in found.pythons:
        asked = subprocess.run([each.path, "-c", "import sys; print(*sys.version_info[:3])"], capture_output=True)
        assert each.version == tuple(map(int, asked.stdout.split()))


def test_nothing_is_written():
    """Where nothing at all can be written the probe tells the same."""
    script = "mount --make-rprivate / && mount -o remount,bind,ro / && touch /var/tmp/ts-no 2>/dev/null || exec dash -s"
    found = probe(["unshare", "-m", "sh", "-c", script, "sh"])
    usual = probe(["dash"])
    assert not found.disks["/opt"].writable
    for name in ("missing", "pythons", "packages", "modules", "kernel", "groups", "unit", "tools"):
        assert getattr(found, name) == getattr(usual, name)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_that_was_cut_off_does_nothing(shell):
    """Whatever part of it arrives, it prints nothing before all of it is there."""
    lines = SCRIPT.splitlines(keepends=True)
    for count in range(0, len(lines), len(lines) // 8):
        part = "".join(lines[:count]) + lines[count][: len(lines[count]) // 2]
        done = subprocess.run([*SHELLS[shell], "-s"], input=part.encode(), capture_output=True, timeout=60)
        assert done.stdout == b""


def test_processes_and_ports_are_told_apart_as_ours_and_others():
    """A port has the process that listens there, and what runs from our folder is ours."""
    program = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); "
    argv = [sys.executable, "-c", program + "sys.stdin.read()", "/opt/treescale/current/bin/ts-router"]
    with (
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as router,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        port = int(router.stdout.readline())
        other_port = other.getsockname()[1]
        found = probe(["dash"])
        router.stdin.close()
    by_place = {(each.ip, each.port): each.pid for each in found.listeners}  # others may have a port at other addresses
    assert by_place["127.0.0.1", port] == router.pid
    assert by_place["127.0.0.1", other_port] == os.getpid()
    assert router.pid in found.ours
    assert os.getpid() not in found.ours


def keys(told):
    """The keys of what a probe told, in their order, one that is told several times once."""
    return list(dict.fromkeys(line.partition("=")[0] for line in told.splitlines() if not line.startswith("#")))


def test_what_was_written_by_hand_is_what_a_real_server_tells(desk, server, neighbour):
    """A Debian 12 with and without systemd and Python tells the keys of the one written by hand, in their order."""
    by_hand = [
        key for key in keys(PROBES["debian-12"].read_text()) if key != "package" and not key.startswith("docker.")
    ]
    with desk.session(server) as one, desk.session(neighbour) as other:
        assert keys(one.run(SCRIPT, stage="probe").out) == by_hand
        assert keys(other.run(SCRIPT, stage="probe").out) == [
            key for key in by_hand if key != "python" and not key.startswith("unit.")
        ]


# Where there is only busybox ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """A root with nothing but busybox in it, and a half-hostile system around it."""
    root = tmp_path_factory.mktemp("cell")
    releases = root / "opt/treescale/releases"
    for folder in ("bin", "dev", "proc", "tmp", "etc/treescale", "etc/init.d", "etc/runlevels/default", "var/lib/dpkg",
                   "run/openrc/started", releases / "0.1.0-half", releases / "0.1.0-abc/bin"):  # fmt: skip
        (root / folder).mkdir(parents=True)
    shutil.copy("/usr/bin/busybox", root / "bin/busybox")
    for applet in subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split():
        if not (root / "bin" / applet).exists():
            (root / "bin" / applet).symlink_to("busybox")
    files = {
        "etc/os-release": 'ID="al\\"pine"\nuid=1000\nVERSION_ID=3.21\nPRETTY_NAME=\'a $(touch /pwned) `touch /pwned`\'',
        "etc/passwd": "root:x:0:0::/:/bin/sh\ntreescale:x:900:900::/:/bin/false",
        "etc/group": "root:x:0:\ntreescale:x:900:treescale-docker,me\n",
        "var/lib/dpkg/lock-frontend": "",
        "etc/init.d/treescale": "unit",
        "etc/runlevels/default/treescale": "",
        "etc/treescale/treescale.toml": "current_node = 'a'\n",
        "etc/treescale/supervisord.conf": '[a]\npassword=secret\nenvironment=SUPERVISOR_PASSWORD="secret"\n',
        "etc/treescale/node.key": "the-secret-key",
        "opt/treescale/releases/0.1.0-abc/ready": "/usr/bin/python3.11\n",
        "opt/treescale/releases/0.1.0-abc/bin/treescale": f"#!/bin/sh\n[ $# = 3 ] && echo '{KEY_TEXT}'\n",
    }
    for name, text in files.items():
        (root / name).write_text(text)
    (root / "opt/treescale/releases/0.1.0-abc/bin/treescale").chmod(0o755)
    (root / "opt/treescale/current").symlink_to("releases/0.1.0-abc")
    (root / "etc/treescale/node.key").chmod(0o600)
    os.mknod(root / "dev/null", 0o666 | 0o020000, os.makedev(1, 3))
    return root


def in_cell(cell, script=SCRIPT):
    """What a script prints in the cell, which has a /proc of this machine."""
    enter = 'mount -t proc proc "$0/proc" && exec chroot "$0" /bin/sh -s'
    done = subprocess.run(["unshare", "-m", "sh", "-c", enter, cell], input=script.encode(), capture_output=True,
                          check=True, timeout=120, env={"PATH": os.environ["PATH"]})  # fmt: skip
    return done.stdout


def test_a_system_of_busybox_alone_is_read(cell):
    """Without ss, getconf, python, docker, packages: what is there is told, what is not is left out."""
    with (cell / "var/lib/dpkg/lock-frontend").open("r+b") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        output = in_cell(cell)
    found = parse(output)
    assert b"secret" not in output
    assert not (cell / "pwned").exists()
    assert (found.os_id, found.os_version, found.uid) == ('al"pine', "3.21", 0)
    assert found.os_name == "a $(touch /pwned) `touch /pwned`"
    assert (found.init, found.pythons, found.docker_client) == ("openrc", (), "")
    assert found.missing == ("the C library", "the free disk space")
    assert found.locks[0] == Holder(os.getpid(), Path("/proc/self/comm").read_text().strip())
    assert (found.accounts, found.groups["treescale"]) == ({"treescale"}, {"treescale-docker", "me"})
    assert found.unit == (True, True, False)


def test_what_a_build_has_made_is_told(cell):
    """Releases, the current one, rights, digests and the public key, but never what is secret."""
    found = parse(in_cell(cell))
    since = int((cell / "opt/treescale/releases/0.1.0-abc/ready").stat().st_mtime)
    assert found.current == "0.1.0-abc"
    assert set(found.releases) == {Release("0.1.0-abc", "/usr/bin/python3.11", since), Release("0.1.0-half", "", 0)}
    assert found.stats[KEY] == Stat(0o600, "root", "root")
    assert found.digests[CONFIG] == digest((cell / CONFIG[1:]).read_text())
    assert found.digests[SUPERVISOR] == supervisor_digest((cell / SUPERVISOR[1:]).read_text())
    assert found.digests["/etc/init.d/treescale"] == digest("unit")
    assert found.key == KEY_TEXT


def test_the_probe_leaves_a_system_as_it_was(cell):
    """No file is made, changed or removed."""

    def tree():
        return {path: path.lstat().st_mtime_ns for path in sorted(cell.rglob("*"))}

    before = tree()
    in_cell(cell)
    assert tree() == before


# Values and lines -----------------------------------------------------------------------------------------------------

values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
hostile = st.lists(st.sampled_from(["\\", "\n", "\r", "n", "uid=0", "end=1\n", " ", "$(id)", "'", "*", "é"])).map(
    "".join
)


@settings(max_examples=15)
@given(st.lists(values | hostile, min_size=1, max_size=30), st.sampled_from(sorted(SHELLS)))
def test_a_value_survives_its_line(texts, shell):
    """Whatever a value holds, it is one line, and reading it gives the value."""
    script = FUNCTIONS + '\nfor value; do say v "$value"; done'
    done = subprocess.run([*SHELLS[shell], "-c", script, "sh", *texts], capture_output=True, check=True, timeout=60)
    lines = done.stdout.decode().split("\n")
    assert lines.pop() == ""
    assert [unescape(line.removeprefix("v=")) for line in lines] == texts


def test_a_long_value_is_cut():
    """A value of megabytes is a line of 4,000 characters."""
    script = FUNCTIONS + '\nsay v "$(head -c 300000 /dev/zero | tr "\\0" x)"'
    done = subprocess.run(["dash", "-c", script], capture_output=True, check=True, timeout=60)
    assert done.stdout == b"v=" + b"x" * 4000 + b"\n"


@settings(max_examples=200)
@given(st.binary() | st.binary().map(lambda rest: b"treescale-probe=1\n" + rest))
def test_any_output_gives_facts(output):
    """Nothing that a server prints makes reading fail; without an end something is missing."""
    assert parse(output).missing


KEYS = sorted({line.partition("=")[0] for path in PROBES.values() for line in path.read_text().splitlines()[1:]})


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from([*KEYS, "stat", "digest", "release", "ours", "key.error"]), values | hostile))
)
def test_any_value_of_any_key_gives_facts(pairs):
    """Known keys with unexpected values are read as far as they make sense."""
    escaped = [f"{key}={value}".replace("\\", r"\\").replace("\n", r"\n").replace("\r", r"\r") for key, value in pairs]
    found = parse("\n".join(["treescale-probe=1", *escaped, "end=1"]).encode())
    assert all(isinstance(each.port, int) for each in found.listeners)
    assert found.os_name.isprintable()


def test_what_a_login_prints_before_the_probe_is_passed_over():
    """Greetings of a shell, and lines in them that look like facts, do not count."""
    found = parse(b"Welcome!\r\nuid=7\r\ntreescale-probe=1\r\nuid=0\r\nend=1\r\n")
    assert found.uid == 0


def test_endless_output_is_bounded():
    """Of each key a few thousand lines count."""
    output = b"treescale-probe=1\n" + b"listen=0.0.0.0:22 \n" * (MAX_ITEMS + 100)
    assert len(parse(output).listeners) == MAX_ITEMS


@pytest.mark.parametrize(
    ("line", "listener"),
    [
        ('0.0.0.0:22 users:(("sshd",pid=7,fd=3),("systemd",pid=1,fd=4))', Listener("", 22, 7, "sshd")),
        ('[::ffff:127.0.0.1]:80 users:(("x",pid=9,fd=1))', Listener("127.0.0.1", 80, 9, "x")),
        ("127.0.0.53%lo:53 ", Listener("127.0.0.53", 53)),
        ("*:22", Listener("", 22)),
        (":::8080 12/nginx: master", Listener("", 8080, 12, "nginx:")),
        ("0100007F:1F90", Listener("127.0.0.1", 8080)),
        ("00000000000000000000000000000000:0016", Listener("", 22)),
        ("0000000000000000FFFF00000100007F:0016", Listener("127.0.0.1", 22)),
        ('[fd00::1]:443 users:(("a b",pid=3,fd=1))', Listener("fd00::1", 443, 3, "a b")),
    ],
)
def test_a_listener_is_read_as_each_tool_prints_it(line, listener):
    """Lines of ss, netstat and the kernel's own table say the same."""
    assert parse(f"treescale-probe=1\nlisten={line}\nend=1".encode()).listeners == (listener,)


def test_the_kernels_own_table_is_enough(cell):
    """Without ss and netstat the ports come from /proc."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        script = FUNCTIONS + "has() { false; }\necho treescale-probe=1\nnetwork\necho end=1"
        found = parse(in_cell(cell, script))
        assert Listener("127.0.0.1", server.getsockname()[1]) in found.listeners


def test_a_python_says_what_it_can_do():
    """Implementation, bits, flags and missing modules are read apart; what is no interpreter is passed over."""
    lines = [
        "python=3.13.1 cpython 64 t - /usr/local/bin/python3.13t",
        "python=3.11.2 cpython 32 - asyncio,zlib /usr/bin/python3.11",
        "python=3.x cpython 64 - - /usr/bin/python3",
    ]
    found = parse("\n".join(["treescale-probe=1", *lines, "end=1"]).encode()).pythons
    assert found == (
        Python("/usr/local/bin/python3.13t", (3, 13, 1), abi="t"),
        Python("/usr/bin/python3.11", (3, 11, 2), bits=32, missing=("asyncio", "zlib")),
    )


@pytest.mark.parametrize(
    ("said", "sudo"),
    [
        ("root", "root"),
        ("free", "free"),
        ("missing", "missing"),
        ("sudo: a password is required", "password"),
        ("Sorry, user x may not run sudo on h.", "refused"),
    ],
)
def test_sudo_is_known_by_what_it_says(said, sudo):
    """Whether sudo asks for a password or lets nobody in is in its own words."""
    assert parse(f"treescale-probe=1\nsudo={said}\nend=1".encode()).sudo == sudo


def test_modprobe_has_the_last_word_on_ipvs():
    """Modules that are forbidden do not count although their files are there; busybox cannot say, so files count."""
    files = rb"modules.available=/ip_vs.ko\n/overlay.ko"
    for said, modules in (
        ("yes", {"ip_vs", "overlay"}),
        ("modprobe: invalid option -- 'n'", {"ip_vs", "overlay"}),
        ("modprobe: FATAL: Module ip_vs not found", {"overlay"}),
    ):
        assert parse(b"treescale-probe=1\n" + files + f"\nmodprobe={said}\nend=1".encode()).modules == modules
