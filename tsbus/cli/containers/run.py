"""Run: `treescale container run` and `create`."""

import heapq
from collections.abc import Collection, Mapping
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import click

from tsbus.cli.completion import complete_image
from tsbus.cli.containers.acts import Acts, code_of
from tsbus.cli.containers.drained import (
    Draining,
    draining_of,
    replace_rolling,
    rolling_options,
    skip_lost_option,
)
from tsbus.cli.containers.finding import ask, monitored
from tsbus.cli.containers.ls import problems
from tsbus.cli.containers.options import ACT_S, ASK_S, awaited, target_argument
from tsbus.cli.containers.program import ProgramCommand
from tsbus.cli.containers.pulling import Pulling
from tsbus.cli.containers.times import length
from tsbus.cli.containers.words import SHORT_ID, natural
from tsbus.cli.edge import Code, Fault, bus_option, connect, json_option, stacked
from tsbus.cli.exec import Look, execute, variables
from tsbus.cli.job import NO_LIMIT_S, follow, nodes_of, waiting
from tsbus.cli.report import Ending, ending_of
from tsbus.core.accounting import Outcome
from tsbus.core.target import fold
from tsbus.records import Done

if TYPE_CHECKING:
    from tsbus import Reply
    from tsbus.client import Client

MAX_ON_NODE = 100
"""New containers on one node in one order, as the monitor takes them."""


