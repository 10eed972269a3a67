"""Number formats written out value by value, and models rounded by hand: an oracle for precision.

Nothing here uses torch's float8 or bfloat16, or any of the library's rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

LARGEST = {"fp8": 448.0, "int8": 127.0, "int4": 7.0}


def e4m3() -> Tensor:
    """Every value of E4M3 from 0 up: code c stands at index c; the last code is NaN, not listed."""
    found = []
    for code in range(127):
        exponent, fraction = code >> 3, (code & 7) / 8
        found.append(
            2.0**-6 * fraction if exponent == 0 else 2.0 ** (exponent - 7) * (1 + fraction)
        )
    return torch.tensor(found, dtype=torch.float64)


def nearest(x: Tensor, precision: str) -> Tensor:
    """The nearest value of the grid, ties to the even code."""
    if precision == "fp32":
        return x
    size = x.double().abs()
    if precision == "bf16":
        exponent = torch.floor(torch.log2(size.clamp(min=1e-300)))
        step = 2.0 ** (exponent - 7)
        found = torch.round(size / step) * step
    elif precision == "fp8":
        grid = e4m3()
        size = size.clamp(max=448.0)
        above = torch.searchsorted(grid, size.contiguous()).clamp(max=len(grid) - 1)
        below = (above - 1).clamp(min=0)
        up, down = grid[above] - size, size - grid[below]
        take_up = (up < down) | ((up == down) & (above % 2 == 0))
        found = torch.where(take_up, grid[above], grid[below])
    else:
        found = torch.round(size.clamp(max=LARGEST[precision]))
    return (found * x.double().sign()).to(x.dtype)


def by_hand(x: Tensor, precision: str, *axes: int) -> Tensor:
    """``x`` on the grid with one scale over ``axes`` (none: the whole tensor)."""
    if precision not in LARGEST:
        return nearest(x, precision)
    largest = x.abs().amax(axes, keepdim=True) if axes else x.abs().max()
    scale = largest / LARGEST[precision]
    return nearest(x / scale, precision) * scale


def passing(x: Tensor, precision: str) -> Tensor:
    """``x`` rounded token by token, with the gradient of ``x`` itself."""
    return x + (by_hand(x.detach(), precision, -1) - x).detach()


Named = Callable[[str], str]


def rounded_model(
    model: PreTrainedModel, precision_of: Named, *, activations: bool
) -> PreTrainedModel:
    """A deep copy whose q, k, v, output and MLP weights are on their grids, one scale a tensor.

    ``precision_of`` takes a node's name. With ``activations`` MLPs round what they read; what
    attention reads is left to the oracle's ``rounding``.
    """
    twin = copy.deepcopy(model)
    config: Any = twin.config
    kind, heads = config.model_type, config.num_attention_heads
    kvs = getattr(config, "num_key_value_heads", None) or heads
    for layer, block in enumerate(_layers(twin)):
        named = [f"a{layer}.h{h}" for h in range(heads)]
        grouped = [f"a{layer}.kv{j}" for j in range(kvs)] if kvs != heads else named
        with torch.no_grad():
            readers = zip(
                _projections(kind, block, heads, kvs), (named, grouped, grouped), strict=True
            )
            for tensor, names in readers:
                _round_rows(tensor, names, precision_of)
            out = _output(kind, block)
            _round_rows(out.unflatten(1, (heads, -1)).transpose(0, 1), named, precision_of)
        for module in block.mlp.modules():
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                _round_linear(module, precision_of(f"m{layer}"), activations)
    return twin


def _round_rows(parts: Tensor, names: list[str], precision_of: Named) -> None:
    """``parts [n, ...]``, a view of one tensor, each part in its precision."""
    whole = parts.clone()
    for i, name in enumerate(names):
        parts[i] = by_hand(whole, precision_of(name))[i]


def _round_linear(module: Any, precision: str, activations: bool) -> None:
    with torch.no_grad():
        module.weight.copy_(by_hand(module.weight, precision))
    if activations and precision != "fp32":
        module.register_forward_pre_hook(lambda _, args: (passing(args[0], precision),))


def _layers(model: Any) -> Any:
    body = getattr(model, model.base_model_prefix)
    return body.h if hasattr(body, "h") else body.layers


def _projections(kind: str, block: Any, heads: int, kvs: int) -> list[Tensor]:
    """Views ``[n, dh, D]`` of q, k and v."""
    if kind == "gpt2":
        weight = block.attn.c_attn.weight.T
        return [w.unflatten(0, (heads, -1)) for w in weight.chunk(3)]
    if kind == "gpt_neox":
        weight = block.attention.query_key_value.weight.unflatten(0, (heads, 3, -1))
        return [weight[:, i] for i in range(3)]
    attention = block.self_attn
    if kind == "phi3":
        weight = attention.qkv_proj.weight
        dim = len(weight) // (heads + 2 * kvs)
        parts = weight.split([heads * dim, kvs * dim, kvs * dim])
    else:
        parts = [getattr(attention, f"{name}_proj").weight for name in "qkv"]
    return [w.unflatten(0, (n, -1)) for w, n in zip(parts, (heads, kvs, kvs), strict=True)]


def _output(kind: str, block: Any) -> Tensor:
    """A view ``[D, H * dh]``."""
    if kind == "gpt2":
        weight: Tensor = block.attn.c_proj.weight.T
        return weight
    module = block.attention.dense if kind == "gpt_neox" else block.self_attn.o_proj
    return module.weight  # type: ignore[no-any-return]


def gaussian(rows: int, wide: int, seed: int) -> Tensor:
    """Standard normal numbers ``[rows, wide]``."""
    return torch.randn(rows, wide, generator=torch.Generator().manual_seed(seed))


def relative(got: Tensor, want: Tensor) -> float:
    """Root mean square error over root mean square."""
    return float((got - want).norm() / want.norm())
