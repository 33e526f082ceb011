"""The command lines without a bus: parsing, help, configuration, keys, and how errors end."""

import json
import socket
import stat
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from tsbus import ConnectionLost, NoRouter, Refused, TopicError, UnknownTarget
from tsbus.cli import edge
from tsbus.cli.main import COMMANDS, cli
from tsbus.cli.pub import pub
from tsbus.cli.sub import sub
from tsbus.client import connect
from tsbus.config import ConfigError

SOUND = '[servers.a]\nname = "a"\nip = "127.0.0.1"\nservice_port = 9000\n'


def run(*args, program=cli, **options):
    return CliRunner().invoke(program, args, **options)


def test_help_tells_the_exit_codes_and_lists_every_command():
    """`treescale --help` is the one page to begin with."""
    result = run("--help")
    assert result.exit_code == 0
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)
    assert all(f"\n    {int(code)} " in result.stdout for code in edge.Code)


def walk(command, above=None, examples=""):
    """Yield each command below `command` with its context, and the help of it and of all above it, but for the top."""
    context = click.Context(command, above, info_name=command.name, max_content_width=80)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            yield from walk(below, context, examples + below.help)
    if above or not isinstance(command, click.Group):
        yield context, examples or command.help


@pytest.mark.parametrize(
    ("context", "examples"),
    [pytest.param(*each, id=each[0].command_path) for top in (cli, pub, sub) for each in walk(top)],
)
def test_every_command_can_be_used_without_looking_elsewhere(context, examples):
    """Help has an example, says what each option is for, and fits 80 columns."""
    assert "Example" in examples
    options = [param for param in context.command.params if isinstance(param, click.Option)]
    assert not [option.opts for option in options if not (option.help or option.hidden)]
    wide = [line for line in context.get_help().splitlines() if len(line) > 80]
    assert all(line.lstrip().startswith(("treescale ", "ts-")) for line in wide)


@pytest.mark.parametrize("context", [each for each, _ in walk(cli)], ids=lambda each: each.command_path)
def test_an_option_means_the_same_in_every_command(context):
    """What was learned with one command holds for all: one spelling, one short form."""
    usual = {
        "--bus": "bus",
        "--json": ("as_json", "format_"),
        "--timeout": "timeout_s",
        "--yes": "yes",
        "--each": "each",
    }
    shorts = {"-q": "--quiet", "-y": "--yes", "-e": "--env", "-c": "--count", "-b": "--balancer", "-h": "--help"}
    for option in (param for param in context.command.params if isinstance(param, click.Option)):
        assert all(option.name in usual[word] for word in option.opts if word in usual)
        assert all(shorts[word] in option.opts for word in option.opts if word in shorts)


