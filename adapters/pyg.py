"""The adapter for PyG's message passing, and for the reference ARGNN."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from graphprune.core.model import MaskedModel
from graphprune.core.registry import require_known_options
from graphprune.errors import InputError

__all__ = ["PyGAdapter", "adapter"]


class PyGAdapter:
    """Wraps any module that passes messages by ``torch_geometric.nn.MessagePassing``."""

    name = "pyg"

    def matches(self, module: object) -> bool:
        """Whether the module or a part of it is PyG's message passing."""
        # A message passing module cannot exist before its library was imported.
        if "torch_geometric" not in sys.modules or not isinstance(module, nn.Module):
            return False
        from torch_geometric.nn import MessagePassing

        return any(isinstance(part, MessagePassing) for part in module.modules())

    def supported(self) -> list[str]:
        """What is known: the reference network, and every message passing module."""
        return ["ARGNN", "MessagePassing"]

    def wrap(self, module: nn.Module, **options: Any) -> MaskedModel:
        """The module as a masked model; options are those of the two models.

        Raises :class:`InputError` for an unknown option.
        """
        from .gnn import ARGNN, MaskedARGNN, MessageModel

        if isinstance(module, ARGNN):
            require_known_options(options, ("steps", "seed", "tie", "name"), "an ARGNN")
            return MaskedARGNN(module, **options)
        known = ("data", "forward", "level", "node_type", "means", "tie", "name")
        require_known_options(options, known, type(module).__name__)
        if options.get("data") is None:
            raise InputError(
                f"wrapping {type(module).__name__} needs the graph: gp.wrap(module, data=data)"
            )
        return MessageModel(module, **options)


adapter = PyGAdapter()
