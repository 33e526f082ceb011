#!/usr/bin/env python3
"""Targets: real little servers to build on: Debian with systemd, OpenSSH and sudo, each with an address of its own.

    tests/targets.py 3          # three of them, until Ctrl-C; it prints how to log in

They are containers of a private engine (dockerd.py), which lives with them in namespaces of their own: the machine's
firewall and settings play no part and are left alone, and everything is gone when the process that made the `Lab` is
gone, in whatever way. Packages install in them through a proxy of the lab (so nothing is forwarded or masqueraded), a
Docker engine as well.

    pytest, Lab -- tsvN 198.18.N.254 --- bridge tsdN -- target 198.18.N.2
        |  proxy :3142                     (namespaces)  target 198.18.N.3
        '-- pipe --> keeper -- dockerd

Their image is made once, from the archive that this machine's apt uses, and kept in the user's cache directory. Users:
root, `tree` (password "tree", sudo with it), `free` (sudo without a password) and `plain` (password "tree", no sudo);
all let the lab's key in.
"""

import base64
import contextlib
import fcntl
import hashlib
import io
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dockerd import Dockerd, claim_number

LIMIT_S = 60.0
"""How long anything may take that must come, on a busy machine."""
MAKING_S = 900.0
"""How long the image may take, downloads included."""
PROXY_PORT = 3142
PASSWORD = "tree"
NOBODY = "02:00:00:00:00:01"
"""The hardware address of no host."""
PLAIN = ["sh", "-c", "mkdir -p /run/sshd; /usr/sbin/sshd -D & wait"]
"""Without systemd: process 1 is a shell, and sshd its child."""
KINDS = {
    "python": ("target:python", ["/sbin/init"]),
    "bare": ("target:bare", ["/sbin/init"]),
    "plain": ("target:bare", PLAIN),
    "still": ("target:python", PLAIN),
}
"""Of targets -> their image and process 1. With Python 3; without; neither Python nor systemd; only no systemd."""
AT_ONCE = 4
"""Targets that start at the same time."""
PACKAGES = (
    *("openssh-server", "sudo", "systemd", "systemd-sysv", "dbus", "iproute2", "procps", "ca-certificates", "kmod"),
)
NEEDLESS = ("doc/*", "man/*", "info/*", "locale/*", "lintian/*")
SETUP = r"""
set -e
for user in tree free plain; do useradd -m -s /bin/bash $user; done
printf '%s\n' tree:tree plain:tree | chpasswd
usermod -aG sudo tree
echo 'free ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/free
echo 'AuthorizedKeysFile .ssh/authorized_keys /etc/ssh/lab_keys' > /etc/ssh/sshd_config.d/lab.conf
rm -f /etc/ssh/ssh_host_*_key* /etc/machine-id /usr/lib/tmpfiles.d/systemd-nologin.conf
touch /etc/machine-id
# Nobody sits at them, and each would start them at the same time.
systemctl mask -q getty.target apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    fstrim.timer systemd-networkd.service systemd-resolved.service systemd-timesyncd.service
apt-get clean
rm -rf /var/lib/apt/lists/* /var/log/*.log
"""


