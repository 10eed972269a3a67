"""A mixture of experts as nodes: one for each expert, one that only reads for their router.

Each expert reads its own stream and sends its output times the weight that the router gives it; the
router reads a stream of its own and decides, in every run anew, who is called and how much each
counts. So an edge into an expert is what it works on, and an edge into the router is who is asked.
What the layer adds beside its experts (shared experts, biases) is one more node, ``shared``.

For the passes a mixture is attention whose heads are the experts, as wide as the stream: projection
and output map change nothing, and the router is a reader of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import UnsupportedModelError

from .module_copies import part, replaced
from .reading.trace import Traced, first_tensor, under
from .reading.whole_layer import Silent

__all__ = [
    "Copies",
    "ExpertCall",
    "ExpertNodes",
    "each_copy",
    "expert_nodes",
    "find_experts",
    "with_experts",
]


@dataclass(frozen=True, eq=False)
class ExpertCall:
    """How a layer calls its experts: with tokens, numbers of experts and weights, at ``places``."""

    path: str
    module: nn.Module
    places: tuple[int | str, int | str, int | str]
    count: int

    def run(self, x: Tensor, expert: int, weights: Tensor) -> Tensor:
        """One expert's weighted output ``[n, D]`` of tokens ``x [n, D]``; ``weights [n]``."""
        chosen = torch.full((len(x), 1), expert, dtype=torch.int64, device=x.device)
        given = dict(zip(self.places, (x, chosen, weights[:, None]), strict=True))
        args = [given[i] for i in range(sum(isinstance(key, int) for key in given))]
        out: Tensor = self.module(*args, **{k: v for k, v in given.items() if isinstance(k, str)})
        return out


class _Routed(Exception):
    """Carries what experts are called with out of the forward around them."""

    def __init__(self, call: tuple[Tensor, Tensor, Tensor]) -> None:
        super().__init__()
        self.call = call


class _StopAtExperts(nn.Module):
    def __init__(self, places: tuple[int | str, ...]) -> None:
        super().__init__()
        self.places = places

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        x, chosen, weights = (given[key] for key in self.places)
        raise _Routed((x, chosen, weights))


class Copies(nn.Linear):
    """What it reads, once for each of ``count`` readers; or the sum of what they send.

    ``weight [D, D]`` is the identity, ``same``'s own: one reader's or sender's, that of all.
    """

    def __init__(self, count: int, same: nn.Linear, *, add: bool) -> None:
        super().__init__(same.in_features, same.out_features, bias=False, device="meta")
        self.count, self.add, self.weight = count, add, same.weight

    def forward(self, input: Tensor) -> Tensor:
        """``[..., count * D]`` from ``[..., D]``, or the other way."""
        if self.add:
            summed: Tensor = input.unflatten(-1, (self.count, -1)).sum(-2)
            return summed
        return input.repeat(*[1] * (input.ndim - 1), self.count)


def each_copy(module: nn.Module, matrices: Tensor) -> Tensor:
    """``[n, a, b]``: the matrices of a map's heads; of :class:`Copies` views of the same one."""
    return matrices.expand(module.count, -1, -1) if isinstance(module, Copies) else matrices


class ExpertNodes(nn.Module):
    """The nodes of a layer's mixture: its readers' streams to what each of them sends.

    Args:
        experts: how the layer calls them.
        message: makes the layer's MLP message of a stream, with something else for the experts.
        names: of the nodes that send.
        factor: what the layer multiplies its experts' sum with.
        like: a tensor of the stream's width, dtype and device.
        same: the identity of the stream's width, which all layers share.
    """

    experts: ExpertCall

    def __init__(
        self,
        experts: ExpertCall,
        message: Callable[[nn.Module], nn.Module],
        names: tuple[str, ...],
        factor: float,
        like: Tensor,
        same: nn.Linear,
    ) -> None:
        super().__init__()
        self.__dict__["experts"] = experts  # its module is the layer's, no part of this one
        self.names, self.factor = names, factor
        self.asked = message(_StopAtExperts(experts.places))
        self.beside = message(Silent(like)) if len(names) > experts.count else None
        self.read = Copies(len(names) + 1, same, add=False)
        self.send = Copies(len(names), same, add=True)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """The sum of the nodes' messages, as attention gives it; other arguments are not read."""
        reads = self.read(x).unflatten(-1, (len(self.names) + 1, -1))
        shape = reads.shape
        reads = reads.flatten(0, -3)
        chosen, weights = routed(self.asked, reads[:, -1])
        sent = []
        for expert in range(self.experts.count):
            hit = chosen == expert
            tokens = torch.nonzero(hit.any(-1))[:, 0]
            out = torch.zeros_like(reads[:, expert])
            if len(tokens):
                share = (weights * hit).sum(-1)[tokens].to(reads)
                new = self.experts.run(reads[tokens, expert], expert, share) * self.factor
                out = out.index_copy(0, tokens, new.to(out))
            sent.append(out)
        if self.beside is not None:
            beside = first_tensor(self.beside(reads[:, -2][None]))
            assert beside is not None
            sent.append(beside.view_as(sent[0]))
        together = torch.cat(sent, -1).view(*shape[:-2], -1)
        return self.send(together), None


