"""What a norm does, as numbers: ``y = x_hat * gain + bias``, ``x_hat = (x - mean?) * scale``.

``scale = 1 / sqrt(mean(square) + eps)`` for each token. The user's own module always computes the
forward pass; the description serves its Jacobian in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from graphprune.errors import UnsupportedModelError

__all__ = ["Norm", "describe_norm", "wide"]


def wide(x: Tensor) -> Tensor:
    """``x`` in float32 at least."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@dataclass(frozen=True, eq=False)
class Norm:
    """A LayerNorm (``centred``) or an RMSNorm of width D.

    ``gain`` is ``weight + offset``, with the offset 0 or 1.
    """

    module: nn.Module
    centred: bool
    offset: float
    eps: float
    kept: tuple[Tensor, Tensor | None] | None = None

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
        centre = x - x.mean(-1, keepdim=True) if self.centred else x
        values = wide(centre)
        scale = torch.rsqrt(values.square().mean(-1, keepdim=True) + self.eps)
        return (values * scale).to(x.dtype), scale.to(x.dtype)

    def scale(self, centred: Tensor) -> Tensor:
        """``[..., 1]`` of inputs that have no mean (any, for an RMSNorm), in float32 at least."""
        kind = wide(centred[:0]).dtype
        norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True, dtype=kind)
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
        centre = x - x.mean(-1, keepdim=True) if self.centred else x
        out = centre * scale * self.gain
        return out if self.bias is None else out + self.bias


def describe_norm(module: nn.Module, where: str, *, hold: bool = False) -> Norm:
    """Finds the description that reproduces the module on a probe; refuses if there is none.

    ``hold`` copies gain and bias, for modules whose weights come and go.
    """
    weight = getattr(module, "weight", None)
    eps = next(
        (float(getattr(module, n)) for n in ("eps", "variance_epsilon") if hasattr(module, n)), None
    )
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
                    loose = weight.dtype in (torch.float16, torch.bfloat16)
                    if torch.allclose(
                        got, want, rtol=3e-2 if loose else 1e-4, atol=1e-2 if loose else 1e-4
                    ):
                        return norm.held() if hold else norm
    raise UnsupportedModelError(
        f"{where} is a {type(module).__name__}, which behaves neither as a LayerNorm nor as an "
        "RMSNorm with a weight; its Jacobian is not known"
    )
