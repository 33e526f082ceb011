"""The edge to Docker, against a real engine: what it tells, what it does, and every way in which it can be away."""

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import takewhile
from pathlib import Path

import pytest
from boxes import containers_of
from dockerd import Dockerd
from registry import Registry
from waiting import wait

from tsbus.containers.engine import TURN_TRIES, Auth, Engine, EngineError, ErrorKind, Output, TlsFiles
from tsbus.containers.facts import EngineEvent
from tsbus.containers.wire import PIECE_BYTES
from tsbus.records import Endpoint

LIMIT_S = 20
TICKER = ("sh", "-c", "while :; do echo tick; sleep 0.1; done")


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """End a test that waits for ever with a traceback of where it waits."""

    def end(number: int, frame: object) -> None:
        raise TimeoutError("the test waits for something that does not happen")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def ticker(engine: Engine) -> Iterator[str]:
    """A container that writes a line ten times a second."""
    with containers_of(engine) as make:
        yield make(*TICKER, name="ticker")


class Reader(threading.Thread):
    """Reads a stream to its end in a thread of its own: `items`, and the `error` that ended it."""

    def __init__(self, stream: Iterator[object]) -> None:
        super().__init__()
        self.stream = stream
        self.items: list[object] = []
        self.error: BaseException | None = None
        self.began = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            for item in self.stream:
                self.items.append(item)
                self.began.set()
        except BaseException as error:
            self.error = error

    def wait_end(self) -> None:
        self.join(LIMIT_S)
        assert not self.is_alive(), "the reader still waits"


def failure(call: Callable[[], object]) -> tuple[ErrorKind, str]:
    """What kind of error a call raises, and what that says."""
    with pytest.raises(EngineError) as caught:
        call()
    return caught.value.kind, str(caught.value)


def both(output: Output) -> tuple[bytes, bytes]:
    """All of both outputs."""
    pieces = list(output)
    assert all(0 < len(data) <= PIECE_BYTES for _, data in pieces)
    first, second = (b"".join(data for is_second, data in pieces if is_second is which) for which in (False, True))
    return first, second


def tls_of(dockerd: Dockerd) -> TlsFiles:
    return TlsFiles(*(str(dockerd.certs / name) for name in ("ca.pem", "cert.pem", "key.pem")))


# What the engine tells.


def test_connect(engine):
    """Connecting tells what the engine and its machine are."""
    facts = engine.connect()
    assert (facts.name, facts.up, facts.node, facts.cpus) == ("Docker", True, "", os.cpu_count())
    assert facts.version
    assert facts.api >= "1.4"
    assert facts.cgroup.startswith(("v1/", "v2/"))
    assert facts.memory > 1 << 20
    assert facts.kernel == os.uname().release


def test_where_the_engine_is(engine, dockerd, monkeypatch):
    """Without an address it is what the environment says, as for Docker's own command line."""
    assert engine.is_local
    monkeypatch.setenv("DOCKER_HOST", dockerd.tls_host)
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(dockerd.certs))
    remote = Engine()
    assert remote.connect().name == "Docker"
    assert not remote.is_local
    remote.close()
    monkeypatch.delenv("DOCKER_HOST")
    assert str(Engine()) == "/var/run/docker.sock"


@pytest.mark.parametrize("host", ["ssh://root@x", "unix://docker.sock", "10.0.0.1:2375", "tcp://:2375", "tcp://x:port"])
def test_addresses_that_are_none(host):
    """What is no address of an engine is refused with a hint how to write one."""
    kind, text = failure(lambda: Engine(host))
    assert kind is ErrorKind.INVALID
    assert "tcp://10.0.0.1:2376" in text