class Lab:
    """An engine for targets, with their image and a way to packages. It comes up in the background: see `engine`."""

    def __init__(self) -> None:
        self._claim, number = claim_number()
        self.address = f"198.18.{number}.254"
        """Of this machine, as targets see it."""
        self.folder = Path(tempfile.gettempdir(), f"ts-lab-{number}")
        shutil.rmtree(self.folder, ignore_errors=True)  # of a keeper that was killed
        self.folder.mkdir(mode=0o700)
        self.key = self.folder / "key"
        """The private key that all users of targets let in."""
        self.log = self.folder / "log"
        self._run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", self.key)
        words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with self.log.open("w") as log:
            # It ends, and takes everything with it, when its standard input does: whatever happens to this process.
            # The number is free again when both are gone.
            self._keeper = subprocess.Popen(
                [*words, sys.executable, __file__, "--keep", str(number), self.folder],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, "TMPDIR": str(self.folder)}, pass_fds=[self._claim.fileno()],
            )  # fmt: skip
        self._answer("here")
        children = Path(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children").read_text()
        self.link = link = f"tsv{number}"
        """The end of the wire to them that is here."""
        self._run("ip", "link", "add", link, "type", "veth", "peer", "name", "outside", "netns", children.strip())
        self._run("ip", "address", "add", f"{self.address}/24", "dev", link)
        self._run("ip", "link", "set", link, "up")
        self.swallowed = f"198.18.{number}.253"
        """An address that nothing ever comes back from."""
        self._run("ip", "neigh", "add", self.swallowed, "lladdr", NOBODY, "dev", link, "nud", "permanent")
        self.proxy = Proxy((self.address, PROXY_PORT))
        threading.Thread(target=self.proxy.serve_forever, daemon=True).start()
        assert self._keeper.stdin
        self._keeper.stdin.write("connected\n")
        self._keeper.stdin.flush()

    @cached_property
    def engine(self) -> Any:
        """The engine, of which all targets are containers, when it is there with its images."""
        import docker  # takes a third of a second, and only some tests need it

        return docker.DockerClient(self._answer("ready", MAKING_S), version="auto", timeout=LIMIT_S)

    def target(self, kind: str = "python", **options: Any) -> "Target":
        """Start one. `options` are more of the engine's for containers, `tmpfs={"/opt": "size=2m"}` for a full disk."""
        return Target(self, kind, options)

    def targets(self, *kinds: str) -> list["Target"]:
        """Start several at the same time."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self.target, kinds))

    @staticmethod
    def remove(targets: Iterable["Target"]) -> None:
        """Throw several away at the same time."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(Target.remove, targets))

    def stop(self) -> None:
        """End all that is its own."""
        assert self._keeper.stdin
        self._keeper.stdin.close()
        self._keeper.wait(LIMIT_S)
        self.proxy.shutdown()
        self.proxy.server_close()
        self._claim.close()

    def _answer(self, word: str, limit_s: float = LIMIT_S) -> str:
        """Wait for a line of the keeper that begins with `word`, and return the rest of it."""
        assert self._keeper.stdout
        select.select([self._keeper.stdout], [], [], limit_s)
        first, _, rest = self._keeper.stdout.readline().rstrip("\n").partition(" ")
        assert first == word, f"the lab said {first!r}, not {word!r}:\n" + self.log.read_text()[-3000:]
        return rest

    @staticmethod
    def _run(*argv: str | Path) -> None:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv[0]} failed: {done.stderr}"


