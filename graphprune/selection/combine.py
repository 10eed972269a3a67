"""Several methods' scores made into one, on a common scale if wanted.

Sign: positive = useful, before and after. Normalisations change magnitudes only, never a sign and
never the order of one method's edges by magnitude. Ranks are combined as magnitudes, and the result
takes the sign that the scores have together: of signed ranks, two methods that disagree about the
sign of a large edge cancel, and it falls behind edges that both find small. Computed scores that
only rounding tells apart share their rank, and those not told from 0 get 0. Without a
normalisation, whichever method has the largest numbers decides (EAP's are around 1e-5 where a mask
optimiser's are around 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.core.mask import one_ablation, require_same_graph
from graphprune.core.scores import EdgeScores
from graphprune.errors import InputError
from graphprune.util.checks import require_one_of
from graphprune.util.numbers import levels, ranks

How = Literal["mean", "min", "max", "weighted"]
Normalize = Literal["rank", "magnitude_rank", "signed_rank", "quantile", "scale"] | None

HOWS = ("mean", "min", "max", "weighted")
NORMALIZATIONS = (None, "rank", "magnitude_rank", "signed_rank", "quantile", "scale")


def full_name(normalize: Normalize) -> Normalize:
    """The name that records keep: ``"rank"`` is short for ``"magnitude_rank"``.

    Up to version 0.2.0 it was ``"signed_rank"``, and records of that time call it ``"rank"``.
    """
    return "magnitude_rank" if normalize == "rank" else normalize


def magnitude_ranks(values: Tensor, noise: float = 0.0) -> Tensor:
    """``[E]`` float64: ranks of the magnitudes over E, in (0, 1]; ties share their mean rank.

    Magnitudes within ``noise`` of each other are ties, see :mod:`graphprune.util.numbers`.

    Example:
        >>> magnitude_ranks(torch.tensor([0.5, -2.0, 0.0, 0.5])).tolist()
        [0.625, 1.0, 0.25, 0.625]
    """
    return torch.from_numpy(ranks(values.abs(), noise) / max(len(values), 1))


def require_informative(scores: EdgeScores, what: str) -> None:
    """Raises :class:`InputError` if every edge has the same score: such scores rank nothing.

    Scores that only rounding tells apart are the same.
    """
    values = scores.values
    if len(values) > 1 and len(np.unique(levels(values, scores.noise))) == 1:
        raise InputError(
            f"{what} scores all {len(values)} edges {float(values[0]):.6g}: constant scores say "
            "nothing of which edges matter"
        )


def check_combination(
    members: int, how: str, weights: Sequence[float] | None, normalize: str | None
) -> None:
    """Raises :class:`InputError` for settings that :func:`combine_scores` cannot follow."""
    if members < 1:
        raise InputError("an ensemble needs at least one member")
    require_one_of(how, HOWS, "how")
    require_one_of(normalize, NORMALIZATIONS, "normalize")
    if how != "weighted":
        if weights is not None:
            raise InputError(f"weights are for how='weighted', not for how={how!r}")
        return
    if weights is None or len(weights) != members:
        got = "none" if weights is None else str(len(weights))
        raise InputError(
            f"how='weighted' needs one weight for each of {members} members, got {got}"
        )
    if not all(np.isfinite(w) and w >= 0 for w in weights) or not sum(weights) > 0:
        raise InputError(f"weights are numbers from 0 on, not all 0; got {list(weights)}")


def combine_scores(
    scores: Sequence[EdgeScores],
    how: How = "mean",
    weights: Sequence[float] | None = None,
    normalize: Normalize = None,
) -> EdgeScores:
    """One score for each edge from several methods'.

    Args:
        scores: one or more, over one graph.
        how: ``"mean"``, ``"min"``, ``"max"`` or ``"weighted"`` (a weighted mean), edge by edge, of
            the signed scores.
        weights: for ``"weighted"``, one from 0 on for each member.
        normalize: ``None`` leaves them as they are, as published (Mondorf et al., arXiv
            2510.06811); ``"magnitude_rank"``, or in short ``"rank"``: ranks of magnitudes over E
            are combined, and the sign is that of the (weighted) mean of the scores on the scale of
            ``"scale"``; ``"signed_rank"``: the sign times the magnitude's rank over E; ``"scale"``:
            over the root of the mean square; ``"quantile"``: the k-th largest magnitude of each
            becomes the mean over members of their k-th largest, each on the scale of ``"scale"``,
            so that all have one distribution and heavy tails stay heavy.

    Raises:
        InputError: no members, unequal numbers of members and weights, constant scores.
        GraphMismatchError: scores of different graphs.

    Example:
        >>> from graphprune import ComputationalGraph
        >>> graph = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c")])
        >>> small = EdgeScores(graph, torch.tensor([3e-6, -2e-6, 1e-6]))
        >>> large = EdgeScores(graph, torch.tensor([1.0, 2.0, 3.0]))
        >>> combine_scores([small, large]).values.argsort().tolist()  # the large one alone decides
        [0, 1, 2]
        >>> combine_scores([small, large], normalize="rank").values
        tensor([0.6667, 0.6667, 0.6667])
        >>> combine_scores([small, large], normalize="signed_rank").values
        tensor([0.6667, 0.0000, 0.6667])
    """
    check_combination(len(scores), how, weights, normalize)
    normalize = full_name(normalize)
    first = scores[0]
    for number, member in enumerate(scores, start=1):
        require_same_graph(
            first.graph, member.graph, f"member 1 ({first.method}) and {number} ({member.method})"
        )
        require_informative(member, f"member {number} ({member.method})")
    share = torch.tensor(weights or [1.0] * len(scores), dtype=torch.float64)
    share = share / share.sum()
    normalised = _normalised(scores, normalize)
    rows = torch.stack([row for row, _ in normalised])
    noise = torch.tensor([noise for _, noise in normalised], dtype=torch.float64)
    if normalize == "magnitude_rank":
        rows = rows.abs()
    if how in ("min", "max"):
        values = rows.amin(0) if how == "min" else rows.amax(0)
        left = noise.max()
    else:
        values, left = share @ rows, share @ noise
    if normalize == "magnitude_rank":
        values = values * _common_sign(scores, share)
    names = ", ".join(s.method or "scores" for s in scores)
    kind = how if normalize is None else f"{how} of {normalize}s"
    return EdgeScores(
        first.graph,
        values.float(),
        method=f"{kind}({names})",
        noise=float(left),
        ablation=one_ablation(*(member.ablation for member in scores)),
    )


def _common_sign(scores: Sequence[EdgeScores], share: Tensor) -> Tensor:
    """``[E]``: the sign of the scores' weighted mean on one scale; 1 where they cancel."""
    scaled = [row for row, _ in _normalised(scores, "scale")]
    told_from_0 = [torch.from_numpy(levels(s.values.double(), s.noise) != 0) for s in scores]
    together = share @ (torch.stack(scaled) * torch.stack(told_from_0))
    return torch.where(together < 0, -1.0, 1.0).double()