def test_help_imports_nothing_that_is_heavy():
    """`treescale --help` must start at once, so it loads no command, no rich and no tomlkit."""
    code = (
        "import sys; from tsbus.cli.main import cli\ntry: cli.main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "click" in modules
    assert not {"rich", "tomlkit", "tsbus.config", "tsbus.cli.status", "tsbus.router"} & set(modules)


def test_pub_and_sub_import_only_what_they_need():
    """ts-pub and ts-sub run in scripts, often many times."""
    code = "import sys, tsbus.cli.pub, tsbus.cli.sub, tsbus.transport; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"rich", "tomlkit", "tsbus.config", "tsbus.router", "ClusterShell.NodeSet"} & set(modules)


def test_an_unknown_command_is_a_usage_error_with_the_nearest_name():
    """Exit code 2, and a hint."""
    result = run("statsu")
    assert result.exit_code == 2
    assert "status" in result.stderr


@pytest.mark.parametrize(
    ("program", "args", "text"),
    [
        (cli, ["exec", "a"], "CMD"),
        (cli, ["exec", "a", "--max-fail", "many", "--", "true"], "'many' is neither"),
        (cli, ["exec", "a", "--max-fail", "-1", "--", "true"], "'-1' is neither"),
        (cli, ["exec", "a", "--env", "PATH", "--", "true"], "'PATH' is not NAME=VALUE"),
        (cli, ["call", "a", "x.y", "{bad"], "--text sends it as it is"),
        (pub, ["a.*", "x"], "wildcard"),
        (pub, ["a", "x", "--file", __file__], "not both"),
        (sub, ["a..b"], "empty"),
        (sub, ["a", "--exec", "echo 'x"], "No closing quotation"),
        (cli, ["status", "--bus", "tcp://127.0.0.1:1"], "TREESCALE_OPERATOR_KEY"),
        (cli, ["worker", "ls", "--conf", "none.conf"], "it is in the node's folder: name it with --conf"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(program, args, text, monkeypatch):
    """Before anything is sent."""
    monkeypatch.delenv("TREESCALE_OPERATOR_KEY", raising=False)
    result = run(*args, program=program)
    assert (result.exit_code, result.stdout) == (2, "")
    assert text in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NoRouter("no router"), 4),
        (ConnectionLost("gone"), 4),
        (TimeoutError("late"), 4),
        (Refused("refused", "no role"), 5),
        (UnknownTarget("no node"), 2),
        (TopicError("bad topic"), 2),
        (ConfigError([]), 2),
        (FileNotFoundError(2, "missing", "x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_end_as_one_line_and_their_exit_code(error, code, monkeypatch):
    """There is one place for it, whichever command it was."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("tsbus.cli.ping.connect", fail)
    result = run("ping")
    assert (result.exit_code, result.stdout) == (code, "")
    assert len(result.stderr.strip().splitlines()) <= 1
    assert "Traceback" not in result.stderr


def test_no_answer_says_why_and_what_to_do(tmp_path):
    """Who has no socket, the wrong file, or a socket that nobody serves is told different things."""
    (tmp_path / "file").touch()
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "dead"))
    for place, words in (
        ("ipc:///nowhere/bus", "TREESCALE_BUS"),
        (f"ipc://{tmp_path / 'file'}", "no socket"),
        (f"ipc://{tmp_path / 'dead'}", "router.log"),
        ("tcp://10.0.0.1:8888", "TREESCALE_SERVER_KEY"),
    ):
        assert words in edge.why_silent(place)


def test_a_folder_that_is_not_there_is_not_waited_for(tmp_path, monkeypatch):
    """A newcomer without a tree is told so at once; a router that starts anew is waited for."""
    waits = []

    def noted(*args, timeout_s, **options):
        waits.append(timeout_s)
        return connect(*args, timeout_s=timeout_s, **options)

    monkeypatch.setattr("tsbus.client.connect", noted)
    for folder in ("/nowhere/at/all", tmp_path):
        result = run("status", "--bus", f"{folder}/bus")
        assert (result.exit_code, result.stdout) == (4, "")
    assert waits == [0.0, 3.0]


def test_a_closed_or_full_output_is_no_defect():
    """Nobody sees a traceback because of how a program was started."""
    program = [sys.executable, "-c", "from tsbus.cli.main import main; main()", "version"]
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *program], capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (0, "")
    full = subprocess.run(
        ["sh", "-c", 'exec "$@" >/dev/full', "sh", *program], capture_output=True, text=True, check=False
    )
    assert (full.returncode, full.stderr) == (1, "treescale: No space left on device\n")


def test_a_defect_of_ours_is_not_hidden(monkeypatch):
    """An error that nobody foresaw keeps its traceback."""

    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("tsbus.cli.ping.connect", fail)
    assert isinstance(run("ping").exception, ZeroDivisionError)


def test_check_of_a_sound_file_ends_with_0(tmp_path):
    """Nothing to complain about, and it says so."""
    (tmp_path / "t.toml").write_text(SOUND)
    result = run("config", "check", str(tmp_path / "t.toml"))
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 't.toml'}: no errors\n")


def test_check_tells_all_problems_with_their_lines(tmp_path):
    """Each problem is followed by its source line and a caret below the place; exit code 2."""
    (tmp_path / "t.toml").write_text(SOUND.replace("9000", "70000") + 'colour = "red"\n')
    result = run("config", "check", str(tmp_path / "t.toml"))
    lines = result.stdout.splitlines()
    assert result.exit_code == 2
    place = next(number for number, line in enumerate(lines) if ":4:" in line and "out of range" in line)
    assert lines[place + 1].endswith("| service_port = 70000")
    assert lines[place + 2].index("^") >= lines[place + 1].index("service_port")
    assert any(":5:" in line and "colour" in line for line in lines)


def test_a_warning_is_no_error(tmp_path):
    """A child that is not defined yet is told, with exit code 0; with --strict it is an error."""
    path = tmp_path / "t.toml"
    path.write_text(SOUND + 'childs = ["b"]\n')
    assert run("config", "check", str(path)).exit_code == 0
    assert "1 warning" in run("config", "check", str(path)).stdout
    assert run("config", "check", "--strict", str(path)).exit_code == 2


def test_check_for_machines(tmp_path):
    """With --json each problem is an object with its place."""
    (tmp_path / "t.toml").write_text(SOUND + "extra = 1\n")
    result = run("config", "check", "--json", str(tmp_path / "t.toml"))
    problems = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(problem["line"], problem["path"]) for problem in problems] == [(5, "servers.a.extra")]


@pytest.mark.parametrize("form", ["toml", "json"])
def test_show_prints_a_form_that_loads_again(tmp_path, form):
    """What `config show` prints is itself a sound file, which it prints the same."""
    path, shown = tmp_path / "t.toml", tmp_path / f"shown.{form}"
    path.write_text(SOUND)
    shown.write_text(run("config", "show", str(path), "--format", form).stdout)
    assert run("config", "show", str(shown), "--format", form).stdout == shown.read_text()


def test_show_of_a_wrong_file_tells_the_problems(tmp_path):
    """Exit code 2, the problems on stderr, nothing on stdout."""
    (tmp_path / "t.toml").write_text(SOUND + "extra = 1\n")
    result = run("config", "show", str(tmp_path / "t.toml"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "extra" in result.stderr


def test_a_new_key_is_secret(tmp_path):
    """Only its owner may read the file, and only the public key is printed."""
    path = tmp_path / "key"
    result = run("keys", "new", str(path))
    secret = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(secret) == 40
    assert secret not in result.output
    assert run("keys", "public", str(path)).stdout == result.stdout


def test_a_key_is_never_overwritten(tmp_path):
    """It may be the only copy."""
    path = tmp_path / "key"
    path.write_text("precious")
    assert run("keys", "new", str(path)).exit_code == 1
    assert path.read_text() == "precious"


def test_a_key_that_others_can_read_is_not_used(tmp_path):
    """Exit code 2, with the command that mends it."""
    path = tmp_path / "key"
    run("keys", "new", str(path))
    path.chmod(0o644)
    result = run("keys", "public", str(path))
    assert result.exit_code == 2
    assert f"chmod 600 {path}" in result.stderr


def test_the_fingerprint_belongs_to_the_public_key(tmp_path):
    """Two keys have two fingerprints; the same key has one."""
    told = []
    for name in ("one", "two"):
        run("keys", "new", str(tmp_path / name))
        told += [json.loads(run("keys", "fingerprint", "--json", str(tmp_path / name)).stdout) for _ in range(2)]
    assert told[0]["fingerprint"] == told[1]["fingerprint"] != told[2]["fingerprint"]


def test_version_for_people_and_machines():
    """The release and the protocol."""
    assert run("version").stdout.startswith("treescale ")
    assert json.loads(run("version", "--json").stdout)["protocol"] == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_serve_all_programs(shell):
    """One file for each shell."""
    script = run("completion", shell).stdout
    names = ("treescale", "ts_build", "ts_pub", "ts_sub")
    assert all(f"_{name.upper()}_COMPLETE" in script and f"_{name}_completion" in script for name in names)


def test_the_script_for_zsh_completes_the_program_that_is_typed():
    """A file in fpath is called for whichever program: it names all of them, and asks none but that one."""
    first, *rest = run("completion", "zsh").stdout.splitlines()
    assert first == "#compdef treescale ts-build ts-pub ts-sub"
    assert not [line for line in rest if line.startswith("#compdef")]
    assert [line.strip() for line in rest if line.endswith('_completion "$@"')] == ['_${service//-/_}_completion "$@"']
