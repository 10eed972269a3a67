"""Norms as numbers, and what attention readers project behind them, inputs all different.

A norm is ``y = x_hat * gain + bias``, ``x_hat = (x - mean?) * scale``, with ``scale = 1 /
sqrt(mean(square) + eps)`` for each token. On a shared input the user's own module computes it; the
description serves its Jacobian in closed form.

Where each reader has an input of its own the norm in front of a projection is folded into it:
``q = scale * (W' x) + constant`` with ``W' = W * gain``. No normed copy of the input is made. The
gradient at the input is, with ``g = dq * scale``,

    g W'  -  x * scale * (g . (q - constant)) / D ,

written over the input itself. Where a precision policy rounds what projections read, the norm
cannot be folded: the normed input is made and rounded, and the gradient is the same one, rounding
being the identity there. Nor is it folded in half precision, which would round the folded weights,
where the model itself rounds none. Where the norms are LayerNorms, inputs hold no mean (the base
and all Deltas are centred, see :func:`centre`), and a gradient's mean is left in: it meets only
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from graphprune.errors import UnsupportedModelError

from ..precision.rounding import Rounds
from .hooks import holds_transposed, is_plain

__all__ = [
    "HALF",
    "Norm",
    "Projected",
    "ReaderProjections",
    "WeightRows",
    "centre",
    "describe_norm",
    "is_norm",
    "largest_gap",
    "matrix",
    "project",
    "span",
    "wide",
]


HALF = (torch.float16, torch.bfloat16)


def wide(x: Tensor) -> Tensor:
    """``x`` in float32 at least."""
    return x.float() if x.dtype in HALF else x


def largest_gap(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors' numbers."""
    return float((one.double() - other.double()).abs().max())


