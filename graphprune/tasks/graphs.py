"""Examples on graphs: patterns of a network's inputs, nodes of one graph, or whole graphs.

What a batch is. A model's graph is fixed, so an example is one of three things:

- a *pattern*: features of its own on the model's graph, tensors with a leading axis of the
  examples, such as ``inputs [B, n_in]`` of an ARGNN or ``x [B, N, F]`` of a PyG model;
- a *node* of the graph: all examples share the features (``x [N, F]``, without a leading axis) and
  one pass, and each is answered at its own ``positions``;
- a *graph* among those that the model's data batches: ``graphs [B]`` are their numbers.

``clean`` and ``corrupt`` are mappings from names to such tensors; what they do not name stands in
the model's data. Of heterogeneous data features are named by type, ``paper.x``, and nodes are
numbered type after type. Labels are answer ids; all other classes are the distractors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from graphprune.core.metrics import as_metric
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.tasks.building import MetricLike
from graphprune.tasks.tensor_examples import TensorExamples, Tensors


def _classes(
    labels: Any, classes: int | None, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Class numbers ``[n]``, answer ids ``[n, 1]`` and the ids of all other classes ``[n, C - 1]``.

    Of one class there are no others: ``None``.

    ``chosen``: the examples asked for; others' labels need be no classes, and count as such where
    they are any (-1 for "unlabelled" is none).
    """
    try:
        given = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"labels must be [n] class numbers, got {type(labels).__name__}: {error}. Of graphs "
            "give Batch.from_data_list(graphs).y"
        ) from None
    if given.ndim == 2 and given.shape[1] == 1:
        raise InputError(
            f"labels must be [n], got {list(given.shape)}: labels[:, 0] where it is one column of "
            "classes"
        )
    if given.ndim != 1 or not len(given):
        raise InputError(f"labels must be [n] class numbers, got the shape {list(given.shape)}")
    if given.is_complex():
        raise InputError(f"labels must be whole numbers, got {given.dtype}")
    some = given if chosen is None else given[chosen]
    if some.is_floating_point() and not torch.equal(some, some.round()):
        wrong = float(some[some != some.round()][0])
        raise InputError(
            f"labels are numbers of classes, got {wrong:g}. For targets of a regression: "
            "gp.tasks.regression(data, targets)"
        )
    if given.is_floating_point():
        given = given[given.isfinite() & (given == given.round())]
    some = some.to(torch.int64)
    least = max(0, int(given.max()) + 1 if len(given) else 0)
    count = least if classes is None else classes
    odd = (some < 0) | (some >= count)
    if bool(odd.any()):
        raise InputError(
            f"labels must be [n] numbers of {count} classes, 0 to {count - 1}, got "
            f"{int(some[odd][0])}"
            + ("; at= says which nodes are asked for" if chosen is not None else "")
        )
    if count < 2:
        return some, some[:, None], None
    every = torch.arange(count).expand(len(some), count)
    others = every[every != some[:, None]].reshape(len(some), count - 1)
    return some, some[:, None], others


def other_class(labels: Tensor, seed: int = 0) -> Tensor:
    """``[n]``: for each example the number of a random one with another label.

    Example:
        >>> other_class(torch.tensor([0, 0, 1])).tolist()
        [2, 2, ...]
    """
    generator, labels = torch.Generator().manual_seed(seed), labels.cpu()
    if len(labels.unique()) < 2:
        raise InputError("all examples have one label; none of another class stands in for them")
    unlike = (labels[:, None] != labels[None]).double()
    return torch.multinomial(unlike, 1, generator=generator)[:, 0]


def patterns(
    clean: Tensor | Tensors,
    labels: Tensor,
    *,
    corrupt: Tensor | Tensors | str | None = "other_class",
    classes: int | None = None,
    positions: Tensor | None = None,
    metric: MetricLike = "logit_diff",
    name: str = "patterns",
    batch_size: int = 64,
    seed: int = 0,
) -> Task:
    """A task whose examples are patterns of a network's inputs.

    Args:
        clean: ``[n, ...]``, what goes into the input nodes (named ``inputs``), or tensors by name.
        labels: ``[n]`` class numbers.
        corrupt: as ``clean``; ``"other_class"``: the pattern of a random example of another class,
            by ``seed``; ``None`` for no corrupted inputs.
        classes: how many classes there are; ``None`` takes it from the highest label.
        positions: ``[n]`` node numbers, where answers are read; ``None`` takes the model's outputs.

    Example:
        >>> task = patterns(torch.eye(3), torch.tensor([0, 1, 2]))
        >>> batch = next(iter(task.batches()))
        >>> batch.clean["inputs"].shape, batch.answer.tolist(), batch.distractor.tolist()
        (torch.Size([3, 3]), [[0], [1], [2]], [[1, 2], [0, 2], [0, 1]])
    """
    given = _tensors(clean if isinstance(clean, Mapping) else {"inputs": clean})
    labels, answer, distractor = _classes(labels, classes)

    def twins() -> Tensors:
        twin = other_class(labels, seed)
        return {key: value[twin] for key, value in given.items()}

    note = f"another class's pattern, seed {seed}"
    other, notes = _corrupted(corrupt, "inputs", "other_class", twins, note)
    examples = TensorExamples(
        len(labels), given, other, positions=positions, answer=answer, distractor=distractor,
        classes=labels if isinstance(corrupt, str) else None, seed=seed,
    )  # fmt: skip
    return Task(examples, as_metric(metric), name=name, batch_size=batch_size, notes=notes)


