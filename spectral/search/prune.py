"""Spectral pruning of a weighted graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, budget
from graphprune.errors import InputError

from ..linalg.arpack import solve_leading
from ..linalg.conversions import graph_of
from ..linalg.eigensolver import DENSE_LIMIT, Solver, Spectrum, component_sizes
from ..linalg.sensitivity import Measure, MeasureName, measure_named
from ..linalg.weighted_graph import (
    BoolArray,
    Degrees,
    Laplacian,
    NodePairs,
    WeightedGraph,
    close,
    operator,
    require_known,
)
from .feedback_arcs import without_weakest
from .global_search import GlobalSearch
from .large_search import PROOF, LargeSearch, prune_all_cycles
from .published import WARNING, published_sweeps
from .set_search import Goal
from .star_search import StarSearch

__all__ = ["SIZE", "Mode", "SpectralMask", "Variant", "prune", "require_consistent", "start"]

log = logging.getLogger(__name__)

Mode = Literal["global", "local"]
Variant = Literal["default", "paper"]
SIZE = 0.8  # of all edges: what is kept where nobody says


@dataclass(frozen=True, eq=False, repr=False)
class SpectralMask(EdgeMask):
    """A mask with ``notes``: plain values about the search that made it.

    ``start`` and ``end`` of the measure, ``by`` (which search found it), and ``solved``, which
    eigenvalues that rests on and how accurate they are.

    Example:
        >>> ring = gp.ComputationalGraph.from_edges(
        ...     [("a", "b"), ("b", "c"), ("c", "a"), ("b", "a")]
        ... )
        >>> found = gp.spectral.prune(ring, [1.0, 1.0, 1.0, 0.5], size=3)
        >>> found.edges(), found.notes["start"], found.notes["end"]
        (['b->c', 'c->a', 'b->a'], 1.323, 0.0)
    """

    notes: Mapping[str, Any] = field(default_factory=dict)


def prune(
    graph: ComputationalGraph | WeightedGraph | Any,
    weights: Any = None,
    laplacian: Laplacian = "out",
    *,
    goal: Goal = "damp",
    size: int | float = SIZE,
    mode: Mode = "global",
    variant: Variant = "default",
    measure: MeasureName | None = None,
    degrees: Degrees | None = None,
    feedback: NodePairs = (),
    feedback_weight: Literal["mean"] | float = "mean",
    chunk: int | None = None,
    shortlist: int | None = None,
    effort: float = 1.0,
    dense_limit: int = DENSE_LIMIT,
    modes: int = 8,
) -> SpectralMask:
    """Removes edges for a spectral goal.

    A component of more than ``dense_limit`` nodes is not solved whole: its ``modes`` leading
    eigenvalues are followed, with a warning; :mod:`.large_search` says what is guaranteed then.

    Args:
        graph, weights, laplacian, degrees: as for :func:`~graphprune.spectral.spectrum`; also a
            directed networkx graph, a PyG ``Data``, a scipy.sparse matrix or ``(edge_index,
            weights)``, see :mod:`.conversions`. The mask's edges stand in the input's order.
        goal: ``"damp"`` lowers the rotation, ``"preserve"`` keeps it and removes what it does not
            need, ``"gap"`` keeps the smallest positive real part up.
        size: what is kept: an int counts edges, a float is a fraction of all.
        mode: ``"global"``: re-solved chunks, first-order short-lists, feedback arcs and exchange,
            verified exactly; up to 64 nodes also all sets of edges, where they are at most 1e5
            (the optimum), or exact greedy, draws and annealing. ``"local"``: the closed form of
            each node's star (damping only).
        variant: ``"paper"``: the published rule with its defect, and a warning (damping only, by
            signed ``count`` or ``both``, without feedback). It and ``mode="local"`` stop where they
            find nothing more to cut and may leave more edges than asked for.
        measure: ``"sum"`` or ``"max"`` of ``|Im lambda|``; ``None`` means the sum (for
            ``goal="gap"`` the gap).
        feedback, feedback_weight: edges that close the graph for the spectrum only, see
            :func:`close`.
        chunk, shortlist: edges a round and candidates verified; ``None`` means by size.
        effort: work beyond the rounds (0: rounds alone), a factor; more for better answers. At 1
            a graph of 12 to 24 nodes takes 5 to 10 s of one core where annealing is needed; 1e5
            sets of edges take about 3 s at 10 nodes and 80 s at 64 (extrapolated).
        dense_limit, modes: nodes of a component up to which all its eigenvalues are computed, and
            how many pairs are followed above.

    Raises:
        InputError: an acyclic graph without feedback, or an undirected one, whose spectrum is real
            whatever is cut (but an acyclic one to be damped, of no more edges with a weight than
            ``size``, is done: these are the mask, ``by`` is "nothing to cut"); wrong settings;
            ``goal="gap"`` above ``dense_limit``.
        NumericalError: a weight is NaN or infinite.

    Example:
        >>> two_rings = ComputationalGraph.from_edges(
        ...     [("a", "b"), ("b", "c"), ("c", "a"), ("a", "d"), ("d", "a")])
        >>> mask = prune(two_rings, [1.0, 1.0, 1.0, 1.0, 1.0], goal="damp", size=4)
        >>> (~mask.kept).nonzero().item() < 3  # one of the three-cycle's edges goes
        True
    """
    require_consistent(goal, laplacian, degrees, measure, mode, variant)
    if effort < 0 or modes < 1:
        raise InputError(f"expected effort >= 0 and modes >= 1, got {effort} and {modes}")
    given = close(graph, weights, feedback=feedback, feedback_weight=feedback_weight)
    count = budget(size, given.num_edges)
    if mode == "local" or variant == "paper":
        kept = _by_stars(given, laplacian, degrees, variant, count)
        return _mask(
            given, kept, by=mode if variant == "default" else variant, solved="each node's star"
        )
    if goal == "damp":
        heavy = given.sizes != 0
        rotates = component_sizes(given.keep(heavy))[:1].sum() > 1
        if not rotates and int(heavy.sum()) <= count:  # as small as asked for: nothing is to do
            kept = without_weakest(given, np.ones_like(heavy), count)
            return _mask(given, kept, by="nothing to cut", solved=PROOF, start=0.0, end=0.0)
    if goal == "damp" and component_sizes(given)[:1].sum() > dense_limit:
        _refuse_undirected(given)
        acyclic = prune_all_cycles(given, count)
        if acyclic is not None:
            return _mask(given, acyclic, by="cycles cut", solved=PROOF, end=0.0)
    solver, chosen, spectrum = start(given, laplacian, degrees, goal, measure, dense_limit, modes)
    search: GlobalSearch | LargeSearch
    if spectrum.complete:
        search = GlobalSearch(
            given, solver, chosen, goal, chunk=chunk, shortlist=shortlist, effort=effort
        )
    else:
        search = LargeSearch(given, solver, chosen, goal, modes)
    kept = search.run(count)
    notes = {"solved": "all eigenvalues of every component"} | search.notes()
    log.info("spectral %s: %s", goal, notes)
    return _mask(given, kept, **notes)


def _mask(given: WeightedGraph, kept: BoolArray, **notes: Any) -> SpectralMask:
    edges = given.num_edges
    source = given.graph
    if source is None:
        source = graph_of(given.sources[:edges], given.targets[:edges], given.num_nodes)
    return SpectralMask(source, torch.from_numpy(kept).float(), notes)


def require_consistent(
    goal: Goal,
    laplacian: Laplacian,
    degrees: Degrees | None,
    measure: MeasureName | None,
    mode: Mode = "global",
    variant: Variant = "default",
) -> None:
    """Raises :class:`InputError` for unknown names and for settings that contradict each other."""
    require_known(goal, Goal, "goal")
    require_known(mode, Mode, "mode")
    require_known(variant, Variant, "variant")
    form = operator(laplacian, degrees)
    require_known(_measured(goal, measure), MeasureName, "measure")
    if mode == "local" and goal != "damp":
        raise InputError(f"mode='local' only damps; goal={goal!r} needs mode='global'")
    if variant == "default":
        return
    if mode == "local":
        raise InputError(
            "variant='paper' is the rule that mode='local' corrects: give one of them, not both"
        )
    if goal != "damp":
        raise InputError(f"variant='paper' only damps; goal={goal!r} needs variant='default'")
    if laplacian not in ("count", "both"):
        raise InputError(
            f"variant='paper' is published for laplacian='count' and 'both', got {laplacian!r}"
        )
    if form.degrees != "signed":
        raise InputError(f"variant='paper' sums signed weights, got degrees={degrees!r}")


def _measured(goal: Goal, measure: MeasureName | None) -> MeasureName:
    """The measure's name; raises :class:`InputError` where it does not go with the goal."""
    if goal == "gap" and measure not in (None, "gap"):
        raise InputError(f"goal='gap' measures the gap, not {measure!r}")
    if goal != "gap" and measure == "gap":
        raise InputError("measure='gap' goes with goal='gap'")
    return measure or ("gap" if goal == "gap" else "sum")


