"""Flexible tests against random circuits: sufficiency, partial necessity (Shi et al., section 3.2).

Null hypothesis of both: the circuit is no better than a share ``quantile`` of random circuits.
Rejecting it is what a good circuit does. Each result also has the Monte Carlo rank p-value of "the
circuit is one of the random ones", ``values["p_rank"]``.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from graphprune.errors import InputError
from graphprune.mask import EdgeMask, budget
from graphprune.methods.base import AblationLike, at_least
from graphprune.model import MaskedModel
from graphprune.task import Task

from .circuits import Match, draw
from .pvalues import beats_share, rank_p, share
from .result import Finding
from .runs import Distance, MetricLike, RunOptions, Runs, circuit_of, distance_of

__all__ = ["necessity_test", "sufficiency_test"]


def sufficiency_test(
    model: MaskedModel,
    task: Task,
    mask: Any,
    *,
    quantile: float = 0.9,
    draws: int = 100,
    size: float | None = None,
    match: Match = "paths",
    distance: Distance = "squared",
    metric: MetricLike = None,
    ablation: AblationLike = "counterfactual",
    alpha: float = 0.05,
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Finding:
    """Whether the circuit alone is closer to the full model than most random circuits are.

    Args:
        quantile: the share of random circuits it must beat.
        draws: random circuits.
        size: their number of edges (int) or share of all (float), to make the test harder;
            ``None``: the circuit's own.
        match: ``"paths"`` as the paper, ``"size"`` or ``"degree"`` (the circuit's size only); see
            :func:`~graphprune.statistics.random_circuits`.
        distance: how far scores are apart: ``"squared"``, ``"absolute"`` or ``"mean"``.
    """
    circuit = circuit_of(model, mask, full=False)
    rows = _random(circuit, draws, match, size, seed)
    scorer = Runs(model, task, ablation, metric, **options)
    losses = distance_of(scorer(torch.cat([circuit.kept[None], rows]), "sufficiency"), scorer.full,
                         distance)  # fmt: skip
    noise = scorer.noise**2 if distance == "squared" else scorer.noise
    # Published: no worse counts as beaten. Here a tie is none.
    beaten = int((losses[0] + noise < losses[1:]).sum())
    return _finding(
        "sufficiency", scorer, circuit, losses, beaten, rank_p(-float(losses[0]), -losses[1:].numpy(),
                                                               tolerance=noise),
        f"the circuit alone is closer to the full model than {{}} of {draws} random circuits",
        f"the circuit is no closer to the full model than {quantile:g} of random circuits",
        quantile, alpha, rows,
        {"draws": draws, "match": match, "distance": distance, "seed": seed},
    )  # fmt: skip


def necessity_test(
    model: MaskedModel,
    task: Task,
    mask: Any,
    *,
    quantile: float = 0.9,
    draws: int = 100,
    size: float | None = None,
    match: Match = "paths",
    source: Literal["graph", "complement"] = "graph",
    distance: Distance = "squared",
    metric: MetricLike = None,
    ablation: AblationLike = "counterfactual",
    alpha: float = 0.05,
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Finding:
    """Whether knocking the circuit out of the full model does more than knocking random ones out.

    Partial necessity: the full model without the circuit is farther from the full model than
    without a random circuit of equal size.

    Args:
        source: where random circuits are drawn from; ``"complement"``: from edges outside the
            circuit alone (uniformly; ``match`` then has no part).

    Other arguments as for :func:`sufficiency_test`.
    """
    circuit = circuit_of(model, mask, full=False)
    if source == "complement":
        rows = _outside(circuit, draws, seed, size)
    elif source == "graph":
        rows = _random(circuit, draws, match, size, seed)
    else:
        raise InputError(f"source is graph or complement, got {source!r}")
    scorer = Runs(model, task, ablation, metric, **options)
    out = ~torch.cat([circuit.kept[None], rows])
    effects = distance_of(scorer(out, "necessity"), scorer.full, distance)
    noise = scorer.noise**2 if distance == "squared" else scorer.noise
    beaten = int((effects[0] > effects[1:] + noise).sum())
    return _finding(
        "necessity", scorer, circuit, effects, beaten, rank_p(float(effects[0]), effects[1:].numpy(),
                                                              tolerance=noise),
        f"taking the circuit out changes the model more than taking out {{}} of {draws} random "
        "circuits",
        f"taking the circuit out changes no more than taking out {quantile:g} of random circuits",
        quantile, alpha, rows,
        {"draws": draws, "match": match if source == "graph" else None, "source": source,
         "distance": distance, "seed": seed},
    )  # fmt: skip


def _finding(
    name: str,
    scorer: Runs,
    circuit: EdgeMask,
    distances: Tensor,
    beaten: int,
    p_rank: float,
    said: str,
    null: str,
    quantile: float,
    alpha: float,
    rows: Tensor,
    settings: dict[str, Any],
) -> Finding:
    share(quantile, "quantile")
    share(alpha, "alpha")
    draws = len(rows)
    p = beats_share(beaten, draws, quantile, more=True)
    least = beats_share(draws, draws, quantile, more=True)
    remarks = []
    if least > alpha:
        remarks.append(f"{draws} draws are too few to reject at {alpha:g}: the least p is {least:.2g}")
    shared = (rows & circuit.kept).sum(1) / circuit.num_kept
    return Finding(
        name=name,
        null=null,
        said=said.format(beaten),
        p_value=p,
        alpha=alpha,
        passed=p <= alpha,
        values={
            "distance": float(distances[0]),
            "random_mean": float(distances[1:].mean()),
            "random_least": float(distances[1:].min()),
            "random_most": float(distances[1:].max()),
            "beaten": beaten / draws,
            "p_rank": p_rank,
            "shared": float(shared.mean()),
        },
        rows=tuple(
            {"circuit": "found" if i == 0 else f"random {i}", "edges": int(n), "distance": d}
            for i, (n, d) in enumerate(
                zip([circuit.num_kept, *rows.sum(1).tolist()], distances.tolist(), strict=True)
            )
        ),
        settings={**scorer.settings, **settings, "quantile": quantile, "edges": circuit.num_kept},
        remarks=tuple(remarks),
    )


def _random(circuit: EdgeMask, draws: int, match: str, size: float | None, seed: int) -> Tensor:
    if size is None:
        return draw(circuit, draws, match, seed)
    if match == "degree":
        raise InputError("circuits of equal degrees have the circuit's size; leave size out")
    count = budget(size, circuit.graph.num_edges)
    if not 0 < count < circuit.graph.num_edges:
        raise InputError(f"random circuits of {count} edges are all or nothing; give another size")
    values = torch.zeros(circuit.graph.num_edges)
    values[:count] = 1.0
    return draw(EdgeMask(circuit.graph, values), draws, match, seed)


def _outside(circuit: EdgeMask, draws: int, seed: int, size: float | None) -> Tensor:
    """``[draws, E]``: random edges outside the circuit."""
    at_least(draws, 1, "draws")
    total = circuit.graph.num_edges
    count = circuit.num_kept if size is None else budget(size, total)
    outside = torch.nonzero(~circuit.kept)[:, 0]
    if not 0 < count <= len(outside):
        raise InputError(
            f"{len(outside)} edges lie outside the circuit, random ones of {count} were asked for; "
            "take source='graph'"
        )
    generator = torch.Generator().manual_seed(at_least(seed, 0, "seed"))
    rows = torch.zeros(draws, total, dtype=torch.bool)
    for row in rows:
        row[outside[torch.randperm(len(outside), generator=generator)[:count]]] = True
    return rows
