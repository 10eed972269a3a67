"""Tests of an ideal circuit: equivalence, independence, minimality (Shi et al., arXiv 2410.13032).

A perfect circuit retains all three null hypotheses. That a null hypothesis stands is no proof of
it: with few examples or draws everything passes. So each result says what it could have seen, and
the equivalence test also has the p-value of the opposite null hypothesis.

Where the hypotheses and their authors' code (github.com/blei-lab/circuitry, 042d00d) differ, this
follows the hypotheses: the code's equivalence test puts the mean difference of the scores where the
share of examples that one side wins belongs, p-values by permutation may be 0, and the correction
for the number of edges is left out.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor

from graphprune.comparison.p_values import beats_share, bonferroni, differs, is_within
from graphprune.core.mask import EdgeMask
from graphprune.core.model import MaskedModel
from graphprune.core.task import Task
from graphprune.errors import InputError, unknown_name
from graphprune.evaluation.exactness import without_each
from graphprune.util.checks import at_least, share
from graphprune.util.numbers import bootstrap_interval, few_examples

from .finding import Finding, first_names, power_at
from .hsic import hsic_test
from .mask_evaluator import Distance, MaskEvaluator, RunOptions, require_circuit, require_examples
from .random_circuits import RandomWalks


def equivalence_test(
    model: MaskedModel,
    task: Task,
    mask: Any,
    *,
    epsilon: float = 0.1,
    alpha: float = 0.05,
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Finding:
    """Tests that the circuit outperforms the full model as often as the other way round.

    Null hypothesis: the share of examples on which the circuit scores higher lies within
    ``1/2 ± epsilon``, ties counting half. Exact binomial p-value at the least favourable share.
    ``values["p_not_equivalent"]`` is the p-value of the opposite, two one-sided tests: below
    ``alpha`` it shows equivalence, which a null hypothesis that merely stands does not.

    Args:
        epsilon: how far from a half still counts as equal: a circuit that is worse on fewer than
            ``2 * epsilon`` of the examples and equal on the others passes.
        options: ``metric``, ``ablation`` and more, see
            :class:`~graphprune.statistics.mask_evaluator.RunOptions`. Of a metric that compares
            with the full model (KL) the full model itself scores best: the circuit ties or loses.

    Raises:
        InputError: an empty circuit, a task of one example.

    Example:
        >>> equivalence_test(model, task, mask)
        Finding('equivalence: the circuit is not told apart from the full model: of 10 examples it
        is better on 3, worse on 7, equal on 0 (p = 0.44)')
    """
    share(epsilon, "epsilon", 0.5)
    share(alpha, "alpha")
    circuit = require_circuit(model, mask)
    require_examples(task, 2, "the equivalence test")
    evaluator = MaskEvaluator(model, task, mask, **options)
    ours = evaluator(circuit.values[None], "equivalence")[0]
    gaps = ours - evaluator.full
    wins = int((gaps > evaluator.noise).sum())
    losses = int((gaps < -evaluator.noise).sum())
    n = len(gaps)
    p, opposite = differs(wins, losses, n, epsilon), is_within(wins, losses, n, epsilon)
    low, high = bootstrap_interval(gaps, seed=at_least(seed, 0, "seed"))
    remarks = []
    least = differs(n, 0, n, epsilon)
    if "full" in evaluator.measure.needs:
        remarks.append(
            f"{evaluator.measure.name} compares with the full model, which cannot be outperformed"
        )
    if p > alpha and opposite > alpha:
        remarks.append("neither equivalence nor a difference is shown; more examples would tell")
    remarks += filter(None, [few_examples(n)])
    equal = n - wins - losses
    verdict = (
        "differs from the full model" if p <= alpha else
        "is equivalent to the full model" if opposite <= alpha else
        "is not told apart from the full model"
    )  # fmt: skip
    return Finding(
        name="equivalence",
        null=f"the circuit outperforms the full model on 1/2 ± {epsilon:g} of the examples",
        said=f"the circuit {verdict}: of {n} examples it is better on {wins}, worse on {losses}, "
        f"equal on {equal}",
        p_value=p,
        alpha=alpha,
        passed=p > alpha,
        # Equivalence that is shown needs no null hypothesis that could have been rejected.
        least_p=None if opposite <= alpha else least,
        remedy=power_at("examples", lambda count: differs(count, 0, count, epsilon), alpha),
        values={
            "wins": wins,
            "losses": losses,
            "equal": equal,
            "share": (wins + equal / 2) / n,
            "p_not_equivalent": opposite,
            "mean_difference": float(gaps.mean()),
            "low": low,
            "high": high,
        },
        rows=[
            {"example": i, "circuit": a, "full": b, "difference": d}
            for i, (a, b, d) in enumerate(torch.stack([ours, evaluator.full, gaps], 1).tolist())
        ],
        settings=evaluator.settings(circuit, epsilon=epsilon, seed=seed),
        remarks=remarks,
    )


def independence_test(
    model: MaskedModel,
    task: Task,
    mask: Any,
    *,
    of: Literal["auto", "scores", "outputs"] = "auto",
    draws: int = 1000,
    alpha: float = 0.05,
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Finding:
    """Tests that what is left without the circuit is independent of the full model's answers.

    Null hypothesis: over examples the complement's scores and the full model's are independent.
    HSIC with a permutation test (see :func:`~graphprune.statistics.hsic_test`).

    Under counterfactual ablation even the wholly ablated model may depend on the full model,
    through whatever both prompts share; ``values["p_ablated"]`` is its p-value, and where that is
    small a rejection says nothing about the circuit.

    Args:
        of: ``"scores"`` as the paper; ``"outputs"``: the whole output vectors, for metrics of
            which the full model's score is a constant; ``"auto"``: outputs where the metric
            compares with the full model, else scores.
        draws: permutations.

    Raises:
        InputError: an empty circuit, fewer than 4 examples, ``of="scores"`` of a metric that
            compares with the full model.

    Example:
        >>> independence_test(model, task, mask, draws=99)
        Finding('independence: what is left without the circuit shows no dependence on the full
        model (scores, HSIC 0.0101) (p = 0.84)')
    """
    share(alpha, "alpha")
    circuit = require_circuit(model, mask)
    require_examples(task, 4, "the independence test")
    evaluator = MaskEvaluator(model, task, mask, **options)
    against_full = "full" in evaluator.measure.needs
    if of == "auto":
        of = "outputs" if against_full else "scores"
    if of == "scores" and against_full:
        raise InputError(
            f"{evaluator.measure.name} compares with the full model, whose own score is thus a "
            "constant that anything is independent of; take of='outputs' or another metric"
        )
    outside = (~circuit).values
    if of == "scores":
        values = (evaluator.full, evaluator(outside[None], "independence")[0], evaluator.ablated)
        rows = [column[:, None] for column in values]
    elif of == "outputs":
        rows = [evaluator.outputs(m) for m in (None, outside, torch.zeros_like(outside))]
    else:
        raise InputError(f"of is auto, scores or outputs; got {of!r}")
    grid = evaluator.ties * max(float(r.abs().max()) for r in rows)
    full, left, ablated = (_without_noise(r, grid) for r in rows)
    statistic, p, null = hsic_test(full, left, draws=draws, seed=at_least(seed, 0, "seed"))
    _, p_ablated, _ = hsic_test(full, ablated, draws=draws, seed=seed)
    remarks = []
    for what, side in (("the full model's", full), ("the complement's", left)):
        if np.ptp(side, 0).max(initial=0.0) == 0:
            remarks.append(f"{what} {of} are the same on every example, so nothing can depend")
    if p <= alpha and p_ablated <= alpha:
        remarks.append(
            "the wholly ablated model depends on the full model too, so what clean and ablated "
            "runs share can explain the rejection"
        )
    tells = "depends on" if p <= alpha else "shows no dependence on"
    return Finding(
        name="independence",
        null=f"without the circuit, {of} are independent of the full model's",
        said=f"what is left without the circuit {tells} the full model "
        f"({of}, HSIC {statistic:.3g})",
        p_value=p,
        alpha=alpha,
        passed=p > alpha,
        least_p=_least_by_order(statistic, null, full, left),
        values={
            "hsic": statistic,
            "null_mean": float(null.mean()),
            "null_95": float(np.quantile(null, 0.95)),
            "p_ablated": p_ablated,
        },
        settings=evaluator.settings(circuit, of=of, draws=draws, seed=seed),
        remarks=remarks,
    )


def _least_by_order(
    statistic: float, null: np.ndarray, full: np.ndarray, left: np.ndarray
) -> float:
    """The p-value of the permutation test, had the examples come in the best order of those seen.

    With few examples, or few different values, many orders give the largest HSIC there is.
    """
    if np.ptp(full, 0).max(initial=0.0) == 0:
        return 1.0  # nothing could have depended on a constant
    if np.ptp(left, 0).max(initial=0.0) == 0:
        return 1 / (1 + len(null))  # the constant is what was found, and leaves nothing to depend
    seen = np.append(null, statistic)
    return float(np.mean(seen >= seen.max() * (1 - 1e-9)))


def _without_noise(rows: Tensor, grid: float) -> np.ndarray:
    """Rows rounded to a grid, so that float noise is no information."""
    values: np.ndarray = rows.numpy()
    return np.round(values / grid) * grid if grid else values


def minimality_test(
    model: MaskedModel,
    task: Task,
    mask: Any,
    *,
    quantile: float = 0.9,
    draws: int = 100,
    edges: Any = None,
    distance: Distance = "squared",
    alpha: float = 0.05,
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Finding:
    """Tests that every edge matters more than random edges that were added to the circuit.

    An edge's effect is how far scores move when it is taken out of the circuit. The reference: the
    circuit inflated by a random path from an input to an output, and a random new edge of that path
    taken out again. Null hypothesis of an edge: its effect exceeds at least ``quantile`` of those
    of random ones. Exact binomial p-values, Bonferroni over the edges tested; edges whose null
    hypothesis is rejected are named, ``values["not_minimal"]``.

    Args:
        quantile: q* of the paper.
        draws: inflated circuits; each costs two runs, each edge one.
        edges: names or numbers of the edges to test; ``None`` means all of the circuit's.
        distance: ``"squared"``, ``"absolute"`` or ``"mean"``, how far scores are apart.

    Raises:
        InputError: an empty circuit, the whole graph, an edge outside the circuit.

    Example:
        >>> minimality_test(model, task, mask, draws=19)
        Finding('minimality: 0 of 12 edges matter no more than random ones (p = 1)')
    """
    share(quantile, "quantile")
    share(alpha, "alpha")
    at_least(draws, 1, "draws")
    circuit = require_circuit(model, mask, full=False)
    chosen = edge_numbers(circuit, edges)
    evaluator = MaskEvaluator(model, task, mask, **options)
    kept = circuit.kept
    inflated, knocked, names = _inflations(circuit, draws, at_least(seed, 0, "seed"))
    start = evaluator(kept[None], "minimality")[0]
    without = evaluator(without_each(kept, chosen), "minimality: edges")
    before = evaluator(inflated, "minimality: inflated")
    after = evaluator(knocked, "minimality: inflated")
    effects, noise = evaluator.distance(without, start, distance)
    random, _ = evaluator.distance(before, after, distance)
    beaten = [int((effect > random + noise).sum()) for effect in effects]
    p_values = [beats_share(count, draws, quantile, more=False) for count in beaten]
    corrected = bonferroni(p_values)
    labels = model.graph.edge_names.at(chosen)
    columns = (labels, effects.tolist(), beaten, p_values, corrected.tolist())
    rows = [
        {
            "edge": name,
            "effect": effect,
            "beats": count / draws,
            "p_value": p,
            "p_corrected": p_corrected,
            "minimal": p_corrected > alpha,
        }
        for name, effect, count, p, p_corrected in zip(*columns, strict=True)
    ]
    idle = [row["edge"] for row in rows if not row["minimal"]]

    def least_p(count: int) -> float:
        return min(1.0, beats_share(0, count, quantile, more=False) * len(labels))

    return Finding(
        name="minimality",
        null=f"every edge matters more than {quantile:g} of random edges added to the circuit",
        said=f"{len(idle)} of {len(labels)} edges matter no more than random ones"
        f"{first_names(idle)}",
        p_value=float(corrected.min()),
        alpha=alpha,
        passed=not idle,
        least_p=least_p(draws),
        remedy=power_at("draws", least_p, alpha),
        correction=f"Bonferroni over {len(labels)} edges",
        values={
            "not_minimal": idle,
            "tested": len(labels),
            "random_mean": float(random.mean()),
            "random_quantile": float(torch.quantile(random, quantile)),
        },
        rows=sorted(rows, key=lambda row: row["effect"]),
        settings=evaluator.settings(
            circuit, quantile=quantile, draws=draws, distance=distance, seed=seed,
            random_edges=names,
        ),
    )  # fmt: skip


def edge_numbers(circuit: EdgeMask, edges: Any) -> Tensor:
    """Numbers of the circuit's edges named, all of them for ``None``."""
    if edges is None:
        return torch.nonzero(circuit.kept)[:, 0]
    graph = circuit.graph
    if isinstance(edges, str):
        edges = [edges]
    numbers = []
    for edge in edges:
        if isinstance(edge, str) and edge not in graph.edge_number:
            raise unknown_name("edge", edge, graph.edge_names)
        number = graph.edge_number[edge] if isinstance(edge, str) else int(edge)
        if not 0 <= number < graph.num_edges or not bool(circuit.kept[number]):
            raise InputError(f"the edge {edge!r} is not in the circuit")
        numbers.append(number)
    if not numbers:
        raise InputError("no edge was named to test")
    return torch.tensor(numbers)


def _inflations(circuit: EdgeMask, draws: int, seed: int) -> tuple[Tensor, Tensor, list[str]]:
    """Inflated circuits ``[draws, E]``, the same without one new edge each, and its name."""
    generator = np.random.default_rng(seed)
    kept, walks = circuit.kept, RandomWalks(circuit.graph)
    inflated = kept.repeat(draws, 1)
    out = []
    for row in inflated:
        new = walks.inflating(kept.numpy(), generator)
        row[torch.from_numpy(new)] = True
        out.append(int(generator.choice(new)))
    knocked = inflated.clone()
    knocked[torch.arange(draws), torch.tensor(out)] = False
    return inflated, knocked, circuit.graph.edge_names.at(torch.tensor(out))
