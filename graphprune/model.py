"""What an adapter gives: a model whose edges can be masked.

What a reader v reads is ``sum_e m_e * y_e + (1 - m_e) * y~_e`` over its incoming edges plus what
cannot be masked. ``y_e`` is the message in the masked run, ``y~_e`` its ablation value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from graphprune.batch import Batch
from graphprune.errors import InputError, UnsupportedModelError
from graphprune.gradient_mode import decorate, ordinary_tensors, with_gradients
from graphprune.graph import ComputationalGraph
from graphprune.greedy.trials import FullTrials, Trials
from graphprune.mask import EdgeMask, require_same_graph
from graphprune.precision import Lowered, PrecisionPolicy
from graphprune.pruned import Pruned

__all__ = [
    "Ablation",
    "AblationKind",
    "Gradients",
    "MaskedModel",
    "Messages",
    "Objective",
    "Reference",
    "Rule",
    "as_constant",
    "mask_values",
    "require_same_batch",
]

AblationKind = Literal["counterfactual", "zero", "mean", "optimal", "delete"]
Objective = Callable[[Tensor], Tensor]
Rule = Literal["gradient", "relp", "relp-frozen"]


@dataclass(frozen=True, eq=False, repr=False)
class Ablation:
    """What replaces an ablated message.

    ``counterfactual``: the same message on the corrupted input; ``zero``; ``mean``: over a
    reference set, pooled over positions or for each position; ``optimal``: constants that an
    optimiser learns (``model.learned_ablation``). ``values`` is the adapter's own; of learned
    constants a tuple of leaf tensors. ``delete`` puts nothing in a message's place: the edge is
    absent, and operators that normalise over edges (degrees, means, attention) do so over those
    that are left, so a run is not linear in the mask.
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
        """What there is to learn: leaf tensors that require grad, ``()`` unless ``optimal``.

        Runs are differentiable in them, and read their present values at each call.
        """
        return tuple(self.values) if self.kind == "optimal" else ()

    def __repr__(self) -> str:
        return f"Ablation({self.name!r})"


