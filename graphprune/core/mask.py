"""The mask: one value in [0, 1] for each edge of one graph.

1 means that the clean message passes, 0 that it is replaced by its ablation value. A mask is a
frozen value tied to its graph's fingerprint; the operators ``&``, ``|``, ``-``, ``^`` treat it as
a (fuzzy) set of edges.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from graphprune.core.edge_table import edge_table
from graphprune.core.graph import ComputationalGraph
from graphprune.errors import GraphMismatchError, InputError, NumericalError, unknown_name
from graphprune.util.checks import is_integer
from graphprune.util.modes import ordinary
from graphprune.util.notebook import notebook_card

if TYPE_CHECKING:
    import pandas as pd


def require_same_graph(ours: ComputationalGraph, theirs: ComputationalGraph, what: str) -> None:
    """Raises :class:`GraphMismatchError` unless the two graphs are the same."""
    if ours is not theirs and ours.fingerprint != theirs.fingerprint:
        raise GraphMismatchError(
            f"{what} belong to different graphs: {ours!r} ({ours.fingerprint[:12]}) and "
            f"{theirs!r} ({theirs.fingerprint[:12]})"
        )


@dataclass(frozen=True, eq=False)
class EdgeMask:
    """One value in [0, 1] for each edge of ``graph``: 1 keeps the clean message, 0 ablates it.

    Args:
        graph: the graph whose edges are masked.
        values: ``[E]``; anything a float tensor can be made of. Copied, stored as float32.
        ablation: what it was found under, a name or an :class:`~graphprune.Ablation`; masks taken
            from scores and results have theirs. ``None`` is not known. It takes no part in
            comparison; where no other is said, the mask is judged under it.

    Raises:
        InputError: wrong length, or a value outside [0, 1].
        NumericalError: a NaN or an infinity.

    Example:
        >>> graph = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c")])
        >>> first, second = EdgeMask(graph, [1, 1, 0]), EdgeMask(graph, [0, 1, 1])
        >>> (first & second).edges(), first.jaccard(second), first.density
        (['b->c'], 0.3333333333333333, 0.6666666666666666)
    """

    graph: ComputationalGraph
    values: Float32[Tensor, " edge"]
    ablation: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        try:
            given = torch.as_tensor(self.values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"mask values must be numbers, got {self.values!r}: {error}") from None
        if given.is_complex():
            raise InputError(f"mask values must be real numbers, got {given.dtype}")
        values = ordinary(given.detach().to("cpu", torch.float32).clone())
        if values.shape != (self.graph.num_edges,):
            raise InputError(
                f"a mask of this graph needs {self.graph.num_edges} values, got "
                f"{list(values.shape)}"
            )
        if not bool(torch.isfinite(values).all()):
            raise NumericalError(
                f"{int((~torch.isfinite(values)).sum())} of {values.numel()} mask values are NaN "
                "or infinite"
            )
        if values.numel() and not 0.0 <= float(values.min()) <= float(values.max()) <= 1.0:
            raise InputError(
                f"mask values must lie in [0, 1], got {float(values.min())} to "
                f"{float(values.max())}"
            )
        object.__setattr__(self, "values", values)

    # ---------------------------------------------------------------- building

    @classmethod
    def full(cls, graph: ComputationalGraph) -> EdgeMask:
        """Every edge kept."""
        return cls(graph, torch.ones(graph.num_edges))

    @classmethod
    def empty(cls, graph: ComputationalGraph) -> EdgeMask:
        """Every edge ablated."""
        return cls(graph, torch.zeros(graph.num_edges))

    @classmethod
    def from_edges(cls, graph: ComputationalGraph, names: Iterable[str]) -> EdgeMask:
        """Keeps exactly the named edges, such as ``"input->a0.h1<q>"``.

        Of edges with the same ends all but the first have a number: ``"0->1"``, ``"0->1#2"``.
        Raises :class:`InputError` for a name that no edge has, and for the name of the first of
        several such edges given twice: it may have been meant for another of them.
        """
        chosen: set[int] = set()
        for name in names:
            number = graph.edge_number.get(name)
            if number is None:
                raise unknown_name("edge", name, graph.edge_names)
            if number in chosen:
                _require_alone(graph, name)
            chosen.add(number)
        values = torch.zeros(graph.num_edges)
        values[sorted(chosen)] = 1.0
        return cls(graph, values)

    # ---------------------------------------------------------------- reading

    @property
    def kept(self) -> Tensor:
        """``[E]`` bool: edges whose value is not 0."""
        return self.values > 0

    @property
    def num_kept(self) -> int:
        """Number of edges with a value above 0."""
        return int(self.kept.sum())

    @property
    def density(self) -> float:
        """Kept edges over all edges."""
        return self.num_kept / max(self.graph.num_edges, 1)

    @property
    def sparsity(self) -> float:
        """One minus the density."""
        return 1.0 - self.density

    @property
    def is_binary(self) -> bool:
        """``True`` if every value is 0 or 1."""
        return bool(((self.values == 0) | (self.values == 1)).all())

    def edges(self) -> list[str]:
        """Names of the kept edges, in graph order."""
        return self.graph.edge_names.at(self.kept)

    def nodes(self) -> list[str]:
        """Names of the nodes that a kept edge touches, in graph order."""
        touched = torch.unique(self.graph.edge_index[:, self.kept])
        return [self.graph.nodes[i].name for i in touched.tolist()]

    def apply(self, data: Any, *, edge_attrs: Iterable[str] | None = None) -> Any:
        """PyG data without the edges at 0: what is deployed, and the only way to be faster.

        ``data`` is the ``Data``, ``Batch`` or ``HeteroData`` the graph came from, edges in its
        order (of ``HeteroData``: type after type), or the networkx graph. Edge attributes go with
        their edges, nodes all stay; both directions of a tied pair stay or go. Gives new data.
        Where there are as many nodes as edges and an attribute's name has no "edge" or "node" in
        it, ``edge_attrs`` says which names belong to edges (``None`` means not said).

        Raises :class:`InputError` where edges do not fit, the mask has values between 0 and 1, or
        what an attribute belongs to is not known.
        """
        from graphprune.core.graph_io import without_edges

        if not self.is_binary:
            raise InputError(
                "a mask with values between 0 and 1 deletes nothing; take a mask of zeros and ones"
            )
        graph = self.graph
        return without_edges(data, graph.per_message(self.kept), graph.untied, edge_attrs)

    def to_frame(self) -> pd.DataFrame:
        """A row for each edge: columns edge, source, target, kind, kept."""
        return edge_table(self.graph, {"kept": self.values.numpy()})

    # ---------------------------------------------------------------- set algebra

    def _pair(self, other: EdgeMask) -> tuple[Tensor, Tensor]:
        require_same_graph(self.graph, other.graph, "masks")
        return self.values, other.values

    def _joined(self, other: EdgeMask, values: Tensor) -> EdgeMask:
        """A mask made of two, found under their ablation where they know but one."""
        return EdgeMask(self.graph, values, ablation=one_ablation(self.ablation, other.ablation))

    def __and__(self, other: EdgeMask) -> EdgeMask:
        return self._joined(other, torch.minimum(*self._pair(other)))

    def __or__(self, other: EdgeMask) -> EdgeMask:
        return self._joined(other, torch.maximum(*self._pair(other)))

    def __sub__(self, other: EdgeMask) -> EdgeMask:
        ours, theirs = self._pair(other)
        return self._joined(other, torch.minimum(ours, 1 - theirs))

    def __xor__(self, other: EdgeMask) -> EdgeMask:
        return (self - other) | (other - self)

    def __invert__(self) -> EdgeMask:
        return EdgeMask(self.graph, 1 - self.values, ablation=self.ablation)

    def jaccard(self, other: EdgeMask) -> float:
        """Size of the intersection over size of the union; 1 for two empty masks."""
        ours, theirs = self._pair(other)
        union = float(torch.maximum(ours, theirs).sum())
        return float(torch.minimum(ours, theirs).sum()) / union if union else 1.0

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, EdgeMask)
            and self.graph == other.graph
            and bool(torch.equal(self.values, other.values))
        )

    def __hash__(self) -> int:
        return hash((self.graph.fingerprint, self.values.numpy().tobytes()))

    # ---------------------------------------------------------------- structure

    def prune_dead_ends(self, *, from_inputs: bool = True) -> EdgeMask:
        """Drops every edge that lies on no kept path from an input to an output.

        Coupled groups count as one node, and wires are always there.

        ``from_inputs=False`` drops only the edges whose target cannot reach an output. Use it
        where a node that no kept path reaches does not send exactly its ablation value: under
        zero and mean ablation, and where examples are aligned span by span, such a node still
        sends what it makes of ablated inputs, so that the edges after it matter. Under
        counterfactual ablation it sends its value on the corrupted input, as if it were cut.

        Example:
            >>> graph = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("b", "d")],
            ...                                       outputs=(2,))
            >>> EdgeMask.full(graph).prune_dead_ends().edges()
            ['a->b', 'b->c']
            >>> second = EdgeMask.from_edges(graph, ["b->c", "b->d"])
            >>> second.prune_dead_ends().edges(), second.prune_dead_ends(from_inputs=False).edges()
            ([], ['b->c'])
        """
        alive = torch.from_numpy(self.graph.alive(self.kept.numpy(), from_inputs=from_inputs))
        values = torch.where(alive, self.values, torch.zeros(()))
        return EdgeMask(self.graph, values, ablation=self.ablation)

    def connected(self) -> bool:
        """``True`` if at least one kept path leads from an input node to an output node."""
        graph = self.graph
        reached = graph.reachable(graph.input_nodes, self.kept.numpy())
        return bool(reached[list(graph.output_nodes)].any())

    def _repr_html_(self) -> str:
        """The mask in a notebook: how many edges of each kind are kept."""
        graph, kept = self.graph, self.kept.numpy()
        kind, count = graph.edge_kind.numpy(), len(graph.edge_kinds)
        all_of, kept_of = (np.bincount(k, minlength=count).tolist() for k in (kind, kind[kept]))
        return notebook_card(
            repr(self),
            columns=("kind of edge", "kept", "of"),
            rows=zip(graph.edge_kinds, kept_of, all_of, strict=True),
        )

    def __repr__(self) -> str:
        total = f"{self.graph.num_edges} {self.graph.counted}"
        return f"EdgeMask({self.num_kept} of {total}, {self.density:.4%})"


def _require_alone(graph: ComputationalGraph, name: str) -> None:
    """Raises :class:`InputError` where edges with the same ends are told apart from ``name``."""
    twins = [n for n in graph.edge_names.repeated.values() if n.startswith(f"{name}#")]
    if twins:
        raise InputError(
            f"the edge {name!r} is named twice; edges with the same ends are called "
            f"{', '.join(map(repr, [name, *twins]))}"
        )


def known_ablations(*ablations: Any) -> set[Any]:
    """The different ones among names and ablations; ``None``, which is not known, is left out.

    Ablations that their name says wholly are given by it.
    """
    known = [one for one in ablations if one is not None]
    return {a if isinstance(a, str) or a.values is not None else a.name for a in known}


def one_ablation(*ablations: Any) -> Any:
    """The only one that is known among these; ``None`` where none is, or several differ."""
    known = known_ablations(*ablations)
    return known.pop() if len(known) == 1 else None


def found_under(mask: EdgeMask, ablation: Any) -> EdgeMask:
    """The mask with the ablation it was found under; one that has one keeps it."""
    if ablation is None or mask.ablation is not None:
        return mask
    return replace(mask, ablation=ablation)


def mask_density(mask: EdgeMask) -> dict[str, float]:
    """``{"density": ..., "sparsity": ...}`` of a mask, for tables."""
    return {"density": mask.density, "sparsity": mask.sparsity}


@runtime_checkable
class Masked(Protocol):
    """Whatever a mask stands in, with the ablation it was found under: a circuit or a result."""

    @property
    def mask(self) -> EdgeMask | None:
        """The mask; ``None`` where there is none yet."""
        ...

    @property
    def ablation(self) -> Any:
        """A name or an :class:`~graphprune.Ablation`; ``None`` where that is not known."""
        ...


def mask_of(given: object) -> EdgeMask:
    """The mask itself, or that of the circuit or result it stands in.

    Raises :class:`InputError` for anything else, and for a result without a mask.
    """
    mask = given.mask if isinstance(given, Masked) else given
    if isinstance(mask, EdgeMask):
        return mask
    if mask is None and given is not None:
        raise InputError(
            "this result ranks all edges and has no mask: fit with a size, or select from its "
            "scores, result.scores.connected(0.01)"
        )
    raise InputError(f"expected an EdgeMask or a Circuit, got {type(given).__name__}")


def binary_mask(graph: ComputationalGraph, given: object) -> EdgeMask:
    """:func:`mask_of` as zeros and ones, of this graph; :class:`InputError` for values between."""
    mask = mask_of(given)
    require_same_graph(graph, mask.graph, "the model and the circuit")
    if not mask.is_binary:
        raise InputError(
            "a circuit that is tested keeps or drops each edge; this mask has values between 0 "
            "and 1: take mask.kept, or a selection of its scores"
        )
    return mask


def budget(size: float, total: int) -> int:
    """Number of edges of a ``size``: an int is a count, a float a fraction, ``int(f * total)``.

    Raises :class:`InputError` for a count outside 0..total or a fraction outside (0, 1].

    Example:
        >>> budget(0.01, 32491), budget(7, 32491)
        (324, 7)
    """
    if isinstance(size, bool) or not isinstance(size, (int, float, np.integer, np.floating)):
        raise InputError(f"expected a number of edges (int) or a fraction (float), got {size!r}")
    if isinstance(size, (int, np.integer)):
        if not 0 <= size <= total:
            raise InputError(f"expected a number of edges from 0 to {total}, got {size}")
        return int(size)
    if not 0.0 < size <= 1.0:
        raise InputError(
            f"expected a density in (0, 1] (or an int for a number of edges), got {size}"
        )
    return int(size * total)


def as_size(size: Any) -> int | float:
    """A number of edges as an int, a share of them as a float.

    Raises :class:`InputError` for anything else; whether a graph has so many is seen when it runs.
    """
    if is_integer(size):
        return int(size)
    if isinstance(size, float | np.floating):
        return float(size)
    raise InputError(f"size is a number of edges (int) or a share of them (float), got {size!r}")


def some_edges(size: Any, total: int) -> int:
    """The :func:`budget` of a size that keeps an edge; :class:`InputError` otherwise."""
    count = budget(size, total)
    if count < 1:
        raise InputError(f"size={size!r} keeps no edge of {total}")
    return count
