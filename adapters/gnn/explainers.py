"""PyG's explainers as scorers: each example's explanation, and their mean over a task.

An explainer explains one prediction at a time, so a task's score is the mean of the edge masks of
its examples, and :meth:`PyGExplainer.explanations` gives them one by one. They run on a copy of the
user's module: PyG keeps masks and gradients in the module that it explains.

They read no ablation. The masks of GNNExplainer, PGExplainer and Captum multiply messages, which
is what ``ablation="zero"`` does.
"""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from graphprune.core.batch import Batch
from graphprune.core.method import Scorer
from graphprune.core.model import MaskedModel, require_model
from graphprune.core.passes import Passes
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.errors import InputError, MissingExtraError, UnsupportedModelError
from graphprune.util.checks import at_least, require_one_of
from graphprune.util.progress import track

from .graph_data import GraphData
from .hooks import convolutions
from .message_model import MessageModel
from .module_call import GraphModule
from .retraining import seeded

__all__ = [
    "AttentionExplainer", "CaptumExplainer", "GNNExplainer", "PGExplainer", "PyGExplainer",
]  # fmt: skip


class _CalledByPyG(nn.Module):
    """The user's module, called as PyG's explainers call one: ``(x, edge_index)``, by type too."""

    def __init__(self, checked: GraphModule) -> None:
        super().__init__()
        self.module, self._checked, self.data = checked.call.module, checked, checked.call.data

    def forward(self, x: Any, edge_index: Any) -> Tensor:
        """``[rows, V]``: outputs of the answered nodes, or graphs."""
        data = copy.copy(self.data.whole)
        if isinstance(x, dict):
            data.set_value_dict("x", x)
            data.set_value_dict("edge_index", edge_index)
        else:
            data.x, data.edge_index = x, edge_index
        raw = self._checked.call.on_data(data)
        return self._checked.rows.split(raw, 1)[0]


@dataclass(frozen=True, eq=False)
class _Question:
    """One example: features and edges as PyG takes them, the row asked for and its target class."""

    x: Any
    edge_index: Any
    index: Tensor
    target: Tensor
    counted: Tensor  # [E]: 0 on the edges of other graphs of the batch


