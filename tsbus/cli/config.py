"""Config: `treescale config`, checking and showing configuration files. The rules themselves are in tsbus.config."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from tsbus.cli.edge import Code, Fault, json_option
from tsbus.config import Problem, check, dump, load
from tsbus.config.writer import Format

_file = click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
_COLORS = {"error": "red", "warning": "yellow", "info": "blue"}


@click.group(no_args_is_help=True)
def config() -> None:
    """Check and show configuration files.

    \b
    Examples:
      treescale config check treescale.toml
      treescale config show treescale.toml
    """


@config.command(name="check")
@_file
@click.option("--strict", is_flag=True, help="Childs without a server of their own are errors, as when building.")
@json_option
def check_(path: Path, strict: bool, as_json: bool) -> int:
    """Tell everything that is wrong with a treescale.toml or console.toml, all of it at once.

    Exit code 0 when there are no errors (warnings are no errors), 2 when there are.

    \b
    Examples:
      treescale config check treescale.toml
      treescale config check console.toml --json
    """
    found, problems = check(path, strict=strict)
    if as_json:
        for problem in problems:
            click.echo(json.dumps(asdict(problem)))
    else:
        _tell(path, problems)
    return Code.OK if found is not None else Code.USAGE


def _tell(path: Path, problems: list[Problem]) -> None:
    lines: dict[str, list[str]] = {}
    for problem in problems:
        if problem.file not in lines:
            lines[problem.file] = _lines_of(problem.file)
        click.secho(str(problem), fg=_COLORS[problem.severity])
        if 0 < problem.line <= len(lines[problem.file]):
            click.echo(_excerpt(lines[problem.file][problem.line - 1], problem))
    count = sum(problem.severity == "error" for problem in problems)
    verdict = f"{count} error{'s' * (count != 1)}" if count else "no errors"
    warnings = sum(problem.severity == "warning" for problem in problems)
    click.echo(f"{path}: {verdict}" + (f", {warnings} warning{'s' * (warnings != 1)}" if warnings else ""))


def _lines_of(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []


def _excerpt(line: str, problem: Problem) -> str:
    """Return the source line with a caret below the column; tabs stay, so that the caret stands right."""
    number = str(problem.line)
    indent = "".join("\t" if char == "\t" else " " for char in line[: problem.column - 1])
    margin = " " * len(number)
    return f"  {number} | {line.rstrip()}\n  {margin} | {indent}^"


@config.command()
@_file
@click.option("--format", "format_", type=click.Choice(["toml", "json"]), default="toml", show_default=True,
              help="How to print it.")  # fmt: skip
@click.option("--json", "format_", flag_value="json", help="The same as --format json.")
def show(path: Path, format_: Format) -> None:
    """Print a tree's file in its explicit form, in which every header says what it belongs to.

    \b
    Examples:
      treescale config show treescale.toml
      treescale config show treescale.toml --json
    """
    if not path.exists():
        raise Fault(f"{path}: there is no such file", Code.USAGE)
    click.echo(dump(load(path), format_), nl=False)