def test_inspection(engine, make):
    """A container's record has what it was made with and what it has become."""
    container = make(
        *("sh", "-c", "exec sleep 1000"),
        name="everything",
        Labels={"app": "web"},
        ExposedPorts={"80/tcp": {}, "53/udp": {}},
        StopSignal="SIGUSR1",
        StopTimeout=1,
        host={
            "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1"}, {"HostIp": "::1"}]},
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2},
            "Memory": 64 << 20,
            "NanoCpus": 500_000_000,
        },
    )
    record = engine.inspect(container)
    assert (record.id, record.name, record.state, record.health) == (container, "everything", "running", "")
    assert (record.image.given, record.image.repo, record.image.tag) == ("box:1", "box", "1")
    assert record.image.id.startswith("sha256:")
    assert record.command == "sh -c 'exec sleep 1000'"
    assert record.labels == {"app": "web"}
    address = record.networks["bridge"]
    assert address.startswith("198.18.")
    # In the order of the node's ports, which the engine chose.
    udp, v4, v6 = sorted(record.endpoints, key=lambda one: (one.port, one.host_ip))
    assert udp == Endpoint(protocol="udp", port=53, ip=address, network="bridge")
    assert (v4.host_ip, v6.host_ip, v4.port, v4.ip) == ("127.0.0.1", "::1", 80, address)
    assert v4.host_port
    assert abs(record.started_ns - time.time_ns()) < 60e9
    assert 0 < record.created_ns < record.started_ns
    assert (record.exit_code, record.finished_ns) == (None, 0)
    assert (record.restart_policy, record.stop_signal, record.stop_timeout_s) == ("on-failure:2", 10, 1)
    assert (record.memory_limit, record.cpus) == (64 << 20, 0.5)
    comm = Path(f"/proc/{record.pid}/comm")
    wait("the shell has become its program", lambda: comm.read_text() == "sleep\n")
    engine.stop(container, 0)
    record = engine.inspect(container)
    assert (record.state, record.exit_code, record.pid) == ("exited", 137, 0)
    assert record.finished_ns > record.started_ns


def test_list(engine, make):
    """The list has every container, with the health that its check has found."""
    idle = make(start=False)
    checked = make("sh", "-c", "touch /tmp/ok; exec sleep 1000", image="checked:1", start=False)
    events = engine.events()
    engine.start(checked)
    assert next(event.detail for event in events if event.action == "health_status") == "healthy"
    events.close()
    lines = {line.id: line for line in engine.list()}
    assert (lines[idle].state, lines[idle].health) == ("created", "")
    assert (lines[checked].state, lines[checked].health) == ("running", "healthy")
    assert lines[checked].networks["bridge"] == engine.inspect(checked).networks["bridge"]
    assert engine.inspect(checked).health == "healthy"


def test_events(engine, make):
    """A container's life is told in the order in which it happens, by the engine's clock."""
    events = engine.events()
    container = make(Labels={"big": "x" * 10_000}, name="told")
    engine.rename(container, "retold")
    engine.stop(container, 0)
    engine.rm(container)
    told = [*takewhile(lambda event: event.action != "destroy", (one for one in events if one.id == container))]
    events.close()
    assert [event.action for event in told if event.action != "kill"] == ["create", "start", "rename", "die"]
    assert all(event.kind == "container" for event in told)
    assert told[0].attributes["big"] == "x" * 10_000
    assert next(event.attributes["signal"] for event in told if event.action == "kill") == "15"
    assert told[-1].attributes["exitCode"] == "137"
    assert [event.time_ns for event in told] == sorted(event.time_ns for event in told)
    assert abs(told[0].time_ns - time.time_ns()) < 60e9


def test_events_of_before(engine, make):
    """Events of before the call are told too, from the nanosecond on that is asked for."""
    container = make("true")
    told = engine.events(0)
    die = next(event for event in told if event.id == container and event.action == "die")
    told.close()
    again = engine.events(die.time_ns)
    assert next(again) == die
    again.close()


def test_health_checks_do_not_flood(engine, make):
    """Of a health check only the change of mind is told, not each run of its program."""
    events = engine.events()
    container = make(image="checked:1")
    list(engine.exec(container, ["touch", "/tmp/ok"]))
    told: list[EngineEvent] = []
    for event in events:
        told.append(event)
        if event.detail == "healthy":
            break
    events.close()
    assert {event.action for event in told if event.id == container} <= {"create", "start", "health_status"}


