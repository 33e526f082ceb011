"""Each test says in one sentence what it holds true, and cites no section that docs/protocol.md does not have."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tests").rglob("test_*.py"))
_NUMBER = r"\d+(?:\.\d+)?"
_CITED = re.compile(rf"(?:protocol|sections?) ({_NUMBER}(?:(?:, | and | to ){_NUMBER})*)")
_HEADING = re.compile(rf"^(?:## )?({_NUMBER})[. ]", re.MULTILINE)


def docstrings(path: Path) -> list[tuple[str, str | None]]:
    """The tests of a file with their docstrings."""
    return [
        (node.name, ast.get_docstring(node))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_test_says_what_it_holds_true(path):
    """A test's docstring opens with a whole sentence."""
    for name, text in docstrings(path):
        assert text, f"{name} has no docstring"
        first = text.split("\n\n")[0].strip()
        assert first.endswith("."), f"{name}: {first!r} is no sentence"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_cited_sections_exist(path):
    """A section that a test or its file cites is in docs/protocol.md."""
    protocol = (ROOT / "docs/protocol.md").read_text()
    sections = set(_HEADING.findall(protocol))
    text = path.read_text()
    cited = {number for match in _CITED.findall(text) for number in re.findall(_NUMBER, match)}
    assert cited <= sections