def nodes(
    features: Any,
    labels: Tensor | None = None,
    *,
    at: Tensor | None = None,
    corrupt: Tensor | Tensors | str | None = "shuffle",
    classes: int | None = None,
    node_type: str | None = None,
    metric: MetricLike = "logit_diff",
    name: str = "nodes",
    batch_size: int | None = None,
    seed: int = 0,
) -> Task:
    """A task whose examples are nodes of one graph.

    Args:
        features: ``[N, F]`` of all nodes (named ``x``), or tensors by name; or PyG's ``Data`` or
            ``HeteroData`` (or a batch of them), whose ``x`` (of all types) are the features.
        labels: ``[N]`` class numbers of all nodes, of heterogeneous data those of ``node_type``;
            ``None`` takes its ``y``. Only labels of the nodes ``at`` must be classes.
        at: the nodes asked for, as numbers (of heterogeneous data within ``node_type``) or as a
            mask ``[N]``; ``None`` means all.
        corrupt: features as above, of heterogeneous data by type; ``"shuffle"``: every node gets
            another's (of its type), by ``seed``; ``None`` for no corrupted inputs.
        classes: how many classes there are; ``None`` takes it from the highest label of all nodes.
        node_type: of heterogeneous data, which type is labelled; ``None`` takes the one that has
            ``y``.
        batch_size: nodes at a time; ``None`` takes all: they share one pass of the whole graph.

    Example:
        >>> task = nodes(torch.eye(3), torch.tensor([0, 1, 1]), at=torch.tensor([2, 0]))
        >>> batch = next(iter(task.batches()))
        >>> batch.positions.tolist(), batch.answer.tolist()
        ([2, 0], [[1], [0]])
    """
    given, labels, first, corrupt = node_inputs(features, labels, corrupt, node_type)
    if labels is None:
        raise InputError("labels are missing: the class number of each node")
    chosen = node_numbers(at, len(labels))
    _, answer, distractor = _classes(labels, classes, chosen)

    other, notes = shuffled_nodes(given, corrupt, seed)
    examples = TensorExamples(
        len(chosen),
        shared=given,
        shared_corrupt=other,
        positions=first + chosen,
        answer=answer,
        distractor=distractor,
    )
    size = max(1, len(chosen)) if batch_size is None else batch_size
    return Task(examples, as_metric(metric), name=name, batch_size=size, notes=notes)


def graphs(
    labels: Tensor,
    *,
    corrupt: Tensors | None = None,
    classes: int | None = None,
    metric: MetricLike = "logit_diff",
    name: str = "graphs",
    batch_size: int | None = None,
) -> Task:
    """A task whose examples are the graphs of a model's batched data.

    Args:
        labels: ``[G]`` class numbers.
        corrupt: features of all graphs' nodes by name, such as ``{"x": [N, F]}``, of heterogeneous
            data ``{"paper.x": [N, F]}``.
        classes: how many classes there are; ``None`` takes it from the highest label.
        batch_size: graphs at a time; ``None`` takes all: they share one pass of all graphs.

    Example:
        >>> graphs(torch.tensor([0, 1, 1]))
        Task('graphs', 3 examples, metric='logit_diff')
    """
    _, answer, distractor = _classes(labels, classes)
    examples = TensorExamples(
        len(answer),
        clean={"graphs": torch.arange(len(answer))},
        shared_corrupt=corrupt,
        answer=answer,
        distractor=distractor,
    )
    size = len(answer) if batch_size is None else batch_size
    return Task(examples, as_metric(metric), name=name, batch_size=size)