def test_events_of_images_and_networks(engine, dockerd, make):
    """What happens to images and networks is told as well."""
    events = engine.events()
    engine.tag("box:1", "other:2")
    engine.rm_image("other:2")
    make()
    told = [*takewhile(lambda event: event.action != "start", events)]
    events.close()
    assert [(one.kind, one.action) for one in told] == [
        ("image", "tag"),
        ("image", "untag"),
        ("container", "create"),
        ("network", "connect"),
    ]


def test_names_of_a_tagged_image(engine, make):
    """The names of images are remembered until an event tells that one has changed."""
    image = engine.inspect(make(start=False)).image.id
    container = make(image=image, start=False)
    assert engine.inspect(container).image.repo == "box"
    events = engine.events()
    engine._api.quick(lambda docker: docker.tag(image, "a/better", "3"))  # somebody else's doing
    engine._api.quick(lambda docker: docker.remove_image("box:1"))
    assert [next(events).action, next(events).action] == ["tag", "untag"]
    assert (engine.inspect(container).image.repo, engine.inspect(container).image.tag) == ("a/better", "3")
    engine.tag("a/better:3", "box:1")
    engine.rm_image("a/better:3")
    events.close()


def test_removed_while_inspected(engine):
    """Whoever inspects what is removed meanwhile is told that it is not there, and nothing else."""
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            container = engine.create(None, {"Image": "box:1"})
            asking = [pool.submit(engine.inspect, container) for _ in range(16)]
            engine.rm(container)
            for one in asking:
                if error := one.exception():
                    assert isinstance(error, EngineError)
                    assert error.kind is ErrorKind.NOT_FOUND


def test_many_calls_at_once(engine, ticker):
    """Sixty-four threads use one engine at the same time, and get their own answers."""
    with ThreadPoolExecutor(64) as pool:
        names = list(pool.map(lambda _: engine.inspect(ticker).name, range(256)))
    assert names == ["ticker"] * 256


# What the engine does.


def test_life_of_a_container(engine, make):
    """A container is started, paused, restarted, killed and removed."""
    container = make(start=False)
    engine.start(container)
    engine.start(container)
    first = engine.inspect(container)
    engine.pause(container)
    assert engine.inspect(container).state == "paused"
    engine.unpause(container)
    engine.restart(container, 0)
    assert engine.inspect(container).pid not in (0, first.pid)
    titles = engine.top(container)["Titles"]
    # It is said to run a moment before its program does.
    wait("its program", lambda: "sleep 1000" in engine.top(container, "-eo pid,args")["Processes"][0])
    assert "PID" in titles
    engine.kill(container, "KILL")
    engine.stop(container)
    assert engine.inspect(container).exit_code == 137
    engine.rm(container)
    assert failure(lambda: engine.inspect(container))[0] is ErrorKind.NOT_FOUND


def test_stats(engine, ticker):
    """One reading of the engine's counters comes without a stream."""
    said = engine.stats_once(ticker)
    assert said["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert said["networks"]


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda engine, _: engine.inspect("nobody"), ErrorKind.NOT_FOUND, "nobody"),
        (lambda engine, _: engine.create(None, {"Image": "nothing"}), ErrorKind.NOT_FOUND, "nothing:latest"),
        (lambda engine, _: engine.create("ticker", {"Image": "box:1"}), ErrorKind.CONFLICT, "already in use"),
        (lambda engine, _: engine.create("?", {"Image": "box:1"}), ErrorKind.INVALID, "Invalid container name"),
        (lambda engine, _: engine.create(None, {}), ErrorKind.INVALID, ""),
        (lambda engine, one: engine.kill(one, "NONSENSE"), ErrorKind.INVALID, "signal"),
        (lambda engine, one: engine.rm(one), ErrorKind.CONFLICT, "running"),
        (lambda engine, _: engine.rm_image("nothing"), ErrorKind.NOT_FOUND, "nothing"),
        (lambda engine, _: engine.rm_image("box:1", force=False), ErrorKind.CONFLICT, "using"),
        (lambda engine, _: engine.tag("nothing", "name"), ErrorKind.NOT_FOUND, "nothing"),
        (lambda engine, _: engine.logs("nobody"), ErrorKind.NOT_FOUND, "nobody"),
        (lambda engine, _: engine.attach("nobody"), ErrorKind.NOT_FOUND, "nobody"),
        (lambda engine, _: engine.exec("nobody", ["true"]), ErrorKind.NOT_FOUND, "nobody"),
        (lambda engine, one: engine.exec(one, []), ErrorKind.INVALID, ""),
        (lambda engine, _: engine.resize("ab" * 32, 1, 1), ErrorKind.NOT_FOUND, "exec"),
        (lambda engine, _: engine.inspect("../images/json?x"), ErrorKind.INVALID, "no name or id"),
        (lambda engine, _: engine.inspect(""), ErrorKind.INVALID, "no name or id"),
        (lambda engine, _: engine.logs("a/../../images"), ErrorKind.INVALID, "no name or id"),
        (lambda engine, _: engine.pull("UPPER"), ErrorKind.INVALID, "lowercase"),
    ],
)
def test_refusals(engine, ticker, call, kind, words):
    """What the engine refuses has a kind for programs and its own words for people."""
    found, text = failure(lambda: list(call(engine, ticker) or []))
    assert (found, words in text) == (kind, True), text


