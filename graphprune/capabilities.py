"""Capabilities: whatever a model can do beyond the contract, each a protocol of its own.

:class:`~graphprune.MaskedModel` asks for a graph, references and runs, and most methods need no
more. A method that looks inside asks for a capability: with :func:`require`, which refuses in a
sentence where the model lacks it, or with ``isinstance`` where plain runs give the same answer more
slowly. An adapter has a capability as soon as it defines its members; there is nothing to inherit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.mask import EdgeMask
from graphprune.core.model import Ablation, Gradients, MaskedModel, Messages, Objective, Reference
from graphprune.core.pruned import Pruned
from graphprune.core.reach import EdgeReach
from graphprune.core.trials import EdgeTrials, FullTrials
from graphprune.errors import UnsupportedModelError
from graphprune.precision import Lowered, PrecisionDefaults, PrecisionPolicy

__all__ = [
    "CompiledCircuits",
    "CutsWhileTraining",
    "EdgeGradients",
    "ExportedModules",
    "Identity",
    "IncrementalTrials",
    "LearnedConstants",
    "LearnsByNode",
    "LocalEffects",
    "LowPrecision",
    "MeanMessages",
    "PlacedMessages",
    "RelevanceGradients",
    "TiedEdges",
    "UserModule",
    "WeightedEdges",
    "WiderCopy",
    "identity_of",
    "module_of",
    "require",
    "trials_of",
]

C = TypeVar("C")


@runtime_checkable
class UserModule(Protocol):
    """The model runs a torch module of the user's, which is unchanged after every call."""

    @property
    def module(self) -> torch.nn.Module:
        """The user's own module."""
        ...


@runtime_checkable
class Identity(Protocol):
    """The model can be told from others: circuits, checkpoints and studies keep this."""

    def provenance(self) -> dict[str, Any]:
        """Plain values: ``model``, ``architecture``, ``weights`` (a hash of all weights)."""
        ...


@runtime_checkable
class EdgeGradients(Protocol):
    """Gradients at every reader in one backward pass, also at gated or constant nodes."""

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
        constant: Tensor | None = None,
    ) -> Gradients:
        """``Delta_e * d objective / d (what the reader reads)``, summed over examples.

        ``Delta_e`` is the clean minus the ablated message.

        Args:
            batch: the examples.
            objective: maps outputs to ``[B]``.
            reference: clean and ablated values; ``None`` makes counterfactual ones.
            gates: ``[K, N]``, points at which the gradient is taken: node n sends ``gate * y_n +
                (1 - gate) * y~_n`` to all its readers. ``None`` is the clean model, where the
                result is the derivative with respect to the mask.
            weights: ``[K]``, of the points; ``None`` weighs all equally, summing to 1.
            by_position: edges get ``[E, pos]``.
            neurons: also each neuron of each node.
            constant: ``[K, N]`` bool, nodes whose gated message is put in as a constant, with
                ``y_n`` of the clean run: no gradient passes through one to what it read.
        """
        ...

    def source_groups(self) -> list[list[int]]:
        """Nodes that compute side by side from the same input, in order of depth."""
        ...


@runtime_checkable
class RelevanceGradients(Protocol):
    """Layer-wise relevance propagation in place of gradients (RelP)."""

    def relevance_gradients(
        self,
        batch: Batch,
        objective: Objective,
        reference: Reference | None = None,
        *,
        by_position: bool = False,
        frozen: bool = False,
    ) -> Gradients:
        """As ``edge_gradients`` at the clean model; ``frozen``: attention is constant."""
        ...


@runtime_checkable
class PlacedMessages(Protocol):
    """The messages themselves, at every place of every example."""

    def messages(self, batch: Batch) -> Iterator[Messages]:
        """The clean messages, group by group of readers that share one input."""
        ...


@runtime_checkable
class MeanMessages(Protocol):
    """Mean ablation."""

    def mean_ablation(self, batches: Iterable[Batch], *, per_position: bool = False) -> Ablation:
        """Mean messages of every node over the batches' corrupted inputs (clean if there are none).

        Padding does not count. ``per_position`` keeps one mean for each position, and needs all
        inputs to have one length.
        """
        ...


@runtime_checkable
class LearnedConstants(Protocol):
    """Optimal ablation: constants in place of messages, learned with the mask."""

    def learned_ablation(self, start: Ablation) -> Ablation:
        """An ``optimal`` ablation whose constants begin as a zero or mean ablation's values.

        Its ``parameters`` are float32 leaf tensors (float64 for a float64 model) that require grad.
        """
        ...


@runtime_checkable
class WeightedEdges(Protocol):
    """Edges that have a weight of their own, as a graph network's may."""

    def edge_weights(self) -> Tensor | None:
        """``[E]`` float: each edge's signed weight; ``None`` where this model's edges have none."""
        ...


@runtime_checkable
class TiedEdges(Protocol):
    """Edges that may stand for both directions, as those of an undirected graph do."""

    def untied(self) -> MaskedModel:
        """The same model with each direction as an edge of its own."""
        ...


@runtime_checkable
class CutsWhileTraining(Protocol):
    """Edges that can be cut and grown while the user's own loop trains the network."""

    def cutting(self) -> AbstractContextManager[Any]:
        """A context that gives the edges (:class:`graphprune.search.cut_edges.CutEdges`).

        Inside it the user's own calls run without the edges that are cut. When it ends all is as it
        was, except for what was learned.
        """
        ...


