"""The contract: a model whose edges can be masked.

What a reader v reads is ``sum_e m_e * y_e + (1 - m_e) * y~_e`` over its incoming edges plus what
cannot be masked. ``y_e`` is the message in the masked run, ``y~_e`` its ablation value.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.errors import InputError
from graphprune.util.modes import decorate, ordinary_tensors, with_gradients

AblationKind = Literal["counterfactual", "zero", "mean", "optimal", "delete"]
Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Ablation:
    """The values that replace ablated messages.

    ``counterfactual``: the same message on the corrupted input; ``zero``; ``mean``: over a
    reference set, pooled over positions or for each position; ``optimal``: constants that an
    optimiser learns (``model.learned_ablation``). ``values`` is the adapter's own; of learned
    constants a tuple of leaf tensors. ``delete`` puts nothing in a message's place: the edge is
    absent, and operators that normalise over edges (degrees, means, attention) do so over those
    that are left, so a run is not linear in the mask.

    Example:
        >>> gp.Ablation("zero").name, gp.Ablation().name
        ('zero', 'counterfactual')
        >>> gp.evaluate(model, task, mask, ablation=gp.Ablation("zero"))["faithfulness"]
        0.447
    """

    kind: AblationKind = "counterfactual"
    values: Any = None
    per_position: bool = False

    @property
    def name(self) -> str:
        """The name methods know it by; ``"mean_positional"`` for a mean at each position."""
        return "mean_positional" if self.kind == "mean" and self.per_position else self.kind

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The constants to learn: leaf tensors that require grad, ``()`` unless ``optimal``.

        Runs are differentiable in them, and read their present values at each call.
        """
        return tuple(self.values) if self.kind == "optimal" else ()

    def as_plain(self) -> str:
        """The text that files hold for it."""
        return repr(self)

    def __repr__(self) -> str:
        return f"Ablation({self.name!r})"


def ablation_kind(ablation: str | Ablation | None) -> str | None:
    """The kind of an ablation, or the name that stands for one; ``None`` where none was said."""
    return ablation.kind if isinstance(ablation, Ablation) else ablation


class Reference:
    """The clean and the ablated values of one batch, computed once and shared by many runs.

    An adapter puts what its runs share into a class of its own, or gives this one.

    Args:
        batch: the examples.
        ablation: what stands in for ablated messages.
        full: outputs of the unmasked model, ``[B, V]`` or ``[B, P, V]``.
        ablated: outputs with every edge ablated, shaped as ``full``.

    Example:
        >>> batch = next(task.batches())
        >>> reference = model.reference(batch)
        >>> reference.full.shape, reference.ablated.shape
        (torch.Size([10, 2]), torch.Size([10, 2]))
        >>> outputs = model.run(batch, torch.ones(1, 24), reference)
        >>> bool(torch.allclose(outputs[0], reference.full, atol=1e-5))
        True
    """

    batch: Batch
    ablation: Ablation

    def __init__(self, batch: Batch, ablation: Ablation, full: Tensor, ablated: Tensor) -> None:
        self.batch, self.ablation = batch, ablation
        self._ends = full, ablated

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        decorate(cls, ("full", "ablated"), ordinary_tensors)  # they may be computed when first read

    @property
    def nbytes(self) -> int:
        """Memory the reference holds, or will hold once everything in it was asked for."""
        held = [*self._ends, *(v for v in vars(self).values() if isinstance(v, Tensor))]
        return sum(value.numel() * value.element_size() for value in held)

    @property
    def full(self) -> Tensor:
        """Outputs of the unmasked model, ``[B, V]`` or ``[B, P, V]``."""
        return self._ends[0]

    @property
    def ablated(self) -> Tensor:
        """Outputs with every edge ablated, shaped as ``full``."""
        return self._ends[1]