@dataclass(frozen=True, eq=False)
class Norm:
    """A LayerNorm (``centred``) or an RMSNorm of width D.

    ``gain`` is ``weight + offset``, with the offset 0 or 1. Of a module without a weight it is held
    in ``kept``: ones.
    """

    module: nn.Module
    centred: bool
    offset: float
    eps: float
    kept: tuple[Tensor, Tensor | None] | None = None

    @staticmethod
    def centred_alike(readers: list[Norm | None], final: Norm | None, model: str) -> bool:
        """Whether all readers' norms subtract the mean, the ``final`` one too.

        Raises :class:`UnsupportedModelError` where some of the readers' do and others do not.
        """
        kinds = {norm is not None and norm.centred for norm in readers}
        alike = kinds == {True} and final is not None and final.centred
        if True in kinds and not alike:
            raise UnsupportedModelError(
                f"some norms of {model} subtract the mean and others do not; "
                "expected either in front of all readers"
            )
        return alike

    def require_shares(self, bias: Tensor | None, what: str) -> None:
        """Raises :class:`UnsupportedModelError` unless each head has a share of what it norms."""
        if bias is not None or self.centred:
            raise UnsupportedModelError(
                f"{what} has a norm behind it together with a bias or a centring; a head's share "
                "of such a sum is not defined"
            )

    def held(self) -> Norm:
        """The same with copies of gain and bias."""
        bias = None if self.bias is None else self.bias.detach().clone()
        return replace(self, kept=(self.gain.detach().clone(), bias))

    @property
    def gain(self) -> Tensor:
        """``[D]``: what the normalised input is multiplied with."""
        if self.kept is not None:
            return self.kept[0]
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight + self.offset if self.offset else weight

    @property
    def bias(self) -> Tensor | None:
        """``[D]``: what is added last, if the module has a bias."""
        if self.kept is not None:
            return self.kept[1]
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    def __call__(self, x: Tensor) -> Tensor:
        """The user's own module on ``x [..., D]``."""
        out = self.module(x)
        assert isinstance(out, Tensor)
        return out

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x_hat [..., D]`` and ``scale [..., 1]``."""
        values = wide(centre(x, self.centred))
        scale = torch.rsqrt(values.square().mean(-1, keepdim=True) + self.eps)
        return (values * scale).to(x.dtype), scale.to(x.dtype)

    def scale(self, centred: Tensor) -> Tensor:
        """``[..., 1]`` of inputs that have no mean (any, for an RMSNorm), in float32 at least."""
        dtype = wide(centred[:0]).dtype
        norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True, dtype=dtype)
        return torch.rsqrt(norm.square() / centred.shape[-1] + self.eps)

    def pull_back(self, centred: Tensor, grad: Tensor) -> Tensor:
        """The gradient ``[n, D]`` at the output, taken to ``centred [n, D]``, an input of no mean.

        The gradient's own mean is left in: it meets only differences that have none.
        """
        scale = self.scale(centred)
        x_hat, out = wide(centred) * scale, wide(grad) * (wide(self.gain) * scale)
        return (out - x_hat * (out * x_hat).mean(-1, keepdim=True)).to(grad.dtype)

    def frozen(self, x: Tensor) -> Tensor:
        """The same output, with the scale taken as a constant by gradients."""
        with torch.no_grad():
            _, scale = self.statistics(x)
        out = centre(x, self.centred) * scale * self.gain
        return out if self.bias is None else out + self.bias


_EPS = ("eps", "variance_epsilon", "epsilon")


def describe_norm(
    module: nn.Module, where: str, hold: bool = False, like: Tensor | None = None
) -> Norm:
    """Finds the description that reproduces the module on a probe; refuses if there is none.

    ``hold`` copies gain and bias, for modules whose weights come and go. ``like [..., D]`` says the
    width and dtype of a module without a weight.
    """
    weight = getattr(module, "weight", None)
    said = [getattr(module, name, None) for name in _EPS]
    eps = next((float(value) for value in said if isinstance(value, float)), None)
    if weight is None and like is not None:
        return _plain_norm(module, where, eps, like)
    if isinstance(weight, Tensor) and eps is not None:
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(2, weight.shape[0], generator=generator) + 0.5
        probe = probe.to(weight)
        exact = torch.float64
        with torch.no_grad():
            want = module(probe).to(exact)
            for centred in (False, True):
                for offset in (0.0, 1.0):
                    norm = Norm(module, centred, offset, eps)
                    x_hat, _ = norm.statistics(probe.to(exact))
                    got = x_hat * (weight.to(exact) + offset)
                    if norm.bias is not None:
                        got = got + norm.bias.to(exact)
                    rtol, atol = (3e-2, 1e-2) if weight.dtype in HALF else (1e-4, 1e-4)
                    if torch.allclose(got, want, rtol=rtol, atol=atol):
                        return norm.held() if hold else norm
    raise UnsupportedModelError(
        f"{where} is a {type(module).__name__}, which behaves neither as a LayerNorm nor as an "
        "RMSNorm with a weight; its Jacobian is not known"
    )


def is_norm(module: nn.Module, like: Tensor) -> bool:
    """Whether a module is a norm that :func:`describe_norm` describes."""
    if next(module.children(), None) is not None:
        return False
    try:
        describe_norm(module, "", like=like)
    except (UnsupportedModelError, RuntimeError, TypeError):  # some are called in other ways
        return False
    return True


def _plain_norm(module: nn.Module, where: str, eps: float | None, like: Tensor) -> Norm:
    """The description of a norm that has no weight; its epsilon may be written in its forward."""
    one = like.new_ones(like.shape[-1])
    generator = torch.Generator().manual_seed(0)
    probes = [s * torch.randn(2, len(one), generator=generator) + s / 2 for s in (1.0, 1e-3)]
    tried = (eps, 1e-5, 1e-6, 1e-12, torch.finfo(like.dtype).eps)
    loose = 3e-2 if like.dtype in HALF else 1e-4
    for guess in (e for e in tried if e is not None):
        for centred in (False, True):
            norm = Norm(module, centred, 0.0, guess, (one, None))
            pairs = [(module(x), norm.statistics(x)[0]) for x in (p.to(like) for p in probes)]
            if all(torch.allclose(a, b, rtol=loose, atol=loose) for a, b in pairs):
                return norm
    raise UnsupportedModelError(
        f"{where} is a {type(module).__name__} without a weight, which behaves neither as a "
        "LayerNorm nor as an RMSNorm; its Jacobian is not known"
    )


@dataclass(frozen=True, eq=False)
class WeightRows:
    """Rows of a linear map of the user's, as views: ``weight [n, dh, D]``, ``bias [n, dh]``."""

    weight: Tensor
    bias: Tensor | None


def matrix(module: nn.Module, where: str) -> tuple[Tensor, Tensor | None]:
    """``[out, in]`` weight (a view) and bias of a plain Linear or GPT-2's transposed Conv1D."""
    if not is_plain(module):
        raise UnsupportedModelError(
            f"{where} is a {type(module).__name__}; expected a plain Linear (merge adapters such "
            "as LoRA, or dequantise the weights, before wrapping)"
        )
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    if weight.ndim != 2 or not weight.is_floating_point():
        raise UnsupportedModelError(
            f"{where} holds a weight of shape {list(weight.shape)} and type {weight.dtype}; "
            "expected a floating point matrix (dequantise the model before wrapping)"
        )
    weight = weight.T if holds_transposed(type(module)) else weight
    return weight, bias if isinstance(bias, Tensor) else None


@dataclass(frozen=True, eq=False)
class ReaderProjections:
    """A layer's attention readers in order: their weights, and the norm they read behind.

    ``held``: their weights, ``None`` where they are ``made`` at each use and kept by nobody.
    ``rounds`` says how inputs are rounded (``None`` means they are not); ``few``: how many rows'
    weights are folded at a time.
    """

    held: tuple[WeightRows, ...] | None
    made: Callable[[], tuple[WeightRows, ...]]
    norm: Norm | None
    rounds: Rounds | None
    few: int