def _labels(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    return {key: text for key, _, text in (value.partition("=") for value in values)}


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read a length of time as Docker writes it: 500ms, 30s, 1m30s, or a number of seconds."""
    if value is None:
        return None
    try:
        return length(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no length of time like 30s or 1m30s", ctx, param) from None


def _program(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
    return [] if value is None else [value]


_LIST = ("publish", "volumes", "tmpfs", "cap_add", "cap_drop", "devices", "security_opt", "add_hosts", "dns", "ulimits")


_options = stacked(
    click.option("--name", help="Its name; with --count NAME-1, NAME-2 ..."),
    click.option("-e", "--env", metavar="NAME=VALUE", multiple=True, callback=variables, help="Variable for it."),
    click.option("--env-file", type=click.Path(path_type=Path, dir_okay=False), multiple=True,
                 help="File with a NAME=VALUE on each line."),
    click.option("-p", "--publish", metavar="[IP:]PORT:PORT", multiple=True, help="Publish a port on the node."),
    click.option("-v", "--volume", "volumes", metavar="NAME:PATH[:ro]", multiple=True, help="Mount a volume."),
    click.option("--tmpfs", metavar="PATH", multiple=True, help="Mount a file system in memory."),
    click.option("--cpus", metavar="N", default="", help="At most so many CPUs: 1.5."),
    click.option("-m", "--memory", metavar="SIZE", default="", help="At most so much memory: 256m."),
    click.option("--restart", metavar="POLICY", default="",
                 help="no, always, unless-stopped, on-failure[:N] [default: no]."),
    click.option("-l", "--label", "labels", metavar="KEY=VALUE", multiple=True, callback=_labels, help="Label."),
    click.option("--network", metavar="NAME", default="", help="The network it is in."),
    click.option("--hostname", default="", help="Its own host name."),
    click.option("-u", "--user", default="", help="The user in it that runs the program."),
    click.option("-w", "--workdir", metavar="DIR", default="", help="Working directory in it."),
    click.option("--entrypoint", metavar="PROGRAM", callback=_program, help="Instead of the image's."),
    click.option("--init", is_flag=True, help="Run a small init that reaps processes."),
    click.option("--read-only", is_flag=True, help="Its own files cannot be changed."),
    click.option("--stop-signal", metavar="SIGNAL", default="", help="How it is asked to stop."),
    click.option("--stop-timeout", "stop_timeout_s", type=click.IntRange(min=0), metavar="S",
                 help="Seconds that stopping may take, then it is killed."),
    click.option("--health-cmd", metavar="LINE", help="Command line in it that checks its health."),
    click.option("--health-interval", metavar="TIME", callback=_seconds, help="Between two checks: 30s."),
    click.option("--health-timeout", metavar="TIME", callback=_seconds, help="For one check."),
    click.option("--health-start-period", metavar="TIME", callback=_seconds, help="At first, failures do not count."),
    click.option("--health-retries", type=click.IntRange(min=1), metavar="N", help="Failures in a row that count."),
    click.option("--no-healthcheck", is_flag=True, help="Without the image's own check."),
    click.option("--cap-add", metavar="CAP", multiple=True, help="Add a capability, if the node allows it."),
    click.option("--cap-drop", metavar="CAP", multiple=True, help="Take a capability away; ALL takes all."),
    click.option("--privileged", is_flag=True, help="Everything that root may, if the node allows it."),
    click.option("--pid", metavar="MODE", default="", help="Namespace of its processes: container:NAME, host."),
    click.option("--ipc", metavar="MODE", default="", help="Namespace of its shared memory."),
    click.option("--device", "devices", metavar="PATH", multiple=True, help="Device, if the node allows it."),
    click.option("--security-opt", metavar="OPTION", multiple=True, help="Security option, if the node allows it."),
    click.option("--add-host", "add_hosts", metavar="NAME:IP", multiple=True, help="Line in its /etc/hosts."),
    click.option("--dns", metavar="IP", multiple=True, help="Its name server."),
    click.option("--ulimit", "ulimits", metavar="NAME=N[:N]", multiple=True, help="Limit: nofile=1024."),
    click.option("--rm", is_flag=True, help="Remove it when it has ended."),
    click.option("-t", "--tty", is_flag=True, help="Give it a terminal."),
    click.option("--pull", type=click.Choice(["missing", "always", "never"]), default="missing", show_default=True,
                 help="When to fetch the image."),
    click.option("--count", type=click.IntRange(1, 10_000), metavar="N",
                 help="N in all, spread over the nodes: the emptiest get the first [default: one on each node]."),
    click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), metavar="S",
                 help="Patience with the nodes, with fetching the image [default: 600; --attach: no limit]."),
    click.option("-q", "--quiet", is_flag=True, help="Print ids only."),
)  # fmt: skip

_arguments = stacked(
    target_argument,
    click.argument("image", shell_complete=complete_image),
    click.argument("argv", metavar="[PROGRAM [ARG]...]", nargs=-1, type=click.UNPROCESSED),
)


@click.command(name="run", cls=ProgramCommand)
@_arguments
@_options
@click.option("--attach", is_flag=True, help="Show what it writes, and end with its exit code.")
@click.option("--replace", is_flag=True, help="Take the place of the containers called NAME, node by node, without an "
              "error for the clients of balancers.")  # fmt: skip
@skip_lost_option
@rolling_options
@click.option("-d", "--detach", is_flag=True, expose_value=False, hidden=True)  # the default; typed from habit
@json_option
@bus_option
@awaited
async def run_(
    target: str,
    attach: bool,
    replace: bool,
    skip_lost: bool,
    parallel: int | None,
    wait_s: float | None,
    as_json: bool,
    bus: str | None,
    **options: Any,
) -> int:
    """Make a container on every node of TARGET, or N in all, and start it. An image that is missing is fetched.

    What the nodes' policy does not allow (privileged, host directories, devices ...) is refused by name.

    With --replace the old container is drained, stopped and removed when the new one is active in every balancer in
    which the old one was. If it does not get there, it is removed, and the old one goes on as before.

    \b
    Examples:
      treescale container run @web nginx --name web -p 8080:80 --restart always
      treescale container run '*' nginx --name web --count 10 --memory 256m
      treescale container run @web nginx:1.28 --name web --replace
      treescale container run node1 busybox --rm --attach -- sh -c 'echo hello'
    """
    draining = draining_of(replace, "--replace", skip_lost=skip_lost, parallel=parallel, wait_s=wait_s)
    if draining is None:
        return await _run(bus, "run", target, {**options, "attach": attach}, as_json)
    if not options["name"] or options["count"] or attach:
        raise click.UsageError("--replace needs --name, and goes neither with --count nor with --attach.")
    return await _replace(bus, target, options, as_json, draining)


@click.command(cls=ProgramCommand)
@_arguments
@_options
@json_option
@bus_option
@awaited
async def create(target: str, as_json: bool, bus: str | None, **options: Any) -> int:
    """Make a container on every node of TARGET, or N in all, without starting it.

    \b
    Examples:
      treescale container create node1 nginx --name web
    """
    return await _run(bus, "create", target, options, as_json)


def order_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body, as far as the options say something; the nodes check what it means."""
    health = {
        "command": options["health_cmd"],
        "interval_s": options["health_interval"],
        "timeout_s": options["health_timeout"],
        "start_period_s": options["health_start_period"],
        "retries": options["health_retries"],
        "disable": options["no_healthcheck"] or None,
    }
    health = {key: value for key, value in health.items() if value is not None}
    if "disable" in health and len(health) > 1:
        raise click.UsageError("--no-healthcheck and --health-... contradict each other.")
    env: dict[str, str] = {}
    for path in options["env_file"]:
        env |= read_env(path)
    order = {key: options[key] for key in (
        "image", "argv", "entrypoint", "labels", "cpus", "memory", "restart", "network", "hostname", "user", "workdir",
        "init", "read_only", "stop_signal", "privileged", "pid", "ipc", "rm", "tty", *_LIST,
    )}  # fmt: skip
    order |= {"env": env | options["env"], "health": health, "attach": options.get("attach")}
    order["pull"] = "" if options["pull"] == "missing" else options["pull"]
    order = {key: value for key, value in order.items() if value}
    if options["stop_timeout_s"] is not None:
        order["stop_timeout_s"] = options["stop_timeout_s"]
    return order


def read_env(path: Path) -> dict[str, str]:
    """Return the variables of a file: NAME=VALUE lines, empty ones and those behind # left out. Raises Fault."""
    found: dict[str, str] = {}
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        raise Fault(f"{path} is not UTF-8 text", Code.USAGE) from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.lstrip().partition("=")
        if not name or not equals:
            raise Fault(f"{path}:{number}: not NAME=VALUE", Code.USAGE)
        found[name] = value
    return found


def spread(running: Mapping[str, int], number: int) -> dict[str, int]:
    """Return how many of `number` new containers each node gets: always the one with the fewest, then by name."""
    heap = [(load, node) for node, load in running.items()]
    heapq.heapify(heap)
    given = dict.fromkeys(running, 0)
    for _ in range(number):
        load, node = heap[0]
        given[node] += 1
        heapq.heapreplace(heap, (load + 1, node))
    return {node: got for node, got in given.items() if got}


def names_for(shares: Mapping[str, int], base: str) -> dict[str, list[str]]:
    """Return the names of the new containers of each node: BASE-1 to BASE-N, node by node."""
    numbers = iter(range(1, sum(shares.values()) + 1))
    return {node: [f"{base}-{next(numbers)}" for _ in range(shares[node])] for node in sorted(shares, key=natural)}


async def _run(bus: str | None, command: str, target: str, options: Mapping[str, Any], as_json: bool) -> int:
    order = order_of(options)
    async with connect(bus, f"treescale-{command}") as client:
        if options["count"]:
            shares = spread(await _running(client, target), options["count"])
            if max(shares.values()) > MAX_ON_NODE:
                raise Fault(f"that is more than {MAX_ON_NODE} new containers on one node: run it in parts", Code.USAGE)
            order["names"] = names_for(shares, options["name"] or _invented(options["image"]))
            target = fold(shares)
        elif options["name"]:
            order["names"] = {node: [options["name"]] for node in await nodes_of(client, target)}
        if order.get("attach"):
            return await _show(client, target, order, options, as_json)
        timeout_s = options["timeout_s"] or ACT_S
        async with client.request(target, f"containers.{command}", order, timeout_s=timeout_s) as call:
            made = _Made(await call.nodes(), as_json=as_json, quiet=options["quiet"])
            async with waiting(made.progress, made.waiting):
                whole = await follow(call, made.take)
    if whole:
        monitored(made.endings)
    if not whole:
        made.cut_short()
    return code_of(whole, made.finish(quiet=options["quiet"]))


async def _replace(bus: str | None, target: str, options: Mapping[str, Any], as_json: bool, draining: Draining) -> int:
    order, quiet = order_of(options), options["quiet"]
    async with connect(bus, "treescale-replace") as client:
        acts = _New(as_json=as_json, quiet=quiet)
        nodes, patience_s = await nodes_of(client, target), options["timeout_s"] or ACT_S
        whole = await replace_rolling(client, nodes, options["name"], order, acts, draining, patience_s)
    return code_of(whole, acts.finish(quiet=quiet))


async def _show(client: "Client", target: str, order: dict[str, Any], options: Mapping[str, Any], as_json: bool) -> int:
    """Run with the output shown; ends as the program, if it is one."""
    pulling = Pulling(1)

    def fact(reply: "Reply") -> None:
        pulling.takes(reply)

    alone = len(await nodes_of(client, target)) == 1
    look = Look(as_json, fold=False, live=True, prefix=not alone, quiet=options["quiet"], own_exit=alone)
    timeout_s = options["timeout_s"] or NO_LIMIT_S
    return await execute(client, target, "containers.run", order, look, timeout_s=timeout_s, fact=fact)


def _invented(image: str) -> str:
    """Return a name for several containers of an image, which nobody else takes at the same time."""
    base = image.rpartition("/")[2].partition("@")[0].partition(":")[0]
    return f"{base}-{token_hex(2)}"


async def _running(client: "Client", target: str) -> dict[str, int]:
    """Return how many containers run on each node that can take more; the others are told."""
    running: dict[str, int] = {}
    down: dict[str, Ending] = {}

    def take(reply: "Reply") -> None:
        told = reply.json()
        if told["engine"]["up"]:
            running[reply.node] = told["running"]
        else:
            down[reply.node] = Ending(Outcome.FAILED, f"engine down: {told['engine'].get('reason', '')}")

    lost = monitored(await ask(client, target, "docker.info", b"", take, ASK_S)) | down
    if not running:
        raise Fault("\n".join(problems(lost)))
    for line in problems(lost):
        click.echo(f"left out {line}", err=True)
    return running


class _New(Acts):
    """The account of containers of which the id is told."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        super().__init__((), lambda done: done.id[:SHORT_ID], as_json=as_json)
        self._quiet = quiet

    def show(self, node: str, label: str, done: Done) -> None:
        """Print the name and the id of a new container."""
        if self._quiet:
            click.echo(done.id)
        else:
            super().show(node, label, done)


class _Made(_New):
    """The account of new containers of one call."""

    def __init__(self, nodes: Collection[str], *, as_json: bool, quiet: bool) -> None:
        super().__init__(as_json=as_json, quiet=quiet)
        self._nodes = nodes
        self._told: set[str] = set()
        self._ended: set[str] = set()
        self._pulling = Pulling(len(nodes))

    def waiting(self) -> list[str]:
        """Return the nodes that have not ended, while nothing else tells of them."""
        return [] if self._pulling.under_way else [node for node in self._nodes if node not in self._ended]

    def take(self, reply: "Reply") -> None:
        """Take progress, a Done, or a node's last words."""
        if self._pulling.takes(reply):
            return
        super().take(reply)
        if reply.last:
            self._ended.add(reply.node)
            self._pulling.ended(reply.node)
            if reply.node not in self._told:
                self.endings[reply.node] = ending_of(reply)

    def done(self, node: str, done: Done) -> None:
        """Note and show a new container."""
        self._told.add(node)
        self._pulling.ended(node)
        super().done(node, done)

    def cut_short(self) -> None:
        """Note that the call was cancelled before all had ended."""
        for node in set(self._nodes) - self._ended - self._told:
            self.endings[node] = Ending(Outcome.CANCELLED, "not confirmed")
