"""A node of a computational graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Node:
    """A component of a model.

    ``name`` is unique in its graph; ``kind`` says what it is (``"head"``, ``"mlp"``, ...);
    ``layer`` and ``index`` place it where that makes sense; ``attributes`` holds plain Python
    values.
    """

    name: str
    kind: str = "node"
    layer: int | None = None
    index: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
