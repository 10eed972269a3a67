"""A circuit as PyG's explanations, for its plots and its fidelity metrics.

``edge_mask`` holds the mask's values, ``edge_score`` the ranking where there are scores: by their
size, since an explanation asks how much an edge matters. (Under zero ablation edges of the motif
that a network looks for often score negative.) PyG's metrics multiply messages by the mask: where a
layer's normalisation should follow a deleted edge, use :func:`graphprune.fidelity` with
``ablation="delete"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphprune.core.graph_io import (
    by_edge_type,
    graphs_of_edges,
    numbered_types,
    require_same_edges,
)
from graphprune.core.scores import Ranking, ranked_values
from graphprune.errors import InputError

if TYPE_CHECKING:
    from graphprune.core.circuit import Circuit


class MaskDict(dict[Any, Tensor]):
    """Masks by edge type; ``1 - masks`` is the complement, which PyG's fidelity asks for."""

    def __rsub__(self, other: float) -> MaskDict:
        return MaskDict({kind: other - value for kind, value in self.items()})


def to_explanation(
    circuit: Circuit,
    data: Any = None,
    *,
    target: Tensor | None = None,
    index: Tensor | None = None,
    arguments: Sequence[str] = (),
    by: Ranking = "abs",
) -> Any:
    """The circuit as ``torch_geometric.explain.Explanation``, or ``HeteroExplanation``.

    An ``Explanation`` holds every edge of the graph in order, with ``edge_mask [E]`` and, where
    there are scores, ``edge_score [E]`` and ``edge_score_by``, the ranking that is meant; a
    heterogeneous graph gives a ``HeteroExplanation`` with the same for each edge type. Without
    ``data``, ``node_mask [N, 1]`` says which nodes a kept edge touches; with it there is none in
    the way of PyG's metrics, which would blank features.

    Args:
        circuit: of a graph network (or any other model, without ``data``).
        data: the ``Data``, ``HeteroData`` or ``Batch`` that was wrapped: its features and
            attributes go along, so that ``torch_geometric.explain.metric`` reads the result. A
            ``Batch`` gives a list, one explanation for each of its graphs.
        target: what PyG's metrics compare with, the model's own answers, one for each row of its
            outputs (for each graph, of a ``Batch``).
        index: the rows of the outputs they are asked at; ``None`` means all.
        arguments: what the module's ``forward`` takes behind features and edges, by its name in
            the data, such as ``("edge_weight",)`` or ``("batch",)``.
        by: ``"abs"``: ``edge_score`` is the scores' size, the larger the more the edge matters to
            the answer, for or against; ``"signed"``: the scores as they are, positive = useful.

    Raises :class:`InputError` where the data's edges are not the circuit's graph.

    Example:
        >>> explanation = to_explanation(circuit, data)
        >>> explanation.edge_mask.shape
        torch.Size([24])
    """
    from torch_geometric.data import Batch, Data, HeteroData

    ranked = None if circuit.scores is None else ranked_values(circuit.scores.values, by)
    kinds = numbered_types(circuit.graph.untied)
    if data is None:
        made = (
            _without_data(circuit, ranked)
            if kinds is None
            else _without_hetero_data(circuit, ranked, kinds)
        )
        return _validated(made, ranked, by)
    if not isinstance(data, Data | HeteroData):
        raise InputError(f"expected PyG's Data, HeteroData or Batch, got {type(data).__name__}")
    if isinstance(data, HeteroData) != (kinds is not None):
        raise InputError(
            f"the circuit's graph {'has' if kinds else 'has no'} types of nodes and edges, the "
            f"data is {type(data).__name__}"
        )
    require_same_edges(data, circuit.graph.untied)
    spread = circuit.graph.per_message
    parts = {"edge_mask": by_edge_type(data, spread(circuit.mask.values))}
    if ranked is not None:
        parts["edge_score"] = by_edge_type(data, spread(ranked))
    if not isinstance(data, Batch):
        return _validated(_explanation_of(data, parts, target, index, arguments), ranked, by)
    if index is not None:
        raise InputError("index goes with the rows of one graph; a Batch gives one for each graph")
    if target is not None and len(target) != data.num_graphs:
        raise InputError(
            f"target must have one row for each of the {data.num_graphs} graphs, got "
            f"{list(target.shape)}"
        )
    graphs = {kind: graphs_of_edges(data, kind) for kind in parts["edge_mask"]}
    explanations = []
    for number, one in enumerate(data.to_data_list()):
        mine = {
            name: {kind: value[graphs[kind] == number] for kind, value in by_kind.items()}
            for name, by_kind in parts.items()
        }
        own = None if target is None else target[number : number + 1]
        explanations.append(
            _validated(_explanation_of(one, mine, own, None, arguments), ranked, by)
        )
    return explanations


