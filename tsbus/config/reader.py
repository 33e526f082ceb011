"""Reader: plain data -> the structs of model.py, driven by their field types. It collects problems and never stops.

Every value that is wrong is noted and replaced by its default (or by an empty value), so that check.py can still look
at the rest of the tree: all problems of a file come at once.
"""

import re
import types
from dataclasses import Field, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from tsbus.config.document import Document
from tsbus.config.forms import quote
from tsbus.config.model import (
    Balancer,
    Balancing,
    Console,
    Dashboard,
    DockerPolicy,
    ExecutorPolicy,
    Name,
    Policy,
    Secret,
    Tree,
)
from tsbus.config.plain import default_of, file_key, has_default
from tsbus.config.problem import Path
from tsbus.config.scanner import BALANCER_TABLES
from tsbus.core.roles import Role

_BAD = object()
"""What a value becomes that was noted as a problem."""
_WANTED = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false", Secret: "text"}
_INHERITED = (Policy, ExecutorPolicy, DockerPolicy, Balancing, Dashboard)
_DIGITS = re.compile(r"[0-9]{1,5}")


def read_tree(document: Document) -> Tree:
    """Return the tree in `document`, as far as it can be read; the problems are noted there."""
    for key in ("balancers", "containers"):
        if key in (document.data or {}):
            message = "stands outside of any server"
            hint = f"put it below a [servers.NAME] header{' and [balancers]' if key == 'containers' else ''}"
            document.note("error", (key,), message, hint)
            document.data = {name: value for name, value in (document.data or {}).items() if name != key}
    tree: Tree = _Reader(document).struct(Tree, document.data or {}, ())
    return tree


def read_console(document: Document) -> Console:
    """Return the console's file in `document`, as far as it can be read; the problems are noted there."""
    data = document.data or {}
    ssh = data.get("ssh")
    for entry in (data.get("defaults"), *(ssh.values() if isinstance(ssh, dict) else ())):
        # The first files of this format wrote the port in quotes.
        if isinstance(entry, dict) and isinstance(port := entry.get("port"), str) and _DIGITS.fullmatch(port):
            entry["port"] = int(port)
    build = data.get("build")
    if isinstance(build, dict) and type(number := build.get("max_fail")) is int and 0 <= number < 10**6:
        build["max_fail"] = str(number)
    console: Console = _Reader(document).struct(Console, data, ())
    return console


@cache
def _hints(struct: Any) -> dict[str, Any]:
    return get_type_hints(struct, include_extras=True)


def _zero(hint: Any) -> Any:
    """Return the empty value of a type, which check.py passes over."""
    if get_origin(hint) is Annotated:
        return _zero(get_args(hint)[0])
    return (get_origin(hint) or hint)()


def _is_own(balancers: dict[str, Any], key: str) -> bool:
    """Tell whether `key` in [balancers] is one of the direct balancer's own, and not the name of another one."""
    return key in balancers and (key in BALANCER_TABLES or not isinstance(balancers[key], dict))


