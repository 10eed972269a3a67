"""Spectral pruning of a weighted graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, budget
from graphprune.errors import InputError

from ..linalg.components import component_sizes
from ..linalg.inputs import graph_of
from ..linalg.laplacians import Degrees, Laplacian, operator
from ..linalg.measures import Measure, MeasureName, measure_named
from ..linalg.names import known
from ..linalg.spectra import DENSE_LIMIT, Decomposition, Solver
from ..linalg.wiring import BoolArray, Closure, Wiring, close
from .global_search import Search
from .local import LocalSearch
from .published import WARNING, published_sweeps
from .sparse_search import PROOF, LargeSearch, without_cycles
from .trials import Goal

__all__ = ["SIZE", "Mode", "SpectralMask", "Variant", "prune", "require_consistent", "start"]

log = logging.getLogger(__name__)

Mode = Literal["global", "local"]
Variant = Literal["default", "paper"]
SIZE = 0.8  # of all edges: what is kept where nobody says


@dataclass(frozen=True, eq=False)
class SpectralMask(EdgeMask):
    """A mask with ``notes``: plain values about the search that made it.

    ``start`` and ``end`` of the measure, ``by`` (which search found it), and ``solved``, which
    eigenvalues that rests on and how accurate they are.
    """

    notes: Mapping[str, Any] = field(default_factory=dict)


def prune(
    graph: ComputationalGraph | Wiring | Any,
    weights: Any = None,
    laplacian: Laplacian = "out",
    *,
    goal: Goal = "damp",
    size: int | float = SIZE,
    mode: Mode = "global",
    variant: Variant = "default",
    measure: MeasureName | None = None,
    degrees: Degrees | None = None,
    feedback: Closure = (),
    feedback_weight: Literal["mean"] | float = "mean",
    chunk: int | None = None,
    shortlist: int | None = None,
    effort: float = 1.0,
    dense_limit: int = DENSE_LIMIT,
    modes: int = 8,
) -> SpectralMask:
    """Removes edges for a spectral goal.

    A component of more than ``dense_limit`` nodes is not solved whole: its ``modes`` leading
    eigenvalues are followed, with a warning, and :class:`~graphprune.spectral.search.sparse_search.
    LargeSearch` says what is guaranteed then.

    Args:
        graph, weights, laplacian, degrees: as for :func:`~graphprune.spectral.spectrum`; also a
            directed networkx graph, a PyG ``Data``, a scipy.sparse matrix or ``(edge_index,
            weights)``, see :mod:`.inputs`. The mask's edges stand in the
            input's order.
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
        measure: ``"sum"`` or ``"max"`` of ``|Im lambda|``; ``None``: the sum (for ``goal="gap"``
            the gap).
        feedback, feedback_weight: edges that close the graph for the spectrum only, see
            :func:`close`.
        chunk, shortlist: edges a round and candidates verified; ``None``: by size.
        effort: work beyond the rounds (0: rounds alone), a factor; more for better answers. At 1
            a graph of 12 to 24 nodes takes 5 to 10 s of one core where annealing is needed; 1e5
            sets of edges take about 3 s at 10 nodes and 80 s at 64 (extrapolated).
        dense_limit, modes: nodes of a component up to which all its eigenvalues are computed, and
            how many pairs are followed above.

    Raises:
        InputError: an acyclic graph without feedback, or an undirected one, whose spectrum is real
            whatever is cut; wrong settings; ``goal="gap"`` above ``dense_limit``.
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
    source = given.graph or _graph(given)
    kept = budget(size, given.num_edges)
    by_stars = mode == "local" or variant == "paper"
    notes: dict[str, Any]
    large = not by_stars and goal == "damp" and component_sizes(given)[:1].sum() > dense_limit
    still = None
    if large:
        _refuse_undirected(given)
        still = without_cycles(given, kept)
    if still is not None:
        left, notes = still, {"by": "cycles cut", "solved": PROOF, "end": 0.0}
    elif not by_stars:
        solver, chosen, found = start(given, laplacian, degrees, goal, measure, dense_limit, modes)
        search: Search | LargeSearch
        if found.complete:
            search = Search(
                given, solver, chosen, goal, chunk=chunk, shortlist=shortlist, effort=effort
            )
        else:
            search = LargeSearch(given, solver, chosen, goal)
        left = search.run(kept)
        notes = {"solved": "all eigenvalues of every component"} | search.notes()
        log.info("spectral %s: %s", goal, notes)
    else:
        left = _by_stars(given, laplacian, degrees, variant, kept)
        notes = {"by": mode if variant == "default" else variant, "solved": "each node's star"}
    return SpectralMask(source, torch.from_numpy(left).float(), notes)


def _graph(given: Wiring) -> ComputationalGraph:
    edges = given.num_edges
    return graph_of(given.sources[:edges], given.targets[:edges], given.num_nodes)


def require_consistent(
    goal: Goal,
    laplacian: Laplacian,
    degrees: Degrees | None,
    measure: MeasureName | None,
    mode: Mode = "global",
    variant: Variant = "default",
) -> None:
    """Raises :class:`InputError` for unknown names and for settings that contradict each other."""
    known(goal, Goal, "goal")
    known(mode, Mode, "mode")
    known(variant, Variant, "variant")
    form = operator(laplacian, degrees)
    known(_measured(goal, measure), MeasureName, "measure")
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
    given: Wiring,
    laplacian: Laplacian,
    degrees: Degrees | None,
    goal: Goal,
    measure: MeasureName | None,
    dense_limit: int,
    modes: int = 8,
) -> tuple[Solver, Measure, Decomposition]:
    """The solver and the measure; refuses graphs on which the goal says nothing."""
    name = _measured(goal, measure)
    solver = Solver(operator(laplacian, degrees), dense_limit, leading=2 * modes)
    found = solver.decompose(given, vectors=True)
    if goal != "gap" and found.components.largest <= 1:
        raise InputError(
            "the graph has no cycle, so its spectrum is real whatever is cut and its imaginary "
            "parts say nothing; close it by feedback, such as feedback=[('logits', 'input')] (the "
            "sampled token feeds the embedding), or use another method"
        )
    chosen = measure_named(name, found, laplacian)
    if goal != "gap":
        _refuse_undirected(given)
    if goal != "gap" and chosen.value(found.values) == 0:
        log.warning("the spectrum is real already: edges go by the size of their weights")
    return solver, chosen, found


def _refuse_undirected(given: Wiring) -> None:
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
    given: Wiring, laplacian: Laplacian, degrees: Degrees | None, variant: Variant, kept: int
) -> BoolArray:
    if variant == "default":
        found = LocalSearch(given, laplacian, degrees=degrees).run(kept)
    else:
        if len(given.sources) > given.num_edges:
            raise InputError(
                "variant='paper' knows neither feedback nor fixed edges, and this graph has "
                f"{len(given.sources) - given.num_edges}; mode='local' reads them"
            )
        warnings.warn(WARNING, UserWarning, stacklevel=3)
        found = published_sweeps(given, kept, "count" if laplacian == "count" else "both")
    if int(found.sum()) > kept:
        log.warning(
            "no star turns any more: %d edges are left, %d were asked for", found.sum(), kept
        )
    return found