def _explanation_of(
    data: Any,
    parts: Mapping[str, Mapping[Any, Tensor]],
    target: Tensor | None,
    index: Tensor | None,
    arguments: Sequence[str],
) -> Any:
    """The explanation of one graph, with all that its data holds."""
    from torch_geometric.data import HeteroData
    from torch_geometric.explain import Explanation, HeteroExplanation

    several = isinstance(data, HeteroData)
    made: Any = HeteroExplanation() if several else Explanation(num_nodes=data.num_nodes)
    for store in data.stores:
        # A homogeneous graph has one store; of the others' the first is of no type.
        into = made[store._key] if several and store._key is not None else made
        for name, value in store.items():
            into[name] = value
    for name, by_kind in parts.items():
        for kind, value in by_kind.items():
            (made if kind is None else made[kind])[name] = value.clone()
    if "batch" in arguments:  # a graph taken from a batch is alone in one of its own
        for store in made.node_stores:
            store["batch"] = torch.zeros(store.num_nodes, dtype=torch.int64)
    if several:
        # PyG's metrics read x, edge_index and edge_mask as such, as of a graph without types.
        made.x, made.edge_index = made.collect("x"), made.collect("edge_index")
        made.edge_mask = MaskDict(made.collect("edge_mask"))
        for name in arguments:
            made[f"{name}_dict"] = made.collect(name)
    made._model_args = [f"{name}_dict" if several else name for name in arguments]
    if target is not None:
        made.target = target.clone()
    if index is not None:
        made.index = index.clone()
    return made


def _validated(explanation: Any, ranked: Tensor | None, by: Ranking) -> Any:
    if ranked is not None:
        explanation.edge_score_by = by
    explanation.validate(raise_on_error=True)
    return explanation


def _touched(circuit: Circuit) -> Tensor:
    """``[N, 1]``: 1 at nodes that a kept edge touches."""
    touched = torch.zeros(circuit.graph.num_nodes, 1)
    touched[torch.unique(circuit.graph.edge_index[:, circuit.mask.kept])] = 1.0
    return touched


def _without_data(circuit: Circuit, ranked: Tensor | None) -> Any:
    from torch_geometric.explain import Explanation

    graph, spread = circuit.graph, circuit.graph.per_message
    extra = {} if ranked is None else {"edge_score": spread(ranked).clone()}
    return Explanation(
        edge_index=graph.untied.edge_index.clone(),
        edge_mask=spread(circuit.mask.values).clone(),
        node_mask=_touched(circuit),
        num_nodes=graph.num_nodes,
        **extra,
    )


def _without_hetero_data(
    circuit: Circuit,
    ranked: Tensor | None,
    kinds: Mapping[str, tuple[tuple[str, str, str], Tensor]],
) -> Any:
    from torch_geometric.explain import HeteroExplanation

    graph, made, spread = circuit.graph, HeteroExplanation(), circuit.graph.per_message
    touched = _touched(circuit)
    types = [node.kind for node in graph.nodes]
    for kind in dict.fromkeys(types):
        mine = torch.tensor([one == kind for one in types])
        made[kind].node_mask, made[kind].num_nodes = touched[mine], int(mine.sum())
    for number, name in enumerate(graph.edge_kinds):
        relation, index = kinds[name]
        mine = graph.untied.edge_kind == number
        made[relation].edge_index = index
        made[relation].edge_mask = spread(circuit.mask.values)[mine]
        if ranked is not None:
            made[relation].edge_score = spread(ranked)[mine]
    return made
