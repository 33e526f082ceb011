"""Installer: makes a node of a server, or a bare server of a node again. It runs there, as root, under a stock Python.

One file, nothing but the standard library: orders.py sends its source and what it is to do. It says what it has of the
bundle, reads one line of JSON, then the rest of the bundle, and does one order after the other. It prints lines of
JSON: `begin`, `output` of scripts, and `ok`, `changed` or `failed` of each order; at the first failure it ends.

Every order first looks and then acts, and may be killed at any moment: doing the same orders again ends in the same
state. What the build makes is in the manifest before it is there, so that an uninstall finds all of it; what had been
there before is put back. Releases and files appear whole, by a rename, or not at all.
"""

import base64
import configparser
import contextlib
import fcntl
import grp
import hashlib
import io
import json
import os
import pwd
import re
import secrets
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import time
import tomllib
import xmlrpc.client
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final

FORMAT: Final = 1
"""Of orders, bundles and manifests."""
LOCK_S: Final = 300.0
"""How long another installer is waited for: that of a console which is lost ends a script of packages first."""
RUN_S: Final = 60.0
SCRIPT_S: Final = 900.0
SILENT_S: Final = 60.0
"""How long nothing of a bundle may come."""
ORDERS_S: Final = 600.0
"""How long the orders may take to come: the console waits until it may send their bundle."""
UP_S: Final = 60.0
"""How long a router may take until it answers."""
JOIN_S: Final = 30.0
"""How long the other programs may take to join it; more is no reason to fail."""
SERVES: Final = {"executor": "exec.run", "events": "node.facts", "docker": "docker.info", "balancer": "lb.ls"}
"""Program -> a command that it serves."""
DOWN_S: Final = 60.0
FOLLOW_S: Final = 180.0
"""Each of a node's programs is given 15 s to end."""
MAX_OUTPUT: Final = 1 << 20
"""Bytes of a script's output that are passed on."""
MAX_SAID: Final = 64 << 20
"""Bytes that a program may write before it is ended: they are kept in memory."""
MAX_UNPACKED: Final = 256 << 20
MAX_KEPT: Final = 1 << 20
"""Bytes of a file that was there before and is kept to be put back."""
SHOWN: Final = 4000

ROOT: Final = Path("/opt/treescale")
RELEASES: Final = ROOT / "releases"
CURRENT: Final = ROOT / "current"
READY: Final = "ready"
"""The file of a release that says which Python it is for; without it, it is not finished."""
ETC: Final = Path("/etc/treescale")
CONFIG: Final = ETC / "treescale.toml"
SUPERVISOR: Final = ETC / "supervisord.conf"
STATE: Final = Path("/var/lib/treescale")
MANIFEST: Final = STATE / "manifest.json"
NEW_STATE: Final = STATE.with_name(f".{STATE.name}.new")
OLD_STATE: Final = STATE.with_name(f".{STATE.name}.old")
PENDING: Final = STATE / "pending"
"""Says what the processes have not been told yet: `reload` or `restart`."""
READ: Final = STATE / "read.toml"
"""While something is pending: the copy of the tree that the processes have read. Not there when that is not known."""
LOGS: Final = Path("/var/log/treescale")
RUN: Final = Path("/run/treescale")
CONTROL: Final = RUN / "ctl"
USER: Final = "treescale"
SERVICE: Final = "treescale"
UNITS: Final = {"systemd": "/etc/systemd/system/treescale.service", "openrc": "/etc/init.d/treescale"}
OWN_FILES: Final = """\
import json, sys
from tsbus.build.units import TEXTS
from tsbus.config import load
from tsbus.supervision.conf import render_servers
tree = load(sys.argv[1])
print(json.dumps([render_servers(tree)[tree.current_node], TEXTS.get(sys.argv[2], "")]))
"""
"""What a release, older than this file or not, is asked for its supervisord.conf and its unit."""

Told = dict[str, Any]