def start(
    given: WeightedGraph,
    laplacian: Laplacian,
    degrees: Degrees | None,
    goal: Goal,
    measure: MeasureName | None,
    dense_limit: int,
    modes: int = 8,
) -> tuple[Solver, Measure, Spectrum]:
    """The solver and the measure; refuses graphs on which the goal says nothing."""
    name = _measured(goal, measure)
    solve_large = partial(solve_leading, count=2 * modes)
    solver = Solver(operator(laplacian, degrees), dense_limit, solve_large)
    spectrum = solver.solve(given, vectors=True)
    if goal != "gap" and spectrum.components.largest <= 1:
        raise InputError(
            "the graph has no cycle, so its spectrum is real whatever is cut and its imaginary "
            "parts say nothing; close it by feedback, such as feedback=[('logits', 'input')] (the "
            "sampled token feeds the embedding), or use another method"
        )
    chosen = measure_named(name, spectrum, laplacian)
    if goal != "gap":
        _refuse_undirected(given)
    if goal != "gap" and chosen.value(spectrum.values) == 0:
        log.warning(
            "the spectrum is real already: edges go by the size of their weights, opposite ones "
            "together"
        )
    return solver, chosen, spectrum


def _refuse_undirected(given: WeightedGraph) -> None:
    """Raises where opposite edges weigh the same; parallel ones are added."""
    matrix = operator("adjacency", None).matrix(given)
    gap = abs(matrix - matrix.T)
    if gap.max() <= 1e-12 * abs(matrix).max():
        raise InputError(
            "the graph is undirected (every edge has its reverse, of the same weight), so its "
            "spectrum is real and its imaginary parts say nothing; direct its edges, or use "
            "another method"
        )


def _by_stars(
    given: WeightedGraph,
    laplacian: Laplacian,
    degrees: Degrees | None,
    variant: Variant,
    count: int,
) -> BoolArray:
    if len(given.returning):
        raise InputError(
            f"{'mode=local' if variant == 'default' else 'variant=paper'} cuts single directions "
            "of a node's star, and edges of this graph stand for both; wrap the model with "
            "tie=False, or take mode='global'"
        )
    if variant == "default":
        kept = StarSearch(given, operator(laplacian, degrees)).run(count)
    else:
        if len(given.sources) > given.num_edges:
            raise InputError(
                "variant='paper' knows neither feedback nor fixed edges, and this graph has "
                f"{len(given.sources) - given.num_edges}; mode='local' reads them"
            )
        warnings.warn(WARNING, UserWarning, stacklevel=3)
        kept = published_sweeps(given, count, "count" if laplacian == "count" else "both")
    if int(kept.sum()) > count:
        log.warning(
            "no star turns any more: %d edges are left, %d were asked for", kept.sum(), count
        )
    return kept
