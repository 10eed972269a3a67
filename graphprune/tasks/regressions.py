"""Regression on graphs: targets of the nodes of one graph, or of whole graphs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.metrics import Metric
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.tasks.graphs import node_inputs, node_numbers, shuffled_nodes
from graphprune.tasks.tensor_examples import TensorExamples, Tensors
from graphprune.util.checks import require_one_of


def regression(
    data: Any,
    targets: Any = None,
    *,
    at: Tensor | None = None,
    level: str | None = None,
    corrupt: Tensor | Tensors | str | None = "shuffle",
    node_type: str | None = None,
    tolerance: float | None = None,
    name: str = "regression",
    batch_size: int | None = None,
    seed: int = 0,
) -> Task:
    """A task whose examples are nodes or graphs, each with quantities that outputs should equal.

    The metric is ``squared_error``, the mean over an example's targets of the squared difference of
    outputs and targets. Lower is better: ``gp.EAP`` gives positive scores to edges without which it
    would grow, ``gp.evaluate`` reports it, and ``loss="auto"`` keeps outputs near the full model's.

    Args:
        data: as in :func:`nodes`; or a list of graphs, batched as the model's data are
            (``Batch.from_data_list(graphs)``).
        targets: ``[N]`` or ``[N, V]`` of all nodes (of ``node_type``), or ``[G]`` or ``[G, V]`` of
            all graphs, V being how many outputs the model has a node or graph. ``None`` takes
            ``y``.
        at: the nodes or graphs asked for, as numbers or as a mask; ``None`` means all. Only their
            targets must be finite.
        level: ``"node"`` or ``"graph"``, what a target is of; ``None`` tells it by how many
            targets there are.
        corrupt: as in :func:`nodes`.
        node_type: of heterogeneous data, which type has targets; ``None`` takes the one with ``y``.
        tolerance: how far outputs may lie from the full model's and count as the same, in units of
            the targets (``gp.fidelity``); ``None`` takes a tenth of their standard deviation.
        batch_size: examples at a time; ``None`` takes all: they share one pass of all nodes.

    Raises:
        InputError: targets that are missing, not finite, or of another number than there are nodes
            or graphs.

    Example:
        >>> task = regression(torch.eye(3), torch.tensor([0.5, 1.0, -2.0]), at=[2, 0])
        >>> batch = next(task.batches())
        >>> outputs = torch.tensor([[-1.0], [0.5]])  # of the nodes 2 and 0
        >>> task.metric(outputs, batch), task.metric.higher_is_better
        (tensor([1., 0.]), False)
    """
    require_one_of(level, (None, "node", "graph"), "level")
    if isinstance(data, list | tuple):
        from torch_geometric.data import Batch as Graphs

        data = Graphs.from_data_list(list(data))
        level = level or "graph"
    whole = getattr(data, "num_graphs", None)
    if level is None:
        given_targets = data.get("y") if targets is None and whole is not None else targets
        rows = None if given_targets is None or whole is None else len(given_targets)
        level = "graph" if rows is not None and rows == whole != data.num_nodes else "node"
    first, clean = 0, {}
    if level == "graph" and node_type is not None:
        raise InputError("node_type is for targets of nodes; these are of graphs")
    if level == "graph" and targets is None:
        targets = data.get("y") if hasattr(data, "get") else None
    if level == "graph" and hasattr(data, "node_types"):
        given: Tensors = {f"{k}.x": data[k].x for k in data.node_types if "x" in data[k]}
    else:
        given, targets, first, corrupt = node_inputs(data, targets, corrupt, node_type)
    if targets is None:
        raise InputError(f"targets are missing: the quantities of each {level}, [n] or [n, V]")
    count = whole if level == "graph" else _number_of_nodes(data, given, node_type)
    values = _targets(targets, level, count)
    chosen = node_numbers(at, len(values))
    values = values[chosen]
    if not bool(values.isfinite().all()):
        odd = int(chosen[~values.isfinite().all(1)][0])
        raise InputError(
            f"the target of {level} {odd} is NaN or infinite; at= says which {level}s are asked for"
        )
    other, notes = shuffled_nodes(given, corrupt, seed)
    if level == "graph":
        clean["graphs"] = chosen
    examples = TensorExamples(
        len(chosen),
        clean=clean,
        shared=given,
        shared_corrupt=other,
        positions=None if level == "graph" else first + chosen,
    )
    if tolerance is None:
        tolerance = float(values.std(0, correction=0).mean()) / 10
    metric = squared_error(values, tolerance)
    size = max(1, len(chosen)) if batch_size is None else batch_size
    return Task(examples, metric, name=name, batch_size=size, notes=notes)


def squared_error(targets: Tensor, tolerance: float) -> Metric:
    """The mean squared error to ``targets [n, V]``, by the examples' numbers.

    Outputs that are within ``tolerance`` of the full model's, as the root of the mean square, are
    the same.
    """
    return Metric(
        "squared_error",
        _SquaredError(targets),
        higher_is_better=False,
        same=_Near(tolerance),
        bounds=(0.0, math.inf),
        quantities=True,
    )


@dataclass(frozen=True, eq=False)
class _SquaredError:
    targets: Tensor

    def __call__(self, outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
        wanted = self.targets[list(batch.indices)].to(outputs)
        if outputs.shape != wanted.shape:
            raise InputError(
                f"an example has {wanted.shape[-1]} targets, and the model's outputs have the "
                f"shape {list(outputs.shape)}; targets are [n, V] for outputs of V columns"
            )
        return (outputs - wanted).square().mean(-1)


@dataclass(frozen=True)
class _Near:
    tolerance: float

    def __call__(self, outputs: Tensor, batch: Batch, full: Tensor | None) -> Tensor:
        assert full is not None
        return (outputs - full).square().mean(-1).sqrt() <= self.tolerance


def _targets(targets: Any, level: str, count: int | None) -> Tensor:
    """``[n, V]``, floating point on the CPU."""
    try:
        given = torch.as_tensor(targets).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"targets must be [n] or [n, V] numbers, got {type(targets).__name__}: {error}"
        ) from None
    if given.ndim not in (1, 2) or not given.numel() or given.is_complex():
        raise InputError(
            f"targets must be [n] or [n, V] real numbers, got {list(given.shape)} {given.dtype}"
        )
    if count is not None and len(given) != count:
        raise InputError(
            f"there are {count} {level}s, and targets of {len(given)}; level= says whether targets "
            "are of nodes or graphs"
        )
    given = given if given.is_floating_point() else given.to(torch.get_default_dtype())
    return given.reshape(len(given), -1)


def _number_of_nodes(data: Any, given: Tensors, node_type: str | None) -> int | None:
    if hasattr(data, "node_types"):
        return None  # of heterogeneous data, checked where the type is found
    if hasattr(data, "num_nodes"):
        return int(data.num_nodes)
    return len(next(iter(given.values()))) if given else None