@runtime_checkable
class LearnsByNode(CutsWhileTraining, Protocol):
    """A local rule, which learns at every update of a node.

    ``weight [N, N]`` and ``keep [N, N]`` bool are source by target; ``after_update(rule, node)`` is
    called after every update.
    """

    weight: Any
    keep: Any
    after_update: Any


@runtime_checkable
class IncrementalTrials(Protocol):
    """A greedy descent that computes only what a cut changes."""

    def trials(self, batch: Batch, kept: Tensor, reference: Reference, order: Tensor) -> EdgeTrials:
        """Runs of a circuit ``kept [E]`` bool that loses its edges in ``order [E]``, one by one."""
        ...


@runtime_checkable
class LocalEffects(Protocol):
    """Edges that change some examples of a batch and surely not the others."""

    def reach(self, batch: Batch, reference: Reference) -> EdgeReach | None:
        """The examples that each edge can change; ``None`` where that is not known.

        It holds for layers that join nodes by edges alone: whoever relies on it checks that the
        other examples stay as they are.
        """
        ...


@runtime_checkable
class CompiledCircuits(Protocol):
    """Runs of a circuit that compute the circuit's nodes alone."""

    def compiled(self, batch: Batch, mask: EdgeMask, reference: Reference) -> Callable[[], Tensor]:
        """A function that gives the circuit's outputs on the batch, again at each call."""
        ...


@runtime_checkable
class ExportedModules(Protocol):
    """Circuits as ordinary torch modules."""

    def pruned(self, mask: EdgeMask, ablation: Ablation, **options: Any) -> Pruned:
        """The circuit as a module of its own, with copies of the weights it needs and no others.

        ``ablation`` is one that needs no corrupted prompt; the mask keeps edges or cuts them,
        nothing between. ``options`` are the adapter's own.
        """
        ...


@runtime_checkable
class WiderCopy(Protocol):
    """The same model in float64, for decisions that hang on rounding."""

    def widened(self) -> MaskedModel | None:
        """The model over float64 copies of its weights; ``None`` where it cannot be copied."""
        ...


@runtime_checkable
class LowPrecision(Protocol):
    """The same model and graph, computed in lower precisions."""

    def at_precision(self, policy: PrecisionPolicy) -> MaskedModel:
        """The model in a policy's precisions; this one stays as it is.

        Weights are rounded as they are now. Masks and scores of the two are interchangeable. Asked
        of a model that is in low precision already, it starts from the original again. Raises
        :class:`UnsupportedModelError` where the policy refuses emulation and the device lacks a
        precision.
        """
        ...

    @property
    def precision_defaults(self) -> PrecisionDefaults:
        """The policies that methods take where nobody names kinds of nodes."""
        ...

    @property
    def lowered(self) -> Lowered | None:
        """The outcome of its precision policy; ``None`` for a model that has none."""
        ...


_NEEDED = {
    UserModule: "the user's torch module (module)",
    Identity: "what tells the model from others (provenance)",
    EdgeGradients: "gradients at nodes inside the model (edge_gradients, source_groups)",
    RelevanceGradients: "relevance propagation (relevance_gradients)",
    PlacedMessages: "the messages at every place (messages)",
    MeanMessages: "mean messages (mean_ablation)",
    LearnedConstants: "constants to learn in place of messages (learned_ablation)",
    WeightedEdges: "weights of edges (edge_weights)",
    LocalEffects: "the examples that each edge can change (reach)",
    IncrementalTrials: "runs that compute what a cut changes (trials)",
    CompiledCircuits: "runs of a circuit's nodes alone (compiled)",
    ExportedModules: "circuits as modules of their own (pruned)",
    WiderCopy: "a copy in float64 (widened)",
    LowPrecision: "copies in low precision (at_precision, precision_defaults, lowered)",
}


def require(model: object, capability: type[C], what: str) -> C:
    """The model, where it has the capability.

    Args:
        model: a masked model.
        capability: one of this module's protocols.
        what: who asks, as the error names it.

    Raises:
        UnsupportedModelError: the model lacks it.
    """
    if isinstance(model, capability):
        return model
    raise UnsupportedModelError(
        f"{what} needs {_NEEDED[capability]}, and {type(model).__name__} gives none. Methods that "
        "only run the model work with any: EAP, IntegratedMaskGradient, ExactPatching, "
        "EdgePruning, UGS, MatryoshkaPruning, ACDC; graphprune.capabilities says what others need"
    )


def module_of(model: object) -> torch.nn.Module | None:
    """The user's module, where the model runs one."""
    return model.module if isinstance(model, UserModule) else None


def identity_of(model: object) -> dict[str, Any]:
    """The model's provenance; of a model without one its class alone."""
    return model.provenance() if isinstance(model, Identity) else {"model": type(model).__name__}


def trials_of(
    model: MaskedModel, batch: Batch, kept: Tensor, reference: Reference, order: Tensor
) -> EdgeTrials:
    """The model's own trials, else a whole run for each."""
    if isinstance(model, IncrementalTrials):
        return model.trials(batch, kept, reference, order)
    return FullTrials(model, batch, kept, reference)
