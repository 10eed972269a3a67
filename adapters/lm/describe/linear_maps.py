"""The matrix of a linear map that holds none: quantised weights, and adapters beside a weight.

It is made when it is asked for and kept by nobody, so that a model's quantised weights stay small:
a layer's matrices live while the layer computes. Only where rows or columns of one head are wanted
is a matrix needed; what a whole layer sends and reads goes through the user's own modules.

Known kinds are dequantised by their own library, and what low-rank adapters add is added. The
matrix of any other module is what it gives for the unit vectors. Either way the module is tried:
it must multiply what it is called with by that matrix and nothing else, each row by itself.
LLM.int8 rounds what it is called with first, in a way that is known: :class:`InputsInEightBits`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from graphprune.errors import UnsupportedModelError
from graphprune.util.modes import quiet

from ..precision.rounding import Rounds
from .hooks import is_plain
from .norms import HALF, matrix

__all__ = [
    "InputsInEightBits",
    "is_quantised",
    "made_matrix",
    "require_plain",
    "rounded_inputs",
]

_LIBRARIES = ("peft.tuners.", "bitsandbytes.", "torchao.")
_ROWS = 1024  # unit vectors at a time
_tried: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


@dataclass(frozen=True)
class InputsInEightBits(Rounds):
    """What LLM.int8 makes of the inputs of a layer's projections (``reads``) and output map.

    A row is taken in float16 and rounded to 255 steps of its own; where a column holds a number of
    at least ``threshold`` (0: never), the whole column stays in float16. Rows are tokens, so
    heads share a step, and what is called together shares its columns.
    """

    rows: tuple[Any, ...] = ()
    heads: tuple[Any, ...] = ()
    reads: float | None = None
    codes: float | None = None

    def reader_input(self, x: Tensor, rows: Tensor) -> Tensor:
        """Normed inputs ``x [n, R, D]``, rounded; each reader's rows are a call of their own."""
        return x if self.reads is None else _in_eight_bits(x, self.reads)

    def code(self, z: Tensor, heads: Tensor | None = None) -> Tensor:
        """``z [..., H, dh]`` of all of a layer's heads, rounded token by token."""
        if self.codes is None:
            return z
        flat = z.flatten(-2).flatten(0, -3)[:, None]
        return _in_eight_bits(flat, self.codes).view(z.shape)