class Target:
    """One server. It has its own host keys; `host_key` is the public half of one, as in known_hosts."""

    def __init__(self, lab: Lab, kind: str, options: dict[str, Any]) -> None:
        private, self.host_key = _host_key(lab.folder)
        image, command = KINDS[kind]
        self._container = lab.engine.containers.create(
            image, command, **{
                # What --privileged gives, but for a capability that is missing where these tests are in a container.
                "cap_add": ["ALL"], "cap_drop": ["SYS_RESOURCE"],
                "security_opt": ["seccomp=unconfined", "apparmor=unconfined"], "cgroupns": "host",
                "volumes": ["/sys/fs/cgroup:/sys/fs/cgroup:rw"],
                # Nobody answers names there, which is told at once; nowhere, each query would wait for its end.
                "dns": [lab.address],
                "stop_signal": "SIGKILL" if command == PLAIN else "SIGRTMIN+3",
                **options,
                "tmpfs": {"/run": "", "/run/lock": "", **options.get("tmpfs", {})},
            },
        )  # fmt: skip
        proxy = f'Acquire::http::Proxy "http://{lab.address}:{PROXY_PORT}";\n'
        files = {
            "etc/ssh/ssh_host_ed25519_key": (private, 0o600),
            "etc/ssh/ssh_host_ed25519_key.pub": (f"{self.host_key}\n", 0o644),
            "etc/ssh/lab_keys": (lab.key.with_suffix(".pub").read_text(), 0o644),
            # After 99mmdebstrap, which names the proxy of the lab that made the image.
            "etc/apt/apt.conf.d/99zlab": (f"{proxy}{proxy.replace('http', 'https', 1)}", 0o644),
        }
        self._container.put_archive("/", _tar(files))
        self._container.start()
        self._container.reload()
        self.name = str(self._container.name)
        self.ip = str(self._container.attrs["NetworkSettings"]["IPAddress"])
        self.wait_ssh()

    @property
    def fingerprint(self) -> str:
        """Of its host key, as ssh-keygen shows it."""
        digest = hashlib.sha256(base64.b64decode(self.host_key.split()[1])).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    def run(self, script: str, *, check: bool = True) -> str:
        """Run a shell script in it as root, not over SSH; returns what it printed."""
        status, output = self._container.exec_run(["sh", "-c", script])
        assert not check or status == 0, f"{script} ended with {status}: {output.decode(errors='replace')}"
        return str(output.decode(errors="replace")).strip()

    def sshd(self, port: int, *options: str) -> None:
        """Run one more sshd there, with other options."""
        words = " ".join(f"-o '{option}'" for option in options)
        self.run(f"/usr/sbin/sshd -o 'PidFile /run/sshd-{port}.pid' -p {port} {words}")
        self.wait_ssh(port)

    def wait_ssh(self, port: int = 22) -> None:
        """Wait until an sshd answers."""
        end = time.monotonic() + LIMIT_S
        while not _greets(self.ip, port):
            assert time.monotonic() < end, f"no sshd at port {port}: {self.run('ps ax; cat /var/log/*', check=False)}"
            time.sleep(0.02)

    def known_host(self, port: int = 22, name: str = "") -> str:
        """Return its line in known_hosts."""
        host = name or self.ip
        return f"{host if port == 22 else f'[{host}]:{port}'} {self.host_key}\n"

    def restart(self) -> None:
        """Switch it off and on again."""
        self._container.restart()
        self._container.reload()
        assert self._container.attrs["NetworkSettings"]["IPAddress"] == self.ip
        self.wait_ssh()

    def remove(self) -> None:
        """Switch it off and throw it away."""
        self._container.remove(force=True, v=True)