class Reference(ABC):
    """The clean and the ablated values of one batch, computed once and shared by many runs."""

    batch: Batch
    ablation: Ablation

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        decorate(cls, ("full", "ablated"), ordinary_tensors)  # they may be computed when first read

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory the reference holds, or will hold once everything in it was asked for."""

    @property
    @abstractmethod
    def full(self) -> Tensor:
        """Outputs of the unmasked model, ``[B, V]`` or ``[B, P, V]``."""

    @property
    @abstractmethod
    def ablated(self) -> Tensor:
        """Outputs with every edge ablated, shaped as ``full``."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """Sums over the batch's examples, float32 on the CPU.

    ``edge``: ``[E]`` (``[E, pos]`` where asked for by position). ``node``: ``[N]``.
    ``neurons``: ``{node name: [d]}``, filled where asked for.
    """

    edge: Tensor
    node: Tensor
    neurons: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Messages:
    """The clean messages that arrive at some readers which share one input.

    ``edges [R, W]`` are edge numbers (reader by writer); ``values [W, B, T, D]`` the messages;
    ``total [B, T, D]`` all that is read, unmaskable terms included; ``weight [B, T]`` is 1 at real
    positions, 0 at padding.
    """

    edges: Tensor
    values: Tensor
    total: Tensor
    weight: Tensor


_COMPUTING = (  # what of a model makes or keeps tensors
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
    """A model on whose computational graph edges can be masked.

    An adapter wraps the user's own module and leaves it unchanged after every call. Whatever it
    computes can be differentiated later, in ``torch.inference_mode`` too: its functions leave that
    mode, and ``edge_gradients`` takes gradients where they are switched off.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        decorate(cls, _COMPUTING, ordinary_tensors)
        decorate(cls, ("edge_gradients",), with_gradients)

    @property
    @abstractmethod
    def graph(self) -> ComputationalGraph:
        """The graph whose edges can be masked."""

    @property
    @abstractmethod
    def module(self) -> torch.nn.Module:
        """The user's own module."""

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Plain values that identify the model: ``model``, ``architecture``, ``weights`` (hash)."""

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
        differentiable in the parameters of a learned ablation.
        """

    @abstractmethod
    def edge_gradients(
        self,
        batch: Batch,
        objective: Objective,
        reference: Reference | None = None,
        *,
        gates: Tensor | None = None,
        weights: Tensor | None = None,
        by_position: bool = False,
        neurons: bool = False,
        rule: Rule = "gradient",
        constant: Tensor | None = None,
    ) -> Gradients:
        """``Delta_e * d objective / d (what the reader reads)``, summed over examples.

        ``Delta_e`` is the clean minus the ablated message. Each row of ``gates [K, N]`` is a point
        at which the gradient is taken: node n sends ``gate * y_n + (1 - gate) * y~_n`` to all its
        readers. ``None`` is the clean model. Points are weighted by ``weights [K]`` (``None``:
        equally, summing to 1). At the
        clean model the result is the derivative with respect to the mask.
        ``objective`` maps outputs to ``[B]``. ``rule="relp"`` replaces the gradient by
        layer-wise relevance propagation, ``"relp-frozen"`` with attention patterns as constants.
        ``constant [K, N]`` bool marks nodes whose gated message is put in as a constant, with
        ``y_n`` of the clean run: no gradient passes through such a node to what it read.
        """

    @abstractmethod
    def messages(self, batch: Batch) -> Iterator[Messages]:
        """The clean messages, group by group of readers that share one input."""

    @abstractmethod
    def mean_ablation(self, batches: Iterable[Batch], *, per_position: bool = False) -> Ablation:
        """Mean messages of every node over the batches' corrupted inputs (clean if there are none).

        Padding does not count. ``per_position`` keeps one mean for each position, and needs all
        inputs to have one length.
        """

    def learned_ablation(self, start: Ablation) -> Ablation:
        """An ``optimal`` ablation: constants in place of messages, to be learned.

        ``start`` is a zero or a mean ablation; the constants begin as its values. Its
        ``parameters`` are float32 leaf tensors (float64 for a float64 model) that require grad.
        Raises :class:`UnsupportedModelError` where an adapter has none.
        """
        raise UnsupportedModelError(
            f"{type(self).__name__} has no learned ablation constants; use counterfactual, zero "
            "or mean ablation"
        )

    def edge_weights(self) -> Tensor | None:
        """``[E]`` float: each edge's signed weight; ``None`` where edges have none."""
        return None

    def trials(self, batch: Batch, kept: Tensor, reference: Reference, order: Tensor) -> Trials:
        """Runs of a circuit ``kept [E]`` bool that loses its edges in ``order [E]``, one by one.

        The default makes a whole run for each; an adapter may compute only what a cut changes.
        """
        return FullTrials(self, batch, kept, reference)

    def compiled(self, batch: Batch, mask: EdgeMask, reference: Reference) -> Callable[[], Tensor]:
        """A function that gives the circuit's outputs on the batch, again at each call.

        The default runs the masked model; an adapter may compute the circuit's nodes alone.
        """
        return lambda: self.run(batch, mask, reference)

    def pruned(self, mask: EdgeMask, ablation: Ablation, *, logits_to_keep: int = 0) -> Pruned:
        """The circuit as a module of its own, with copies of the weights it needs and no others.

        ``logits_to_keep``: outputs at how many of the last positions, as Hugging Face's models
        take it; 0: at all. What only they need is then computed there alone.

        ``ablation`` is one that needs no corrupted prompt; the mask keeps edges or cuts them,
        nothing between. Raises :class:`InputError` otherwise, :class:`UnsupportedModelError` where
        an adapter or an architecture has no such module.
        """
        raise UnsupportedModelError(
            f"{type(self).__name__} makes no modules of circuits; run the masked model, or "
            "circuit.compile(model, task)"
        )

    def widened(self) -> MaskedModel | None:
        """The same model in float64, over copies of its weights; ``None`` where there is none."""
        return None

    def at_precision(self, policy: PrecisionPolicy) -> MaskedModel:
        """The same model and graph, computed in a policy's precisions; this one stays as it is.

        Weights are rounded as they are now. Masks and scores of the two are interchangeable.
        Asked of a model that is in low precision already, it starts from the original again; what
        both policies round alike is shared.
        Raises :class:`UnsupportedModelError` where an adapter has none, or where the policy refuses
        emulation and the device lacks a precision.
        """
        raise UnsupportedModelError(
            f"{type(self).__name__} has no precision policies; it computes in the module's own "
            "dtype alone"
        )

    @property
    def lowered(self) -> Lowered | None:
        """What a precision policy came to; ``None`` for a model that has none."""
        return None

    @abstractmethod
    def source_groups(self) -> list[list[int]]:
        """Nodes that compute side by side from the same input, in order of depth."""


def as_constant(constant: Tensor | None, gates: Tensor) -> Tensor:
    """``[K, N]`` bool: the ``constant`` of :meth:`MaskedModel.edge_gradients`, checked."""
    if constant is None:
        return torch.zeros(gates.shape, dtype=torch.bool)
    if constant.shape != gates.shape or constant.dtype != torch.bool:
        raise InputError(
            f"constant must be a bool tensor shaped as the gates, {list(gates.shape)}; got "
            f"{list(constant.shape)} {constant.dtype}"
        )
    return constant


def require_same_batch(batch: Batch, reference: Reference) -> None:
    """Raises :class:`InputError` if the reference was made for another batch."""
    if reference.batch is not batch:
        raise InputError(
            "the reference belongs to another batch: make it from the batch that is run, "
            "model.reference(batch, ablation)"
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
