"""Plain: structs as dicts, lists and scalars, in the shape of the file. Shared by the version digest and the writer.

Most values that equal their default are left out, so that the digest does not change when a release adds a field.
It knows nothing of TOML or JSON.
"""

from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsbus.config.model import Tree

_UNSET = object()


def tree_to_plain(tree: "Tree") -> dict[str, Any]:
    """Return `tree` in the shape of its file. A node's own section holds what differs from the tree's section."""
    result = struct_to_plain(tree)
    for name, server in tree.servers.items():
        table = result["servers"][name]
        for section in ("policy", "executor", "docker", "balancing", "dashboard"):
            own = getattr(server, section)
            if own is not None:
                table[section] = struct_to_plain(own, base=getattr(tree, section))
    return result


def struct_to_plain(struct: Any, base: Any = None) -> dict[str, Any]:
    """Return the fields of `struct` that differ from those of `base`, or from their defaults where there is no base."""
    table = {}
    for spec in fields(struct):
        if spec.metadata.get("implied") or spec.metadata.get("local"):
            continue
        value = getattr(struct, spec.name)
        usual = default_of(spec) if base is None else getattr(base, spec.name)
        if value != usual or spec.metadata.get("shown"):
            table[file_key(spec)] = _to_plain(value)
    return table


def file_key(spec: "Field[Any]") -> str:
    """Return the key that the field has in a file."""
    return str(spec.metadata.get("key", spec.name))


def default_of(spec: "Field[Any]") -> Any:
    """Return the field's default, or an object equal to nothing where it has none."""
    if spec.default_factory is not MISSING:
        return spec.default_factory()
    return _UNSET if spec.default is MISSING else spec.default


def has_default(spec: "Field[Any]") -> bool:
    """Tell whether the key may be missing in a file."""
    return spec.default is not MISSING or spec.default_factory is not MISSING


def _to_plain(value: Any) -> Any:
    if is_dataclass(value):
        return struct_to_plain(value)
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_to_plain(item) for item in value]
    return value.name.lower() if isinstance(value, Enum) else value
