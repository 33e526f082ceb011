"""The demo: to its end with a Docker engine, without one, and interrupted. What it made is always gone."""

import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from dockerd import Dockerd
from lan import Box, inside

from tsbus.cli.demo import borrowed, containers
from tsbus.cli.demo.borrowed import Borrowed
from tsbus.containers.engine import Engine

ROOT = Path(__file__).parents[2]


class Showing:
    """A demo under way, with all its files in a folder of its own."""

    def __init__(self, folder, box, *options, host):
        self.folder = folder
        env = os.environ | {"TMPDIR": folder, "XDG_RUNTIME_DIR": folder, "DOCKER_HOST": host}
        argv = [ROOT / "bin/treescale", "demo", *options]
        self.process = box.call(subprocess.Popen, argv, stdout=subprocess.PIPE, text=True, env=env)

    def wait_for(self, text):
        """Read on until a line has `text`."""
        assert any(text in line for line in self.process.stdout), f"it has not said {text!r}"

    def end(self):
        """Read the rest, and see that nothing is left; returns the rest and the exit code."""
        rest = self.process.stdout.read()
        code = self.process.wait()
        assert list(Path(self.folder).iterdir()) == []
        assert processes_with(self.folder) == []
        return rest, code


def processes_with(text):
    """Return the command lines of processes that have `text` in their arguments or environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                lines = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            except OSError:
                continue
            if any(text.encode() in line for line in lines):
                found.append(lines[0])
    return found


@pytest.fixture(scope="module")
def box():
    """A network for demos and their engine: of one network only one balancer has the kernel, and others show demos."""
    box = Box("demo")
    box.ip("link set lo up")
    yield box
    box.close()


@pytest.fixture(scope="module")
def dockerd(box):
    """An engine that demos reach."""
    with inside(box):
        engine = Dockerd()
        try:
            engine.start()
            engine.image("box:1", 'CMD ["sleep", "1000"]')
        except BaseException:
            engine.stop()
            raise
    yield engine
    with inside(box):
        engine.stop()


@pytest.fixture(scope="module")
def engine(dockerd):
    """The edge to it."""
    edge = Engine(dockerd.host)
    yield edge
    edge.close()


@pytest.fixture
def show(box):
    """A function that starts the demo."""
    shown = []
    with tempfile.TemporaryDirectory(prefix="ts-") as folder:  # short enough for sockets

        def start(*options, host=f"unix://{folder}/none"):
            shown.append(Showing(folder, box, *options, host=host))
            return shown[-1]

        yield start
        for each in shown:
            each.process.send_signal(signal.SIGINT)
            each.process.wait()


def things_in(engine):
    """The containers and images of an engine."""
    return {one.id: one.state for one in engine.list()}, {one["id"]: one["names"] for one in engine.images()}


def things_in_kernel(box):
    """Lines of the network that speak of us."""
    commands = (["nft", "list", "tables"], ["ip", "-o", "link"], ["iptables-save"])
    told = "".join(box.run(*each) for each in commands)
    return [line for line in told.lower().splitlines() if "treescale" in line or " ts0:" in line]


@pytest.fixture
def neighbour(engine):
    """Somebody else who uses the engine; afterwards it has what it had before."""
    other = engine.create("demo-neighbour", {"Image": "box:1", "Labels": {"treescale.demo": "neighbour"}})
    engine.start(other)
    before = things_in(engine)
    yield
    assert things_in(engine) == before
    engine.rm(other, force=True)


def test_ctrl_c_leaves_nothing(show):
    """Ctrl-C in the middle of the demo ends it with code 130 and leaves no process and no file behind."""
    demo = show()
    demo.wait_for("7 up")
    demo.process.send_signal(signal.SIGINT)
    rest, code = demo.end()
    assert "is removed" in rest
    assert code == 130


def test_with_an_engine(show, box, dockerd, neighbour):
    """The whole demo goes well, a drained web server fails nobody, and nothing is left behind."""
    shown, code = show("--once", host=dockerd.host).end()
    assert code == 0
    name = r"demo-[0-9a-f]{4}"
    for number, action in ((1, "created"), (2, "created"), (1, "started"), (2, "started"), (1, "died")):
        assert re.search(rf"at root: .* web{number} +container.{action} +{name}-{number} ", shown), (number, action)
    assert "2 nodes, 2 running containers, CPU " in shown
    assert "2 nodes, 2 containers, 1 running" in shown
    assert re.search(r"^The root knew it \d+\.\d ms after the engine.$", shown, re.MULTILINE)
    loads = re.findall(r"^(\d+) requests: (.*); failed: (\d+)\.$", shown, re.MULTILINE)
    assert len(loads) == 3, shown
    spread, _, drained = loads
    assert re.fullmatch(rf"\d+ by {name}-shop-1, \d+ by {name}-shop-2, \d+ by {name}-shop-3", spread[1])
    assert spread[2] == drained[2] == "0"
    assert re.search(rf"^{name}-shop-1 was removed from the table: .*\.$", shown, re.MULTILINE)
    assert things_in_kernel(box) == []
    assert re.findall(r"^== (\d)\.", shown, re.MULTILINE) == list("123456789")
    assert '"greeting":"hello reader' in shown
    assert '{"nodes": 7, "up": 7, ' in shown


def test_ctrl_c_between_containers(show, dockerd, neighbour):
    """Ctrl-C while containers are being made leaves no container and no image behind either."""
    demo = show(host=dockerd.host)
    demo.wait_for("treescale container run")
    demo.process.send_signal(signal.SIGINT)
    assert demo.end()[1] == 130


@pytest.mark.parametrize(
    ("host", "why"),
    [("unix:///nowhere/docker.sock", "no engine at /nowhere/docker.sock"), ("ssh://host", "ssh://host")],
)
def test_without_an_engine(monkeypatch, capsys, host, why):
    """Without an engine the part about containers is one line that says why, and no node looks for one."""
    monkeypatch.setenv("DOCKER_HOST", host)
    docker = Borrowed("0000", containers.NODES)
    docker.find()
    containers.show(None, None, docker)
    docker.remove()
    assert docker.policies == {}
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith("Left out, because no Docker engine can be used: ")
    assert why in line


def test_an_engine_that_goes_away(monkeypatch, capsys, dockerd):
    """Where the engine does not answer at the end, the demo says how to remove what is left, and ends."""
    monkeypatch.setenv("DOCKER_HOST", dockerd.host)
    monkeypatch.setattr(borrowed, "ASK_S", 0.5)
    docker = Borrowed("0000", containers.NODES)
    docker.find()
    dockerd.pause()
    docker.remove()
    dockerd.resume()
    shown = capsys.readouterr().out
    assert "has not answered in 0.5 s" in shown
    assert "docker rm -f $(docker ps -aq --filter label=treescale.demo.0000)" in shown


def test_an_image_that_is_there_will_do(monkeypatch, engine, dockerd, neighbour):
    """On a machine without busybox the demo takes an image that the engine has, and does not remove it."""
    monkeypatch.setenv("DOCKER_HOST", dockerd.host)
    monkeypatch.setenv("PATH", "/nowhere")
    docker = Borrowed("0000", containers.NODES)
    docker.find()
    assert docker.make_image() is False
    docker = Borrowed("0000", containers.NODES)
    docker.find()
    engine.tag("box:1", "alpine:latest")
    assert docker.make_image() is True
    assert docker.image == "alpine:latest"
    docker.remove()
    assert engine.rm_image("alpine:latest")["untagged"] == ["alpine:latest"]
