"""Who may import whom: the plan of docs/architecture.md, checked in the source without running it."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("tsbus", "services") for path in (ROOT / folder).rglob("*.py"))

HOMES = {
    "zmq": "tsbus.transport",
    "msgspec": "tsbus",
    "ClusterShell": "tsbus.core.target",
    "tomlkit": "tsbus.config.writer",
    "click": "tsbus.cli",
    "rich": "tsbus.cli",
    "supervisor": "tsbus.supervision",
    "docker": "tsbus.containers.api",
    "pyroute2": "tsbus.balancer",
    "paramiko": "tsbus.build.ssh",
    "prometheus_client": "tsbus.dashboard",
    # NiceGUI brings the other three, and is made of them.
    "nicegui": "tsbus.dashboard.web",
    "fastapi": "tsbus.dashboard.web",
    "starlette": "tsbus.dashboard.web",
    "uvicorn": "tsbus.dashboard.web",
}
"""Where each outside package may be imported. A package that is not here is a new dependency: it needs a reason."""

CORE_STDLIB = {
    "bisect", "collections", "dataclasses", "difflib", "enum", "fnmatch", "functools", "heapq", "itertools", "math",
    "re", "struct", "typing",
}  # fmt: skip
"""What the pure core may use: nothing that knows the time, the machine, other programs or chance."""

SERVICES = ("executor", "containers", "balancer", "build", "dashboard", "supervision")
"""The packages of the services. They meet on the bus, never in an import."""


class Import(NamedTuple):
    module: str
    when: str
    """load, use (inside a function) or typing (for the type checker only)."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in SOURCES}


@cache
def imports(module: str) -> tuple[Import, ...]:
    return tuple(_walk(ast.parse(MODULES[module].read_text()), "load"))


def _walk(node: ast.AST, when: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, when) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are written in full"
            base = child.module or ""
            for alias in child.names:
                full = f"{base}.{alias.name}"
                yield Import(full if full in MODULES else base, when)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _walk(child, "typing")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and when == "load":
            yield from _walk(child, "use")
        else:
            yield from _walk(child, when)


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer(module: str) -> str:
    """core, config, bus, the name of a service's package, cli, or start for the files in services/."""
    top, *rest = module.split(".")
    if top == "services":
        return "start"
    if rest and rest[0] in ("core", "config", "cli", *SERVICES):
        return rest[0]
    return "bus"


MAY_IMPORT = {
    "core": {"core"},
    "config": {"core", "config"},
    "bus": {"core", "config", "bus"},
    **{service: {"core", "config", "bus", service} for service in SERVICES},
    "cli": {"core", "config", "bus", "cli", *SERVICES},
    "start": {"bus", *SERVICES},
}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    """A module imports its own layer and those below: cli and services, then the bus, then config, then the core."""
    allowed = MAY_IMPORT[layer(module)]
    wrong = [one.module for one in imports(module) if is_in(one.module, "tsbus") and layer(one.module) not in allowed]
    assert not wrong


@pytest.mark.parametrize("module", MODULES)
def test_outside_packages_have_one_home(module):
    """An outside package is known here, and imported only where it is at home."""
    for one in imports(module):
        package = one.module.partition(".")[0]
        if package in ("tsbus", "services") or package in sys.stdlib_module_names:
            continue
        assert package in HOMES, f"{package} is a new dependency"
        assert is_in(module, HOMES[package]), f"the home of {package} is {HOMES[package]}"


@pytest.mark.parametrize("module", [module for module in MODULES if layer(module) == "core"])
def test_the_core_is_pure(module):
    """The core uses no socket, clock, file, thread, log or random number."""
    stdlib = {one.module.partition(".")[0] for one in imports(module)} & sys.stdlib_module_names
    assert stdlib <= CORE_STDLIB
    calls = {node.func.id for node in ast.walk(ast.parse(MODULES[module].read_text()))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
    assert not calls & {"open", "print", "input", "exec", "eval", "__import__"}


@pytest.mark.parametrize("module", MODULES)
def test_rich_is_imported_when_it_is_used(module):
    """Rich takes longer to load than ts-pub to run, so no module imports it when it is loaded."""
    assert not [one for one in imports(module) if is_in(one.module, "rich") and one.when == "load"]


def test_modules_do_not_import_in_a_circle():
    """The modules can be loaded in some order, one after the other."""
    graph = {
        module: {one.module for one in imports(module) if one.when == "load" and one.module in MODULES} - {module}
        for module in MODULES
    }
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", sorted((ROOT / "services").glob("*.py")), ids=lambda path: path.name)
def test_start_files_are_short(path):
    """What supervisord starts only names what it starts."""
    assert path.name.startswith("ts_")
    assert len(path.read_text().splitlines()) <= 60