def _greets(ip: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((ip, port), timeout=LIMIT_S) as sock:
        return sock.recv(4) == b"SSH-"
    return False


def _host_key(folder: Path) -> tuple[str, str]:
    """Return a new key: the private half as in a file, the public one as in known_hosts."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)
    return path.read_text(), path.with_suffix(".pub").read_text().strip()


def _tar(files: dict[str, tuple[str, int]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, (text, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = mode, len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


# The proxy: how packages come into targets.


class Proxy(ThreadingHTTPServer):
    """An HTTP proxy. It keeps packages in the cache directory: a file of an archive's pool never changes."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, _Request)
        self.packages = cache() / "packages"
        self.packages.mkdir(exist_ok=True)
        old = time.time() - 30 * 86_400
        for file in self.packages.iterdir():
            if file.stat().st_mtime < old:
                file.unlink(missing_ok=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the client is gone, or is told."""


class _Request(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        name = hashlib.sha256(self.path.encode()).hexdigest()
        kept = self.server.packages / name
        if kept.exists():
            kept.touch()
            self._send(200, {"Content-Length": str(kept.stat().st_size)}, kept.open("rb"))
            return
        headers = {name: self.headers[name] for name in ("If-Modified-Since", "Range") if name in self.headers}
        request = urllib.request.Request(self.path, headers=headers)  # noqa: S310  (whatever apt asks for)
        try:
            answer = urllib.request.urlopen(request, timeout=LIMIT_S)  # noqa: S310
        except urllib.error.HTTPError as error:
            answer = error
        if self.path.endswith(".deb") and answer.status == 200:
            with tempfile.NamedTemporaryFile(dir=self.server.packages, delete=False) as file:
                shutil.copyfileobj(answer, file)
            Path(file.name).rename(kept)
            answer_body: Any = kept.open("rb")
        else:
            answer_body = answer
        passed = ("Content-Length", "Content-Type", "Last-Modified", "Content-Range")
        told = {name: answer.headers[name] for name in passed if name in answer.headers}
        self._send(answer.status, told, answer_body)

    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), timeout=LIMIT_S) as far:
            self._send(200, {}, io.BytesIO())
            pairs = {self.connection: far, far: self.connection}
            while ready := select.select(list(pairs), [], [], LIMIT_S)[0]:
                for one in ready:
                    if not (data := one.recv(65_536)):
                        return
                    pairs[one].sendall(data)

    def _send(self, status: int, headers: dict[str, str], body: Any) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with body:
            shutil.copyfileobj(body, self.wfile)

    def log_message(self, *_: object) -> None:
        pass


# The keeper: a process in the namespaces of the targets.


def keep(number: int, folder: Path) -> None:
    """Run the engine until standard input ends."""
    print("here", flush=True)
    assert sys.stdin.readline() == "connected\n"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    threading.Thread(target=_interrupt_at_end, daemon=True).start()
    ip = ("ip", "link", "set")
    subprocess.run([*ip, "lo", "up"], check=True)
    engine = Dockerd(number=number)
    try:
        engine.start()
        subprocess.run([*ip, "outside", "up", "master", f"tsd{number}"], check=True)
        _load_images(engine, folder, f"http://198.18.{number}.254:{PROXY_PORT}")
        print("ready", engine.host, flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        engine.stop()
        shutil.rmtree(folder)


def _interrupt_at_end() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGINT)


def cache() -> Path:
    """Return the folder of what is kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(base).expanduser() / "treescale-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _load_images(engine: Dockerd, folder: Path, proxy: str) -> None:
    """Give the engine the images: those that are kept, or new ones."""
    archive, suite = _archive()
    recipe = json.dumps([archive, suite, PACKAGES, NEEDLESS, SETUP, 1])
    kept = cache() / f"targets-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.tar"
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if kept.exists():
            _do("docker", "--host", engine.host, "load", "--input", kept)
            return
        _make_images(engine, folder, proxy, f"deb {archive} {suite} main", suite)
        new = kept.with_suffix(".new")
        _do("docker", "--host", engine.host, "save", "--output", new, "target:bare", "target:python")
        for old in cache().glob("targets-*.tar"):
            old.unlink()
        new.rename(kept)


def _make_images(engine: Dockerd, folder: Path, proxy: str, source: str, suite: str) -> None:
    """Make `target:bare`, and of it `target:python`."""
    docker = ("docker", "--host", engine.host)
    tree = folder / "tree.tar"
    paths = [f"--dpkgopt=path-exclude=/usr/share/{each}" for each in NEEDLESS]
    _do("mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar", f"--include={','.join(PACKAGES)}", *paths,
        "--dpkgopt=force-unsafe-io", f'--aptopt=Acquire::http::Proxy "{proxy}"', suite, tree, source)  # fmt: skip
    _do(*docker, "import", tree, "target:tree")
    tree.unlink()
    more = f"apt-get -qq -o Acquire::http::Proxy={proxy}"
    install = f"{more} update && {more} -o Dpkg::Options::=--force-unsafe-io --no-install-recommends install -y python3"
    for image, of, script in (("bare", "tree", SETUP), ("python", "bare", f"{install}; apt-get clean; {_FORGET}")):
        _do(*docker, "run", "--name", image, "--network", "host", f"target:{of}", "sh", "-c", script)
        _do(*docker, "commit", image, f"target:{image}")
        _do(*docker, "rm", image)


_FORGET = "rm -rf /var/lib/apt/lists/*"


def _archive() -> tuple[str, str]:
    """Return the address of the archive that this machine's apt uses, and the name of this machine's release."""
    lines = Path("/etc/os-release").read_text().splitlines()
    suite = dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"].strip('"')
    words = ("apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages")
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [line.split()[2] for line in listed if line.split()[:2] == [suite, "main"]]
    assert found, f"apt's sources have no {suite} main"
    return found[0], suite


def _do(*argv: str | Path) -> None:
    print("+", *argv, file=sys.stderr, flush=True)
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=True)


def main(words: list[str]) -> None:
    """Keep targets up for a person, or be the keeper of a lab."""
    if words[:1] == ["--keep"]:
        keep(int(words[1]), Path(words[2]))
        return
    count, kind = int(words[0]) if words else 1, words[1] if len(words) > 1 else "python"
    lab = Lab()
    try:
        for target in lab.targets(*[kind] * count):
            print(f"ssh -i {lab.key} root@{target.ip}", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        lab.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
