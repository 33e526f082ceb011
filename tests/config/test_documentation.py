"""The reference for people is complete."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from tsbus.config import loads, model
from tsbus.config.plain import default_of, file_key, has_default
from tsbus.core.roles import Role

TEXT = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
SECTIONS = {
    model.Tree: "### Top level",
    model.Server: "### `[servers.NAME]`",
    model.Balancer: "### `[servers.NAME.balancers.BALANCER]`",
    model.Operator: "### `[operators.NAME]`",
    model.Policy: "### `[policy]`",
    model.AllowRule: "Each `[[policy.allow]]`",
    model.ExecutorPolicy: "### `[executor]`",
    model.ExecRule: "Each `[[executor.allow]]`",
    model.DockerPolicy: "### `[docker]`",
    model.Balancing: "### `[balancing]`",
    model.Dashboard: "### `[dashboard]`",
    model.Handler: "### `[handlers.NAME]`",
    model.Alert: "### `[alerts.NAME]`",
    model.BusSettings: "### `[bus]`",
    model.Console: "## console.toml",
    model.SshEntry: "### `[ssh.NAME]`",
    model.SshDefaults: "### `[ssh.NAME]`",
    model.BuildSettings: "### `[build]`",
}
CASES = [
    pytest.param(section, spec, id=f"{kind.__name__}.{spec.name}")
    for kind, section in SECTIONS.items()
    for spec in fields(kind)
    if not spec.metadata.get("local")
]


def row_of(section, key):
    """The default that the section's table gives for the key."""
    table = re.split(r"\n(?=#|Each `)", TEXT.split(f"\n{section}", 1)[1], maxsplit=1)[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("|")]
    return next(row[1] for row in rows if f"`{key}`" in row[0])


@pytest.mark.parametrize(("section", "spec"), CASES)
def test_every_key_is_in_the_reference_with_its_default(section, spec):
    """Each field has a row in its section's table, and a plain default there is the one in force."""
    written, default = row_of(section, file_key(spec)), default_of(spec)
    if not has_default(spec):
        assert written in ("required", "the table's name")
    elif isinstance(default, Role):
        assert written == f'`"{default.name.lower()}"`'
    elif isinstance(default, bool):
        assert written == f"`{str(default).lower()}`"
    elif isinstance(default, int | float):
        assert float(written.split()[0]) == default
    elif isinstance(default, str):
        assert written == f'`"{default}"`'


def test_every_struct_has_a_section():
    """No dataclass of the model is without a table in the reference."""
    structs = {
        kind for kind in vars(model).values() if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__")
    }
    assert structs == set(SECTIONS)


def test_the_python_example_works():
    """The example of the reference runs as it is printed."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    printed = []
    exec(code, {"print": printed.append})  # noqa: S102  (our own text)
    assert loads(printed[0]).current_node == "a"