class Failed(Exception):
    """An order cannot be carried out; the text says why in one line."""

    def __init__(self, text: str, *, status: int | None = None, output: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.output = output


# Telling the console.


def say(**told: Any) -> None:
    """Print one line. When nobody reads it any more, end: what is done is done, the rest is for another time."""
    try:
        print(json.dumps(told), flush=True)
    except BrokenPipeError:
        os._exit(1)


def words_of(error: BaseException) -> Told:
    """Return an exception as what `failed` tells: enough for trouble.py to class it."""
    if isinstance(error, Failed):
        return {"error": one_line(str(error)), "status": error.status, "output": error.output[-SHOWN:]}
    told: Told = {"error": one_line(str(error)) or type(error).__name__, "type": type(error).__name__}
    if isinstance(error, OSError) and error.strerror:
        told |= {"error": one_line(f"{error.filename or 'a file'}: {error.strerror}"), "errno": error.errno}
    return told


def one_line(text: str) -> str:
    """Return a text without line breaks, cut to a bearable length."""
    return " ".join(text.split())[:500]


# Running programs.


def run(
    *argv: str | Path, limit_s: float = RUN_S, check: bool = True, heard: bool = False, most: int = SHOWN
) -> tuple[int, str]:
    """Run a program to its end; returns its status and the end of its output, `most` bytes of it. Raises Failed.

    With `heard` it is ended when the console is lost, and BrokenPipeError raised: whoever comes back need not wait.
    """
    name = f"`{' '.join(str(word) for word in argv[:3])}`"
    return _run([str(word) for word in argv], name, None, limit_s, check, heard=heard, most=most)


def _run(
    argv: Sequence[str],
    name: str,
    stdin: int | None,
    limit_s: float,
    check: bool,
    tell: Callable[[str], None] | None = None,
    heard: bool = False,
    most: int = SHOWN,
) -> tuple[int, str]:
    # A file in memory, not a pipe: should this process die, a package manager must not die of it in the middle.
    with os.fdopen(os.memfd_create("output"), "r+b", buffering=0) as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL if stdin is None else stdin, stdout=output, stderr=output, cwd="/",
            start_new_session=True,
        )  # fmt: skip
        until, told = time.monotonic() + limit_s, 0
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
            if tell is not None:
                told = _tell_new(output.fileno(), told, tell, last=process.returncode is not None)
            if process.returncode is not None:
                break
            if heard and not _is_heard():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise BrokenPipeError
            is_too_much = os.fstat(output.fileno()).st_size > MAX_SAID
            if is_too_much or time.monotonic() > until:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                why = "writes without end" if is_too_much else f"has not ended within {limit_s:g} s"
                raise Failed(f"{name} {why}", output=_end_of(output.fileno()))
        said = _end_of(output.fileno(), most)
    if check and process.returncode:
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
        raise Failed(f"{name} ended with {process.returncode}: {last}", status=process.returncode, output=said)
    return process.returncode, said


def _is_heard() -> bool:
    """Tell whether anybody still reads what we say."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # the end of a reader is told without being asked for
    return not poll.poll(0)


def _tell_new(output: int, told: int, tell: Callable[[str], None], *, last: bool) -> int:
    """Tell the whole lines after the first `told` bytes; returns how many bytes are told then."""
    while told < MAX_OUTPUT and (data := os.pread(output, 65_536, told)):
        whole = data if last or len(data) == 65_536 else data[: data.rfind(b"\n") + 1]
        if not whole:
            break
        tell(whole.decode(errors="replace"))
        told += len(whole)
    return told


def _end_of(output: int, most: int = SHOWN) -> str:
    size = os.fstat(output).st_size
    return os.pread(output, most, max(0, size - most)).decode(errors="replace")


# Files.


def write(path: Path, data: bytes, mode: int, uid: int = 0, gid: int = 0) -> bool:
    """Make a file be this, in one step and for good; returns whether it was not."""
    try:
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and path.read_bytes() == data:
            return set_rights(path, mode, uid, gid)
    except FileNotFoundError:
        pass
    new = beside(path)
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
        file.flush()
        os.fsync(descriptor)
    new.replace(path)
    sync(path.parent)
    return True


def beside(path: Path) -> Path:
    """Return the name that a file has until it is whole."""
    return path.with_name(f".{path.name}.new")


def set_rights(path: Path, mode: int, uid: int, gid: int) -> bool:
    """Give a file or folder these rights; returns whether it had others."""
    found = path.stat()
    if (found.st_uid, found.st_gid) != (uid, gid):
        os.chown(path, uid, gid)  # takes away setgid
    elif stat.S_IMODE(found.st_mode) == mode:
        return False
    path.chmod(mode)
    return True


def sync(path: Path) -> None:
    """Have what is known of a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> bool:
    """Remove whatever is there; returns whether something was."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
    else:
        return False
    return True


def rights(data: Mapping[str, str]) -> tuple[int, int, int]:
    """Return the mode, uid and gid in an order. Raises Failed for users and groups that are not there."""
    try:
        return int(data["mode"], 8), pwd.getpwnam(data["user"]).pw_uid, grp.getgrnam(data["group"]).gr_gid
    except KeyError:
        raise Failed(f"no user {data['user']} or no group {data['group']} on this machine") from None


# The manifest.


class Manifest:
    """What builds have made here, in order. Each entry is written before what it tells of is there."""

    def __init__(self) -> None:
        self.entries: list[Told] = []
        if MANIFEST.exists():
            self.entries = json.loads(MANIFEST.read_text())["made"]

    def begin(self) -> None:
        """Have a folder with a manifest that tells of this folder: both come into being at once."""
        clean_up()
        if MANIFEST.exists():
            return
        if STATE.exists():
            self.path(STATE)
            return
        new = NEW_STATE
        new.mkdir(0o750)
        self.entries = [{"what": "path", "path": str(STATE), "before": None}]
        write(new / MANIFEST.name, self._text(), 0o640)
        new.rename(STATE)
        sync(STATE.parent)

    def add(self, what: str, **entry: Any) -> None:
        """Write down what is about to be made."""
        told = {"what": what, **entry}
        if told not in self.entries:
            self.entries.append(told)
            self._write()

    def path(self, path: Path) -> None:
        """Write down that a file or folder is about to be made or changed, with what is there now."""
        if not any(entry["what"] == "path" and entry["path"] == str(path) for entry in self.entries):
            self.entries.append({"what": "path", "path": str(path), "before": _as_it_is(path)})
            self._write()

    def folder(self, path: Path) -> None:
        """Make a folder and those above it, each written down."""
        if not path.is_dir():
            self.folder(path.parent)
            self.path(path)
            path.mkdir(0o755)

    def forget(self, path: Path) -> None:
        """A file or folder of ours is gone."""
        gone = {"what": "path", "path": str(path), "before": None}
        if gone in self.entries:
            self.entries.remove(gone)
            self._write()

    def has(self, what: str, **entry: Any) -> bool:
        """Tell whether this was made here."""
        return {"what": what, **entry} in self.entries

    def _write(self) -> None:
        write(MANIFEST, self._text(), 0o640)

    def _text(self) -> bytes:
        return json.dumps({"format": FORMAT, "made": self.entries}, indent=1).encode()


def clean_up() -> None:
    """Remove what is left of a folder that an installer which was killed had not made, or not removed, to its end."""
    remove(NEW_STATE)
    remove(OLD_STATE)


def _as_it_is(path: Path) -> Told | None:
    """Return what must be known of a file or folder to put it back; None when there is none."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    told: Told = {"mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}
    if stat.S_ISLNK(found.st_mode):
        told["link"] = str(path.readlink())
    elif stat.S_ISREG(found.st_mode):
        if found.st_size > MAX_KEPT:
            raise Failed(f"{path} is there already and too large to be kept; move it away")
        told["data"] = base64.b64encode(path.read_bytes()).decode()
    elif not stat.S_ISDIR(found.st_mode):
        raise Failed(f"{path} is there already, and neither a file nor a folder; move it away")
    return told