@dataclass(frozen=True, eq=False)
class Gradients:
    """Sums over the batch's examples, float32 on the CPU.

    ``edge``: ``[E]`` (``[E, pos]`` where asked for by position). ``node``: ``[N]``.
    ``neurons``: ``{node name: [d]}``, filled where asked for.

    Example:
        >>> batch = next(prompts.batches())
        >>> reference = lm.reference(batch)
        >>> gradients = lm.edge_gradients(batch, lambda outputs: outputs[:, 0].sum(), reference)
        >>> gradients.edge.shape, gradients.node.shape
        (torch.Size([110]), torch.Size([12]))
    """

    edge: Tensor
    node: Tensor
    neurons: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Messages:
    """The clean messages that arrive at some readers which share one input.

    ``edges [R, W]`` are edge numbers (reader by writer; one that is tied stands in two places);
    ``values [W, B, T, D]`` the messages;
    ``total [B, T, D]`` all that is read, unmaskable terms included; ``weight [B, T]`` is 1 at real
    positions, 0 at padding.

    Example:
        >>> batch = next(prompts.batches())
        >>> first = next(iter(lm.messages(batch)))
        >>> first.edges.shape, first.values.shape, first.total.shape
        (torch.Size([12, 1]), torch.Size([1, 4, 15, 16]), torch.Size([4, 15, 16]))
    """

    edges: Tensor
    values: Tensor
    total: Tensor
    weight: Tensor


# What of a model, its capabilities included, makes or keeps tensors.
_COMPUTING = (
    "__init__",
    "reference",
    "run",
    "messages",
    "mean_ablation",
    "learned_ablation",
    "edge_weights",
    "trials",
    "compiled",
    "pruned",
    "widened",
    "at_precision",
)


