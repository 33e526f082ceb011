"""A Docker engine of the tests' own: the real dockerd, with its data, containerd, bridge and sockets in a short folder.

It leaves the machine alone: no firewall rule, no sysctl, no default bridge, so several may run next to each other and
next to the machine's own engine. Its containers reach each other and the machine, not the world; published ports work.
It lives in the network namespace of the thread that makes it.
"""

import contextlib
import fcntl
import io
import os
import select
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PREFIX = "ts-engine-"
START_S = 60
STOP_S = 20
APPLETS = (
    *("sh", "sleep", "httpd", "nc", "cat", "echo", "ls", "wget", "ip", "dd", "yes", "stty", "tail", "head", "printf"),
    *("seq", "true", "false", "kill", "ps", "env", "id", "pwd", "wc", "test", "touch", "rm", "mkdir", "mknod", "tr"),
)


class Dockerd:
    """A private engine. `host` and `tls_host` are its addresses, `certs` a client's ca.pem, cert.pem and key.pem."""

    def __init__(self, *options: str, number: int | None = None, through: Sequence[str] = ()) -> None:
        """`options` are more words for dockerd's command line, `--live-restore` for one.

        `number`: one that the caller has claimed, in another network namespace than that in which the engine runs.
        `through`: a command that runs what follows it, in a mount namespace of its own for one.
        """
        _sweep()
        made = Path(tempfile.mkdtemp(prefix="ts-new-"))
        self._lock = _lock(made)  # before it has the name by which others would take it for nobody's
        self.folder = made.rename(made.with_name(made.name.replace("ts-new-", PREFIX)))
        self.socket = self.folder / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.log = self.folder / "log"
        self.certs = self.folder / "client"
        self._options = options
        self._through = through
        self._claim: socket.socket | None = None
        if number is None:
            self._claim, number = claim_number()
        self._bridge = f"tsd{number}"
        self._subnet = f"198.18.{number}.1/24"  # for benchmarks of networks (RFC 2544), so nobody has it
        self._networks = f"198.19.{number}."
        loopback = f"127.18.{number}.1"  # nobody else has it, so its port is free, also when dockerd starts again
        self.tls_host = f"tcp://{loopback}:2376"
        self._process: subprocess.Popen[bytes] | None = None
        _make_certificates(self.folder / "server", self.certs, loopback)

    @property
    def pid(self) -> int:
        """Of dockerd itself."""
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Run dockerd and wait until it answers. Fails with the end of its log.

        In the main thread: dockerd ends with the thread that started it.
        """
        assert threading.current_thread() is threading.main_thread()
        if not _is_link(self._bridge):
            # Without an address of its own it takes that of a member, and its containers answer to one that has gone.
            hardware = f"02:42:c6:12:{int(self._bridge.removeprefix('tsd')):02x}:01"
            _run("ip", "link", "add", self._bridge, "address", hardware, "type", "bridge")
            _run("ip", "address", "add", self._subnet, "dev", self._bridge)
            _run("ip", "link", "set", self._bridge, "up")
        server = self.folder / "server"
        argv = [
            *("setpriv", "--pdeathsig", "TERM"),  # it ends with the tests, however those end
            *self._through,
            *("dockerd", "--data-root", self.folder / "data", "--exec-root", self.folder / "run"),
            *("--pidfile", self.folder / "pid", "--host", self.host, "--host", self.tls_host, "--tlsverify"),
            *("--tlscacert", server / "ca.pem", "--tlscert", server / "cert.pem", "--tlskey", server / "key.pem"),
            *(
                "--bridge",
                self._bridge,
                "--default-address-pool",
                f"base={self._networks}0/24,size=28",
                "--iptables=false",
                "--ip6tables=false",
            ),
            *("--ip-forward=false", "--ip-masq=false", "--shutdown-timeout", "1", *self._options),
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self.log.read_text(errors="replace").splitlines()
                raise AssertionError("dockerd does not start; the end of its log:\n" + "\n".join(lines[-15:]))
            time.sleep(0.02)

    def kill(self) -> None:
        """End dockerd without a word, as a crash would; its containers run on until the next start."""
        assert self._process
        pid_file = self.folder / "run/containerd/containerd.pid"
        containerd = os.pidfd_open(int(pid_file.read_text()))
        self._process.kill()
        self._process.wait()
        # The kernel ends containerd with its parent, but a little later; where process 1 is slow to reap, a new dockerd
        # takes the zombie for a living containerd and waits for its socket.
        select.select([containerd], [], [], STOP_S)
        os.close(containerd)
        pid_file.unlink()

    def pause(self) -> None:
        """Let dockerd stand still: it accepts connections and never answers. SIGCONT by `resume`."""
        os.kill(self.pid, signal.SIGSTOP)
        while any(_state(task) not in "TZ" for task in Path(f"/proc/{self.pid}/task").iterdir()):
            time.sleep(0.001)  # each thread stops when it next meets the kernel

    def resume(self) -> None:
        """Let it go on after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it and all that is its own: containers, containerd, mounts, bridge, folder."""
        if self._process and self._process.poll() is None:
            self.resume()
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
            self._process.kill()
            self._process.wait()
        for bridge in (self._bridge, *_links_with(self._networks)):
            _delete_bridge(bridge)
        _remove(self.folder)
        os.close(self._lock)
        if self._claim:
            self._claim.close()

    def image(self, name: str, *changes: str) -> str:
        """Make the image `name` of a static busybox and `changes` (lines of a Dockerfile). Returns its id."""
        import docker  # takes a third of a second, and only some tests need it

        client = docker.APIClient(self.host, version="auto", timeout=START_S)
        try:
            repository, _, tag = name.partition(":")
            client.import_image_from_data(_busybox(), repository, tag or "latest", list(changes))
            return str(client.inspect_image(name)["Id"])
        finally:
            client.close()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self.socket))
                probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in probe.recv(64)
            except OSError:
                return False


def _state(task: Path) -> str:
    """The state of a thread, in the kernel's letter; Z for one that is gone."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def claim_number() -> tuple[socket.socket, int]:
    """A number that no other engine of tests uses: of the bridge and its addresses. The kernel frees it with us."""
    for number in range(1, 255):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0treescale-dockerd-{number}")
        except OSError:
            claim.close()
            continue
        _delete_bridge(f"tsd{number}")  # of somebody who was killed
        return claim, number
    raise AssertionError("254 engines run already")


