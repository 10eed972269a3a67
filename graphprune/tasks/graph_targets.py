"""Tasks on graphs whose answers are numbers (regression) or about pairs of nodes (links)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.metrics import Metric
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.tasks.building import MetricLike
from graphprune.tasks.graph_examples import Tensors
from graphprune.tasks.graphs import graphs, node_numbers, nodes
from graphprune.util.checks import require_one_of

__all__ = ["links", "regression"]


def regression(
    features: Any = None,
    targets: Tensor | None = None,
    *,
    level: Literal["node", "graph"] = "node",
    at: Tensor | None = None,
    corrupt: Tensor | Tensors | str | None = "shuffle",
    loss: Literal["squared", "absolute"] = "squared",
    node_type: str | None = None,
    name: str = "regression",
    batch_size: int | None = None,
    seed: int = 0,
) -> Task:
    """A task whose examples are nodes, or graphs, with numbers for answers.

    The metric is each example's error, a mean over its outputs; lower is better. A gradient scorer
    reads its slope, so give targets that the model does not hit exactly, or another ``loss``.

    Args:
        features: as :func:`~graphprune.tasks.nodes` takes them; not needed for graphs.
        targets: ``[n]`` or ``[n, K]`` numbers of all nodes or graphs; ``None`` takes the data's
            ``y``. Only those of the nodes ``at`` must be finite.
        level: what an example is.
        at: the nodes asked for, as numbers or as a mask; ``None`` means all.
        corrupt: as in :func:`~graphprune.tasks.nodes`; of graphs tensors or ``None``.
        loss: the squared or the absolute error.
        node_type: of heterogeneous data, which type has targets.

    Example:
        >>> task = regression(torch.eye(3), torch.tensor([0.5, 1.0, 2.0]), at=torch.tensor([2, 0]))
        >>> batch = next(iter(task.batches()))
        >>> task.metric(torch.tensor([[1.0], [1.0]]), batch).tolist()
        [1.0, 0.25]
    """
    require_one_of(level, ("node", "graph"), "level")
    require_one_of(loss, ("squared", "absolute"), "loss")
    if targets is None and features is not None:
        targets = features.get("y") if hasattr(features, "get") else None
        if targets is None and node_type is not None:
            targets = features[node_type].get("y")
    if targets is None:
        raise InputError("targets are missing: a number, or several, for each node or graph")
    targets = torch.as_tensor(targets).detach().cpu()
    if targets.ndim not in (1, 2) or targets.is_complex() or not len(targets):
        raise InputError(f"targets must be [n] or [n, K] numbers, got {list(targets.shape)}")
    none = torch.zeros(len(targets), dtype=torch.int64)
    if level == "graph":
        given = None if isinstance(corrupt, str) else corrupt
        given = {"x": given} if isinstance(given, Tensor) else given
        task = graphs(none, corrupt=given, name=name, batch_size=batch_size)
        chosen = torch.arange(len(targets))
    else:
        if features is None:
            raise InputError("features are missing: regression(data) or regression(x, targets)")
        task = nodes(
            features, none, at=at, corrupt=corrupt, node_type=node_type, name=name,
            batch_size=batch_size, seed=seed,
        )  # fmt: skip
        chosen = node_numbers(at, len(targets))
    rows = targets[chosen] if targets.ndim == 2 else targets[chosen, None]
    if not bool(torch.isfinite(rows).all()):
        raise InputError("targets hold NaN or infinite values; at= says which nodes are asked for")
    return task.with_metric(_error(rows, loss))


def _error(targets: Tensor, loss: str) -> Metric:
    """Each example's error, by its number in the task."""

    def error(outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
        wanted = targets[list(batch.indices)].to(outputs)
        if outputs.shape[-1] != wanted.shape[-1]:
            raise InputError(
                f"targets are {wanted.shape[-1]} for each example and the model gives "
                f"{outputs.shape[-1]} outputs"
            )
        gap = outputs - (wanted if outputs.ndim == 2 else wanted[:, None])
        return (gap.square() if loss == "squared" else gap.abs()).flatten(1).mean(1)

    return Metric(f"{loss}_error", error, higher_is_better=False, bounds=(0.0, float("inf")))


def links(
    data: Any,
    labels: Tensor | None = None,
    *,
    at: Tensor | None = None,
    corrupt: Tensor | Tensors | str | None = "shuffle",
    classes: int | None = None,
    metric: MetricLike | None = None,
    name: str = "links",
    batch_size: int | None = None,
    seed: int = 0,
) -> Task:
    """A task whose examples are pairs of nodes, the columns of ``data.edge_label_index``.

    For a model of one number a pair (link prediction) the labels are 1 for a link and 0 for none,
    and the metric is the margin: the number itself for a link, its negative for none. For a model
    of a number for each class the metric is as in :func:`~graphprune.tasks.nodes`.

    Args:
        data: PyG's ``Data`` or ``HeteroData``, whose ``x`` are the features.
        labels: ``[P]`` class numbers; ``None`` takes ``data.edge_label``.
        at: the pairs asked for, as numbers or as a mask; ``None`` means all.
        corrupt: as in :func:`~graphprune.tasks.nodes`.
        classes: how many classes there are; ``None`` takes it from the highest label.
        metric: ``None``: ``"margin"`` for two classes, ``"logit_diff"`` for more.

    Example:
        >>> from torch_geometric.data import Data
        >>> pairs = torch.tensor([[0, 1], [2, 0]])
        >>> data = Data(x=torch.eye(3), edge_index=torch.tensor([[0, 1], [1, 2]]))
        >>> data.edge_label_index, data.edge_label = pairs, torch.tensor([1, 0])
        >>> task = links(data)
        >>> task.metric(torch.tensor([[2.0], [3.0]]), next(iter(task.batches()))).tolist()
        [2.0, -3.0]
    """
    if not hasattr(data, "stores"):
        raise InputError(f"links take PyG's Data or HeteroData, got {type(data).__name__}")
    if labels is None:
        labels = next((s["edge_label"] for s in data.stores if "edge_label" in s), None)
    if labels is None:
        raise InputError("labels are missing: the class of each pair, or data.edge_label")
    if not any("edge_label_index" in store for store in data.stores):
        raise InputError("the data has no edge_label_index, the pairs of nodes asked about")
    every = torch.as_tensor(labels)
    if classes is None and every.numel():
        classes = max(2, int(every.max()) + 1)
    types = getattr(data, "node_types", None)  # of heterogeneous data
    names = ["x"] if types is None else [f"{kind}.x" for kind in types]
    stores = zip(names, data.node_stores, strict=True)
    features = {name: store["x"] for name, store in stores if "x" in store}
    if metric is None:
        metric = _MARGIN if classes == 2 else "logit_diff"
    return nodes(
        features, every, at=at, corrupt=corrupt if features else None, classes=classes,
        metric=metric, name=name, batch_size=batch_size, seed=seed,
    )  # fmt: skip


def _margin(outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
    """The score of the right answer over the wrong one, of one output or of two."""
    assert batch.answer is not None
    right = (2 * batch.answer[:, 0] - 1).to(outputs)
    if outputs.shape[-1] > 2:
        raise InputError(f"a margin is of one output or two, got {outputs.shape[-1]}")
    apart = outputs[..., 0] if outputs.shape[-1] == 1 else outputs[..., 1] - outputs[..., 0]
    return apart * right


_MARGIN = Metric("margin", _margin, needs=("answer",))
