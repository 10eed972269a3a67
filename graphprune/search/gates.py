"""Gates: relaxations of a 0/1 choice, one parameter for each gate.

A gate turns parameters ``[n]`` and uniform noise ``u [..., n]`` into mask values in [0, 1],
differentiable in the parameters. Higher parameters mean open gates (1 = the clean message passes).
All of it runs in float32, whatever the model's dtype.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError

__all__ = [
    "BETA",
    "GateKind",
    "budgeted_sigmoid",
    "edge_ranking",
    "hard_concrete",
    "hard_concrete_open",
    "log_odds",
    "log_open",
    "noise",
    "of_senders",
    "strength",
    "uniform_window",
    "window_weights",
]

GateKind = Literal["hard concrete", "chance", "budget", "ranking"]
"""What a gate's parameter is: a log alpha; log odds; a score that is shifted to a budget; a score
with a random budget."""

BETA = 2.0 / 3.0
_LOW, _HIGH = -0.1, 1.1  # the interval a concrete variable is stretched to before it is clipped


def noise(shape: tuple[int, ...], seed: int, step: int, device: torch.device | str) -> Tensor:
    """Uniform noise in (0, 1), a function of seed and step alone: runs resume without a state.

    Drawn on the CPU, so that every device and every process draws the same.

    Example:
        >>> bool((noise((3,), 0, 7, "cpu") == noise((3,), 0, 7, "cpu")).all())
        True
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63))
    u = torch.rand(shape, generator=generator).clamp_(1e-6, 1 - 1e-6)
    return u.to(device)


def hard_concrete(log_alpha: Tensor, u: Tensor, beta: float = BETA) -> Tensor:
    """The hard concrete gate (Louizos et al. 2018, arXiv 1712.01312, eq. 10-11).

    ``clip(1.2 s - 0.1, 0, 1)`` with ``s = sigmoid((logit u + log_alpha) / beta)``; without noise,
    at ``u = 0.5``, it is the gate's median.

    Example:
        >>> hard_concrete(torch.tensor([-3.0, 0.0, 3.0]), torch.tensor(0.5)).round(decimals=2)
        tensor([0.0000, 0.5000, 1.0000])
    """
    s = torch.sigmoid((torch.logit(u) + log_alpha) / beta)
    return (s * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)


def hard_concrete_open(log_alpha: Tensor, beta: float = BETA) -> Tensor:
    """The chance that a hard concrete gate is not 0 (its contribution to the expected L0 norm).

    Example:
        >>> gate = torch.tensor([-2.0, 0.0])
        >>> u = torch.rand(200_000, 2, generator=torch.Generator().manual_seed(0))
        >>> gap = (hard_concrete(gate, u) > 0).float().mean(0) - hard_concrete_open(gate)
        >>> bool((gap.abs() < 0.005).all())
        True
    """
    return torch.sigmoid(log_alpha - beta * math.log(-_LOW / _HIGH))


def log_open(log_alpha: Tensor, beta: float = BETA) -> Tensor:
    """The log of :func:`hard_concrete_open` in float64, strictly increasing: sums of it rank.

    Example:
        >>> log_open(torch.tensor([8.0, 9.0])).diff() > 0
        tensor([True])
    """
    shift = beta * math.log(-_LOW / _HIGH)
    return torch.nn.functional.logsigmoid(log_alpha.double() - shift)


def log_odds(log_chance: Tensor) -> Tensor:
    """Log odds of chances given by their logs, float64: unlike chances, they do not saturate at 1.

    Example:
        >>> chance = torch.tensor([0.25, 0.5, 0.75])
        >>> log_odds(chance.log()).exp().round(decimals=4)
        tensor([0.3333, 1.0000, 3.0000], dtype=torch.float64)
    """
    log_chance = log_chance.double().clamp(max=-1e-300)
    return log_chance - torch.log(-torch.expm1(log_chance))


def of_senders(nodes: Tensor, graph: ComputationalGraph) -> Tensor:
    """``[..., E]``: for each edge its sender's entry of ``nodes [..., N]``."""
    return nodes[..., graph.edge_index[0].to(nodes.device)]


def edge_ranking(
    kind: GateKind, edges: Tensor, nodes: Tensor | None, graph: ComputationalGraph
) -> Tensor:
    """``[E]``: the ranking that gates of edges ``[E]`` and of senders ``[N]`` stand for.

    Without gates on senders it is the edges' own. Scores add up; of chances it is the log odds of
    the product.
    """
    if nodes is None:
        return edges
    if kind in ("budget", "ranking"):
        return edges + of_senders(nodes, graph)
    log_chance = log_open if kind == "hard concrete" else _log_sigmoid
    return log_odds(log_chance(edges) + of_senders(log_chance(nodes), graph))


def _log_sigmoid(logits: Tensor) -> Tensor:
    return torch.nn.functional.logsigmoid(logits.double())


def strength(gates: Tensor) -> Tensor:
    """Positive numbers in the order of ``gates``: ``1 + x`` from 0 on, ``1 / (1 - x)`` below.

    Both halves are as fine as float32 holds x itself: nothing saturates, whereas float32 has one
    sigmoid of 20 and of 30, and one exponential of -110 and of -120. Opposite gates have inverse
    strengths.

    Example:
        >>> strength(torch.tensor([-300.0, -1.0, 0.0, 20.0, 30.0]))
        tensor([3.3223e-03, 5.0000e-01, 1.0000e+00, 2.1000e+01, 3.1000e+01])
    """
    x = gates.double()
    return torch.where(x < 0, 1 / (1 + x.abs()), 1 + x.abs()).float()


