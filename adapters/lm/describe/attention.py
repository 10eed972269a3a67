"""A layer's attention between its projections in plain torch, described as numbers.

The description is read off the user's module and its configuration under Hugging Face's names, and
then tried against the module itself on drawn queries, keys and values; what it does not reproduce
is refused. Configurations may state windows that no layer uses, so a window is tried on prompts
longer than it; one too long for that is looked up in the model's own mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import UnsupportedModelError

from ..export.plain import Attend, Attending, Rotary
from .architecture import Architecture, DecoderBlock
from .module_copies import Call, part
from .norms import HALF, describe_norm, largest_gap

__all__ = ["describe_attention", "rope_limit"]

_TRIAL = 1024  # tokens that attention is tried on at most
_MASK = 2**13  # tokens whose mask is looked at: 64 million entries


def describe_attention(arch: Architecture, block: DecoderBlock) -> Attending:
    """The layer's attention as numbers, tried against the layer's own.

    Raises :class:`UnsupportedModelError` where the two differ. Call it inside ``quiet`` and
    without gradients.
    """
    module: Any = block.attention
    window = _window(arch, block)
    length = min(_TRIAL, 8 if window is None else window + 5, arch.table_positions or _TRIAL)
    call = _call(arch, block, length)
    norms = None
    if getattr(module, "q_norm", None) is not None:
        names = ("q_norm", "k_norm")
        at = f"layer {block.index}'s"
        q_norm, k_norm = (describe_norm(getattr(module, n), f"{at} {n}").held() for n in names)
        norms = q_norm, k_norm
    attending = Attending(
        scale=float(getattr(module, "scaling", 1.0)),
        window=window,
        cap=getattr(module, "attn_logit_softcapping", None),
        rotary=_rotary(arch, block, call, length),
        norms=norms,
        wide=block.family.full_width_qk_norm,
    )
    _try(attending, arch, block, call, length)
    return attending


def _call(arch: Architecture, block: DecoderBlock, length: int) -> Call:
    """What the layer's attention is called with on a prompt of ``length`` drawn tokens."""
    return arch.glue(arch.drawn_ids(1, length, seed=block.index)).calls[block.index]


def _window(arch: Architecture, block: DecoderBlock) -> int | None:
    module: Any = block.attention
    config = module.config
    if getattr(module, "attention_type", None) == "local":
        return int(config.window_size)
    declared = getattr(module, "sliding_window", getattr(config, "sliding_window", None))
    if declared is None:
        return None
    window, length = int(declared), int(declared) + 2
    if length > _MASK or length > (arch.table_positions or length):
        return window
    # Models whose layers have no window may be configured with one all the same.
    mask = _call(arch, block, length)[1].get("attention_mask")
    if not isinstance(mask, Tensor):
        return None if config._attn_implementation in ("sdpa", "eager") else window
    row = mask[0, 0, -1]
    seen = int((row if row.dtype == torch.bool else row == 0).sum())
    return None if seen == length else window


def _rotary(arch: Architecture, block: DecoderBlock, call: Call, length: int) -> Rotary | None:
    pair = call[1].get("position_embeddings")
    if pair is None:
        return None
    cos, sin = (x[0] for x in pair)
    loose = 1e-2 if cos.dtype in HALF else 1e-4
    for name, frequencies in arch.base.named_buffers():
        path, _, last = name.rpartition(".")
        if not last.endswith("inv_freq") or 2 * len(frequencies) != cos.shape[-1]:
            continue
        owner = part(arch.base, path)
        scale = float(getattr(owner, last.replace("inv_freq", "attention_scaling"), 1.0))
        rotary = Rotary(frequencies.detach().clone(), scale)
        ours = rotary.tables(length, cos)
        if all(torch.allclose(a, b, atol=loose) for a, b in zip(ours, (cos, sin), strict=True)):
            return rotary
    raise UnsupportedModelError(
        f"layer {block.index}'s rotary tables come from none of the model's frequencies; they "
        "cannot be put into a module of their own"
    )


def _try(
    attending: Attending, arch: Architecture, block: DecoderBlock, call: Call, length: int
) -> None:
    generator = torch.Generator().manual_seed(block.index)
    shape = (1, length, block.rows, block.head_dim)
    qkv = torch.randn(shape, generator=generator).to(arch.device, arch.dtype)
    want = block.attend(qkv.flatten(2), call)
    parts = qkv.split([block.heads, block.kv_heads, block.kv_heads], 2)
    share = None
    if block.kv_heads != block.heads:
        share = torch.arange(block.heads, device=qkv.device) // (block.heads // block.kv_heads)
    ours = Attend(attending)(parts[0], parts[1], parts[2], share, None).flatten(2)
    gap = largest_gap(ours, want)
    if not gap <= (3e-2 if arch.dtype in HALF else 1e-4):
        kind = type(block.attention).__name__
        raise UnsupportedModelError(
            f"layer {block.index}'s attention ({kind}) is not plain softmax attention as its "
            f"configuration describes it: outputs differ by {gap:.3g} on drawn inputs; a pruned "
            "model of its own cannot be made of it"
        )


def rope_limit(model: nn.Module) -> int | None:
    """Positions up to which rotary frequencies do not depend on the prompt's length."""
    config: Any = model.config
    given = getattr(config, "rope_parameters", None) or {}
    nested = [v for v in given.values() if isinstance(v, dict)]
    limits = []
    for each in nested or [given]:
        kind = str(each.get("rope_type", "default"))
        if "dynamic" in kind or kind == "longrope":
            limits.append(
                int(each.get("original_max_position_embeddings", config.max_position_embeddings))
            )
    return min(limits) if limits else None
