"""Programs as the executor runs them: real processes, real signals."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tsbus.executor.jobs import Ending
from tsbus.executor.process import CHUNK_BYTES, Process, Program, StartError, find_account

ME = find_account(str(os.geteuid()))
GRACE_S = 0.2


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """End a test that waits for ever with a traceback of where it waits."""

    def end(number: int, frame: object) -> None:
        raise TimeoutError("the test waits for something that does not happen")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def read_all(process: Process) -> tuple[bytes, bytes]:
    out = {False: b"", True: b""}
    while (chunk := await process.read()) is not None:
        assert 0 < len(chunk[0]) <= CHUNK_BYTES
        out[chunk[1]] += chunk[0]
    return out[False], out[True]


async def run(*argv: str, **more: object) -> tuple[bytes, bytes, Ending]:
    process = Process(Program(argv, ME, **more))  # type: ignore[arg-type]
    out, err = await read_all(process)
    return out, err, await process.wait()


def leaving(folder: Path) -> str:
    """A line of shell that starts a child, waits until it is in a session of its own, and prints its number."""
    return f"setsid sh -c 'echo $$; touch {folder}/left; exec sleep 60' & until [ -e {folder}/left ]; do :; done"


async def line_of(process: Process) -> str:
    chunk = await process.read()
    assert chunk is not None
    return chunk[0].decode().strip()


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the second when it goes while it is read
        return False


async def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def test_streams_and_exit() -> None:
    """Both outputs arrive apart, and the exit code is the program's."""
    out, err, ending = await run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (out, err) == (b"out\n", b"err\n")
    assert (ending.exit, ending.signal, ending.ok) == (3, None, False)


async def test_success_is_ok() -> None:
    """A program that exits with 0 ended well."""
    assert (await run("true"))[2].ok


async def test_death_by_signal() -> None:
    """A program killed by a signal has that signal's name and no exit code."""
    ending = (await run("sh", "-c", "kill -SEGV $$"))[2]
    assert (ending.exit, ending.signal) == (None, "SEGV")


async def test_no_shell() -> None:
    """Arguments reach the program as they are: nothing in them is expanded or split."""
    assert (await run("printf", "%s", "$HOME * ; `id`"))[0] == b"$HOME * ; `id`"


async def test_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program sees the base variables and the given ones, nothing of the executor's own."""
    monkeypatch.setenv("EXECUTOR_SECRET", "x")
    out = (await run("env", env={"GIVEN": "1"}))[0].decode().split()
    assert {line.partition("=")[0] for line in out} == {"PATH", "HOME", "LANG", "USER", "LOGNAME", "GIVEN"}
    assert "GIVEN=1" in out


async def test_working_directory(tmp_path: Path) -> None:
    """The program starts in the asked directory, in / without one."""
    assert (await run("pwd", "-P", cwd=str(tmp_path)))[0].decode().strip() == str(tmp_path.resolve())
    assert (await run("pwd"))[0] == b"/\n"


async def test_own_session_and_no_descriptors() -> None:
    """The program leads a session of its own, reads nothing, and holds no descriptor of the executor."""
    script = "cat; ls /proc/self/fd | tr '\\n' ' '; ps -o pid=,sid= -p $$ 2>/dev/null || cut -d' ' -f1,6 /proc/$$/stat"
    out = (await run("sh", "-c", script))[0].decode().split()
    assert out[:4] == ["0", "1", "2", "3"]  # 3 is the directory that ls reads
    assert out[-2] == out[-1]


@pytest.mark.parametrize(
    ("argv", "cwd", "told"),
    [
        (["no-such-program"], "", "no program 'no-such-program' on this node"),
        (["/etc/passwd"], "", "may not execute '/etc/passwd'"),
        (["ls"], "/no/such/dir", "cannot enter the directory '/no/such/dir': No such file"),
        (["ls"], "/etc/passwd", "cannot enter the directory '/etc/passwd': Not a directory"),
        (["ls", "x" * 200_000], "", "cannot start 'ls': Argument list too long"),
    ],
)
async def test_not_started(argv: list[str], cwd: str, told: str) -> None:
    """A program that cannot be started is told in one sentence, and nothing of the attempt is left open."""
    before = descriptors()
    with pytest.raises(StartError, match=told):
        Process(Program(argv, ME, cwd))
    assert descriptors() == before


@pytest.mark.parametrize("user", ["no-such-user", "4294967294", "99999999999999999999"])
def test_unknown_user(user: str) -> None:
    """A user that the node does not know is told by name."""
    with pytest.raises(StartError, match=f"no user '{user}' on this node"):
        find_account(user)


async def test_other_user() -> None:
    """As root the program runs with the ids and groups of the asked user, none of root's; others are told why not."""
    program = Program(["id"], find_account("nobody"))
    if os.geteuid() != 0:
        with pytest.raises(StartError, match="not root"):
            Process(program)
        return
    process = Process(program)
    out, _ = await read_all(process)
    assert (await process.wait()).ok
    assert out.decode().split()[0] == "uid=65534(nobody)"
    assert "root" not in out.decode()


async def test_input_reaches_program_and_ends() -> None:
    """What is written arrives whole and in order, however much it is, and its end is seen."""
    data = os.urandom(1 << 20)
    process = Process(Program(["cat"], ME, stdin=True))

    async def feed() -> None:
        assert await process.write(data)
        process.close_input()

    (out, _), _ = await asyncio.gather(read_all(process), feed())
    assert out == data
    assert (await process.wait()).ok