class MaskedModel(ABC):
    """A model on whose computational graph edges can be masked: a graph, references, runs.

    These three are all that attribution by mask gradients, exact patching, mask optimisers, ACDC,
    evaluation, statistics and export ask for. What more a model can do is a capability, see
    :mod:`graphprune.capabilities`.

    An adapter wraps the user's own module and leaves it unchanged after every call. Whatever it
    computes can be differentiated later, in ``torch.inference_mode`` too: its functions leave that
    mode, and those that take gradients switch them on.

    Example:
        A chain of two units that read sums of numbers, with zeros for ablated messages.

        >>> class Chain(MaskedModel):
        ...     graph = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c")])
        ...
        ...     def reference(self, batch, ablation=None):
        ...         full = self._outputs(batch, torch.ones(3))
        ...         return Reference(batch, Ablation("zero"), full, 0 * full)
        ...
        ...     def run(self, batch, mask, reference=None):
        ...         one = lambda m: self._outputs(batch, m)
        ...         return each_mask(self.graph, mask, one, batch.size)
        ...
        ...     def _outputs(self, batch, mask):  # [E] or [B, E]
        ...         ab, bc, ac = mask.unbind(-1)
        ...         a = batch.clean
        ...         return (bc * torch.tanh(ab * a) + ac * a)[:, None]
        >>> batch = Batch(torch.tensor([1.0, 2.0]), None, 2)
        >>> Chain().run(batch, torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])).tolist()
        [[[0.761...], [0.964...]], [[1.0], [2.0]]]
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        decorate(cls, ("reference",), _checked_reference)
        decorate(cls, _COMPUTING, ordinary_tensors)
        decorate(cls, ("edge_gradients", "relevance_gradients"), with_gradients)

    @property
    @abstractmethod
    def graph(self) -> ComputationalGraph:
        """The graph whose edges can be masked."""

    @abstractmethod
    def reference(self, batch: Batch, ablation: Ablation | None = None) -> Reference:
        """Clean and ablated values of a batch; the default ablation is counterfactual."""

    @abstractmethod
    def run(
        self, batch: Batch, mask: EdgeMask | Tensor, reference: Reference | None = None
    ) -> Tensor:
        """Outputs at the answer positions under a mask, differentiable in the mask.

        ``mask`` is an :class:`EdgeMask`, ``[E]``, a stack ``[K, E]`` of candidates, or
        ``[K, B, E]``: candidates for each of the batch's B examples. A stack gives outputs with a
        leading axis of ``K``; example b of candidate k ran under ``mask[k, b]``. Also
        differentiable in the parameters of a learned ablation. :func:`each_mask` does this for
        adapters that compute one mask at a time.
        """


def _checked_reference(function: Callable[..., Reference]) -> Callable[..., Reference]:
    """``reference`` without gradients (runs take them by the mask), of the ablation asked for."""

    @functools.wraps(function)
    def reference(
        self: MaskedModel, batch: Batch, ablation: Ablation | None = None, **options: Any
    ) -> Reference:
        with torch.no_grad():
            made = function(self, batch, ablation, **options)
        if ablation is not None and made.ablation.kind != ablation.kind:
            raise InputError(
                f"{type(self).__name__}.reference was asked for {ablation.name} ablation and gave "
                f"{made.ablation.name}; an adapter refuses an ablation that it does not have"
            )
        return made

    return reference


def gradient_by_mask(outputs: Tensor, mask: Tensor) -> Tensor:
    """The derivative of a number by the mask that a run was given.

    Raises :class:`InputError` where autograd knows of no dependence: the adapter's ``run`` detaches
    its outputs, or makes the mask hard.
    """
    if not outputs.requires_grad:
        raise InputError(
            "run's outputs do not depend on the mask as autograd sees it: run must be "
            "differentiable in the mask (no torch.no_grad, no .detach(), no comparison of it)"
        )
    (gradient,) = torch.autograd.grad(outputs, mask)
    return gradient


def each_mask(
    graph: ComputationalGraph,
    mask: EdgeMask | Tensor,
    outputs: Callable[[Tensor], Tensor],
    examples: int,
) -> Tensor:
    """The outputs of :meth:`MaskedModel.run`, from a function of one mask.

    Args:
        graph: the model's; the mask is checked against it.
        mask: as ``run`` takes it.
        outputs: gives ``[B, ...]`` of a mask ``[E]``, or ``[B, E]``: one for each example.
        examples: B.
    """
    values = mask_values(graph, mask, examples)
    if values.ndim == 1:
        return outputs(values)
    return torch.stack([outputs(row) for row in values])


def gradient_points(
    gates: Tensor | None, weights: Tensor | None, constant: Tensor | None, nodes: int
) -> tuple[Tensor, Tensor, list[float]]:
    """The points of ``edge_gradients``, checked: gates ``[K, N]``, constant ``[K, N]``, K weights.

    Without ``gates`` the one point is the clean model; without ``weights`` all count equally.
    """
    if gates is None:
        gates = torch.ones(1, nodes)
    if gates.ndim != 2 or gates.shape[1] != nodes or not len(gates):
        raise InputError(f"gates must be [K, {nodes}] with K >= 1, got {list(gates.shape)}")
    shares = [1.0 / len(gates)] * len(gates) if weights is None else weights.tolist()
    if constant is None:
        constant = torch.zeros(gates.shape, dtype=torch.bool)
    if constant.shape != gates.shape or constant.dtype != torch.bool:
        raise InputError(
            f"constant must be a bool tensor shaped as the gates, {list(gates.shape)}; got "
            f"{list(constant.shape)} {constant.dtype}"
        )
    return gates, constant, shares


def require_same_batch(batch: Batch, reference: Reference) -> None:
    """Raises :class:`InputError` for what is no reference, and for that of another batch."""
    if not isinstance(reference, Reference):
        raise InputError(
            f"a run takes the reference of its batch, got {reference!r}: give "
            'model.reference(batch, ablation), such as model.reference(batch, gp.Ablation("zero"))'
        )
    if reference.batch is not batch:
        raise InputError(
            "the reference belongs to another batch (task.batches() makes new ones at each call, "
            "of equal content too): run reference.batch, or make the reference from the batch that "
            "is run, model.reference(batch, ablation)"
        )


def mask_values(
    model_graph: ComputationalGraph, mask: EdgeMask | Tensor, examples: int | None = None
) -> Tensor:
    """The mask as a float tensor ``[E]``, ``[K, E]`` or ``[K, B, E]``, checked against the graph.

    ``examples`` is the batch's B; ``None`` refuses masks for each example.
    """
    if isinstance(mask, EdgeMask):
        require_same_graph(model_graph, mask.graph, "the model and the mask")
        return mask.values
    edges = model_graph.num_edges
    if (
        not isinstance(mask, Tensor)
        or not 1 <= mask.ndim <= (2 if examples is None else 3)
        or mask.shape[-1] != edges
        or not mask.numel()
        or (mask.ndim == 3 and mask.shape[1] != examples)
    ):
        got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        each = "" if examples is None else f" or [K, {examples}, {edges}]"
        raise InputError(
            f"expected an EdgeMask, or a tensor [{edges}] or [K, {edges}]{each}, got {got}"
        )
    if not bool(((mask.detach() >= 0) & (mask.detach() <= 1)).all()):
        raise InputError("mask values must lie in [0, 1]; got a NaN or a value outside")
    return mask


def require_model(model: object) -> None:
    """Raises :class:`InputError` unless ``model`` is a masked model."""
    if not isinstance(model, MaskedModel):
        raise InputError(
            f"expected a masked model, got {type(model).__name__}; wrap it first: "
            "model = gp.wrap(module)"
        )
