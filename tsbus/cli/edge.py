"""Edge: how every command line begins and ends. Exit codes, the `--bus` and `--json` options, errors as one line.

Nothing heavy is imported here before it is needed: `treescale --help` and ts-pub must start at once.
"""

import asyncio
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Coroutine
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tsbus.client import Client, Opening
    from tsbus.transport import Curve

Option = Callable[[Any], Any]
"""What gives a command an argument or an option."""


class Code(IntEnum):
    """What a command line's exit code means."""

    OK = 0
    FAILED = 1
    USAGE = 2
    """The command line or a configuration file is wrong, or the target names no node."""
    PARTIAL = 3
    """Some nodes did it and some did not."""
    UNREACHABLE = 4
    """No node could be reached, or none answered in time."""
    REFUSED = 5
    """The policy does not allow it."""
    BUSY = 6
    """Somebody else is building the tree."""
    INTERRUPTED = 130


EXIT_CODES = """\b
Exit codes:
  0    done
  1    failed
  2    wrong usage, configuration or target
  3    partly done: some nodes failed
  4    unreachable, or no answer in time
  5    refused by the policy
  6    somebody else is building
  130  interrupted (Ctrl-C)"""


HELP = {"help_option_names": ["-h", "--help"]}


class Fault(click.ClickException):
    """Ends the command with one line and an exit code."""

    def __init__(self, text: str, code: Code = Code.FAILED) -> None:
        super().__init__(text)
        self.code = code


class Tool(click.Command):
    """A program of its own; whatever goes wrong in it ends as one clear line on stderr and an exit code."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the program and exit, like click's `main`."""
        options["standalone_mode"] = False
        if os.environ.get("NO_COLOR"):
            options["color"] = False
        name = options["prog_name"] = options.get("prog_name") or self.name or "treescale"
        try:
            code = super().main(*args, **options)
            if sys.stdout:  # not closed by who started us
                sys.stdout.flush()
        except BaseException as error:
            code = explain(name, error)
        sys.exit(code or 0)


def explain(name: str, error: BaseException) -> int:
    """Tell the user of program `name` about `error` on stderr. Returns the exit code; raises what is a defect."""
    if isinstance(error, click.UsageError):
        error.show()
        return Code.USAGE
    if isinstance(error, click.Abort | KeyboardInterrupt | asyncio.CancelledError):
        return Code.INTERRUPTED
    if isinstance(error, BrokenPipeError):
        forget_stdout()
        return Code.FAILED
    text, code = _words_of(error)
    for line in text.splitlines():
        click.echo(f"{name}: {line}", err=True)
    return code


def _words_of(error: BaseException) -> tuple[str, int]:
    from tsbus import errors
    from tsbus.config.problem import ConfigError
    from tsbus.core.body import BodyError
    from tsbus.core.topic import TopicError
    from tsbus.transport import TransportError

    if isinstance(error, click.ClickException):
        return error.format_message(), error.code if isinstance(error, Fault) else error.exit_code
    codes: dict[type[BaseException], Code] = {
        errors.NoRouter: Code.UNREACHABLE,
        errors.ConnectionLost: Code.UNREACHABLE,
        errors.Refused: Code.REFUSED,
        errors.UnknownTarget: Code.USAGE,
        errors.PayloadTooLarge: Code.USAGE,
        errors.BusError: Code.FAILED,
        TransportError: Code.USAGE,
        ConfigError: Code.USAGE,
        TopicError: Code.USAGE,
        BodyError: Code.FAILED,
        TimeoutError: Code.UNREACHABLE,
        OSError: Code.FAILED,
    }
    for kind, code in codes.items():
        if isinstance(error, kind):
            text = str(error)
            if isinstance(error, OSError) and error.strerror:  # without the number
                text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            return text or kind.__name__, code
    raise error