def uniform_window(p: Tensor, u: Tensor) -> Tensor:
    """Uniform gradient sampling's gate (Li & Janson 2024, arXiv 2409.09951) of keep chances ``p``.

    With the window ``w = p (1 - p)``, held constant, the gate is ``clip((p - u) / w + 1/2, 0, 1)``:
    1 with chance about p, 0 with chance about 1 - p, fractional in a window of width w. A
    fractional gate has the derivative 1 / w with respect to p, and is one in w of all masks, so
    that a mean over masks has the derivative 1.

    Example:
        >>> theta = torch.tensor([0.0], requires_grad=True)
        >>> gate = uniform_window(torch.sigmoid(theta), torch.tensor([0.4]))
        >>> gate.sum().backward(); round(float(gate.detach()), 4), float(theta.grad)
        (0.9, 1.0)
    """
    return ((p - u) / _window(p) + 0.5).clamp(0.0, 1.0)


def _window(p: Tensor) -> Tensor:
    return (p * (1 - p)).detach().clamp_min(1e-6)


def window_weights(p: Tensor, u: Tensor, *, released: bool = False) -> Tensor:
    """``[n]``: factors on gradients that make a sum over fractional gates a mean over them.

    Of n masks with a gate of ``uniform_window(p, u)``, c have it fractional: the factor is
    ``n w / (c (1 - (1 - w)^n))``, and 0 for c = 0. Dividing by the chance of c > 0 keeps the
    gradient unbiased; averaging over c instead of the expected n w makes it less noisy.

    Args:
        p: ``[n]`` keep chances.
        u: ``[..., n]`` the noise of all masks of a step.
        released: as in the authors' code: not divided, which makes gradients too small where few
            masks are fractional, and gates within .001 of 0 or 1 are not counted.
    """
    with torch.no_grad():
        w, z = _window(p), uniform_window(p, u).reshape(-1, len(p))
        margin = 1e-3 if released else 0.0
        count = ((z > margin) & (z < 1 - margin)).sum(0)
        weight = torch.where(count > 0, len(z) * w / count.clamp_min(1), 0.0)
        if released:
            return weight
        return weight / -torch.expm1(len(z) * torch.log1p(-w))


def budgeted_sigmoid(
    scores: Tensor, count: float | Tensor, temperature: float, rounds: int = 40
) -> tuple[Tensor, Tensor]:
    """Sigmoids of ``scores [..., n]`` shifted so that they sum to ``count [...]``: a soft top-k.

    ``sigmoid((scores - tau) / temperature)`` with tau found by Newton's steps inside a bracket that
    is halved where they leave it, and the values; the derivative of tau is carried too (implicit
    differentiation), so gradients leave the sum as it is. Matryoshka attribution's mask (arXiv
    2609.25518).

    Returns:
        The values ``[..., n]`` and tau ``[..., 1]``. Raises :class:`InputError` unless
        ``0 < count < n``.

    Example:
        >>> values, tau = budgeted_sigmoid(torch.tensor([3.0, 0.0, -3.0, 0.0]), 1.0, 0.5)
        >>> round(float(values.sum()), 4), [round(float(v), 2) for v in values]
        (1.0, [0.93, 0.03, 0.0, 0.03])
    """
    n = scores.shape[-1]
    wanted = torch.as_tensor(count, dtype=scores.dtype, device=scores.device)[..., None]
    if not bool(((wanted > 0) & (wanted < n)).all()):
        raise InputError(f"a soft top-k of {n} scores needs a count between 0 and {n}, got {count}")
    with torch.no_grad():
        reach = temperature * 30.0
        low = scores.amin(-1, keepdim=True) - reach
        high = scores.amax(-1, keepdim=True) + reach
        low, high = (x.expand(*wanted.shape[:-1], 1).clone() for x in (low, high))
        tau = (low + high) / 2
        for number in range(1, rounds + 1):
            s = torch.sigmoid((scores - tau) / temperature)
            gap = s.sum(-1, keepdim=True) - wanted
            low, high = torch.where(gap > 0, tau, low), torch.where(gap > 0, high, tau)
            slope = (s - s.square()).sum(-1, keepdim=True).clamp_min(1e-12)
            newton = tau + temperature * gap / slope
            inside = (newton >= low) & (newton <= high)
            before, tau = tau, torch.where(inside, newton, (low + high) / 2)
            if number % 6:  # to look is to wait for the device
                continue
            exact = gap.abs() <= 4 * torch.finfo(scores.dtype).eps * wanted
            if bool((exact | ((tau - before).abs() <= 1e-6 * temperature)).all()):
                break
        s = torch.sigmoid((scores - tau) / temperature)
        slope = (s * (1 - s)).sum(-1, keepdim=True).clamp_min(1e-12)
    # One Newton step from the root has the root's derivative with respect to the scores.
    drift = torch.sigmoid((scores - tau) / temperature).sum(-1, keepdim=True)
    moved = tau + temperature * (drift - drift.detach()) / slope
    return torch.sigmoid((scores - moved) / temperature), tau