def _sweep() -> None:
    """Remove the folders, and what lives in them, of engines whose tests were killed: nobody holds their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, or somebody else has removed it
            lock = _lock(folder)
            _remove(folder)
            os.close(lock)


def _lock(folder: Path) -> int:
    """Take the lock of a folder, which the kernel frees with us. Raises OSError when somebody has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove(folder: Path) -> None:
    """Remove a folder with the processes that have it in their arguments, and the mounts in it."""
    for pid in _offspring(str(folder)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for mount in _mounts(str(folder)):
        _run("umount", "--lazy", mount, check=False)
    shutil.rmtree(folder, ignore_errors=True)


def _delete_bridge(name: str) -> None:
    """Delete a bridge and what is plugged in: an engine that was killed forgets the wires that it was laying."""
    members = subprocess.run(["ip", "-o", "link", "show", "master", name], capture_output=True, text=True, check=False)
    for line in members.stdout.splitlines():
        _run("ip", "link", "delete", line.split()[1].rstrip(":").partition("@")[0], check=False)
    _run("ip", "link", "delete", name, check=False)


def _is_link(name: str) -> bool:
    """Whether this network namespace has it: /sys tells of that in which it was mounted."""
    return not subprocess.run(["ip", "link", "show", name], capture_output=True, check=False).returncode


def _make_certificates(server: Path, client: Path, address: str) -> None:
    """One authority, a server with this address, and a client."""
    server.mkdir()
    client.mkdir()
    authority = server / "authority.pem"
    new = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    _run(*new, "-subj", "/CN=tests", "-keyout", authority, "-out", server / "ca.pem")
    shutil.copy(server / "ca.pem", client)
    by = ("-CA", server / "ca.pem", "-CAkey", authority)
    use = ("-addext", "basicConstraints=CA:false", "-addext")
    for folder, more in (
        (server, (*use, f"subjectAltName=IP:{address}")),
        (client, (*use, "extendedKeyUsage=clientAuth")),
    ):
        key, certificate = folder / "key.pem", folder / "cert.pem"
        _run(*new, *by, "-subj", f"/CN={folder.name}", *more, "-keyout", key, "-out", certificate)


def _busybox() -> bytes:
    found = shutil.which("busybox")
    assert found, "busybox is missing: install busybox-static"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(os.path.realpath(found), "bin/busybox")
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for folder in ("tmp", "www"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(entry)
    return out.getvalue()


def _offspring(mark: str) -> Iterator[int]:
    """The processes that have `mark` in their arguments, containerd and its shims, behind those they started."""
    processes = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    children: dict[int, list[int]] = {}
    roots = []
    for pid in processes:
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(pid)
            if pid != os.getpid() and mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                roots.append(pid)

    def below(pid: int) -> Iterator[int]:
        for child in children.get(pid, ()):
            yield from below(child)
        yield pid

    for root in roots:
        yield from below(root)


def _mounts(folder: str) -> Sequence[str]:
    """The mounts in `folder`, the innermost first."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [path for line in reversed(lines) if (path := line.split()[1]).startswith(f"{folder}/")]


def _links_with(address: str) -> list[str]:
    """The interfaces that have an address that begins so: dockerd leaves the bridges of its networks behind."""
    lines = subprocess.run(
        ["ip", "-o", "-4", "address"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [line.split()[1] for line in lines if f" {address}" in line]


def _run(*argv: str | Path, check: bool = True) -> None:
    done = subprocess.run(argv, capture_output=True, check=False)
    assert not check or done.returncode == 0, f"{argv[0]} failed: {done.stderr.decode(errors='replace')}"
