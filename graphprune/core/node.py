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

    Example:
        >>> gp.Node("a3.h1", kind="head", layer=3, index=1).layer
        3
        >>> lm.graph.nodes[1]
        Node(name='a0.h0', kind='head', layer=0, index=0, attributes={})
    """

    name: str
    kind: str = "node"
    layer: int | None = None
    index: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