async def test_writing_waits_for_reader() -> None:
    """Writing waits while the program does not read: a pipe is all that is buffered."""
    process = Process(Program(["sh", "-c", "echo ready; sleep 60"], ME, stdin=True))
    assert await line_of(process) == "ready"
    writing = asyncio.create_task(process.write(bytes(1 << 20)))
    done, _ = await asyncio.wait([writing], timeout=0.1)
    assert not done
    writing.cancel()
    assert (await process.stop(60)).signal == "TERM"


async def test_program_that_does_not_read() -> None:
    """A program that closes its input gets no more of it, and goes on."""
    process = Process(Program(["sh", "-c", "exec <&-; echo closed; sleep 0.1; echo end"], ME, stdin=True))
    assert await line_of(process) == "closed"
    assert not await process.write(bytes(1 << 20))
    assert (await read_all(process))[0] == b"end\n"
    assert (await process.wait()).ok


async def test_binary_and_endless_line() -> None:
    """Any bytes pass unchanged, without a line's end anywhere."""
    out, _, ending = await run("head", "-c", "3000000", "/dev/zero")
    assert out == bytes(3_000_000)
    assert ending.ok


async def test_unread_output_stops_program(tmp_path: Path) -> None:
    """While nobody reads, the program stands still at a full pipe; it goes on when reading goes on."""
    process = Process(Program(["sh", "-c", f"head -c 400000 /dev/zero; touch {tmp_path}/written"], ME))
    written = asyncio.create_task(wait_until((tmp_path / "written").exists))
    done, _ = await asyncio.wait([written], timeout=0.1)
    assert not done
    assert len((await read_all(process))[0]) == 400_000
    assert (await process.wait()).ok
    await written


async def test_closed_output_is_not_the_end() -> None:
    """A program that closes its outputs lives on, and its end is awaited."""
    out, err, ending = await run("sh", "-c", "exec >&- 2>&-; sleep 0.1; exit 5")
    assert (out, err, ending.exit) == (b"", b"", 5)
    assert ending.duration_ms >= 100


async def test_child_that_holds_the_pipe() -> None:
    """Whoever holds the outputs after the program's end has one second, then the group is killed."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    process = Process(Program(["sh", "-c", "sleep 60 & echo $!"], ME))
    child = int(await line_of(process))
    assert await process.read() is None
    assert (await process.wait()).exit == 0
    assert 0.9 < loop.time() - begin < 30
    await wait_until(lambda: not is_alive(child))


async def test_child_that_left_the_group(tmp_path: Path) -> None:
    """A child in a session of its own lives on, but does not hold up the end, though it holds the pipe."""
    process = Process(Program(["sh", "-c", leaving(tmp_path)], ME))
    child = int(await line_of(process))
    assert await process.read() is None
    assert (await process.wait()).exit == 0
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)


async def test_output_left_in_the_pipe(tmp_path: Path) -> None:
    """What was written before the end is read after it, even when reading starts after the last second."""
    process = Process(Program(["sh", "-c", f"{leaving(tmp_path)}; echo last >&2"], ME))
    await wait_until(lambda: process._cut)
    out, err = await read_all(process)
    os.kill(int(out), signal.SIGKILL)
    assert err == b"last\n"
    assert (await process.wait()).ok


async def test_stop_ends_the_group() -> None:
    """Stopping sends SIGTERM to the whole group and lets go of it when all have ended."""
    process = Process(Program(["sh", "-c", "sleep 60 & echo $!; wait"], ME))
    child = int(await line_of(process))
    assert (await process.stop(60)).signal == "TERM"
    await wait_until(lambda: not is_alive(child))


async def test_stop_lets_the_program_clean_up() -> None:
    """A program that handles SIGTERM may take its time and ends by its own exit code."""
    process = Process(
        Program(["sh", "-c", "trap 'echo bye; sleep 0.1; exit 7' TERM; echo ready; while :; do sleep 0.01; done"], ME)
    )
    assert await line_of(process) == "ready"
    assert (await process.stop(60)).exit == 7


async def test_stop_kills_the_stubborn() -> None:
    """A program that ignores SIGTERM is killed after the grace time, and so are its children."""
    process = Process(Program(["sh", "-c", "trap '' TERM; sleep 60 & echo $!; while :; do wait; done"], ME))
    child = int(await line_of(process))
    assert (await process.stop(GRACE_S)).signal == "KILL"
    await wait_until(lambda: not is_alive(child))


async def test_stop_while_reading() -> None:
    """Stopping ends a read under way in another task."""
    process = Process(Program(["sleep", "60"], ME))
    reading = asyncio.create_task(process.read())
    await asyncio.sleep(0)
    await process.stop(GRACE_S)
    assert await reading is None


def children() -> frozenset[str]:
    """The children of this process, ended ones that nobody has waited for included."""
    return frozenset(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


async def test_nothing_left_behind() -> None:
    """Hundreds of programs leave no descriptor, no child and no timer behind."""
    await run("true")
    before, others = descriptors(), children()
    for _ in range(10):
        await asyncio.gather(*(run("true") for _ in range(20)))
    assert descriptors() == before
    assert children() <= others
