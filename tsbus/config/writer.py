"""Writer: structs -> the canonical, explicit text of a configuration. The only file that imports tomlkit."""

import json
from typing import Literal

import tomlkit

from tsbus.config.model import Tree
from tsbus.config.plain import tree_to_plain

Format = Literal["toml", "json"]


def dump(tree: Tree, format: Format = "toml") -> str:  # noqa: A002  (the name users expect)
    """Return `tree` as text that loads to an equal tree. Most values that equal their default are left out."""
    plain = tree_to_plain(tree)
    # tomlkit puts plain keys before tables by itself, as TOML needs them.
    return tomlkit.dumps(plain) if format == "toml" else json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
