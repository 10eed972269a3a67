"""Models and batches for tests of precision policies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import graphprune as gp
from graphprune import Batch

from .tiny import SMALL, random_pair, tiny

PAPER = gp.PrecisionPolicy({"head": "fp8", "mlp": "bf16"})  # PAHQ's, as its paper has it
ROUNDED = gp.PrecisionPolicy({"head": "fp8", "mlp": "int8"}, emulate=True)
MIXED = ROUNDED.with_nodes({"a0.h1": "fp32", "a1.h0": "int4", "m1": "bf16"})


def rtn(bits: int) -> gp.PrecisionPolicy:
    """RTN-Q's of a transformer."""
    return gp.precision.rtn(bits, ["head", "mlp"])


def setup(
    family: str, dtype: torch.dtype = torch.float64, *, small: bool = False, **options: Any
) -> tuple[Any, Any, Batch]:
    """A tiny module, the same wrapped, and a batch of three pairs."""
    module = tiny(family, dtype=dtype, **(SMALL[family] if small else {}))
    clean, corrupt = random_pair(module, batch=3)
    batch = Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    return module, gp.wrap(module, **options), batch


def task_of(batch: Batch) -> gp.Task:
    """The batch's prompts with answers and distractors."""
    assert batch.corrupt is not None
    clean, corrupt = batch.clean["input_ids"], batch.corrupt["input_ids"]
    answer = [1] * batch.size
    return gp.Task.from_tensors(clean, corrupt, answer=answer, distractor=[2] * batch.size)


def random_masks(model: Any, count: int, seed: int = 0) -> Tensor:
    """``[count, E]``: every other one is of zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, model.graph.num_edges, generator=generator, dtype=torch.float64)
    masks[1::2] = (masks[1::2] < 0.4).double()
    return masks