class _InEightBits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: float) -> Tensor:
        read = x.half().float()
        large = read.abs() >= threshold if threshold else torch.zeros_like(read, dtype=torch.bool)
        most = read.masked_fill(large, 0).abs().amax(-1, keepdim=True).clamp(min=1e-30)
        rounded = (read * (127 / most)).round() * (most / 127)
        return torch.where(large.any(0, keepdim=True), read, rounded).to(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, None


def _in_eight_bits(x: Tensor, threshold: float) -> Tensor:
    """``x [n, R, F]`` as LLM.int8 multiplies it; as there, gradients pass unchanged."""
    out: Tensor = _InEightBits.apply(x, threshold)  # type: ignore[no-untyped-call]
    return out


def rounded_inputs(projecting: Mapping[str, nn.Module], output: nn.Module) -> Rounds | None:
    """How a layer's own projections round what they read; ``None``: they do not."""
    thresholds = {_threshold(module) for module in projecting.values()}
    if len(thresholds) > 1:
        raise UnsupportedModelError(
            f"of the projections {', '.join(projecting)} some round their inputs to 8 bits and "
            "others do not, or other columns; expected one way for the projections of a layer"
        )
    reads, codes = thresholds.pop(), _threshold(output)
    return None if reads is codes is None else InputsInEightBits(reads=reads, codes=codes)


def _threshold(module: Any) -> float | None:
    """From where LLM.int8 keeps columns of its input; ``None`` for any other module."""
    if not type(module).__module__.startswith("bitsandbytes.") or not hasattr(module, "state"):
        return None
    return float(module.state.threshold)


def titled(module: nn.Module) -> str:
    """A module's class, and that of its weight where it says more."""
    weight, kind = getattr(module, "weight", None), type(module).__name__
    return f"{kind} of {type(weight).__name__}" if _is_foreign(weight) else kind


def _is_foreign(weight: object) -> bool:
    home = f"{type(weight).__module__}."
    return isinstance(weight, Tensor) and not home.startswith(("torch.", "transformers."))


def is_quantised(model: nn.Module) -> bool:
    """Whether some weights of a model are held by bitsandbytes or torchao."""
    return any(
        type(module).__module__.startswith("bitsandbytes.")
        or _is_foreign(getattr(module, "weight", None))
        for module in model.modules()
    )


def require_plain(model: nn.Module, blocks: Iterable[Any], what: str) -> None:
    """Raises :class:`UnsupportedModelError` where ``what`` would have to hold weights of others."""
    read = {m for b in blocks if not b.plain for m in (*b.projecting.values(), b.output)}
    for name, module in model.named_modules():
        foreign = type(module).__module__.startswith(_LIBRARIES) or _is_foreign(
            getattr(module, "weight", None)
        )
        if foreign or (module in read and not is_plain(module)):
            raise UnsupportedModelError(
                f"{name} is a {titled(module)}, and {what}: merge adapters into the weights "
                "(merge_and_unload), or load the model without quantisation"
            )


def made_matrix(module: nn.Module, where: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """``[out, in]`` and ``[out]``: what a linear map multiplies with and adds, made anew.

    ``dtype`` is what a quantised map is called with. Raises :class:`UnsupportedModelError` for a
    module that is no linear map.
    """
    with quiet(module), torch.no_grad():
        known = _known(module, dtype)
        weight, bias = known or _by_calls(module, where, dtype)
        if _tried.get(module) != titled(module):
            _try(module, where, weight, bias)
            _tried[module] = titled(module)
    return weight, bias


def _known(module: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None] | None:
    """The matrix as the library that made the module tells it; ``None`` if none is known."""
    if is_plain(module):
        weight, bias = matrix(module, "")
        return weight.detach(), None if bias is None else bias.detach()
    if type(module).__module__.startswith("peft.tuners.lora."):
        return _adapted(module, dtype)
    held: Any = getattr(module, "weight", None)
    added: Tensor | None = getattr(module, "bias", None)
    if type(module).__module__.startswith("bitsandbytes.") and hasattr(held, "quant_state"):
        from bitsandbytes.functional import (  # pyright: ignore[reportMissingImports]
            dequantize_4bit,
        )

        return dequantize_4bit(held.data, held.quant_state).to(dtype), added
    if type(module) is nn.Linear and hasattr(held, "dequantize"):
        return held.dequantize().detach().to(dtype), added
    return None


def _adapted(module: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None] | None:
    """A weight and what the active low-rank adapters beside it add; ``None`` for other kinds."""
    base: Any = _known(module.get_base_layer(), dtype)
    if base is None or getattr(module, "lora_variant", None) or any(module.lora_bias.values()):
        return None
    weight, bias = base
    if module.merged or module.disable_adapters:
        return None if module.merged and module.disable_adapters else base
    for name in module.active_adapters:
        if name in module.lora_A:
            down, up = module.lora_A[name].weight, module.lora_B[name].weight
            weight = weight + ((up @ down) * module.scaling[name]).to(weight)
    return weight, bias


def _by_calls(module: nn.Module, where: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The matrix from what the module gives for 0 and for unit vectors."""
    width = getattr(module, "in_features", None)
    if not isinstance(width, int):
        raise UnsupportedModelError(
            f"{where} is a {titled(module)} that does not say its in_features; expected a linear "
            "map"
        )
    held = [*module.parameters(), *module.buffers()]
    device = next((p.device for p in held), None)
    dtype = next((p.dtype for p in held if p.is_floating_point() and p.ndim == 2), dtype)
    zero = module(torch.zeros(1, width, dtype=dtype, device=device))[0]
    bias = zero if bool(zero.any()) else None
    # In half precision a bias would round what is added to it: a large vector's share is not.
    size = 2.0**10 if bias is not None and dtype in HALF else 1.0
    made = zero.new_empty(width, len(zero))
    for rows in torch.arange(width, device=device).split(_ROWS):
        unit = torch.zeros(len(rows), width, dtype=dtype, device=device)
        unit[torch.arange(len(rows), device=device), rows] = size
        out = module(unit)
        made[rows] = (out if bias is None else out - bias) / size
    return made.T, bias


def _try(module: nn.Module, where: str, weight: Tensor, bias: Tensor | None) -> None:
    """Compares the module with its matrix on drawn rows, one of which is large in one place."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, weight.shape[1], generator=generator).clamp(-3, 3).to(weight)
    x[1] = 0.015 * x[0].sign()  # smaller than half a step of an integer grid that reaches to 5
    x[2], x[3] = 0 * x[0], x[1]
    x[2:, 0] = 5
    threshold = _threshold(module)
    read = x if threshold is None else _in_eight_bits(x[:, None], threshold)[:, 0]
    out, want = module(x), read @ weight.T
    want = want if bias is None else want + bias
    loose = 5e-2 if weight.dtype in HALF else 1e-3
    shares = {
        "a row": (out[0], want[0]),
        "rows alone": (out, torch.cat([module(row[None]) for row in x])),
        "small numbers beside a large one": (out[3] - out[2], (read[3] - read[2]) @ weight.T),
    }
    for what, (ours, theirs) in shares.items():
        gap = float((ours.double() - theirs.double()).norm())
        size = float(theirs.double().norm())
        rounded = loose if what != "small numbers beside a large one" else 20 * loose
        if not gap <= min(rounded, 0.5) * size + 1e-6:
            raise UnsupportedModelError(
                f"{where} is a {titled(module)}, which does not multiply what it reads by one "
                f"matrix ({what}: off by {gap:.3g} of {size:.3g}), so a head's share of it is not "
                "defined. Expected quantised weights and unrounded inputs (4 bit by bitsandbytes, "
                "weight-only by torchao) or low-rank adapters, computing "
                "in the model's own dtype (bnb_4bit_compute_dtype); merge or dequantise others"
            )
