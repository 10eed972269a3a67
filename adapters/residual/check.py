"""The check at wrap time: masked runs of a tiny input against the user's own module."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.sanity_checks import require_alike, runs_beside
from graphprune.errors import GraphPruneError, NumericalError, UnsupportedModelError
from graphprune.util.modes import quiet

from .inputs import answered, read_inputs
from .model import ResidualModel

__all__ = ["check_exactness"]

_LENGTH = 6


def drawn_inputs(model: ResidualModel, seed: int) -> dict[str, Tensor]:
    """Two random examples of the kind that the module's forward takes; texts end in an EOS."""
    module: Any = model.module
    generator = torch.Generator().manual_seed(seed)
    taken = inspect.signature(module.forward).parameters
    if "pixel_values" in taken:
        config = getattr(module.config, "vision_config", module.config)
        size = config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {
            "pixel_values": torch.randn(2, config.num_channels, height, width, generator=generator)
        }
    inputs = {}
    table: Any
    for name, table in zip(
        ("input_ids", "decoder_input_ids"), model.parts.embeddings, strict=False
    ):
        ids = torch.randint(table.num_embeddings, (2, _LENGTH), generator=generator)
        config = module.config
        special = [getattr(config, f"{which}_token_id", None) for which in ("pad", "eos", "bos")]
        usable = torch.tensor([i for i in range(table.num_embeddings) if i not in special])
        ids = usable[ids % len(usable)]
        if isinstance(config.eos_token_id, int):
            ids[:, -2] = config.eos_token_id
        inputs[name] = ids
    padding = torch.ones(2, _LENGTH, dtype=torch.int64)
    padding[1, -1] = 0
    if isinstance(module.config.pad_token_id, int):
        inputs["input_ids"][1, -1] = module.config.pad_token_id
    return inputs | {"attention_mask": padding}


def check_exactness(model: ResidualModel) -> None:
    """Compares with the plain module on two random examples.

    Mask 1 must give the module's outputs, mask 0 those on the corrupted examples. Raises
    :class:`UnsupportedModelError` naming what failed.
    """
    module = model.module
    name = type(module).__name__
    batch = Batch(drawn_inputs(model, 0), drawn_inputs(model, 1), 2)
    plain: list[Tensor] = []
    try:
        inputs = read_inputs(module, model.parts.embeddings, batch, model.engine.device)
        for side in (inputs.clean, inputs.corrupt):
            assert side is not None
            with quiet(module), torch.no_grad():
                plain.append(answered(module(**side), inputs))
    except GraphPruneError as error:
        raise UnsupportedModelError(f"{name} cannot be wrapped: {error}") from error
    except Exception as error:
        raise UnsupportedModelError(
            f"{name} itself could not be run on random inputs: {type(error).__name__}: {error}"
        ) from error
    if not all(bool(torch.isfinite(outputs).all()) for outputs in plain):
        raise NumericalError(f"{name} gives NaN or infinite outputs on random inputs")
    try:
        compared = runs_beside(model, batch, *plain)
    except Exception as error:
        raise UnsupportedModelError(
            f"{name} could not be run as its family describes it: {type(error).__name__}: {error}"
        ) from error
    dtype = plain[0].dtype
    require_alike(
        compared, name, dtype, lambda: "its architecture is not what its family describes"
    )