def node_inputs(
    features: Any, labels: Any, corrupt: Any, node_type: str | None
) -> tuple[Tensors, Any, int, Any]:
    """Features by name, labels, the number of the first node labelled, and ``corrupt`` by name.

    Of ``features`` as :func:`nodes` takes them; labels that are ``None`` are the data's ``y``.
    """
    first = 0
    if _is_pyg(features, "Data"):
        if node_type is not None:
            raise InputError("node_type is for heterogeneous data; this data has one type of node")
        labels = features.get("y") if labels is None else labels
        given: Tensors = {"x": features.x} if "x" in features else {}
    elif _is_pyg(features, "HeteroData"):
        node_type, first = _labelled(features, node_type, labels)
        labels = features[node_type].y if labels is None else labels
        given = {f"{k}.x": features[k].x for k in features.node_types if "x" in features[k]}
        if isinstance(corrupt, Mapping):
            corrupt = {k if k in given else f"{k}.x": value for k, value in corrupt.items()}
    elif node_type is not None:
        raise InputError("node_type is for heterogeneous data: nodes(data, node_type='paper')")
    else:
        given = _tensors(features if isinstance(features, Mapping) else {"x": features})
    return given, labels, first, corrupt


def shuffled_nodes(
    given: Tensors, corrupt: Tensor | Tensors | str | None, seed: int
) -> tuple[Tensors | None, dict[str, Any]]:
    """Corrupted features by name, and a note of what they are; ``"shuffle"`` permutes nodes."""

    def shuffled() -> Tensors:
        if not given:
            raise InputError(
                "the data has no x to shuffle; give corrupt=None and ask with ablation='zero' or "
                "'delete', or give the features by name: nodes({'pos': ...}, ...)"
            )
        generator = torch.Generator().manual_seed(seed)
        return {k: v[torch.randperm(len(v), generator=generator)] for k, v in given.items()}

    note = f"features shuffled over nodes, seed {seed}"
    return _corrupted(corrupt, "x", "shuffle", shuffled, note)


def _corrupted(
    corrupt: Tensor | Tensors | str | None,
    name: str,
    word: str,
    draw: Callable[[], Tensors],
    note: str,
) -> tuple[Tensors | None, dict[str, Any]]:
    """Corrupted inputs by name, and a note of what they are.

    The only ``word`` that ``corrupt`` may be draws them; ``note`` says how. A single tensor is
    called ``name``.
    """
    if isinstance(corrupt, str):
        if corrupt != word:
            raise InputError(f"corrupt is tensors, {word!r} or None, got {corrupt!r}")
        return draw(), {"corrupted inputs": note}
    notes = {"corrupted inputs": "none" if corrupt is None else "given"}
    return {name: corrupt} if isinstance(corrupt, Tensor) else corrupt, notes


def _tensors(given: Tensors) -> Tensors:
    for key, value in given.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{key} must be a tensor, got {type(value).__name__}; several graphs are put into "
                "one by torch_geometric.data.Batch.from_data_list(graphs)"
            )
    return given


def node_numbers(at: Any, count: int) -> Tensor:
    """``[n]`` numbers of nodes from numbers or a mask; ``None`` means all."""
    if at is None:
        return torch.arange(count)
    given = torch.as_tensor(at).detach().cpu()
    if given.dtype == torch.bool:
        if given.shape != (count,):
            raise InputError(f"at as a mask must be [{count}], got {list(given.shape)}")
        return torch.nonzero(given)[:, 0]
    if given.ndim != 1 or given.is_floating_point() or given.is_complex():
        raise InputError(
            f"at must be [n] numbers of nodes or a mask, got {list(given.shape)} {given.dtype}"
        )
    chosen = given.to(torch.int64)
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < count:
        raise InputError(
            f"at names nodes {int(chosen.min())} to {int(chosen.max())}; there are labels of "
            f"0 to {count - 1}"
        )
    return chosen


def _is_pyg(value: object, kind: str) -> bool:
    """``True`` if a value is PyG's ``Data`` or ``HeteroData``."""
    if "torch_geometric" not in sys.modules:  # such data cannot exist before it was imported
        return False
    from torch_geometric import data

    return isinstance(value, getattr(data, kind))


def _labelled(data: Any, node_type: str | None, labels: Tensor | None) -> tuple[str, int]:
    """The labelled type of heterogeneous data, and the number of its first node."""
    having = [k for k in data.node_types if "y" in data[k]]
    if node_type is None and labels is None and len(having) == 1:
        node_type = having[0]
    if node_type is None or node_type not in data.node_types:
        which = "none was given" if node_type is None else f"got {node_type!r}"
        raise InputError(
            f"node_type says which type is labelled, one of {', '.join(data.node_types)}; {which}"
        )
    if labels is None and node_type not in having:
        raise InputError(f"labels are missing: data[{node_type!r}] has no y")
    count = int(data[node_type].num_nodes)
    if labels is not None and len(labels) != count:
        raise InputError(f"labels of {node_type} must be [{count}], got {list(labels.shape)}")
    before = data.node_types[: data.node_types.index(node_type)]
    return node_type, sum(int(data[k].num_nodes or 0) for k in before)
