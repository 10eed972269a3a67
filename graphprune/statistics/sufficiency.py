"""Flexible tests against random circuits: sufficiency, partial necessity (Shi et al. 2024).

Null hypothesis of both: the circuit is no better than a share ``quantile`` of random circuits.
Rejecting it is what a good circuit does. Each result also has the Monte Carlo rank p-value of "the
circuit is one of the random ones", ``values["p_rank"]``.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from graphprune.comparison.p_values import beats_share, rank_p
from graphprune.core.mask import EdgeMask, budget
from graphprune.core.model import MaskedModel
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.util.checks import share

from .finding import Finding, power_at
from .mask_evaluator import Distance, MaskEvaluator, RunOptions, require_circuit
from .random_circuits import Match, draw


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
    alpha: float = 0.05,
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Finding:
    """Tests that the circuit alone is closer to the full model than most random circuits are.

    Args:
        quantile: the share of random circuits it must beat.
        draws: random circuits.
        size: their number of edges (int) or share of all (float), to make the test harder;
            ``None`` takes the circuit's own.
        match: ``"paths"`` as the paper, ``"size"``, or ``"composition"``, ``"ends"`` or
            ``"degree"`` (of the circuit's size alone); see
            :func:`~graphprune.statistics.random_circuits`.
        distance: how far scores are apart: ``"squared"``, ``"absolute"`` or ``"mean"``.

    Example:
        >>> sufficiency_test(model, task, mask, draws=19)
        Finding('sufficiency: the circuit alone is closer to the full model than 19 of 19 random
        circuits (p = 0.14; underpowered: with these settings p is at least 0.14, so that nothing
        is rejected at 0.05; draws=29 or more would tell)')
    """
    return _against_random(
        (model, task, mask, options),
        name="sufficiency",
        said="the circuit alone is closer to the full model than {} of {} random circuits",
        null="the circuit is no closer to the full model than {} of random circuits",
        quantile=quantile,
        alpha=alpha,
        size=size,
        settings={"draws": draws, "match": match, "distance": distance, "seed": seed},
    )


def necessity_test(
    model: MaskedModel,
    task: Task,
    mask: Any,
    *,
    quantile: float = 0.9,
    draws: int = 100,
    size: float | None = None,
    match: Match = "paths",
    source: Literal["complement", "graph"] = "complement",
    distance: Distance = "squared",
    alpha: float = 0.05,
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Finding:
    """Tests that the full model loses more without the circuit than without random ones.

    Partial necessity: the full model without the circuit is farther from the full model than
    without a random circuit of equal size.

    Args:
        source: ``"complement"``: random circuits have no edge of the circuit; ``"graph"``: they are
            drawn from all edges. Where one missing edge breaks a model for good, as in compiled
            programs, most random circuits of the graph hit such an edge and break it as much.

    Other arguments as for :func:`sufficiency_test`.

    Example:
        >>> necessity_test(model, task, mask, draws=19)
        Finding('necessity: taking the circuit out changes the model more than taking out 19 of 19
        random ones (p = 0.14; underpowered: with these settings p is at least 0.14, so that
        nothing is rejected at 0.05; draws=29 or more would tell)')
    """
    settings = {"draws": draws, "match": match, "source": source, "distance": distance}
    return _against_random(
        (model, task, mask, options),
        name="necessity",
        said="taking the circuit out changes the model more than taking out {} of {} random ones",
        null="taking the circuit out changes no more than {} of random circuits do",
        quantile=quantile,
        alpha=alpha,
        size=size,
        settings={**settings, "seed": seed},
    )


def _against_random(
    tested: tuple[MaskedModel, Task, Any, RunOptions],
    *,
    name: str,
    said: str,
    null: str,
    quantile: float,
    alpha: float,
    size: float | None,
    settings: dict[str, Any],
) -> Finding:
    """The test of a circuit against random ones.

    Sufficient is what is closer to the full model than random circuits are; necessary what takes
    the model farther from itself when it is missing.
    """
    share(quantile, "quantile")
    share(alpha, "alpha")
    model, task, mask, options = tested
    circuit = require_circuit(model, mask, full=False)
    rows = _random_masks(circuit, size=size, **settings)
    evaluator = MaskEvaluator(model, task, mask, **options)
    masks = torch.cat([circuit.kept[None], rows])
    values = evaluator(masks if name == "sufficiency" else ~masks, name)
    distances, noise = evaluator.distance(values, evaluator.full, settings["distance"])
    good = (-distances if name == "sufficiency" else distances).numpy()
    # A tie is not beaten; the published code counts it where closeness is asked for.
    beaten = int((good[0] > good[1:] + noise).sum())
    draws = len(rows)
    p = beats_share(beaten, draws, quantile, more=True)

    def least_p(count: int) -> float:
        return beats_share(count, count, quantile, more=True)

    shared = (rows & circuit.kept).sum(1) / circuit.num_kept
    return Finding(
        name=name,
        null=null.format(f"{quantile:g}"),
        said=said.format(beaten, draws),
        p_value=p,
        alpha=alpha,
        passed=p <= alpha,
        least_p=least_p(draws),
        remedy=power_at("draws", least_p, alpha),
        values={
            "distance": float(distances[0]),
            "random_mean": float(distances[1:].mean()),
            "random_least": float(distances[1:].min()),
            "random_most": float(distances[1:].max()),
            "beaten": beaten / draws,
            "p_rank": rank_p(float(good[0]), good[1:], tolerance=noise),
            "shared": float(shared.mean()),
        },
        rows=[
            {"circuit": f"random {i}" if i else "found", "edges": edges, "distance": distance}
            for i, (edges, distance) in enumerate(
                zip([circuit.num_kept, *rows.sum(1).tolist()], distances.tolist(), strict=True)
            )
        ],
        settings=evaluator.settings(circuit, **settings, quantile=quantile),
    )


def _random_masks(
    circuit: EdgeMask,
    *,
    draws: int,
    match: str,
    size: float | None,
    seed: int,
    source: str = "graph",
    **_: Any,
) -> Tensor:
    """``[draws, E]`` bool: random circuits of the graph, or of what lies outside the circuit."""
    total = circuit.graph.num_edges
    if source not in ("graph", "complement"):
        raise InputError(f"source is graph or complement, got {source!r}")
    if match in ("composition", "ends", "degree"):  # made from the circuit's own edges
        if size is not None or source == "complement":
            raise InputError(
                f"circuits of equal {match} have the circuit's size and lie in the whole graph; "
                "match='size' and 'paths' take size= and source='complement'"
            )
        return draw(circuit, draws, match, seed)
    count = circuit.num_kept if size is None else budget(size, total)
    if not 0 < count < total:
        raise InputError(f"random circuits of {count} edges are all or nothing; give another size")
    if source == "graph":
        return draw(circuit, draws, match, seed, size=count)
    outside = ~circuit.kept.numpy()
    if count > outside.sum():
        raise InputError(
            f"{int(outside.sum())} edges lie outside the circuit, random circuits of {count} do "
            "not fit there; take source='graph'"
        )
    return draw(circuit, draws, match, seed, allowed=outside, size=count)