def test_what_stands_still(engine, make):
    """A program cannot be started in a container that does not run, and that is a conflict."""
    container = make(start=False)
    assert failure(lambda: engine.exec(container, ["true"]))[0] is ErrorKind.CONFLICT
    assert failure(lambda: engine.kill(container))[0] is ErrorKind.CONFLICT


# Output and input.


def test_logs(engine, make):
    """The log gives both outputs apart, or a part of it, with times where they are wanted."""
    container = make("sh", "-c", "echo one; echo two >&2; until test -e /tmp/go; do sleep 0.1; done; echo three")
    # Each output is read by a thread of its own, so only what the log has already stands before what comes.
    wait("both lines", lambda: both(engine.logs(container)) == (b"one\n", b"two\n"))
    list(engine.exec(container, ["touch", "/tmp/go"]))
    assert both(engine.logs(container, follow=True)) == (b"one\nthree\n", b"two\n")
    assert both(engine.logs(container, tail=1)) == (b"three\n", b"")
    assert both(engine.logs(container, tail=0)) == (b"", b"")
    stamped = both(engine.logs(container, timestamps=True))[0].decode().splitlines()
    assert [line.split()[1] for line in stamped] == ["one", "three"]
    now = time.time()
    assert both(engine.logs(container, since=now + 60)) == (b"", b"")
    assert both(engine.logs(container, since=now - 60, until=now + 60)) == (b"one\nthree\n", b"two\n")
    assert both(engine.logs(container, until=now - 60)) == (b"", b"")


def test_any_bytes_in_a_log(engine, make):
    """Bytes that are no text, and a line of five megabytes, pass unchanged in small pieces."""
    local = {"LogConfig": {"Type": "local"}}
    # An end of the line, because Docker 20.10 may keep back from a follower what stands behind the last one.
    script = r"printf '\377\376\000\n'; head -c 5000000 /dev/zero | tr '\0' x; echo"
    output, error = both(engine.logs(make("sh", "-c", script, host=local), follow=True))
    assert (output.rstrip(b"\n"), error) == (b"\xff\xfe\0\n" + b"x" * 5_000_000, b"")


def test_log_of_a_terminal(engine, make):
    """A container with a terminal has one output, as its terminal shows it."""
    container = make("sh", "-c", "echo one; echo two >&2", Tty=True)
    assert both(engine.logs(container, follow=True)) == (b"one\r\ntwo\r\n", b"")


def test_attach(engine, make):
    """Attached before the start, one sees all that a container writes, to its end."""
    container = make("sh", "-c", "echo out; echo err >&2; head -c 300000 /dev/zero", start=False)
    output = engine.attach(container)
    engine.start(container)
    assert both(output) == (b"out\n" + bytes(300_000), b"err\n")


def test_exec(engine, ticker):
    """A program in a container has its arguments, environment, user and directory, and an exit code."""
    script = 'echo "$A $1"; id -u; pwd >&2; exit 3'
    program = engine.exec(ticker, ["sh", "-c", script, "-", "two words"], env={"A": "b"}, user="1000", cwd="/tmp")
    assert both(program) == (b"b two words\n1000\n", b"/tmp\n")
    assert program.exit_code() == 3


