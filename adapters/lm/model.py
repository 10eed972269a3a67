"""A causal language model from Hugging Face as a :class:`~graphprune.MaskedModel`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.core.batch import Batch
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.core.model import (
    Ablation,
    Gradients,
    MaskedModel,
    Messages,
    Objective,
    Reference,
    mask_values,
    require_same_batch,
)
from graphprune.core.pruned import Pruned
from graphprune.core.trials import EdgeTrials, FullTrials
from graphprune.errors import InputError, UnsupportedModelError
from graphprune.precision import Lowered, PrecisionDefaults, PrecisionPolicy
from graphprune.search.order import is_reverse_topological

from .attribution.gradients import attributed
from .attribution.relevance import Rule
from .describe.architecture import Architecture
from .describe.family import Family
from .describe.layout import EdgeLayout, PassPlan, computed_share, dense_plan, sparse_plan
from .describe.linear_maps import is_quantised
from .describe.offloading import identity, require_loadable
from .describe.one_node import require_split
from .export.pruned import pruned
from .generate import generate
from .passes.backward import differentiable_run
from .passes.delta_buffer import AblatedRun, HeadCores
from .passes.incremental import SuffixTrials
from .passes.inputs import read_inputs
from .passes.masked import MaskedPass
from .passes.means import learned_constants, mean_values
from .passes.shared import compute_values
from .passes.values import LMReference
from .precision.quantised import DEFAULTS, Lowering, lower

__all__ = ["LanguageModel"]

# Up to this share of the layers' multiplications a run of the circuit alone took 0.82 to 0.96 of a
# whole masked pass; above it up to 1.29 on GPT-2 small's shape (16 x 16 tokens, one thread).
_PAYS = 0.8


class LanguageModel(MaskedModel):
    """Edges of a decoder-only language model: heads, MLPs and embeddings over the residual stream.

    Args:
        model: the user's own causal language model; it is never changed.
        family: where its parts are.
        embedding_nodes: 1 (token embedding; a position table stays unmaskable) or 2 (the position
            table is a node too, as in Edge Pruning's scripts).
        checkpointing: whether backward passes compute every layer again (least memory) or find
            projections and what MLPs need kept from the forward pass (fastest, the default).
            Results are the same.
        lowering: what :meth:`at_precision` made of ``model``, which is then its copy.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        *,
        embedding_nodes: int = 1,
        checkpointing: bool = False,
        lowering: Lowering | None = None,
    ) -> None:
        require_loadable(model)
        self._model, self._lowering = model, lowering
        self.arch = Architecture(model, family, None if lowering is None else lowering.rounds)
        # Graphs kept for the way back would hold weights that are to leave after each layer.
        self.checkpointing = checkpointing or self.arch.partial
        if not self.arch.blocks:
            raise UnsupportedModelError("the model has no layers, so there is nothing to prune")
        blocks = self.arch.blocks
        layout = EdgeLayout.of(blocks[0].family, self.arch.config, len(blocks), embedding_nodes)
        self.layout = dataclasses.replace(layout, shapes=tuple(block.shape for block in blocks))
        self._dense_plan = dense_plan(self.layout)
        self._cores = [HeadCores(block) for block in blocks]

    # ---------------------------------------------------------------- what it is

    @cached_property
    def _graph(self) -> ComputationalGraph:
        return self.layout.graph()

    @property
    def graph(self) -> ComputationalGraph:
        """Nodes and maskable edges, ordered as ``EdgeLayout.graph`` says."""
        return self._graph

    @property
    def module(self) -> nn.Module:
        """The user's own model, or its copy in low precision."""
        return self._model

    def at_precision(self, policy: PrecisionPolicy) -> LanguageModel:
        """The model in a policy's precisions; see the capability.

        Kinds are ``head`` (its q rows and output map, and k and v rows where each head has its
        own), ``kv`` (k and v rows of grouped heads; as ``head`` unless named), ``mlp``, ``output``
        (the unembedding) and ``embed`` (tables). Attention scores, norms, biases and the residual
        stream stay in the model's own dtype. ``module`` is a copy that shares what is not rounded.
        """
        source, arch = self._model, self.arch
        require_split(arch.blocks, "low precision", "run the model in its own")
        arch.snapshot.check()
        if self._lowering is not None:
            source = self._lowering.source
            arch = Architecture(source, arch.family)
        lowering = lower(arch, self.layout, self.graph, policy, self._lowering)
        low = LanguageModel(
            lowering.module,
            arch.family,
            embedding_nodes=self.layout.embeddings,
            checkpointing=self.checkpointing,
            lowering=lowering,
        )
        low._graph = self.graph  # the same, and large
        return low

    @property
    def precision_defaults(self) -> PrecisionDefaults:
        """PAHQ's and RTN-Q's precisions, as their paper describes them."""
        return DEFAULTS

    @property
    def lowered(self) -> Lowered | None:
        """What a precision policy came to; ``None`` for a model that has none."""
        return None if self._lowering is None else self._lowering.report

    def provenance(self) -> dict[str, Any]:
        """Model id, architecture, sizes, dtype and a hash of all weights.

        Of a model in low precision: those of the original, and the policy under ``precision``.
        """
        lowering = self._lowering
        source = self._model if lowering is None else lowering.source
        notes = identity(source, self.layout, self.arch.width, self.arch.dtype)
        if lowering is not None:
            notes["precision"] = lowering.report.policy.to_dict()
        return notes

    # ---------------------------------------------------------------- inputs and values

    def reference(self, batch: Batch, ablation: Ablation | None = None) -> LMReference:
        """Clean and ablated values of a batch, each computed when first needed, once."""
        ablation = ablation or Ablation()
        if ablation.kind == "delete":
            raise UnsupportedModelError(
                "nothing in a transformer normalises over the messages that a reader sums, so an "
                "edge that is deleted is an edge that sends zero: use ablation='zero'"
            )
        with self.arch.running(), torch.no_grad():  # which says first what became of the model
            inputs = read_inputs(self.arch, batch)
            if ablation.kind == "counterfactual" and inputs.corrupt is None:
                raise InputError(
                    "counterfactual ablation needs corrupted prompts and this task has none; give "
                    "them, or use ablation='zero' or 'mean'"
                )
            glue = self.arch.glue(inputs.clean)
        free = ablation.kind == "counterfactual" and self.arch.family.causal
        return LMReference(
            batch,
            ablation,
            inputs,
            self.arch,
            glue,
            self.layout.embeddings,
            partial(compute_values, self.layout),
            start=inputs.prefix if free else 0,
            checkpointing=self.checkpointing,
            weights=None if self.arch.partial else self.arch.snapshot.weights(),
        )

    def _checked_reference(self, batch: Batch, reference: Reference | None) -> LMReference:
        if reference is None:
            return self.reference(batch)
        if not isinstance(reference, LMReference) or reference.arch is not self.arch:
            raise InputError("the reference was made by another model")
        require_same_batch(batch, reference)
        self.arch.snapshot.require_same(reference.weights)
        return reference

    # ---------------------------------------------------------------- running

    def run(
        self,
        batch: Batch,
        mask: EdgeMask | Tensor,
        reference: Reference | None = None,
        *,
        sparse: bool | None = None,
    ) -> Tensor:
        """Outputs under a mask; see :meth:`graphprune.MaskedModel.run`.

        ``sparse=True`` computes only nodes on the circuit and reads only edges that are not 0: a
        gradient reaches only those. ``None`` does so for one mask that needs at most 80 % of the
        layers' multiplications, where no gradient is wanted.
        """
        values = mask_values(self.graph, mask, batch.size).to(self.arch.device)
        if values.dtype not in (torch.float32, torch.float64):
            values = values.float()
        if sparse and values.ndim == 3:
            raise InputError("sparse=True takes masks [E] or [K, E], not one for each example")
        checked = self._checked_reference(batch, reference)
        rows = values[None] if values.ndim == 1 else values
        with self.arch.running():
            out = self._run(rows, checked, sparse)
        return out[0] if values.ndim == 1 else out

    def _run(self, mask: Tensor, reference: LMReference, sparse: bool | None) -> Tensor:
        """``[K, B, ..., V]``: by the least pass that serves."""
        if sparse and len(mask) > 1:
            return torch.cat([self._run(row[None], reference, True) for row in mask])
        base, constants = AblatedRun(reference, self._cores), reference.constants
        learning = constants is not None and constants.requires_grad and torch.is_grad_enabled()
        wanted = learning or (mask.requires_grad and torch.is_grad_enabled())
        if sparse and learning:
            raise InputError(
                "sparse=True gives no gradient of learned ablation constants; leave it out, or run "
                "under torch.no_grad()"
            )
        if wanted and not sparse:
            return differentiable_run(base, self._dense_plan, mask)
        plan = self._sparse_plan(reference, mask)
        if wanted:
            return differentiable_run(base, plan, mask, slot_major=True)
        one = sparse is None and mask.ndim == 2 and len(mask) == 1
        few = sparse or (one and self._share(base, plan) < _PAYS)
        with torch.no_grad():
            return MaskedPass(base, plan, mask.detach(), slot_major=bool(few)).forward()

    def _sparse_plan(self, reference: LMReference, mask: Tensor) -> PassPlan:
        flat = mask.detach().reshape(-1, mask.shape[-1]).cpu()
        return sparse_plan(self.layout, flat, quiescent=reference.exact_counterfactual)

    def _share(self, base: AblatedRun, plan: PassPlan) -> float:
        """The part of the layers' multiplications that a plan asks for."""
        block, asked = self.arch.blocks[0], base.asked.count / base.tokens.count
        sizes = block.head_dim * self.arch.width, block.mlp_size
        return computed_share(self.layout, plan, *sizes, asked)

    def compiled(self, batch: Batch, mask: EdgeMask, reference: Reference) -> Callable[[], Tensor]:
        """Runs of the circuit alone; projections and streams of the ablated run are kept."""
        values = mask_values(self.graph, mask).to(self.arch.device)
        checked = self._checked_reference(batch, reference)
        with torch.no_grad(), self.arch.running():
            base = AblatedRun(checked, self._cores, lasting=True)
            plan = self._sparse_plan(checked, values[None])

        @torch.no_grad()
        def run() -> Tensor:
            self.arch.snapshot.require_same(checked.weights)
            with self.arch.running():
                return MaskedPass(base, plan, values[None], slot_major=True).forward()[0]

        return run

    def trials(self, batch: Batch, kept: Tensor, reference: Reference, order: Tensor) -> EdgeTrials:
        """Trials that recompute what a cut changes, where edges go from the output backwards."""
        checked = self._checked_reference(batch, reference)
        if not is_reverse_topological(self.graph, order) or checked.constants is not None:
            return FullTrials(self, batch, kept, reference)
        return SuffixTrials(AblatedRun(checked, self._cores, lasting=True), self.layout, kept)

    def pruned(self, mask: EdgeMask, ablation: Ablation, *, logits_to_keep: int = 0) -> Pruned:
        """A module ``input_ids [B, T] -> logits [B, T, V]`` in plain torch; see the capability.

        The module is tried against masked runs on drawn tokens before it is given away.

        Args:
            mask: zeros and ones.
            ablation: one that needs no corrupted prompt.
            logits_to_keep: at how many of the last positions there are logits, ``[B, k, V]``, as
                Hugging Face's models take it; 0: at all. What only they need is computed there
                alone: for next tokens, 1 is much faster.
        """
        values = mask_values(self.graph, mask)
        require_split(self.arch.blocks, "a module of its own", "run the circuit by circuit.compile")
        if self._lowering is not None:
            raise UnsupportedModelError(
                "a model in low precision is not exported; prune the original one"
            )
        return pruned(self, self.arch, self.layout, values, ablation, logits_to_keep)

    def widened(self) -> LanguageModel | None:
        """The same model in float64; where it can be, weights are widened layer by layer."""
        if self.arch.partial or is_quantised(self._model):
            return None
        from .precision.widened import widened_copy, widened_module

        family, lowering = self.arch.family, self._lowering
        make = partial(LanguageModel, family=family, embedding_nodes=self.layout.embeddings)
        if lowering is not None:  # rounded anew from float64 weights, which must be at hand
            wide = make(widened_copy(lowering.source))
            return wide.at_precision(dataclasses.replace(lowering.report.policy, emulate=True))
        if family.mlp is None or family.blocks or family.steps or family.experts:
            return make(widened_copy(self._model))
        table = ".".join(filter(None, (family.base, family.embedding)))
        return make(widened_module(self._model, table))

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
        """Attribution at the clean model or at gated nodes; see the capability."""
        return self._attributed(
            batch,
            objective,
            reference,
            gates=gates,
            weights=weights,
            by_position=by_position,
            neurons=neurons,
            constant=constant,
        )

    def relevance_gradients(
        self,
        batch: Batch,
        objective: Objective,
        reference: Reference | None = None,
        *,
        by_position: bool = False,
        frozen: bool = False,
    ) -> Gradients:
        """Relevance at the clean model; see the capability."""
        require_split(self.arch.blocks, "relevance (RelP)", "use gradients, such as gp.EAPIG()")
        rule: Rule = "relp-frozen" if frozen else "relp"
        return self._attributed(batch, objective, reference, by_position=by_position, rule=rule)

    def _attributed(
        self, batch: Batch, objective: Objective, reference: Reference | None, **asked: Any
    ) -> Gradients:
        checked = self._checked_reference(batch, reference)
        return attributed(self.layout, self.graph, checked, batch, objective, **asked)

    def messages(self, batch: Batch) -> Iterator[Messages]:
        """Clean messages place by place; see the capability."""
        reference = self.reference(batch, Ablation("zero"))
        attention, mlp, final = self.layout.places()
        places = [place for layer in zip(attention, mlp, strict=True) for place in layer]
        with self.arch.running(), torch.no_grad():
            values = reference.clean.deltas(reference.ablated_values, self.arch)
            streams = reference.stream_of(reference.clean)
            for place, total in zip([*places, final], streams, strict=True):
                if not place.rows:
                    continue
                edges = torch.arange(place.edges.start, place.edges.stop).view(place.rows, -1)
                yield Messages(edges, values[: place.prefix], total, reference.inputs.weight)

    def mean_ablation(self, batches: Iterable[Batch], *, per_position: bool = False) -> Ablation:
        """Mean messages of every node; see the capability."""
        plain = (b if b.corrupt is None else Batch(b.corrupt, None, b.size) for b in batches)
        references = (self.reference(batch, Ablation("zero")) for batch in plain)
        with torch.no_grad():
            values = mean_values(references, self.layout, per_position=per_position)
        return Ablation("mean", values, per_position)

    def learned_ablation(self, start: Ablation) -> Ablation:
        """One constant ``[d_model]`` for each writer, pooled over positions; see the capability."""
        return Ablation("optimal", (learned_constants(start, self.arch, self.layout),))

    def source_groups(self) -> list[list[int]]:
        """Embeddings together, then each layer's heads together and its MLP."""
        return [group for group in self.layout.source_groups() if group]

    def generate_with(self, mask: EdgeMask, input_ids: Any, **options: Any) -> Tensor:
        """Text generated by the circuit alone: ``[T + new]`` ids; options as ``generate``'s."""
        if not self.arch.family.causal:
            raise UnsupportedModelError(
                "this model reads in both directions; text is generated by causal models only"
            )
        return generate(self, self.arch.device, mask, input_ids, **options)

    def __repr__(self) -> str:
        return f"LanguageModel({type(self._model).__name__}, {self.graph!r})"
