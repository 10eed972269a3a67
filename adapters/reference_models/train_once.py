"""Weights that are learned when first asked for, and kept in graphprune's cache folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from graphprune.core.contents import fingerprint
from graphprune.util.fetch import cache_folder
from graphprune.util.files import write_bytes

__all__ = ["cross_entropy_step", "train_once"]

log = logging.getLogger(__name__)


def train_once(
    name: str,
    settings: dict[str, Any],
    module: nn.Module,
    train: Callable[[], object],
    cache: Path | None = None,
) -> None:
    """Loads the module's weights from the cache, or trains it and keeps them.

    They are found by the settings, the untrained module and ``train``'s code with all it reads.
    """
    key = fingerprint(name, settings, torch.__version__.split("+")[0], module, train)[:16]
    path = (cache_folder() if cache is None else cache) / "trained" / f"{name}-{key}.safetensors"
    if path.exists():
        module.load_state_dict(load_file(path))
        return
    log.info("training %s into %s", name, path)
    train()
    # Cloned, since one tensor may stand under two names, which the format refuses.
    write_bytes(path, save({k: v.contiguous().clone() for k, v in module.state_dict().items()}))


def cross_entropy_step(optimiser: torch.optim.Optimizer, logits: Tensor, labels: Tensor) -> None:
    """One step by the cross entropy of ``logits [n, classes]`` against ``labels [n]``."""
    loss = nn.functional.cross_entropy(logits, labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