def test_exec_of_nothing(engine, ticker):
    """A program that the container does not have says so, with the exit code that shells use."""
    program = engine.exec(ticker, ["nonsense"])
    assert b"nonsense" in b"".join(both(program))
    assert program.exit_code() in (126, 127)


def test_a_program_that_ends_at_once_has_a_terminal(engine, ticker):
    """Its output and its exit code come, though it is over before its terminal gets a size."""
    for _ in range(10):
        program = engine.exec(ticker, ["sh", "-c", "echo done; exit 3"], tty=True, size=(24, 80))
        assert (both(program), program.exit_code()) == ((b"done\r\n", b""), 3)


def test_words_for_people_have_short_ids(engine, make):
    """What the engine refuses is told with the first digits of an id: the others say nothing."""
    container = make(start=False)
    text = failure(lambda: engine.exec(container, ["true"]))[1]
    assert (container[:12] in text, container in text) == (True, False)


@pytest.mark.parametrize("address", ["host", "tls_host"])
def test_input(dockerd, ticker, address):
    """Megabytes go in while they come out, and the program sees the end of its input while its output still comes."""
    engine = Engine(getattr(dockerd, address), tls_of(dockerd) if address == "tls_host" else None)
    program = engine.exec(ticker, ["sh", "-c", "cat; sleep 0.1; echo end >&2; exit 4"], stdin=True)
    data = os.urandom(1 << 20) * 3

    def write() -> None:
        assert program.write(data)
        program.close_input()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        assert both(program) == (data, b"end\n")
        writing.result()
    assert program.exit_code() == 4
    engine.close()


def test_input_that_nobody_reads(engine, ticker):
    """Whoever writes to a program that does not read waits, until the stream is closed."""
    program = engine.exec(ticker, ["sh", "-c", "echo ready; sleep 1000"], stdin=True)
    assert next(program) == (False, b"ready\n")
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: program.write(bytes(32 << 20)))
        with pytest.raises(TimeoutError):
            writing.result(0.3)
        program.close()
        assert writing.result() is False
    assert failure(program.exit_code)[0] is ErrorKind.FAILED


def test_terminal(engine, ticker):
    """A program with a terminal knows its size, and is told when that changes."""
    program = engine.exec(ticker, ["sh"], stdin=True, tty=True, size=(33, 101))

    def wait_text(text: bytes) -> None:
        seen = b""
        while text not in seen:
            seen += next(program)[1]

    program.write(b"stty size\n")
    wait_text(b"33 101")
    engine.resize(program.id, 44, 99)
    program.write(b"stty size\n")
    wait_text(b"44 99")
    program.write(b"exit 5\n")
    list(program)
    assert program.exit_code() == 5


# Images and the engine itself.


def test_images(engine, make):
    """Images are listed with their names, their size and how many containers are made from them."""
    engine.tag("box:1", "repo/other:2")
    before = {name: image for image in engine.images() for name in image["names"]}
    make(start=False)
    image = next(image for image in engine.images() if "box:1" in image["names"])
    assert set(image["names"]) == {"box:1", "repo/other:2"}
    assert image["containers"] == before["box:1"]["containers"] + 1
    assert image["size"] > 500_000
    assert abs(image["created_ns"] - time.time_ns()) < 3600e9
    assert engine.rm_image("repo/other:2") == {"removed": [], "untagged": ["repo/other:2"]}


def test_prune(engine, dockerd):
    """Pruning removes what has no name, or all that no container is made from, and tells what that was."""
    old = dockerd.image("lost:1")
    dockerd.image("lost:1", "LABEL new=yes")
    assert [one["names"] for one in engine.images() if one["id"] == old] == [[]]
    done = engine.prune_images()
    assert old in done["removed"]
    assert done["freed_bytes"] == 0  # its one layer is that of box:1 too
    assert engine.rm_image("lost:1")["untagged"] == ["lost:1"]


