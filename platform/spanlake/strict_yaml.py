"""YAML in which a key that is written twice is an error. PyYAML would silently take the last value."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml
from yaml.constructor import ConstructorError

_MERGE = "tag:yaml.org,2002:merge"  # `<<` may be written several times


class StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = None if key_node.tag == _MERGE else self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key is None:
                continue
            if key in seen:
                raise ConstructorError(None, None, f"the key {key!r} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(content: str) -> Any:
    """Returns the values of a YAML document.

    Raises yaml.YAMLError if it is no YAML, and if a mapping has the same key twice.
    """
    return yaml.load(content, StrictLoader)