def routed(asked: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """``[n, k]`` numbers of experts and their weights for the stream ``x [n, D]``."""
    try:
        asked(x[None])
    except _Routed as stopped:
        _, chosen, weights = stopped.call
        return chosen.reshape(len(x), -1), weights.reshape(len(x), -1)
    raise UnsupportedModelError("a mixture of experts called none of them")


def find_experts(calls: list[Traced], inside: str) -> ExpertCall | None:
    """The call of a layer's experts: tokens, whole numbers and weights that go together.

    ``calls``: of a plain run; ``inside``: the layer's path. ``None`` if there is none.
    """
    for call in calls:
        if not under(call.path, inside) or not isinstance(call.output, Tensor):
            continue
        given: dict[Any, Any] = {**dict(enumerate(call.args)), **call.kwargs}
        tensors = {key: x for key, x in given.items() if isinstance(x, Tensor)}
        whole = [k for k, x in tensors.items() if not x.is_floating_point() and x.ndim == 2]
        same = [k for k, x in tensors.items() if x.shape == call.output.shape]
        if len(tensors) != len(given) or len(given) != 3 or len(whole) != 1 or len(same) != 1:
            continue
        (weights,) = [k for k in tensors if k not in (*whole, *same)] or [None]
        stacked = [p.shape[0] for p in call.module.parameters() if p.ndim == 3]
        if weights is None or tensors[weights].shape != tensors[whole[0]].shape or not stacked:
            continue
        path = call.path.removeprefix(f"{inside}.")
        return ExpertCall(path, call.module, (same[0], whole[0], weights), stacked[0])
    return None


def expert_nodes(
    experts: ExpertCall,
    message: Callable[[nn.Module], nn.Module],
    like: Tensor,
    same: nn.Linear,
    at: str,
) -> ExpertNodes:
    """The nodes of a layer's mixture; tried on drawn tokens.

    Args:
        experts: how the layer calls them.
        message: makes the layer's MLP message of a stream, with something else for the experts.
        like: a tensor of the stream's width, dtype and device.
        same: the identity of the stream's width, which all layers share.
        at: the layer's name, for messages.

    Raises:
        UnsupportedModelError: a layer that does more with its experts than weigh and add them.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, like.shape[-1], generator=generator).to(like)
    with torch.no_grad():
        whole = first_tensor(message(experts.module)(x[None]))
        beside = first_tensor(message(Silent(like))(x[None]))
        asked = message(_StopAtExperts(experts.places))
        try:
            asked(x[None])
            raise UnsupportedModelError(f"{at} called no experts")
        except _Routed as stopped:
            read, chosen, weights = stopped.call
        if read.numel() != x.numel() or not torch.equal(read.reshape(x.shape), x):
            raise UnsupportedModelError(
                f"{at}'s {experts.path} read something else than the layer's MLP does, so that no "
                "expert has a stream of its own: leave experts= out"
            )
        given = dict(zip(experts.places, (read, chosen, weights), strict=True))
        args = [given[i] for i in range(sum(isinstance(key, int) for key in given))]
        named = {k: v for k, v in given.items() if isinstance(k, str)}
        sums = experts.module(*args, **named).reshape(x.shape)
    assert whole is not None
    assert beside is not None
    rest = (whole - beside).view_as(x).double()
    factor = float((rest * sums).sum() / (sums.double() ** 2).sum())
    gap = float((rest - factor * sums).abs().max())
    if gap > (3e-2 if like.dtype in (torch.bfloat16, torch.float16) else 1e-4) * float(
        rest.abs().max()
    ):
        raise UnsupportedModelError(
            f"{at} does more with its experts than weigh and add them, so that no expert has a "
            "message of its own: leave experts= out"
        )
    names = [f"e{i}" for i in range(experts.count)]
    if bool(beside.any()):
        names.append("shared")
    factor = 1.0 if abs(factor - 1) < 1e-3 else factor
    return ExpertNodes(experts, message, tuple(names), factor, like, same)


def with_experts(module: nn.Module, path: str) -> Callable[[nn.Module], nn.Module]:
    """Makes the module with something else in place of its experts at ``path``."""
    own = part(module, path)
    return lambda new: module if new is own else replaced(module, {path: new})