def put_back(path: Path, before: Told | None) -> None:
    """Make a file or folder be as it was."""
    beside(path).unlink(missing_ok=True)
    if before is None:
        remove(path)
    elif "data" in before:
        write(path, base64.b64decode(before["data"]), before["mode"], before["uid"], before["gid"])
    elif "link" in before:
        link(path, before["link"])
    elif path.is_dir():
        set_rights(path, before["mode"], before["uid"], before["gid"])


def link(path: Path, target: str) -> bool:
    """Make a link be this, in one step; returns whether it was not."""
    if path.is_symlink() and str(path.readlink()) == target:
        return False
    new = beside(path)
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(path)
    sync(path.parent)
    return True


# The bundle.


def part_of(digest: str) -> Path:
    """Return where what has come of a bundle is kept."""
    return STATE / f"bundle-{digest}.part"


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Wait no longer for the console. Raises EOFError: where it is cut off, its connection may stay for hours."""

    def stop(*_: object) -> None:
        raise EOFError(f"nothing came from the console for {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def receive(source: BinaryIO, digest: str, size: int) -> None:
    """Take what is missing of a bundle from the console. Raises Failed when the connection ends before it is whole."""
    part = part_of(digest)
    for old in STATE.glob("bundle-*.part"):
        if old != part:
            old.unlink()
    try:
        with part.open("ab") as file:
            part.chmod(0o600)
            while (left := size - file.tell()) > 0:
                with limited(SILENT_S):
                    data = source.read(min(left, 65_536))
                if not data:
                    raise EOFError("the connection ended in the middle of the bundle")
                file.write(data)
    except OSError:
        # A full disk is for the others, too.
        part.unlink(missing_ok=True)
        raise
    if part.stat().st_size != size or _digest(part) != digest:
        part.unlink()
        raise Failed("what came of the bundle is not what was sent; build again")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wheels_in(bundle: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the wheels of a bundle, verified. Raises Failed."""
    with tarfile.open(bundle, "r:") as tar:
        first = tar.next()
        if first is None or first.name != "bundle.json":
            raise Failed("the bundle is none")
        about = json.loads(_member(tar, first))
        if about["format"] != FORMAT:
            raise Failed(f"the bundle has format {about['format']}, and this installer knows {FORMAT}")
        for each in about["wheels"]:
            data = _member(tar, tar.getmember(f"wheels/{each['file']}"))
            if hashlib.sha256(data).hexdigest() != each["sha256"]:
                raise Failed(f"{each['file']} in the bundle is damaged")
            yield each["file"], data


