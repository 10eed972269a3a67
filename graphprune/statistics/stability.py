"""Stability: the same method with other seeds and on resampled prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from graphprune.errors import InputError
from graphprune.evaluation.recovery import stability as mean_jaccard
from graphprune.methods.base import at_least
from graphprune.model import MaskedModel
from graphprune.progress import track
from graphprune.task import Task

from .pvalues import rank_p, share
from .result import Finding
from .runs import require_examples
from .sanity import Found, circuit_by, label_of

__all__ = ["stability"]


def stability(
    method: Any,
    model: MaskedModel,
    task: Task,
    *,
    size: float | None = None,
    seeds: Sequence[int] = (),
    resamples: int = 10,
    draws: int = 999,
    alpha: float = 0.05,
    seed: int = 0,
) -> Finding:
    """How much circuits of several runs of a method share.

    The mean Jaccard overlap over pairs of runs (:func:`graphprune.stability`), against that of as
    many random sets of edges of the same sizes: the null hypothesis is that runs share no more.

    Args:
        method: a scorer (with ``size``), a pruner, or a function ``(model, task) -> EdgeMask``.
        seeds: the method with each of these as its ``seed``, on all examples.
        resamples: the method as it is on so many bootstrap samples of the examples.
        draws: random families that the overlap is compared with.
        seed: of the resamples and the random families.

    The table has a row for each pair: kinds and numbers of the two runs, their Jaccard overlap, and
    Spearman's correlation of their scores where the method gives scores. ``values["frequency"]``
    maps every edge that was ever kept to the share of runs that kept it; ``values["core"]`` names
    those that all did.

    Raises:
        InputError: fewer than two runs, or ``seeds`` for a method that has none.
    """
    share(alpha, "alpha")
    at_least(resamples, 0, "resamples")
    if resamples + len(seeds) < 2:
        raise InputError("stability compares at least two runs: give seeds or resamples")
    fields = (
        {f.name for f in dataclasses.fields(method)} if dataclasses.is_dataclass(method) else ()
    )
    if len(seeds) and "seed" not in fields:
        raise InputError(f"{label_of(method)} has no seed; use resamples")
    if resamples:
        require_examples(task, 2, "resampling")
    generator = np.random.default_rng(at_least(seed, 0, "seed"))
    runs: list[tuple[str, int, Found]] = []
    for number in track(seeds, "seeds", len(seeds)):
        runs.append(("seed", number, circuit_by(_seeded(method, number), model, task, size)))
    for number in track(range(resamples), "resamples", resamples):
        some = task.subset(np.sort(generator.integers(len(task), size=len(task))).tolist())
        runs.append(("resample", number, circuit_by(method, model, some, size)))
    masks = [found.mask for _, _, found in runs]
    sizes = [mask.num_kept for mask in masks]
    mean = mean_jaccard(masks)
    chance = _by_chance(sizes, model.graph.num_edges, draws, generator)
    p = rank_p(mean, chance, tolerance=1e-12)
    empty = sizes.count(0)
    kept = torch.stack([mask.kept for mask in masks]).double().mean(0)
    ever = torch.nonzero(kept)[:, 0]
    frequency = dict(
        zip(model.graph.edge_names.at(ever), (float(v) for v in kept[ever]), strict=True)
    )
    rows = [_pair(runs[i], runs[j]) for i, j in combinations(range(len(runs)), 2)]
    among = {
        kind: [m for k, _, f in runs if k == kind for m in (f.mask,)]
        for kind in ("seed", "resample")
    }
    ranks = [row["spearman"] for row in rows if row["spearman"] is not None]
    return Finding(
        name="stability",
        null="circuits of two runs share no more edges than random ones of their sizes",
        said=f"circuits of {len(runs)} runs share {mean:.0%} of their edges (Jaccard), by chance "
        f"{chance.mean():.2g}",
        p_value=p,
        alpha=alpha,
        passed=p <= alpha,
        values={
            "jaccard": mean,
            "jaccard_seeds": mean_jaccard(among["seed"]) if len(seeds) > 1 else None,
            "jaccard_resamples": mean_jaccard(among["resample"]) if resamples > 1 else None,
            "jaccard_by_chance": float(chance.mean()),
            "spearman": float(np.mean(ranks)) if ranks else None,
            "edges": sizes,
            "core": [name for name, share_ in frequency.items() if share_ == 1.0],
            "frequency": frequency,
        },
        rows=tuple(rows),
        settings={
            "task": task.name,
            "examples": len(task),
            "method": label_of(method),
            "size": size,
            "seeds": list(seeds),
            "resamples": resamples,
            "draws": draws,
            "seed": seed,
            "graph": model.graph.fingerprint,
        },
        remarks=(f"{empty} of {len(runs)} circuits keep no edge",) if empty else (),
    )


def _seeded(method: Any, seed: int) -> Any:
    return dataclasses.replace(method, seed=seed)


def _pair(first: tuple[str, int, Found], second: tuple[str, int, Found]) -> dict[str, Any]:
    from scipy.stats import spearmanr

    ours, theirs = first[2], second[2]
    correlation = None
    if ours.scores is not None and theirs.scores is not None:
        a, b = ours.scores.values.numpy(), theirs.scores.values.numpy()
        if np.ptp(a) and np.ptp(b):
            correlation = float(spearmanr(a, b).statistic)
    return {
        "first": f"{first[0]} {first[1]}",
        "second": f"{second[0]} {second[1]}",
        "jaccard": ours.mask.jaccard(theirs.mask),
        "spearman": correlation,
    }


def _by_chance(
    sizes: Sequence[int], total: int, draws: int, generator: np.random.Generator
) -> np.ndarray:
    """``[draws]``: mean Jaccard overlaps of random sets of these sizes, among ``total`` edges.

    Overlaps of pairs are drawn from their hypergeometric law, pair by pair.
    """
    at_least(draws, 1, "draws")
    found = np.zeros(draws)
    pairs = list(combinations(sizes, 2))
    for one, two in pairs:
        both = generator.hypergeometric(one, total - one, two, size=draws) if one and two else 0
        union = one + two - both
        found += np.where(union > 0, both / np.maximum(union, 1), 1.0)
    return found / len(pairs)