@dataclass(frozen=True, kw_only=True)
class PyGExplainer(Scorer):
    """Mean edge masks of an explanation algorithm of PyG; see the module.

    Args:
        target: what is explained: the model's own ``"prediction"``, or the task's ``"answer"``.
        node_mask_type: a mask of features that is found beside that of edges, by PyG's names;
            ``None``: none.
        seed: of the masks' first values, the same for each example; ``None``: 0.

    Raises :class:`UnsupportedModelError` for a model that is no PyG module, and with PyG's own
    sentence for a module that the algorithm does not serve.
    """

    # PyG's word for what is explained; targets are handed in but to those who read none.
    explanation_type: ClassVar[str] = "phenomenon"

    target: Literal["prediction", "answer"] = "prediction"
    node_mask_type: Literal["object", "attributes", "common_attributes"] | None = None
    seed: int | None = None

    @abstractmethod
    def algorithm(self) -> Any:
        """PyG's algorithm with these settings, fresh."""

    def _prepare(self, explainer: Any, questions: list[_Question]) -> None:
        """Trains what is trained on all examples before any is explained."""

    def planned_passes(self, model: MaskedModel, task: Task) -> Passes:
        """One for each example, and where a mask is learned for each epoch too."""
        if isinstance(self, CaptumExplainer):
            return Passes(unknown=(type(self).__name__,))
        epochs = self.epochs if isinstance(self, GNNExplainer | PGExplainer) else 1
        return Passes(plain=epochs * len(task))

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """Mean over the task's examples of their edge masks."""
        total = torch.zeros(model.graph.num_edges, dtype=torch.float64)
        for one in self.explanations(model, task):
            total += one.values
        return EdgeScores.computed(model.graph, total / len(task), method=self.label)

    def explanations(self, model: MaskedModel, task: Task) -> Iterator[EdgeScores]:
        """Each example's edge mask, in the task's order.

        Example:
            >>> from graphprune.adapters import GNNExplainer
            >>> first = next(GNNExplainer(epochs=20).explanations(model, task))
            >>> first.values.shape, bool((first.values > 0).all())
            (torch.Size([24]), False)
        """
        inside, questions = self._questions(model, task)
        with seeded(inside, self.chosen_seed), torch.enable_grad():
            explainer = self._explainer(inside)  # some algorithms draw when they are made
            self._ask(lambda: self._prepare(explainer, questions))
        for question in track(questions, type(self).__name__, len(questions)):
            with seeded(inside, self.chosen_seed), torch.enable_grad():
                made = self._ask(lambda one=question: self._explain(explainer, one))
            values = _edge_values(made, inside.data) * question.counted
            values = model.graph.per_edge(values.detach().cpu())
            yield EdgeScores.computed(model.graph, values, method=self.label)

    def _explain(self, explainer: Any, question: _Question) -> Any:
        target = {"target": question.target} if self.explanation_type == "phenomenon" else {}
        return explainer(question.x, question.edge_index, index=question.index, **target)

    def _ask(self, call: Any) -> Any:
        """The call's answer; what PyG refuses, as a refusal."""
        try:
            return call()
        except (ValueError, NotImplementedError) as error:
            raise UnsupportedModelError(
                f"PyG's {type(self).__name__} refuses this module: {error}"
            ) from error

    def _explainer(self, inside: _CalledByPyG) -> Any:
        from torch_geometric.explain import Explainer

        level = inside._checked.rows.level
        return self._ask(
            lambda: Explainer(
                model=inside,
                algorithm=self.algorithm().to(next(inside.parameters(), torch.zeros(())).device),
                explanation_type=self.explanation_type,
                node_mask_type=self.node_mask_type,
                edge_mask_type="object",
                model_config={
                    "mode": "multiclass_classification", "task_level": level, "return_type": "raw",
                },
            )
        )  # fmt: skip

    def _questions(self, model: MaskedModel, task: Task) -> tuple[_CalledByPyG, list[_Question]]:
        require_model(model)
        require_one_of(self.target, ("prediction", "answer"), "target")
        if not isinstance(model, MessageModel):
            raise UnsupportedModelError(
                f"{type(self).__name__} explains PyG's message passing, "
                f"gp.wrap(module, data=data), and this is a {type(model).__name__}; EAP, "
                "ExactPatching and other methods of the core run on any model"
            )
        model.checked.require_messages("edge mask of an explainer")
        call = model.checked.call
        if isinstance(self, PGExplainer) and call.data.heterogeneous:
            raise UnsupportedModelError(
                "PyG's PGExplainer takes the explained node for one of every relation's source "
                "type, which reads another node's state on heterogeneous data; take GNNExplainer"
            )
        module = copy.deepcopy(call.module).eval().requires_grad_(False)
        for conv in convolutions(module).values():
            # Where PyG has explained the user's module before, a parameter is left behind, and what
            # stands in its place loses its gradient.
            conv._parameters.pop("_edge_mask", None)
            conv._edge_mask = None
        inside = _CalledByPyG(replace(model.checked, call=replace(call, module=module)))
        questions = [
            question
            for batch, _ in self._each(model, task, reference=False)
            for question in self._of_batch(inside, model, batch)
        ]
        return inside, questions

    def _of_batch(
        self, inside: _CalledByPyG, model: MessageModel, batch: Batch
    ) -> Iterator[_Question]:
        source, rows = inside.data, model.checked.rows
        features = source.features(batch.clean, batch.size)
        asked = rows.asked(batch)
        seen: dict[int, tuple[Any, Any, Tensor]] = {}  # examples may share their features
        for example in range(batch.size):
            pattern = example % features.num_patterns
            if pattern not in seen:
                if features.num_patterns > 1:
                    seen.clear()
                nodes = features.of(torch.tensor([pattern]))
                x, edges = _as_pyg_takes_it(source, source.copied_data(source.make_copies(nodes)))
                with torch.no_grad():
                    seen[pattern] = x, edges, inside(x, edges).argmax(-1)
            x, edges, target = seen[pattern]
            index = asked[example].reshape(-1)
            if batch.positions is not None:
                index = index[batch.positions[example].reshape(-1).cpu() >= 0]
            if self.target == "answer":
                target = target.clone()
                target[index] = _answer(batch, example).to(target.device)
            counted = _own_edges(source, int(index[0])) if rows.level == "graph" else torch.ones(())
            yield _Question(x, edges, index.to(target.device), target, counted)


def _answer(batch: Batch, example: int) -> Tensor:
    if batch.answer is None:
        raise InputError("target='answer' needs a task with answers, the class of each example")
    return batch.answer[example][:1].cpu()


def _own_edges(source: GraphData, graph: int) -> Tensor:
    """``[E]``: 1 on the edges of one graph of a batch."""
    if not source.batch:
        return torch.ones(())
    parts = [
        (source.batch[a][index[0]] == graph).float().cpu()
        for (a, _), index in zip(source.end_types, source.relations.values(), strict=True)
    ]
    return torch.cat(parts)


def _as_pyg_takes_it(source: GraphData, data: Any) -> tuple[Any, Any]:
    """Features and edges of data, by type where it is heterogeneous."""
    if not source.heterogeneous:
        if data.get("x") is None:
            raise UnsupportedModelError("PyG's explainers need data.x, and this data has none")
        return data.x, data.edge_index
    lacking = [kind for kind in data.node_types if "x" not in data[kind]]
    if lacking:
        raise UnsupportedModelError(
            f"PyG's explainers need x of every node type; {', '.join(lacking)} has none"
        )
    return data.collect("x"), data.collect("edge_index")