def _normalised(scores: Sequence[EdgeScores], normalize: Normalize) -> list[tuple[Tensor, float]]:
    """Each member's values ``[E]`` float64 on the common scale, and the noise left in them."""
    rows = [s.values.double() for s in scores]
    if normalize is None:
        return [(row, s.noise) for row, s in zip(rows, scores, strict=True)]
    if normalize == "scale":
        units = [_unit(row) for row in rows]
        return [(s.values.double() / u, s.noise / u) for s, u in zip(scores, units, strict=True)]
    placed = [levels(row, s.noise) for row, s in zip(rows, scores, strict=True)]
    if normalize in ("magnitude_rank", "signed_rank"):
        sizes = [magnitude_ranks(s.values, s.noise) for s in scores]
    else:
        curves = [row.abs().sort().values / _unit(row) for row in rows]
        reference = torch.stack(curves).mean(0).numpy()
        sizes = [torch.from_numpy(_by_rank(level, reference)) for level in placed]
    # A score that is not told from 0 has no sign. What is left of the noise is float64's own.
    return [
        (torch.from_numpy(np.sign(level)) * size, 0.0)
        for level, size in zip(placed, sizes, strict=True)
    ]


def _unit(row: Tensor) -> float:
    """The root of the mean square."""
    return float(row.square().mean().sqrt())


def _by_rank(level: NDArray[np.int64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ascending ``reference [E]`` dealt out by magnitude; ties share their part."""
    _, place, count = np.unique(np.abs(level), return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    total = np.concatenate([[0.0], np.cumsum(reference)])
    shared = (total[ends] - total[ends - count]) / count
    return np.asarray(shared[place])
