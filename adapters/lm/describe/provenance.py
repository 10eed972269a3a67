"""Which model a circuit was found in: its name, its sizes, and a hash of all its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .architecture import Architecture
from .layout import EdgeLayout
from .offloading import whole_tensor

__all__ = ["provenance"]


def provenance(model: nn.Module, arch: Architecture, layout: EdgeLayout) -> dict[str, Any]:
    """Model id, architecture, sizes, dtype and a hash of all weights, as plain values."""
    name, kind = str(getattr(arch.config, "_name_or_path", "") or ""), type(model).__name__
    if Path(name).exists() or Path(name).is_absolute():
        name = Path(name).name  # the rest of a local path says nothing but who its owner is
    return {
        "model": name or kind,
        "architecture": kind,
        "n_layers": layout.layers,
        "n_heads": layout.heads,
        "n_kv_heads": layout.kv_heads,
        "d_model": arch.width,
        "parallel_attn_mlp": layout.parallel,
        "dtype": str(arch.dtype).removeprefix("torch."),
        "weights": weights_hash(model),
    }


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers with their names, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        whole = whole_tensor(model, name, tensor.detach()).cpu().contiguous()
        digest.update(whole.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
