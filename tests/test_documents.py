"""What the documents name is there: commands and options, links, files, variables, topics, and the words of errors."""

import re
from pathlib import Path

import click
import pytest

from tsbus.cli.main import cli
from tsbus.cli.pub import pub
from tsbus.cli.sub import sub

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOP = click.Context(cli)
PROGRAMS = {"treescale": cli, "ts-build": cli.get_command(TOP, "build"), "ts-pub": pub, "ts-sub": sub}
SOURCES = [path for folder in ("tsbus", "services", "examples", "bench") for path in (ROOT / folder).rglob("*.py")]
SOURCE = "\n".join(path.read_text() for path in [*SOURCES, ROOT / "Makefile"])
FOLDERS = ("tsbus/", "docs/", "conf/", "tests/", "examples/", "bench/", "bin/", "tools/")
SPOKEN = ("node", "bus", "worker", "process", "handler", "alert", "container", "docker", "lb", "link", "key", "config")

of_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def command_lines(text):
    """Yield each command line in a page, as a program and its words."""
    for found in re.finditer(r"(?<![\w./\[-])(treescale|ts-build|ts-pub|ts-sub) +([^`|#\n]*)", text):
        yield found[1], found[2].split()


def unknown_in(program, words):
    """Yield the command or the options of a command line that do not exist."""
    command = PROGRAMS[program]
    while words and isinstance(command, click.Group) and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        name, *words = words
        below = command.get_command(click.Context(command), name)
        if below is None:
            yield name
            return
        command = below
    params = [*command.params, *cli.params]
    known = {"--help", "-h", *(word for param in params for word in (*param.opts, *param.secondary_opts))}
    own = words[: words.index("--")] if "--" in words else words
    for option in (found[1] for word in own if (found := re.match(r"\[?(--[a-z][a-z-]*|-[a-z])", word))):
        if option not in known and not isinstance(command, click.Group):
            yield option


@of_each_page
def test_commands_and_options_of_a_page_exist(page):
    """Whoever types what a page says meets no usage error."""
    wrong = {
        (program, name) for program, words in command_lines(page.read_text()) for name in unknown_in(program, words)
    }
    assert not wrong


@of_each_page
def test_links_of_a_page_lead_somewhere(page):
    """To a file that is there, and to a heading in it."""
    for place, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        target = (page.parent / place) if place else page
        assert target.exists(), place
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else ()
        assert not anchor or anchor in {re.sub(r"[^\w\- ]", "", line).lower().replace(" ", "-") for line in headings}


@of_each_page
def test_files_and_variables_that_a_page_names_are_there(page):
    """Paths of the checkout, and variables of the environment that something reads."""
    text = page.read_text()
    named = [name for name in re.findall(r"`([\w./-]+\.\w+)`", text) if name.startswith(FOLDERS)]
    assert not [name for name in named if not (ROOT / name).exists()]
    assert not [name for name in re.findall(r"\bTREESCALE_[A-Z_]+[A-Z]", text) if name not in SOURCE]


@of_each_page
def test_topics_that_a_page_names_are_said_by_something(page):
    """Both words of an event, or of a command, stand in the source."""
    for first, last in re.findall(rf"`({'|'.join(SPOKEN)})\.([a-z-]+)`", page.read_text()):
        assert re.search(rf"[\"'.]{first}[\"'.]", SOURCE), first
        assert re.search(rf"[\"'.]{last}[\"']", SOURCE), f"{first}.{last}"


def test_errors_that_operations_explains_are_said_by_something():
    """The table is searched for what somebody sees, so it has the words of the program."""
    text = (ROOT / "docs/operations.md").read_text()
    seen = re.findall(r"^\| `([^`]+)`", text.partition("| you see | it is |")[2], re.MULTILINE)
    assert len(seen) > 5
    for words in seen:
        for part in re.split(r"\b(?:IP:PORT|N|FILE|DIR)\b|\.\.\.|[()]", words):
            assert part.strip() in SOURCE, words