def _edge_values(made: Any, source: GraphData) -> Tensor:
    """``[E]``: the edge mask of an explanation, relation after relation."""
    if not source.heterogeneous:
        values: Tensor = made.edge_mask
        return values.detach().cpu().float()
    masks = made.collect("edge_mask", allow_empty=True)
    if not masks:
        raise UnsupportedModelError("PyG's explanation has no edge mask on this heterogeneous data")
    parts = [
        masks[relation].detach().cpu().float() if relation in masks else torch.zeros(count)
        for relation, count in zip(source.relations, source.edge_counts, strict=True)
    ]
    return torch.cat(parts)


@dataclass(frozen=True, kw_only=True)
class GNNExplainer(PyGExplainer):
    """GNNExplainer (Ying et al. 2019, arXiv 1903.03894), as PyG has it, example by example.

    A mask of the edges is learned anew for each example, by Adam, under prices for its size and its
    entropy; edges that the output does not depend on score 0.

    Args:
        epochs, lr: of each example's mask; PyG's own are 100 and .01.
        edge_size, edge_ent: the prices.

    Example:
        >>> from graphprune.adapters import GNNExplainer
        >>> GNNExplainer(epochs=20).score(model, task).top(3)
        EdgeMask(3 of 24 edges, 12.5000%)
    """

    epochs: int = 100
    lr: float = 0.01
    edge_size: float = 0.005
    edge_ent: float = 1.0

    def algorithm(self) -> Any:
        """PyG's GNNExplainer."""
        from torch_geometric.explain import GNNExplainer as Algorithm

        return Algorithm(
            at_least(self.epochs, 1, "epochs"),
            self.lr,
            edge_size=self.edge_size,
            edge_ent=self.edge_ent,
        )


@dataclass(frozen=True, kw_only=True)
class PGExplainer(PyGExplainer):
    """PGExplainer (Luo et al. 2020, arXiv 2011.04573), as PyG has it.

    One network, which reads the states of an edge's ends, learns on all of the task's examples to
    give the edges' masks. PyG counts as many hops around a node as the module has convolutions, and
    scores edges outside them 0. Heterogeneous data is refused.

    Args:
        epochs, lr: passes over all examples, and Adam's rate.

    Example:
        >>> from graphprune.adapters import PGExplainer
        >>> PGExplainer(epochs=3).score(model, task).top(3)
        EdgeMask(3 of 24 edges, 12.5000%)
    """

    epochs: int = 30
    lr: float = 0.003

    def algorithm(self) -> Any:
        """PyG's PGExplainer."""
        from torch_geometric.explain import PGExplainer as Algorithm

        return Algorithm(at_least(self.epochs, 1, "epochs"), self.lr)

    def _prepare(self, explainer: Any, questions: list[_Question]) -> None:
        train, module = explainer.algorithm.train, explainer.model
        with warnings.catch_warnings():
            # PyG reads its loss as a number with the gradient on it.
            warnings.filterwarnings("ignore", "Converting a tensor with requires_grad=True")
            for epoch in track(range(self.epochs), "PGExplainer", self.epochs):
                for one in questions:
                    train(epoch, module, one.x, one.edge_index, target=one.target, index=one.index)


@dataclass(frozen=True, kw_only=True)
class AttentionExplainer(PyGExplainer):
    """Attention coefficients of a module that has some (GAT, GATv2, Transformer), as PyG has them.

    Example:
        >>> from torch_geometric.nn import GATConv
        >>> from graphprune.adapters import AttentionExplainer
        >>> attending = gp.wrap(GATConv(4, 2), data=data, tie=False)
        >>> AttentionExplainer().score(attending, task).top(3)
        EdgeMask(3 of 24 edges, 12.5000%)
    """

    explanation_type: ClassVar[str] = "model"

    reduce: Literal["max", "min", "mean"] = "max"

    def algorithm(self) -> Any:
        """PyG's AttentionExplainer; ``reduce`` is over layers and heads."""
        from torch_geometric.explain import AttentionExplainer as Algorithm

        return Algorithm(self.reduce)


@dataclass(frozen=True, kw_only=True)
class CaptumExplainer(PyGExplainer):
    """Attributions of Captum by a mask of ones on the edges, through PyG's CaptumExplainer.

    Needs ``pip install captum``; :class:`MissingExtraError` says so where it is missing.

    Args:
        attribution_method: a gradient method of ``captum.attr``: ``"IntegratedGradients"``,
            ``"Saliency"``, ``"InputXGradient"``, ``"Deconvolution"``, ``"GuidedBackprop"``,
            ``"ShapleyValueSampling"``.

    Example:
        >>> CaptumExplainer(attribution_method="Saliency").label
        "CaptumExplainer(attribution_method='Saliency')"
    """

    attribution_method: str = "IntegratedGradients"

    def algorithm(self) -> Any:
        """PyG's CaptumExplainer."""
        if find_spec("captum") is None:
            raise MissingExtraError(
                "CaptumExplainer needs captum: pip install captum. gp.IntegratedMaskGradient("
                "ablation='zero') integrates the same gradients of a mask without it"
            )
        from torch_geometric.explain import CaptumExplainer as Algorithm

        return Algorithm(self.attribution_method)
