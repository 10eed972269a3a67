"""The only changes ever made to a user's module; they undo themselves in ``finally``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["quiet"]


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen weights, both restored afterwards whatever happens."""
    modes = [(m, m.training) for m in module.modules() if m.training]
    trainable = [p for p in module.parameters() if p.requires_grad]
    try:
        for m, _ in modes:
            m.training = False
        for p in trainable:
            p.requires_grad_(False)
        yield
    finally:
        for m, mode in modes:
            m.training = mode
        for p in trainable:
            p.requires_grad_(True)
