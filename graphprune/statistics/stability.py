"""Stability: the same method with other seeds, and on resampled prompts.

Two questions, answered apart:

- *seeds*: the same examples, another seed each. Do the circuits depend on the method's randomness?
- *resamples*: bootstrap samples of the examples, and another seed each. Do they depend on which
  examples there were? If the seed were held, a method that reads nothing would give one circuit
  on all samples and look perfectly stable.

A share of common edges is large or small only beside chance. The null hypothesis is that runs have
nothing in common but how circuits are made; ``match`` says how:

- ``"rankings"``: random rankings of all edges, cut and freed of dead ends as the scorer's are. What
  is left without dead ends shares several times more edges than random sets of its size do;
- any ``match`` of :func:`~graphprune.statistics.random_circuits`: for each run a random circuit of
  exactly its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from graphprune.comparison.p_values import rank_p
from graphprune.core.mask import EdgeMask
from graphprune.core.method import Pruner, Scorer, ablation_of
from graphprune.core.model import MaskedModel
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.selection.selectors import circuit_of_size
from graphprune.util.checks import at_least, share
from graphprune.util.numbers import ranks
from graphprune.util.progress import track

from .finding import Finding
from .mask_evaluator import require_examples
from .method_runs import MethodRun, label_of, reseeded, run_method
from .random_circuits import Match, RandomWalks, draw

_SEEDS = 5
_CHUNK = 16  # random circuits of each run held at once


def stability(
    method: Any,
    model: MaskedModel,
    task: Task,
    *,
    size: float | None = None,
    seeds: Sequence[int] | None = None,
    resamples: int = 10,
    match: Match | Literal["rankings"] | None = None,
    draws: int = 99,
    alpha: float = 0.05,
    seed: int = 0,
) -> Finding:
    """The share of edges that circuits of several runs of a method have in common.

    Runs with other seeds and runs on resampled examples are judged apart.

    Each share is a mean Jaccard overlap over pairs of runs (two empty circuits share nothing), with
    a 95 % interval by the jackknife over runs, beside the same of ``draws`` families of random
    circuits. The method passes if every share that was measured is beyond chance; ``p_value`` is
    the largest of theirs, which needs no correction where all must be rejected.

    Args:
        method: a scorer (with ``size``), a pruner, or a function ``(model, task) -> EdgeMask``;
            one that also takes ``seed`` is given one.
        seeds: seeds, each once, on all examples. ``None`` means 0 to 4, and none where the method
            has no seed, which the summary says. Seeds of methods inside the method change too.
        resamples: bootstrap samples of the examples, each with a seed of its own where the method
            has one. Any two have about 40 % of the examples in common, so that circuits of fresh
            examples may share less.
        match: how random circuits are made, see the module; ``None`` takes ``"rankings"`` for a
            scorer with ``size``; for others ``"paths"`` where their circuits have no dead ends,
            else ``"size"``. ``"composition"`` and ``"degree"`` ask for more: single edges in common
            beyond those of the same layers, kinds or degrees.
        draws: families of random circuits.
        seed: of the resamples and the random families.

    ``values["seeds"]`` and ``values["resamples"]`` each hold ``jaccard``, ``low``, ``high``,
    ``by_chance``, ``p_value``, ``spearman`` (mean rank correlation of scores), ``edges`` (of every
    run), ``frequency`` (every edge ever kept, with the share of runs that kept it) and ``core``
    (those that all kept), or are ``None``, and ``values["not_measured"]`` says why. The table has a
    row for each pair of runs.

    Raises:
        InputError: a single run of a kind, ``seeds`` for a method that has none, a seed twice.

    Example:
        >>> stability(gp.EAP(), model, task, size=12, resamples=3, draws=19)
        Finding('stability: circuits of 3 resamples share 46% of their edges (Jaccard 0.46, 0 to
        1; by chance 0.36, p = 0.1); EAP has no seed that could be changed (p = 0.1)')
    """
    share(alpha, "alpha")
    at_least(draws, 1, "draws")
    at_least(resamples, 0, "resamples")
    generator = np.random.default_rng(at_least(seed, 0, "seed"))
    name, seeded = label_of(method), reseeded(method, 0) is not None
    chosen = (range(_SEEDS) if seeded else ()) if seeds is None else tuple(seeds)
    _require_runs(chosen, resamples, seeded, name)
    if resamples:
        require_examples(task, 2, "resampling")
    runs: dict[str, list[MethodRun]] = {"seeds": [], "resamples": []}
    for number in track(chosen, "seeds", len(chosen)):
        runs["seeds"].append(run_method(reseeded(method, number), model, task, size))
    for _ in track(range(resamples), "resamples", resamples):
        resample = task.subset(np.sort(generator.integers(len(task), size=len(task))).tolist())
        own = reseeded(method, int(generator.integers(2**31))) if seeded else method
        runs["resamples"].append(run_method(own, model, resample, size))
    runs = {kind: kind_runs for kind, kind_runs in runs.items() if kind_runs}
    every = [run for kind_runs in runs.values() for run in kind_runs]
    ranked = isinstance(method, Scorer) and not isinstance(method, Pruner) and size is not None
    how = match or ("rankings" if ranked else _default_match([run.mask for run in every]))
    if how == "rankings" and not ranked:
        raise InputError("match='rankings' stands for random scores: it needs a scorer and size=")
    values: dict[str, Any] = {"seeds": None, "resamples": None}
    cut = partial(circuit_of_size, size=size or 0, ablation=ablation_of(method), task=task)
    chance = _random_overlaps(runs, how, cut, draws, generator)
    rows: list[dict[str, Any]] = []
    for kind, kind_runs in runs.items():
        values[kind], pairs = _overlap(kind_runs, chance[kind])
        names = {"seeds": chosen, "resamples": range(resamples)}[kind]
        named = zip(combinations(names, 2), pairs, strict=True)
        rows += [{"over": kind, "first": i, "second": j, **pair} for (i, j), pair in named]
    p = max(values[kind]["p_value"] for kind in runs)
    unseeded = f"{name} has no seed that could be changed"
    values["not_measured"] = {
        kind: unseeded if kind == "seeds" and not seeded else "not asked for"
        for kind in ("seeds", "resamples")
        if kind not in runs
    }
    empty = sum(run.mask.num_kept == 0 for run in every)
    remarks = [f"{empty} of {len(every)} circuits keep no edge"] if empty else []
    if not seeded and not isinstance(method, Scorer):
        remarks.append(
            "randomness inside the method, with a seed of its own, would not show: every run has "
            "the same; let it take seed="
        )
    return Finding(
        name="stability",
        null="circuits of two runs share no more edges than random ones (of some kind of run)",
        said=_sentence(values, runs, seeded, unseeded),
        p_value=p,
        alpha=alpha,
        passed=p <= alpha,
        # The largest share there is, had the runs reached it.
        least_p=max(rank_p(1.0, drawn, tolerance=1e-12) for drawn in chance.values()),
        correction="none: every kind of run must be beyond chance; p_value is the largest",
        values=values,
        rows=rows,
        settings={
            "task": task.name,
            "examples": len(task),
            "method": name,
            "size": size,
            "seeds": list(chosen),
            "resamples": resamples,
            "match": how,
            "draws": draws,
            "seed": seed,
            "graph": model.graph.fingerprint,
        },
        remarks=remarks,
    )


def _require_runs(seeds: Sequence[int], resamples: int, seeded: bool, name: str) -> None:
    if len(seeds) and not seeded:
        raise InputError(f"{name} has no seed; use resamples")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"a seed twice gives one circuit twice: name each once; got {list(seeds)}")
    if not len(seeds) and not resamples:
        raise InputError("stability compares at least two runs: give seeds or resamples")
    if len(seeds) == 1 or resamples == 1:
        raise InputError(
            "one seed or one resample has no other to be compared with: give two, or 0"
        )


def _default_match(masks: Sequence[EdgeMask]) -> Match:
    if any(mask.prune_dead_ends(from_inputs=False) != mask for mask in masks):
        return "size"
    try:
        RandomWalks(masks[0].graph)
    except InputError:  # no path from an input to an output
        return "size"
    return "paths"


def _sentence(
    values: dict[str, Any], runs: dict[str, list[MethodRun]], seeded: bool, unseeded: str
) -> str:
    sentences = []
    for kind, kind_runs in runs.items():
        overlap = values[kind]
        spread = (
            "" if overlap["low"] is None else f", {overlap['low']:.2g} to {overlap['high']:.2g}"
        )
        what = f"{len(kind_runs)} {kind}"
        what += ", each with a seed of its own," if kind == "resamples" and seeded else ""
        sentences.append(
            f"circuits of {what} share {overlap['jaccard']:.0%} of their edges (Jaccard "
            f"{overlap['jaccard']:.2g}{spread}; by chance {overlap['by_chance']:.2g}, "
            f"p = {overlap['p_value']:.2g})"
        )
    return "; ".join(sentences if seeded else [*sentences, unseeded])


# ---------------------------------------------------------------- one kind of run


def mean_overlap(family: NDArray[np.bool_]) -> float:
    """The mean Jaccard overlap of all pairs of rows ``[R, E]``; two empty rows share nothing.

    Example:
        >>> mean_overlap(np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]], dtype=bool))
        0.1111111111111111
    """
    return float(_overlaps(family)[np.triu_indices(len(family), 1)].mean())


def _overlaps(family: NDArray[np.bool_]) -> NDArray[np.float64]:
    """``[R, R]`` Jaccard overlaps."""
    rows = family.astype(np.float32)
    both = (rows @ rows.T).astype(np.float64)
    sizes = both.diagonal()
    return np.asarray(both / np.maximum(sizes[:, None] + sizes - both, 1))


def jackknife(overlaps: NDArray[np.float64]) -> tuple[float, float] | None:
    """The 95 % interval of the mean over pairs of ``[R, R]``, leaving out each run; R from 3."""
    from scipy.stats import t

    n = len(overlaps)
    if n < 3:
        return None
    sums = overlaps.sum(1) - overlaps.diagonal()
    pairs = sums.sum() / 2
    without = (pairs - sums) / ((n - 1) * (n - 2) / 2)
    spread = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    mean, reach = pairs / (n * (n - 1) / 2), float(t.ppf(0.975, n - 1)) * spread
    return float(max(mean - reach, 0.0)), float(min(mean + reach, 1.0))


def _overlap(
    runs: Sequence[MethodRun], chance: NDArray[np.float64]
) -> tuple[dict[str, Any], list[dict[str, float | None]]]:
    """The overlap of runs of one kind, and that of each pair."""
    kept = torch.stack([run.mask.kept for run in runs])
    overlaps = _overlaps(kept.numpy())
    mean = mean_overlap(kept.numpy())
    low, high = jackknife(overlaps) or (None, None)
    often = kept.double().mean(0)
    ever = torch.nonzero(often)[:, 0]
    names = runs[0].mask.graph.edge_names.at(ever)
    frequency = dict(zip(names, often[ever].tolist(), strict=True))
    correlations = [_spearman(one, two) for one, two in combinations(runs, 2)]
    known = [rho for rho in correlations if rho is not None]
    jaccards = overlaps[np.triu_indices(len(runs), 1)].tolist()
    values = {
        "jaccard": mean,
        "low": low,
        "high": high,
        "by_chance": float(chance.mean()),
        "p_value": rank_p(mean, chance, tolerance=1e-12),
        "spearman": float(np.mean(known)) if known else None,
        "edges": kept.sum(1).tolist(),
        "core": [name for name, part in frequency.items() if part == 1.0],
        "frequency": frequency,
    }
    pairs = zip(jaccards, correlations, strict=True)
    return values, [{"jaccard": jaccard, "spearman": rho} for jaccard, rho in pairs]


def _spearman(first: MethodRun, second: MethodRun) -> float | None:
    if first.scores is None or second.scores is None:
        return None
    a, b = (ranks(scores.values, scores.noise) for scores in (first.scores, second.scores))
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else None


# ---------------------------------------------------------------- circuits by chance


def _random_overlaps(
    runs: dict[str, list[MethodRun]],
    match: str,
    cut: Callable[[EdgeScores], EdgeMask],
    draws: int,
    generator: np.random.Generator,
) -> dict[str, NDArray[np.float64]]:
    """``[draws]`` for each kind of run: mean overlaps of random families of as many circuits."""
    if match != "rankings":
        return {
            kind: np.array(
                [
                    mean_overlap(family)
                    for family in _random_families(
                        [run.mask for run in kind_runs], match, draws, generator
                    )
                ]
            )
            for kind, kind_runs in runs.items()
        }
    overlaps = {kind: np.empty(draws) for kind in runs}
    for number in track(range(draws), "circuits by chance", draws):
        for kind, kind_runs in runs.items():
            family = [_random_ranking(run, cut, generator) for run in kind_runs]
            overlaps[kind][number] = mean_overlap(np.stack(family))
    return overlaps


def _random_ranking(
    run: MethodRun, cut: Callable[[EdgeScores], EdgeMask], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """``[E]``: the circuit of a run's own scores, dealt out to the edges at random.

    Ties stay ties: which of equal scores are kept is the order of the edges, in every circuit.
    """
    scores = run.scores
    assert scores is not None
    order = torch.from_numpy(generator.permutation(len(scores.values)))
    dealt = EdgeScores(scores.graph, scores.values[order], noise=scores.noise)
    return np.asarray(cut(dealt).kept.numpy())


def _random_families(
    masks: Sequence[EdgeMask], match: str, draws: int, generator: np.random.Generator
) -> Iterator[NDArray[np.bool_]]:
    """``draws`` families ``[runs, E]`` of random circuits with the masks' sizes."""
    for first in range(0, draws, _CHUNK):
        count = min(_CHUNK, draws - first)
        rows = [draw(mask, count, match, int(generator.integers(2**31))) for mask in masks]
        yield from torch.stack(rows, 1).numpy()
