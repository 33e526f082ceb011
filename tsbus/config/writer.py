"""Writer: structs -> the canonical, explicit text of a configuration. The only file that imports tomlkit."""

import json
from typing import Any, Literal

import tomlkit

from tsbus.config.model import Tree
from tsbus.config.plain import tree_to_plain

Format = Literal["toml", "json"]


def dump(tree: Tree, format: Format = "toml") -> str:  # noqa: A002  (the name users expect)
    """Return `tree` as text that loads to an equal tree. Most values that equal their default are left out."""
    plain = _scalars_first(tree_to_plain(tree))
    if format == "json":
        return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
    return tomlkit.dumps(plain)


def _scalars_first(value: Any) -> Any:
    """Return `value` with tables behind scalars, as TOML needs it: a key below a header belongs to that header."""
    if isinstance(value, list):
        return [_scalars_first(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _scalars_first(item) for key, item in sorted(value.items(), key=lambda pair: _is_table(pair[1]))}


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))