def test_an_image_is_made_of_files(engine):
    """An archive of files becomes an image with a name; an archive that is none is an error."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    engine.import_image("files:1", archive.getvalue())
    assert [one["names"] for one in engine.images() if one["id"] == engine.image_id("files:1")] == [["files:1"]]
    engine.rm_image("files:1")
    failure(lambda: engine.import_image("files:2", b"no archive"))


def test_info_and_usage(engine, ticker):
    """The engine counts what it has and what that takes on its disk."""
    info = engine.info()
    assert info["engine"].name == "Docker"
    assert info["running"] >= 1
    assert info["containers"] >= info["running"]
    assert info["images"] >= 2
    assert info["driver"]
    usage = engine.df()
    assert usage["containers"]["active"] >= 1
    assert usage["images"]["bytes"] > 500_000


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry(login="me:secret word")
    yield server
    server.close()


def test_pull(engine, registry, make):
    """An image comes in steps that are told, and is then known by its digest."""
    steps = list(engine.pull(registry.image, Auth("me", "secret word")))
    assert any(step.layer and step.total for step in steps)
    assert any(registry.digest in step.status for step in steps)
    image = engine.inspect(make(image=registry.image, start=False)).image
    assert (f"{image.repo}:{image.tag}", image.digest) == (registry.image, registry.digest)
    engine.rm_image(registry.image, force=True)


def test_pull_with_this_users_login(engine, registry, tmp_path, monkeypatch):
    """Without a login in the order, the one that `docker login` has left is used."""
    login = {"auth": base64.b64encode(b"me:secret word").decode()}
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.image.partition("/")[0]: login}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert list(engine.pull(registry.image))
    engine.rm_image(registry.image)


def test_pull_that_is_refused(engine, registry):
    """A registry that refuses, that lacks the image or that is not there is one kind of error; no password is in it."""
    kind, text = failure(lambda: list(engine.pull(registry.image, Auth("me", "wrong word"))))
    assert kind is ErrorKind.REGISTRY
    assert "wrong word" not in text + repr(Auth("me", "wrong word"))
    assert failure(lambda: list(engine.pull(f"{registry.image}0", Auth("me", "secret word"))))[0] is ErrorKind.REGISTRY
    kind, text = failure(lambda: list(engine.pull("localhost:1/x")))
    assert kind is ErrorKind.REGISTRY
    assert "connection refused" in text


# The ends of streams.


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


STREAMS = {
    "events": lambda engine, _: engine.events(0),
    "logs": lambda engine, ticker: engine.logs(ticker, follow=True),
    "attach": lambda engine, ticker: engine.attach(ticker),
    "exec": lambda engine, ticker: engine.exec(ticker, ["sh", "-c", "echo ready; sleep 1000"], stdin=True),
    "terminal": lambda engine, ticker: engine.exec(ticker, ["sh", "-c", "echo ready; sleep 1000"], tty=True),
}


@pytest.mark.parametrize("address", ["host", "tls_host"])
@pytest.mark.parametrize("name", STREAMS)
def test_close_from_another_thread(dockerd, ticker, name, address):
    """Closing a stream ends at once the wait of the thread that reads it, and is no error."""
    engine = Engine(getattr(dockerd, address), tls_of(dockerd) if address == "tls_host" else None)
    reader = Reader(STREAMS[name](engine, ticker))
    assert reader.began.wait(LIMIT_S)
    reader.stream.close()
    reader.wait_end()
    assert reader.error is None
    reader.stream.close()
    engine.close()


def test_close_of_a_pull(engine):
    """A pull from a registry that does not answer can be ended."""
    with silent_server() as port:
        reader = Reader(engine.pull(f"127.0.0.1:{port}/x"))
        reader.join(0.2)
        assert reader.is_alive()
        reader.stream.close()
        reader.wait_end()
    assert (reader.error, reader.items) == (None, [])


# The ways to be away.


def test_no_engine(tmp_path):
    """Without a socket it is said that no engine is there, and a refused connection likewise."""
    kind, text = failure(Engine(f"unix://{tmp_path}/docker.sock").connect)
    assert kind is ErrorKind.DOWN
    assert "is Docker installed and running?" in text
    with socket.socket() as mute:  # it keeps the port from others, and does not listen
        mute.bind(("127.0.0.1", 0))
        port = mute.getsockname()[1]
        kind, text = failure(Engine(f"tcp://127.0.0.1:{port}").connect)
    assert kind is ErrorKind.DOWN
    assert f"127.0.0.1:{port}" in text
    assert failure(Engine("tcp://no-such-host.invalid").connect)[0] is ErrorKind.DOWN


def as_nobody(engine: Engine) -> str:
    """What an engine tells a user without rights, in a child process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            try:
                engine.connect()
            except EngineError as error:
                os.write(writing, f"{error.kind.value}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    text = os.read(reading, 4096).decode()
    os.close(reading)
    return text


def test_socket_without_permission(dockerd, engine):
    """Whoever may not use the socket is told which group may."""
    engine.ping()
    assert "not even enter" in as_nobody(Engine(dockerd.host))
    dockerd.folder.chmod(0o711)
    owner = dockerd.socket.stat()
    os.chown(dockerd.socket, 0, 4)
    text = as_nobody(Engine(dockerd.host))
    os.chown(dockerd.socket, 0, 0)
    only = as_nobody(Engine(dockerd.host))
    os.chown(dockerd.socket, 0, owner.st_gid)
    dockerd.folder.chmod(0o700)
    assert text.startswith("denied: this user (nobody) may not use")
    assert "usermod -aG adm nobody" in text
    assert "only root may" in only


def test_engine_that_hangs(dockerd, ticker):
    """An engine that takes connections and does not answer is down after the time-out, for calls and streams."""
    engine = Engine(dockerd.host, timeout_s=0.3)

    def answers() -> bool:
        with contextlib.suppress(EngineError):  # on a busy machine it may take longer
            engine.ping()
            return True
        return False

    wait("it answers", answers)
    dockerd.pause()
    try:
        for call in (engine.ping, engine.events, engine.connect):
            kind, text = failure(call)
            assert (kind, "has not answered in 0.3 s" in text) == (ErrorKind.DOWN, True), text
    finally:
        dockerd.resume()
    wait("it answers again", answers)
    with silent_server() as port:
        assert failure(Engine(f"tcp://127.0.0.1:{port}", timeout_s=0.3).connect)[0] is ErrorKind.DOWN


@contextlib.contextmanager
def answering(status: int, body: bytes, disk: Iterator[tuple[int, bytes]] | None = None) -> Iterator[Engine]:
    """An HTTP server with one answer to all questions, taken for an engine; `disk`: those about its disk."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            about_disk = "/system/df" in self.path or "/images/prune" in self.path
            code, said = next(disk) if disk and about_disk else (status, body)
            self.send_response(code)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield Engine(f"tcp://127.0.0.1:{server.server_address[1]}")
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b"<html>no</html>"), (500, b""), (200, b"<html>yes</html>"), (200, b"[]"), (200, b"{}"),
     (200, b'{"ApiVersion": 3}')],
)  # fmt: skip
def test_no_docker(status, body):
    """A web server at the address is called what it is."""
    with answering(status, body) as engine:
        kind, text = failure(engine.connect)
    assert (kind, "is no Docker engine" in text) == (ErrorKind.DOWN, True), text


USAGE = {"LayersSize": 7, "Images": [], "Containers": [], "Volumes": [], "BuildCache": []}


@pytest.mark.parametrize(
    ("call", "what", "status", "said", "found"),
    [
        (lambda engine: engine.df()["images"]["bytes"], "disk usage", 500, USAGE, 7),
        (lambda engine: engine.prune_images()["freed_bytes"], "prune", 409, {"SpaceReclaimed": 8}, 8),
    ],
)
def test_what_an_engine_does_for_somebody_else(monkeypatch, call, what, status, said, found):
    """An engine that counts or clears its disk for somebody else is asked again, a few times; then it is told so."""
    monkeypatch.setattr("tsbus.containers.engine.TURN_PAUSE_S", (0, 0))
    version = json.dumps({"Version": "28.2.2", "ApiVersion": "1.41", "MinAPIVersion": "1.24"}).encode()
    busy = (status, f'{{"message": "a {what} operation is already running"}}'.encode())
    with answering(200, version, iter([*[busy] * (TURN_TRIES - 1), (200, json.dumps(said).encode())])) as engine:
        assert call(engine) == found
    asked = iter([busy] * TURN_TRIES)
    with answering(200, version, asked) as engine:
        _, text = failure(lambda: call(engine))
    assert next(asked, None) is None
    assert text == f"a {what} operation is already running, for somebody else: try again when it is over"


def test_no_http():
    """So is something that speaks another language."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                connection.recv(1000)

        with ThreadPoolExecutor(1) as pool:
            pool.submit(answer)
            kind, text = failure(Engine(f"tcp://127.0.0.1:{server.getsockname()[1]}").connect)
    assert (kind, "is no Docker engine" in text) == (ErrorKind.DOWN, True), text


def test_engine_that_is_too_old():
    """An old engine is told by its version, and which one is needed."""
    said = {"Version": "18.09.1", "ApiVersion": "1.39", "MinAPIVersion": "1.12"}
    with answering(200, json.dumps(said).encode()) as engine:
        kind, text = failure(engine.connect)
    assert kind is ErrorKind.TOO_OLD
    assert "Docker 18.09.1" in text
    assert "19.03" in text


@pytest.mark.parametrize("api", ["1.40", "1.41"])
def test_oldest_version_of_the_api(dockerd, ticker, monkeypatch, api):
    """All of it works in the oldest version of the API as well."""
    monkeypatch.setattr("docker.constants.DEFAULT_DOCKER_API_VERSION", api)
    engine = Engine(dockerd.host)
    events = engine.events(0)
    assert next(events)
    events.close()
    assert engine.inspect(ticker).state == "running"
    assert engine.stats_once(ticker)["cpu_stats"]
    program = engine.exec(ticker, ["echo", "hello"], env={"A": "b"}, cwd="/tmp")
    assert both(program) == (b"hello\n", b"")
    assert next(engine.logs(ticker))
    assert engine.df()["images"]["count"]
    engine.close()


def test_tls(dockerd, tmp_path):
    """Each way in which certificates can be wrong is told as such, and the way to set it right."""
    good = tls_of(dockerd)
    assert Engine(dockerd.tls_host, good).connect().name == "Docker"
    kind, text = failure(Engine(dockerd.tls_host).connect)
    assert (kind, "speaks TLS" in text) == (ErrorKind.DENIED, True), text
    for tls, words in (
        (TlsFiles("", good.cert, good.key), "check tls_ca"),
        (TlsFiles(good.ca), "takes our certificate"),
        (TlsFiles(good.ca, good.cert, str(tmp_path / "none.pem")), "cannot be read"),
    ):
        kind, text = failure(Engine(dockerd.tls_host, tls).connect)
        assert (kind, words in text) == (ErrorKind.DENIED, True), text
    with answering(404, b"") as plain:
        kind, text = failure(Engine(f"tcp://{plain}", good).connect)
        assert (kind, "no TLS with" in text) == (ErrorKind.DENIED, True), text


def test_import_is_light():
    """Whoever imports the edge does not pay for docker-py before the first question."""
    code = "import sys, tsbus.containers.engine; sys.exit('docker' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_death_of_the_engine(dockerd, engine, make):
    """When the engine is killed every stream ends, and calls work again once it is back.

    The last test: the containers of the others end with it.
    """
    ticker = make(*TICKER, name="doomed")
    readers = {name: Reader(open_(engine, ticker)) for name, open_ in STREAMS.items()}
    for reader in readers.values():
        assert reader.began.wait(LIMIT_S)
    dockerd.kill()
    for reader in readers.values():
        reader.wait_end()
        assert reader.error is None or (isinstance(reader.error, EngineError) and reader.error.kind is ErrorKind.DOWN)
    assert readers["events"].error is None
    assert readers["logs"].error is not None
    assert failure(engine.ping)[0] is ErrorKind.DOWN
    dockerd.start()
    engine.ping()
    assert engine.inspect(ticker).state == "exited"