def forget_stdout() -> None:
    """Nobody reads our output any more: let Python's last flush of it go nowhere, without a complaint."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stacked(*options: Option) -> Option:
    """Return all of these decorators as one; the first stands highest, in the help as well."""

    def give(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return give


bus_option = click.option(
    "--bus",
    metavar="ADDRESS",
    callback=lambda ctx, _, value: value or ctx.find_root().params.get("bus"),
    help="The router's socket: a path, or tcp://HOST:PORT with an operator's key [default: $TREESCALE_BUS].",
)
"""`treescale --bus X COMMAND` says the same as `treescale COMMAND --bus X`."""
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")


def timeout_option(default_s: float) -> Option:
    """Return the option `--timeout` of a command that waits for answers."""
    return click.option(
        "--timeout", "timeout_s", type=click.FloatRange(min=0.01), default=default_s, show_default=True, metavar="S",
        help="Seconds that the answers may take.",
    )  # fmt: skip


def connect(address: str | None, name: str, timeout_s: float = 3.0) -> "Opening[Client]":
    """Return a client for `async with`; `name` is what others see of this program on the bus."""
    from tsbus.client import Opening

    return Opening(_connect(address, name, timeout_s))


async def _connect(address: str | None, name: str, timeout_s: float) -> "Client":
    from tsbus.client import connect, endpoint
    from tsbus.errors import NoRouter

    place = endpoint(address)
    if place.startswith("ipc://") and not _is_there(Path(place.removeprefix("ipc://")).parent):
        timeout_s = 0.0  # a router that starts anew leaves its folder where it is
    try:
        return await connect(address, name=name, timeout_s=timeout_s, keys=_keys(address))
    except NoRouter:
        raise NoRouter(f"no router answers at {place}: {why_silent(place)}") from None


def _is_there(folder: Path) -> bool:
    try:
        return folder.exists()
    except PermissionError:  # one that we may not look into is there
        return True


def why_silent(place: str) -> str:
    """Return why there may be no answer at an address, and what to do."""
    if not place.startswith("ipc://"):
        return (
            "see that it runs and the port is open, that TREESCALE_SERVER_KEY is its public_key, and that your public "
            "key is under [operators] in its treescale.toml"
        )
    path = Path(place.removeprefix("ipc://"))
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return "that is no socket; a router's is the file `bus` in the folder of its node"
        if os.access(path, os.W_OK):
            return "the socket is there, so the router hangs or has just ended: see router.log of its node"
    except PermissionError:
        pass
    except OSError:
        return (
            "there is no such socket; start the node, or name the socket of one that runs with --bus or TREESCALE_BUS "
            "(treescale up FILE prints the line)"
        )
    return "you may not use that socket: become root, or somebody in the group of its folder"


def _keys(address: str | None) -> "Curve | None":
    """Return an operator's keys for a router elsewhere; the local one knows us without."""
    if not (address or os.environ.get("TREESCALE_BUS", "")).startswith("tcp://"):
        return None
    from tsbus.transport import Curve, public_of, read_secret

    path, server = os.environ.get("TREESCALE_OPERATOR_KEY"), os.environ.get("TREESCALE_SERVER_KEY")
    if not path or not server:
        raise Fault(
            "a router elsewhere takes an operator's key: set TREESCALE_OPERATOR_KEY to the file with your secret key "
            "and TREESCALE_SERVER_KEY to that node's public_key",
            Code.USAGE,
        )
    secret = read_secret(path)
    return Curve(public=public_of(secret), secret=secret, server=server)


def run(work: Coroutine[Any, Any, int]) -> int:
    """Run an asynchronous command to its exit code. What ends us cancels it and, if it does not handle that, raises."""
    return asyncio.run(_ended_well(work))


async def _ended_well(work: Coroutine[Any, Any, int]) -> int:
    """Let `kill` and a closed terminal end `work` as Ctrl-C does: terminals are given back, remote programs end."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if task is not None and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # not with nohup
                loop.add_signal_handler(number, task.cancel)
    return await work
