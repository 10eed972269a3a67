"""Relevance patching: attribution by relevance rules in the place of gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from graphprune.capabilities import RelevanceGradients, require
from graphprune.core.batch import Batch
from graphprune.core.model import MaskedModel, Objective, Reference
from graphprune.core.variants import HasVariants

from .gradient import GradientScorer

__all__ = ["RelP"]


@dataclass(frozen=True, kw_only=True)
class RelP(HasVariants, GradientScorer):
    """Relevance patching (arXiv 2508.21258): EAP with layer-wise relevance rules for gradients.

    Norm scales count as constants (LN-rule), an activation passes ``act(x) / x`` (identity rule)
    and a product of two activations half its gradient to each (half rule); attention patterns
    have their gradient, as by the authors' default.

    Args:
        variant: ``"default"``, or the authors' rules by name, see below.
        freeze_attention: attention patterns count as constants too (the authors' AH-rule), so
            that edges into q and k score 0.

    Variants of github.com/FarnoushRJ/RelP at aa0e228, all with the LN-, identity- and half-rule:

    - ``"paper"``: freeze_attention False (the default of its TransformerLens).
    - ``"paper-frozen-attention"``: freeze_attention True (its option for the AH-rule).

    Example:
        >>> RelP().score(lm, prompts).top(2).edges()
        ['input->a0.h3<v>', 'a0.h3->m0']
    """

    variants: ClassVar = {
        "paper": {"freeze_attention": False},
        "paper-frozen-attention": {"freeze_attention": True},
    }
    freeze_attention: bool = False

    @property
    def needs(self) -> tuple[type, ...]:
        """Relevance propagation."""
        return (RelevanceGradients,)

    def _gradients(
        self,
        model: MaskedModel,
        batch: Batch,
        reference: Reference,
        measured: Objective,
        by_position: bool,
    ) -> Tensor:
        inside = require(model, RelevanceGradients, self.label)
        return inside.relevance_gradients(
            batch, measured, reference, by_position=by_position, frozen=self.freeze_attention
        ).edge
