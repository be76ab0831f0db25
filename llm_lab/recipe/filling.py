"""Recipe values being filled in, each with its reason."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


class Draft:
    """Recipe values being filled in, and why each got its value."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = copy.deepcopy(dict(values))
        self.reasons: dict[str, str] = {}

    def get(self, path: str) -> Any:
        node: Any = self.values
        for step in path.split("."):
            if not isinstance(node, Mapping):
                return None
            node = node.get(step)
        return node

    def fill(self, path: str, value: Any, reason: str) -> None:
        """Set a key that was left out."""
        if self.get(path) is None and value is not None:
            self.set(path, value, reason)

    def set(self, path: str, value: Any, reason: str) -> None:
        node = self.values
        *parents, last = path.split(".")
        for step in parents:
            node = node[step]
        node[last] = value
        self.reasons[path] = reason