@dataclass(frozen=True, eq=False)
class Projected:
    """What ``rows`` of a layer's attention readers read and project at some tokens.

    ``scale [n, R, 1]`` is the norm's (``None`` means no norm). Inputs to be rounded by a policy
    must be ``prepare``d (normalised in place); others are left as they are.
    """

    readers: ReaderProjections
    rows: Tensor
    scale: Tensor | None
    normalised: bool

    @classmethod
    def of(cls, readers: ReaderProjections, rows: Tensor, x: Tensor) -> Projected:
        """Takes the statistics of inputs ``x [n, R, D]``."""
        norm = readers.norm
        scale = None if norm is None else norm.scale(x)
        return cls(readers, rows, scale, norm is not None and readers.rounds is not None)

    def prepare(self, x: Tensor) -> None:
        """What forward and backward expect of inputs just read."""
        if self.normalised:
            assert self.scale is not None
            x.mul_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, R, dh]`` from ``x [n, R, D]``."""
        weights = self._weights()
        like = weights[0].weight
        out = x.new_empty(len(x), len(self.rows), like.shape[1], dtype=like.dtype)
        if self.readers.rounds is not None or out.dtype in HALF:
            return self._unfolded(x, out, weights)
        for at, weight, constant in self._parts(weights):
            q = torch.bmm(x[:, at].transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
            if self.scale is not None:
                q = q * self.scale[:, at]
            out[:, at] = q if constant is None else q + constant
            del weight  # the next part's is made first otherwise
        return out

    def _unfolded(self, x: Tensor, out: Tensor, weights: tuple[WeightRows, ...]) -> Tensor:
        """The same by weights as they are; normed inputs are rounded to their dtype once."""
        norm, rounds = self.readers.norm, self.readers.rounds
        for at, weight, constant in self._parts(weights, fold=False):
            read = wide(x[:, at])
            if self.scale is not None and not self.normalised:
                read = read * self.scale[:, at]
            if norm is not None:
                read = read * norm.gain if norm.bias is None else read * norm.gain + norm.bias
            read = read.to(out.dtype)
            if rounds is not None:
                read = rounds.reader_input(read, self.rows[at])
            q = torch.bmm(read.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
            out[:, at] = q if constant is None else q + constant
        return out

    def backward(self, x: Tensor, out: Tensor, grad: Tensor) -> None:
        """Writes the gradient at the inputs ``x`` over them; ``grad [n, R, dh]`` at ``out``."""
        for at, weight, constant in self._parts(self._weights()):
            dq, target = grad[:, at], x[:, at]
            if self.scale is None:
                target.zero_()
            else:
                scale = self.scale[:, at]
                q = self._linear(target, weight, out[:, at], constant)
                dq = wide(dq) * scale
                along = (dq * q).sum(-1, keepdim=True) / -x.shape[-1]
                target.mul_(along if self.normalised else along * scale)
                dq = dq.to(x.dtype)
            target.transpose(0, 1).baddbmm_(dq.transpose(0, 1), weight)
            del weight

    def _linear(self, x: Tensor, weight: Tensor, out: Tensor, constant: Tensor | None) -> Tensor:
        """``[n, r, dh]``: what the weight makes of ``x``, which ``out`` tells unless rounded."""
        if self.readers.rounds is not None:
            return torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
        return wide(out) if constant is None else wide(out) - wide(constant)

    def _weights(self) -> tuple[WeightRows, ...]:
        held = self.readers.held
        return self.readers.made() if held is None else held

    def _parts(
        self, weights: tuple[WeightRows, ...], *, fold: bool = True
    ) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """A few rows at a time: where they stand in ``rows``, weight and constant.

        With the norm's gain and bias folded in, unless told not to.
        """
        start = 0
        for reader in weights:
            stop = start + len(reader.weight)
            first, last = torch.searchsorted(self.rows, torch.tensor([start, stop])).tolist()
            for at in range(first, last, self.readers.few):
                part = slice(at, min(at + self.readers.few, last))
                norm = self.readers.norm if fold else None
                yield part, *_folded(norm, reader, self.rows[part] - start)
            start = stop


def project(readers: ReaderProjections, rows: Tensor, x: Tensor) -> Tensor:
    """``[n, R, dh]``: attention readers ``rows`` at their inputs ``x [n, R, D]``, left as is."""
    projected = Projected.of(readers, rows, x)
    if projected.normalised:
        assert projected.scale is not None
        x = (x * projected.scale).to(x.dtype)
    return projected.forward(x)


def _folded(norm: Norm | None, reader: WeightRows, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """``[r, dh, D]`` and ``[r, dh]``: weight times the norm's gain, and what x = 0 gives."""
    index = span(rows, reader.weight.device)
    weight, bias = reader.weight[index], None if reader.bias is None else reader.bias[index]
    if norm is None:
        return weight, bias
    if norm.bias is not None:
        moved = weight @ norm.bias
        bias = moved if bias is None else bias + moved
    return weight * norm.gain, bias


def span(rows: Tensor, device: torch.device) -> Tensor | slice:
    """Sorted row numbers as an index: a slice, which copies nothing, where they are neighbours."""
    if len(rows) and int(rows[-1]) - int(rows[0]) + 1 == len(rows):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows.to(device)


def centre(x: Tensor, centred: bool) -> Tensor:
    """``x [..., D]`` without its mean, which LayerNorms do not see, if ``centred``."""
    return x - x.mean(-1, keepdim=True) if centred else x