def _member(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(entry) if entry.isfile() and entry.size <= MAX_UNPACKED else None
    if file is None:
        raise Failed(f"{entry.name} in the bundle is no file")
    return file.read()


# A release.


class Release:
    """A folder with a virtual environment: made of wheels as pip would, without pip."""

    def __init__(self, folder: Path, final: Path, python: str) -> None:
        """`folder` is where it is made, `final` where it will be used."""
        self._folder = folder
        self._python = final / "bin" / "python3"
        self._site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        self._room = MAX_UNPACKED
        self._site.mkdir(parents=True)
        (folder / "bin").mkdir()
        (folder / "bin" / "python3").symlink_to(python)
        (folder / "bin" / "python").symlink_to("python3")
        home = str(Path(python).parent)
        text = f"home = {home}\ninclude-system-site-packages = false\nversion = {sys.version.split()[0]}\n"
        self._new(folder / "pyvenv.cfg", text.encode())

    def add(self, name: str, wheel: bytes) -> None:
        """Unpack one wheel. Every file must be what its RECORD says, and none may be outside. Raises Failed."""
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            info = next((each for each in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/RECORD", each)), "")
            if not info:
                raise Failed(f"{name} has no RECORD")
            record = dict(_recorded(archive.read(info).decode()))
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if missing := record.keys() - {entry.filename for entry in entries}:
                raise Failed(f"{name} lacks {min(missing)}")
            for entry in entries:
                data = self._read(archive, entry, name)
                if entry.filename != info and record.get(entry.filename) != _as_recorded(data):
                    raise Failed(f"{name}: {entry.filename} is not what its RECORD says")
                self._place(entry.filename, data)
            with contextlib.suppress(KeyError):
                self._commands(archive.read(info.replace("RECORD", "entry_points.txt")).decode())

    def _read(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> bytes:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        self._room -= entry.file_size
        if kind not in (0, stat.S_IFREG) or self._room < 0:
            raise Failed(f"{name}: {entry.filename} is no plain file, or too large")
        return archive.read(entry)

    def _place(self, name: str, data: bytes) -> None:
        """Write a file of a wheel to where it belongs: NAME.data/KIND/ has what is not for site-packages."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            raise Failed(f"{name} is no path for a file of a wheel")
        if not path.parts[0].endswith(".data"):
            self._new(self._site / path, data)
            return
        kind, rest = path.parts[1], PurePosixPath(*path.parts[2:])
        if kind == "scripts":
            self._script(str(rest), data)
        elif kind in ("purelib", "platlib", "data"):
            self._new((self._folder if kind == "data" else self._site) / rest, data)

    def _script(self, name: str, data: bytes) -> None:
        first, _, rest = data.partition(b"\n")
        if first.startswith(b"#!python"):
            data = f"#!{self._python}".encode() + first.removeprefix(b"#!python") + b"\n" + rest
        self._new(self._folder / "bin" / name, data, 0o755)

    def _commands(self, text: str) -> None:
        points = configparser.ConfigParser(delimiters=("=",), interpolation=None)
        points.optionxform = str  # type: ignore[assignment,method-assign]
        points.read_string(text)
        for name, where in points.items("console_scripts") if points.has_section("console_scripts") else ():
            module, _, function = where.partition("[")[0].strip().partition(":")
            if not re.fullmatch(r"[\w.-]+", name) or not re.fullmatch(r"[\w.]+:[\w.]+", f"{module}:{function}"):
                raise Failed(f"{name} = {where} is no program")
            lines = f"import sys\nfrom {module} import {function.partition('.')[0]}\nsys.exit({function}())\n"
            self._new(self._folder / "bin" / name, f"#!{self._python} -I\n{lines}".encode(), 0o755)

    def _new(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)

    def compile(self, final: Path) -> None:
        """Compile all modules. Nothing looks at their sources again: a release never changes."""
        options = ("-q", "-j", "2", "--invalidation-mode", "unchecked-hash", "-s", self._folder, "-p", final)
        # Some packages have templates and files for other Pythons, which are no modules: its status says nothing.
        run(sys.executable, "-I", "-m", "compileall", *options, self._site, limit_s=SCRIPT_S, check=False, heard=True)

    def finish(self, check: str) -> None:
        """See that it works, and have all of it on the disk. Raises Failed."""
        python = self._folder / "bin" / "python3"
        run(python, "-I", "-B", "-c", check)
        for folder, _, names in os.walk(self._folder):
            for name in names:
                if not (path := Path(folder, name)).is_symlink():
                    sync(path)
            sync(Path(folder))


def _recorded(text: str) -> Iterator[tuple[str, str]]:
    """Yield the files of a RECORD with their digests, "" for itself and signatures."""
    for line in text.splitlines():
        name, digest, _ = line.rsplit(",", 2)
        yield name.strip('"'), digest


def _as_recorded(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


# supervisord.


def ask(method: str, *args: Any) -> Any:
    """Ask supervisord. Raises OSError when it does not run, Failed when it refuses."""
    found = re.search(r"^password=(.*)$", SUPERVISOR.read_text(), re.MULTILINE)
    credentials = base64.b64encode(f"{USER}:{found[1] if found else ''}".encode()).decode()
    body = xmlrpc.client.dumps(args, f"supervisor.{method}").encode()
    head = f"POST /RPC2 HTTP/1.0\r\nAuthorization: Basic {credentials}\r\nContent-Type: text/xml\r\n"
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(RUN_S)
        link.connect(str(CONTROL))
        link.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = b"".join(iter(lambda: link.recv(65_536), b""))
    head_line, _, rest = answer.partition(b"\r\n")
    if b" 200 " not in head_line:
        raise Failed(f"supervisord answers {head_line.decode(errors='replace') or 'nothing'}")
    try:
        return xmlrpc.client.loads(rest.partition(b"\r\n\r\n")[2])[0][0]
    except xmlrpc.client.Fault as fault:
        raise Failed(f"supervisord: {method}: {fault.faultString}") from None


def accepts(path: Path) -> bool:
    """Tell whether somebody listens at a socket."""
    with socket.socket(socket.AF_UNIX) as link, contextlib.suppress(OSError):
        link.settimeout(RUN_S)
        link.connect(str(path))
        return True
    return False


def states() -> dict[str, str]:
    """Return the state of each program, nothing when supervisord does not run, or is about to end."""
    if not accepts(CONTROL):
        return {}
    try:
        return {each["name"]: each["statename"] for each in ask("getAllProcessInfo")}
    except Failed as error:
        if "SHUTDOWN_STATE" in str(error):
            return {}
        raise


def router_answers() -> bool:
    """Tell whether the router runs and is asked and answered over its socket."""
    if states().get("router") != "RUNNING" or not accepts(RUN / "bus"):
        return False
    return run(CURRENT / "bin" / "treescale", "ping", ".", check=False)[0] == 0


def all_joined() -> bool:
    """Tell whether the router knows the programs that run, so that whoever asks for them next finds them."""
    with contextlib.suppress(Failed, ValueError, LookupError):
        running = {name for name, state in states().items() if state in ("STARTING", "RUNNING")}
        tree = tomllib.loads(CONFIG.read_text())
        server = tree["servers"][tree["current_node"]]
        if not server.get("docker", tree.get("docker", {})).get("enabled", True):
            running.discard("docker")  # it serves nothing
        words = (CURRENT / "bin" / "treescale", "call", ".", "router.stats", "--json")
        said = run(*words, most=MAX_KEPT)[1]
        workers = json.loads(said.splitlines()[0])["body"]["workers"]
        served = {command for worker in workers for command in worker["services"]}
        return {SERVES[name] for name in running & SERVES.keys()} <= served
    return False


def wait(limit_s: float, condition: Callable[[], bool]) -> bool:
    """Wait for a condition; returns whether it came."""
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def follow() -> None:
    """Let the running processes follow new files: the release knows who reads what in them."""
    run(CURRENT / "bin" / "python", "-I", "-m", "tsbus.supervision.following", READ, limit_s=FOLLOW_S)


class Boot:
    """The init system: starts and stops the node."""

    def __init__(self, init: str) -> None:
        if init not in ("systemd", "openrc", "none"):
            raise Failed(f"no way to start anything with {init}")
        self.init = init

    def enable(self) -> None:
        """Have the node start at boot."""
        if self.init == "systemd":
            run("systemctl", "daemon-reload")
            run("systemctl", "enable", "--quiet", SERVICE)
        elif self.init == "openrc":
            run("rc-update", "add", SERVICE, "default")

    def disable(self) -> None:
        """Have the node not start at boot any more; it need not be there."""
        if self.init == "systemd":
            run("systemctl", "disable", "--quiet", SERVICE, check=False)
        elif self.init == "openrc":
            run("rc-update", "del", SERVICE, "default", check=False)

    def start(self) -> None:
        """Start the node; it may run already."""
        if self.init == "systemd":
            run("systemctl", "reset-failed", SERVICE, check=False)
            run("systemctl", "start", SERVICE)
        elif self.init == "openrc":
            run("rc-service", SERVICE, "start")
        elif not accepts(CONTROL):
            account = pwd.getpwnam(USER)
            for folder, uid in ((RUN, 0), (RUN / "router", account.pw_uid)):
                folder.mkdir(0o750, exist_ok=True)
                set_rights(folder, 0o750, uid, account.pw_gid)
            link(RUN / "bus", "router/bus")
            run(CURRENT / "bin" / "supervisord", "-c", SUPERVISOR)

    def stop(self) -> None:
        """Stop the node; it need not run."""
        if self.init == "systemd":
            run("systemctl", "stop", SERVICE, limit_s=DOWN_S, check=False)
        elif self.init == "openrc":
            run("rc-service", SERVICE, "stop", limit_s=DOWN_S, check=False)
        elif accepts(CONTROL):
            if states():
                ask("shutdown")
            if not wait(DOWN_S, lambda: not accepts(CONTROL)):
                raise Failed(f"supervisord has not ended within {DOWN_S:g} s")

    def restart(self) -> None:
        """Stop and start the node."""
        self.stop()
        self.start()


# The orders.


class Installer:
    """Carries out orders, each of which returns whether it changed something, and what else is to be told."""

    def __init__(self, release: str) -> None:
        self._release = name_of(release)
        self._manifest = Manifest()
        self.handlers: dict[str, Callable[[Told], tuple[bool, Told]]] = {
            "script": self.script,
            "accounts": self.accounts,
            "folders": self.folders,
            "modules": self.modules,
            "settings": self.settings,
            "release": self.release,
            "key": self.key,
            "config": self.config,
            "unit": self.unit,
            "activate": self.activate,
            "prune": self.prune,
            "uninstall": self.uninstall,
        }

    def begin(self) -> None:
        """Prepare for changes."""
        self._manifest.begin()

    def script(self, data: Told) -> tuple[bool, Told]:
        """Run a shell script, which looks by itself what there is to do; what it says is passed on."""
        if "made" in data:
            self._manifest.add("packages", **data["made"])
        with os.fdopen(os.memfd_create("script"), "r+b") as text:
            text.write(data["script"].encode())
            text.seek(0)
            limit_s = float(data.get("limit_s", SCRIPT_S))
            tell = lambda said: say(state="output", text=said)  # noqa: E731
            _run(["sh"], "the script", text.fileno(), limit_s, check=True, tell=tell)
        return True, {}

    def accounts(self, data: Told) -> tuple[bool, Told]:
        """Add system users, each with a group of its own, and make them members of other groups."""
        changed = False
        for name in map(name_of, data["add"]):
            changed |= self._add_user(name)
        for user, groups in data["groups"].items():
            for group in map(name_of, groups):
                changed |= self._add_member(name_of(user), group)
        return changed, {}

    def _add_user(self, name: str) -> bool:
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return False
        self._pending("restart")
        shell = next((each for each in ("/usr/sbin/nologin", "/sbin/nologin") if Path(each).exists()), "/bin/false")
        if not _has_group(name):
            self._manifest.add("group", name=name)
            if shutil.which("groupadd"):
                run("groupadd", "--system", name)
            else:
                run("addgroup", "-S", name)
        self._manifest.add("user", name=name)
        if shutil.which("useradd"):
            rest = ("--no-create-home", "--home-dir", "/nonexistent", "--shell", shell)
            run("useradd", "--system", "--gid", name, *rest, name)
        else:
            run("adduser", "-S", "-D", "-H", "-h", "/nonexistent", "-s", shell, "-G", name, name)
        return True

    def _add_member(self, user: str, group: str) -> bool:
        if not _has_group(group):
            raise Failed(f"no group {group} on this machine")
        account = pwd.getpwnam(user)
        if grp.getgrnam(group).gr_gid in os.getgrouplist(user, account.pw_gid):
            return False
        self._pending("restart")
        if not self._manifest.has("user", name=user):
            self._manifest.add("member", user=user, group=group)
        if shutil.which("usermod"):
            run("usermod", "--append", "--groups", group, user)
        else:
            run("addgroup", user, group)
        return True

    def folders(self, data: Told) -> tuple[bool, Told]:
        """Make folders, or set their rights."""
        changed = False
        for name, wanted in sorted(data["folders"].items()):
            path, (mode, uid, gid) = Path(name), rights(wanted)
            self._manifest.folder(path.parent)
            self._manifest.path(path)
            if not path.is_dir():
                path.mkdir(mode)
                changed = True
            changed |= set_rights(path, mode, uid, gid)
        return changed, {}

    def modules(self, data: Told) -> tuple[bool, Told]:
        """Load modules of the kernel, now and at boot."""
        for name in map(name_of, data["now"]):
            run("modprobe", name)
        return self._boot_file(Path(data["file"]), data["text"]) or bool(data["now"]), {}

    def settings(self, data: Told) -> tuple[bool, Told]:
        """Set values of the kernel, now and at boot."""
        changed = self._boot_file(Path(data["file"]), data["text"])
        for name, value in data["now"].items():
            path = Path("/proc/sys", *name_of(name).split("."))
            if path.read_text().strip() != value:
                path.write_text(value)
                changed = True
        return changed, {}

    def _boot_file(self, path: Path, text: str) -> bool:
        if text:
            self._manifest.folder(path.parent)
            self._manifest.path(path)
            return write(path, text.encode(), 0o644)
        changed = remove(path)
        self._manifest.forget(path)
        return changed

    def release(self, data: Told) -> tuple[bool, Told]:
        """Install the release from the bundle. It is not there before its self-check has gone well."""
        final, python = RELEASES / self._release, data["python"]
        bundle = part_of(name_of(data["bundle"]))
        if _made_for(final) == python:
            bundle.unlink(missing_ok=True)
            return False, {}
        if os.path.realpath(sys.executable) != os.path.realpath(python):
            raise Failed(f"{sys.executable} cannot make a release for {python}")
        if not bundle.exists():
            raise Failed("the bundle is not here; build again")
        self._pending("restart")
        new, old = (RELEASES / f"{self._release}.{end}" for end in ("new", "old"))
        self._manifest.path(final)
        remove(new)
        remove(old)
        try:
            release = Release(new, final, python)
            for name, wheel in wheels_in(bundle):
                release.add(name, wheel)
            release.compile(final)
            if shutil.which("restorecon"):
                run("restorecon", "-R", new, check=False)
            release.finish(data["check"])
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        if final.exists():
            final.rename(old)
        new.rename(final)
        sync(RELEASES)
        write(final / READY, f"{python}\n".encode(), 0o644)
        remove(old)
        bundle.unlink()
        return True, {}

    def key(self, data: Told) -> tuple[bool, Told]:
        """Have a key pair, made by the release itself; the public half is told. `rotate`: docs/build.md, Keys."""
        path, wanted = Path(data["path"]), rights(data)
        next_one = path.with_name(f"{path.name}.next")
        made = False
        if data.get("rotate") == "make":
            path = next_one
        elif data.get("rotate") == "swap":
            made = self._swap(next_one, path, data["public_key"])
        if not path.exists():
            if path != next_one:
                self._pending("reload")
            self._manifest.path(path)
            new = beside(path)
            new.unlink(missing_ok=True)
            self._treescale("keys", "new", new)
            set_rights(new, *wanted)
            sync(new)
            new.replace(path)
            sync(path.parent)
            made = True
        made |= set_rights(path, *wanted)
        return made, {"public_key": self._treescale("keys", "public", path)}

    def _swap(self, next_one: Path, path: Path, public_key: str) -> bool:
        """Put the next key in the place of the old one, unless that is done. The configuration must name it already."""
        if self._treescale("keys", "public", path) == public_key:
            return False
        if not next_one.exists() or self._treescale("keys", "public", next_one) != public_key:
            raise Failed(f"{next_one} is not the key {public_key}; rotate again")
        next_one.replace(path)
        sync(path.parent)
        self._manifest.forget(next_one)
        return True

    def _treescale(self, *words: str | Path) -> str:
        return run(RELEASES / self._release / "bin" / "treescale", *words)[1].strip()

    def config(self, data: Told) -> tuple[bool, Told]:
        """Write the copy of the tree and supervisord's file. The latter's password is made here, and stays here."""
        changed = False
        for name, wanted in data["files"].items():
            path, text = Path(name), wanted["text"]
            if wanted.get("keep") and path.exists():
                changed |= set_rights(path, *rights(wanted))
                continue
            if _sha256(text) != wanted["digest"]:
                raise Failed(f"{path} came with another digest than it has; build again")
            if path == SUPERVISOR:
                text = self._with_password(text)
            self._manifest.path(path)
            if not path.exists() or path.read_text(errors="replace") != text:
                self._pending("reload")
                if path == CONFIG and READ.exists() and READ.read_bytes() != CONFIG.read_bytes():
                    READ.unlink()  # whoever has died since then has read the one in between
            changed |= write(path, text.encode(), *rights(wanted))
        return changed, {}

    def _with_password(self, text: str) -> str:
        there = re.search(r"^password=(\w+)$", SUPERVISOR.read_text(), re.MULTILINE) if SUPERVISOR.exists() else None
        password = there[1] if there else secrets.token_hex(16)
        text = re.sub(r"^password=$", f"password={password}", text, flags=re.MULTILINE)
        return text.replace('SUPERVISOR_PASSWORD=""', f'SUPERVISOR_PASSWORD="{password}"')

    def unit(self, data: Told) -> tuple[bool, Told]:
        """Have the node start at boot."""
        path, boot = Path(data["path"]), Boot(data["init"])
        self._manifest.add("unit", init=boot.init)
        self._manifest.path(path)
        if _sha256(data["text"]) != data["digest"]:
            raise Failed(f"{path} came with another digest than it has; build again")
        if not path.exists() or path.read_text(errors="replace") != data["text"]:
            self._pending("restart")
        changed = write(path, data["text"].encode(), 0o755 if boot.init == "openrc" else 0o644)
        boot.enable()
        return changed, {}

    def activate(self, data: Told) -> tuple[bool, Told]:
        """Use the release and the configuration. When its router does not run with them, go back to what was.

        `own_files`: what starts the release has not come with the orders, so it writes that itself.
        """
        boot, how = Boot(data["init"]), data["how"]
        target = f"releases/{self._release}"
        if _made_for(ROOT / target) is None:
            raise Failed(f"release {self._release} is not installed")
        before = str(CURRENT.readlink()) if CURRENT.is_symlink() else None
        self._manifest.add("boot", init=boot.init)
        for path in (CURRENT, RUN):
            self._manifest.path(path)
        if data.get("own_files"):
            self._own_files(ROOT / target, boot)
        flipped = link(CURRENT, target)
        try:
            if how == "reload" and not flipped and states():
                follow()
            elif how == "start" and not flipped:
                boot.start()
            else:
                boot.restart()
            if not wait(UP_S, router_answers):
                raise Failed(f"its router does not answer: {_last_words()}")
            wait(JOIN_S, all_joined)
        except Exception as error:
            if flipped:
                self._go_back(boot, before)
                raise Failed(f"{words_of(error)['error']}; it is back to {before or 'what it was'}") from error
            raise
        self._clear_balancer(after=states())
        READ.unlink(missing_ok=True)  # first: it must not be there when something else is pending
        PENDING.unlink(missing_ok=True)
        return True, {"programs": states()}

    def _go_back(self, boot: Boot, before: str | None) -> None:
        boot.stop()
        if before is None:
            CURRENT.unlink()
        else:
            link(CURRENT, before)
            try:
                self._own_files(ROOT / before, boot)
            except Exception as error:  # the others' may do for it, and nothing else is left to be tried
                say(state="output", text=f"{before} goes on with files of {self._release}: {words_of(error)['error']}")
            boot.start()

    def _own_files(self, release: Path, boot: Boot) -> None:
        """Have supervisord.conf and the unit as a release writes them, for the tree that is here. Raises Failed."""
        words = (release / "bin" / "python", "-I", "-B", "-c", OWN_FILES, CONFIG, boot.init)
        status, said = run(*words, check=False, most=MAX_KEPT)
        last = (said.strip().splitlines() or ["it says nothing"])[-1]
        if status:
            raise Failed(f"release {release.name} does not know what to do with the tree here: {last}", output=said)
        supervisor, unit = json.loads(last)
        file = {"text": supervisor, "digest": _sha256(supervisor), "mode": "0600", "user": "root", "group": "root"}
        self.config({"files": {str(SUPERVISOR): file}})
        if unit:
            self.unit({"init": boot.init, "path": UNITS[boot.init], "text": unit, "digest": _sha256(unit)})

    def _clear_balancer(self, after: Mapping[str, str]) -> None:
        """Where there is no balancer any more, take what it has left out of the kernel."""
        if "balancer" not in after and (RUN / "lb-state.json").exists():
            program = CURRENT / "bin" / "ts-balancer"
            run(program, "--config", CONFIG, "--run-dir", RUN, "--clear", check=False)

    def prune(self, data: Told) -> tuple[bool, Told]:
        """Remove old releases, but never the one in use."""
        current = CURRENT.resolve().name
        changed = False
        for name in map(name_of, data["releases"]):
            if name != current:
                path = RELEASES / name
                (path / READY).unlink(missing_ok=True)  # half of one is none
                changed |= remove(path)
                self._manifest.forget(path)
        return changed, {}

    def uninstall(self, data: Told) -> tuple[bool, Told]:
        """Leave what was there before. `script` removes Docker, and is run when a build has installed it."""
        clean_up()
        made = self._manifest.entries
        for init in {each["init"] for each in made if each["what"] in ("unit", "boot")}:
            boot = Boot(init)
            boot.stop()
            self._clear_balancer(after={})
            boot.disable()
        users = [each["name"] for each in made if each["what"] == "user"]
        _end_processes(users)
        for each in reversed(made):
            if each["what"] == "path" and each["path"] != str(STATE):
                put_back(Path(each["path"]), each["before"])
        for each in reversed(made):
            _undo_account(each)
        if any(each["what"] == "unit" and each["init"] == "systemd" for each in made):
            run("systemctl", "daemon-reload", check=False)
            run("systemctl", "reset-failed", SERVICE, check=False)
        if data.get("script") and any(each["what"] == "packages" and each["kind"] == "docker" for each in made):
            self.script({"script": data["script"]})
        for each in made:
            if each["what"] == "path" and each["path"] == str(STATE):
                for left in (*STATE.glob("bundle-*.part"), READ, PENDING, beside(MANIFEST)):
                    left.unlink(missing_ok=True)
                if each["before"] is None:
                    STATE.rename(OLD_STATE)
                    clean_up()
                else:
                    MANIFEST.unlink(missing_ok=True)
                    put_back(STATE, each["before"])
        return bool(made), {}

    def _pending(self, how: str) -> None:
        """Write down, before it is so, that the processes have something to be told."""
        if CONFIG.exists() and not PENDING.exists():
            write(READ, CONFIG.read_bytes(), 0o600)
        if not PENDING.exists() or PENDING.read_text() != "restart":
            write(PENDING, how.encode(), 0o644)


def name_of(text: str) -> str:
    """Return a name that is safe in a path and on a command line. Raises Failed."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", text):
        raise Failed(f"{text!r} is no name")
    return text


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _has_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _made_for(release: Path) -> str | None:
    """Return the Python that a release was made for; None when it is not there or not whole."""
    try:
        return (release / READY).read_text().strip()
    except OSError:
        return None


def _last_words() -> str:
    """Return the last line that the router or supervisord has said."""
    for name in ("router.log", "supervisord.log"):
        with contextlib.suppress(OSError):
            lines = (LOGS / name).read_text(errors="replace")[-SHOWN:].splitlines()
            if lines:
                return f"{name}: {one_line(lines[-1])}"
    return "it has said nothing"


def _end_processes(users: Sequence[str]) -> None:
    """Kill what is left of these users."""
    uids = set()
    for name in users:
        with contextlib.suppress(KeyError):
            uids.add(pwd.getpwnam(name).pw_uid)

    def left() -> list[int]:
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and folder.stat().st_uid in uids:
                    found.append(int(folder.name))
        return found

    def all_gone() -> bool:
        for pid in (there := left()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not there

    if uids:
        wait(DOWN_S, all_gone)


def _undo_account(entry: Told) -> None:
    name = entry.get("name", "")
    if entry["what"] == "member":
        if shutil.which("gpasswd"):
            run("gpasswd", "--delete", entry["user"], entry["group"], check=False)
        else:
            run("delgroup", entry["user"], entry["group"], check=False)
    elif entry["what"] == "user":
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            run("userdel" if shutil.which("userdel") else "deluser", name)
    elif entry["what"] == "group" and _has_group(name):
        run("groupdel" if shutil.which("groupdel") else "delgroup", name)


# The whole.


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Let no other installer work here meanwhile: that of a console which is lost may still be at it. Raises Failed."""
    descriptor = os.open("/var/lib", os.O_RDONLY)
    try:
        if not wait(LOCK_S, lambda: _locked(descriptor)):
            raise Failed("another build is changing this server; wait until it is done")
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def carry_out(document: Told, source: BinaryIO) -> bool:
    """Do all of it; returns whether all went well. The first failure ends it, and is told."""
    number, began = -1, time.monotonic()
    try:
        if document["format"] != FORMAT:
            raise Failed(f"the orders have format {document['format']}, and this installer knows {FORMAT}")
        installer = Installer(document["release"])
        if any(order["kind"] != "uninstall" for order in document["orders"]):
            installer.begin()
        if bundle := document.get("bundle"):
            receive(source, name_of(bundle["digest"]), int(bundle["size"]))
        for number, order in enumerate(document["orders"]):
            began = time.monotonic()
            say(state="begin", order=number, kind=order["kind"])
            changed, told = installer.handlers[order["kind"]](order["data"])
            state = "changed" if changed else "ok"
            say(state=state, order=number, seconds=round(time.monotonic() - began, 3), **told)
    except Exception as error:
        say(state="failed", order=number, seconds=round(time.monotonic() - began, 3), **words_of(error))
        return False
    return True


def main(words: Sequence[str]) -> int:
    """Run; the only word is the digest of the bundle that may come. Returns 1 when something failed."""
    os.umask(0o022)
    os.chdir("/")
    os.environ.update(LC_ALL="C", PATH=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
    try:
        with only_one():
            part = part_of(name_of(words[0])) if words else None
            say(state="ready", have=part.stat().st_size if part is not None and part.exists() else 0)
            with limited(ORDERS_S):
                line = sys.stdin.buffer.readline()
            if not line.endswith(b"\n"):
                raise EOFError("the connection ended before the orders had come")
            return 0 if carry_out(json.loads(line), sys.stdin.buffer) else 1
    except Exception as error:
        say(state="failed", order=-1, **words_of(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