class _Reader:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._inherited: dict[type, Any] = {}

    def struct(self, kind: Any, table: dict[str, Any], path: Path, name: str = "") -> Any:
        """Return a `kind` filled from `table`; `name` is the table's own key."""
        specs = {file_key(spec): spec for spec in fields(kind) if not spec.metadata.get("local")}
        for key in table:
            if key not in specs:
                self._document.note_unknown("error", (*path, key), "no such key", key, specs)
        values: dict[str, Any] = {}
        # The sections of the whole tree come before the servers, whose own sections are changes to them.
        for key, spec in sorted(specs.items(), key=lambda item: item[0] == "servers"):
            values[spec.name] = self._field(kind, spec, table, path)
            if key == "name":
                values["name"] = self._name(values["name"], name, (*path, key))
        result = kind(**values)
        if kind in _INHERITED and len(path) == 1:
            self._inherited[kind] = result
        return result

    def _field(self, kind: Any, spec: Field[Any], table: dict[str, Any], path: Path) -> Any:
        """Return the value of one field: what the table says, or what holds where it is missing or wrong."""
        key, hint = file_key(spec), _hints(kind)[spec.name]
        value = self.value(hint, table[key], (*path, key)) if key in table else _BAD
        if value is not _BAD:
            return value
        if has_default(spec):
            base = self._inherited.get(kind)
            return default_of(spec) if base is None else getattr(base, spec.name)
        if key not in table and key != "name":
            self._document.note("error", (*path, key), "is missing", f"add {key} = ...")
        return _zero(hint)

    def value(self, hint: Any, raw: Any, path: Path) -> Any:
        """Return `raw` as the type `hint` says, or _BAD after noting why not."""
        origin = get_origin(hint)
        if origin is Annotated:
            plain, *forms = get_args(hint)
            return self._formed(self.value(plain, raw, path), forms, path)
        if origin in (types.UnionType, Union):
            return self.value(get_args(hint)[0], raw, path)
        if origin is tuple:
            return self._array(get_args(hint)[0], raw, path)
        if origin is dict:
            key_hint, item_hint = get_args(hint)
            return self._table(key_hint, item_hint, raw, path)
        if is_dataclass(hint):
            return self.struct(hint, raw, path) if self._is_table(raw, path) else _BAD
        return self._role(raw, path) if hint is Role else self._scalar(hint, raw, path)

    def _formed(self, value: Any, forms: list[Any], path: Path) -> Any:
        for form in forms:
            complaint = None if value is _BAD else form(value)
            if complaint:
                self._document.note("error", path, *complaint)
                return _BAD
        return value

    def _scalar(self, hint: Any, raw: Any, path: Path) -> Any:
        # bool is an int to Python, but not to a person.
        if hint is float and isinstance(raw, int) and not isinstance(raw, bool):
            return float(raw) if abs(raw) < 2**53 else self._wrong_type(hint, path)
        if type(raw) is (str if hint is Secret else hint):
            return Secret(raw) if hint is Secret else raw
        return self._wrong_type(hint, path)

    def _wrong_type(self, hint: Any, path: Path) -> Any:
        self._document.note("error", path, f"must be {_WANTED[hint]}")
        return _BAD

    def _role(self, raw: Any, path: Path) -> Any:
        names = [role.name.lower() for role in Role]
        if isinstance(raw, str) and raw in names:
            return Role.parse(raw)
        word = raw if isinstance(raw, str) else ""
        message = f"no role named {quote(word)}" if word else "must be the name of a role"
        self._document.note_unknown("error", path, message, word, names)
        return _BAD

    def _is_table(self, raw: Any, path: Path) -> bool:
        if not isinstance(raw, dict):
            self._document.note("error", path, "must be a table")
        return isinstance(raw, dict)

    def _array(self, hint: Any, raw: Any, path: Path) -> Any:
        if not isinstance(raw, list):
            self._document.note("error", path, "must be an array", "put it in [ ]")
            return _BAD
        items = [self.value(hint, item, (*path, index)) for index, item in enumerate(raw)]
        return tuple(item for item in items if item is not _BAD)

    def _table(self, key_hint: Any, hint: Any, raw: Any, path: Path) -> Any:
        if not self._is_table(raw, path):
            return _BAD
        result: dict[str, Any] = {}
        if hint is Balancer:
            raw = dict(raw)
            direct = {key: raw.pop(key) for key in _hints(Balancer) if _is_own(raw, key)}
            if direct:
                result["default"] = self._direct_balancer(direct, raw, path)
        for key, item in raw.items():
            where = (*path, key)
            if is_dataclass(hint):
                value = self.struct(hint, item, where, key) if self._is_table(item, where) else _BAD
            else:
                value = self.value(hint, item, where)
            good_key = is_dataclass(hint) or self.value(key_hint, key, where) is not _BAD
            if value is not _BAD and good_key:
                result[key] = value
        return result

    def _direct_balancer(self, table: dict[str, Any], others: dict[str, Any], path: Path) -> Balancer:
        """Read the balancer whose keys stand in [balancers] itself; it is called default."""
        if others.pop("default", None) is not None:
            self._document.note("error", (*path, "default"), "this name is taken by the balancer in [balancers] itself")
        balancer: Balancer = self.struct(Balancer, table, path, "default")
        return balancer

    def _name(self, given: str, key: str, path: Path) -> str:
        """Return the name of a table: its own key, which a `name` in it may only repeat. Empty: none was given."""
        if given not in ("", key):
            hint = "make both the same, or leave name out"
            self._document.note("error", path, f"the name is {quote(given)} but the table is {quote(key)}", hint)
        if given != key:
            self.value(Name, key, path[:-1])
        return key
