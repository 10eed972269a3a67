"""A language model's sizes from its configuration, and models of the same shape without weights."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphprune.errors import InputError

from .family import FAMILY_BY_TYPE, Family, not_known
from .layout import EdgeLayout
from .module_copies import part

__all__ = ["Shape", "config_of", "random_model", "read_shape", "truncated"]


@dataclass(frozen=True)
class Shape:
    """Sizes that costs follow from.

    ``mlp``: parameters of one layer's MLP, ``hidden`` its inner width; ``parameters``: the model's.
    """

    family: Family
    layout: EdgeLayout
    width: int
    head_dim: int
    mlp: int
    hidden: int
    gated: bool
    outputs: int
    parameters: int
    dtype: torch.dtype

    @property
    def nodes(self) -> int:
        """Nodes of the graph: writers, the output, and native key/value heads."""
        return self.layout.writers + 1 + sum(shape.own_kv for shape in self.layout.shapes)


def config_of(subject: Any) -> Any:
    """The configuration of a model, a masked model, a folder or a hub id; it alone is read."""
    if isinstance(subject, (str, Path)):
        return _read_config(subject)
    module = getattr(subject, "module", subject)
    return getattr(module, "config", module) if isinstance(module, nn.Module) else module


def _read_config(name: str | Path) -> Any:
    from transformers import AutoConfig

    path = Path(name).expanduser()
    local = path.is_dir()
    try:
        return AutoConfig.from_pretrained(path if local else str(name), local_files_only=local)
    except Exception as error:  # transformers, its hub client and json have errors of their own
        reason = str(error).strip().splitlines()
        where = f"the folder {path}" if local else f"{name!r} (no folder here, so a hub id)"
        raise InputError(
            f"cannot read a model's configuration from {where}: "
            f"{reason[0][:300] if reason else type(error).__name__}"
        ) from error


def read_shape(config: Any, *, embedding_nodes: int = 1, dtype: torch.dtype | None) -> Shape:
    """Sizes read off a model on the meta device, which has shapes and no numbers."""
    family = FAMILY_BY_TYPE.get(getattr(config, "model_type", ""))
    if family is None:
        raise not_known(config)
    model = random_model(config, torch.device("meta"), torch.float32)
    base = part(model, family.base)
    layers = part(base, family.layers)
    assert isinstance(layers, nn.ModuleList)
    layer = layers[0]
    attention = part(layer, family.attention)
    output: Any = part(attention, family.output)
    conv = type(output).__name__ == "Conv1D"
    wide, width = output.weight.shape if conv else reversed(output.weight.shape)
    assert family.mlp is not None  # of the families that are known
    mlp = part(layer, family.mlp)
    inside = [p.numel() // int(width) for p in mlp.parameters() if p.ndim > 1]
    table: Any = part(base, family.embedding)
    layout = EdgeLayout.of(family, config, len(layers), embedding_nodes)
    return Shape(
        family=family,
        layout=layout,
        width=int(width),
        head_dim=int(wide) // layout.heads,
        mlp=sum(p.numel() for p in mlp.parameters()),
        hidden=min(inside),
        gated=sum(inside) > 2 * min(inside),
        outputs=int(table.weight.shape[0]),
        parameters=sum(p.numel() for p in model.parameters()),
        dtype=dtype or _stored_dtype(config),
    )


def _stored_dtype(config: Any) -> torch.dtype:
    stored = getattr(config, "dtype", None)
    if isinstance(stored, str):
        stored = getattr(torch, stored, None)
    return stored if isinstance(stored, torch.dtype) else torch.float32


def truncated(config: Any, layers: int) -> Any:
    """The same configuration with ``layers`` layers (lists of one entry a layer cut, or cycled)."""
    small = copy.deepcopy(config)
    whole = int(config.num_hidden_layers)
    for name, value in list(vars(small).items()):
        if isinstance(value, list) and len(value) == whole and name != "architectures":
            setattr(small, name, [value[i % whole] for i in range(layers)])
    if getattr(config, "model_type", None) == "gpt_neo":
        small.num_layers = layers
    else:
        small.num_hidden_layers = layers
    return small


def random_model(config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A causal language model with small random weights, made on the device without a copy."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = copy.deepcopy(config)
    config.dtype = dtype
    with torch.random.fork_rng(devices=[]), no_init_weights(), torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.tie_weights()
    if device.type != "meta":
        noise = torch.Generator(device).manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.fill_(0.5)
                else:
                    scale = 1 / math.sqrt(parameter.shape[-1])
                    parameter.uniform_(-scale, scale, generator=noise)
    return model.eval().requires_grad_(False)
