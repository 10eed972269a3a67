"""The adapter for Hugging Face's causal language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from graphprune.errors import UnsupportedModelError, unknown_name
from graphprune.model import MaskedModel
from graphprune.planning import Cost, Request

__all__ = ["TransformersAdapter", "adapter"]


class TransformersAdapter:
    """Wraps decoder-only models of the families listed in ``graphprune.adapters.lm.FAMILIES``."""

    name = "transformers"

    def matches(self, module: object) -> bool:
        """Whether the object is a Hugging Face model (told by its classes' home)."""
        return any(c.__module__.startswith("transformers.") for c in type(module).__mro__)

    def supported(self) -> list[str]:
        """Model types that are known."""
        from .lm.family import FAMILIES

        return sorted(t for family in FAMILIES for t in family.model_types)

    def wrap(self, module: nn.Module, *, check: bool = True, **options: Any) -> MaskedModel:
        """The module as a masked model, checked for exactness on a tiny input unless told not to.

        Raises :class:`UnsupportedModelError` with what failed.
        """
        from .lm import FAMILIES, LanguageModel
        from .lm.selfcheck import self_check

        config: Any = getattr(module, "config", None)
        kind = getattr(config, "model_type", None)
        family = next((f for f in FAMILIES if kind in f.model_types), None)
        if family is None:
            raise UnsupportedModelError(
                f"model type {kind!r} ({type(module).__name__}) is not known; known: "
                f"{', '.join(self.supported())}. A family is described by "
                "graphprune.adapters.lm.Family"
            )
        causal: Any = module
        if not hasattr(causal, "get_output_embeddings") or causal.get_output_embeddings() is None:
            raise UnsupportedModelError(
                f"{type(module).__name__} has no language-model head; expected a causal language "
                "model such as AutoModelForCausalLM gives"
            )
        unknown = sorted(set(options) - {"checkpointing", "embedding_nodes"})
        if unknown:
            raise unknown_name(
                "option of a language model",
                unknown[0],
                ("check", "checkpointing", "embedding_nodes"),
            )
        model = LanguageModel(module, family, **options)
        if check:
            self_check(model)
        return model

    def plans(self, subject: object) -> bool:
        """Whether it is a folder, an id, or a configuration or model of Hugging Face's."""
        if isinstance(subject, (str, Path)):
            return True
        known = getattr(subject, "module", subject) if isinstance(subject, MaskedModel) else subject
        return self.matches(known)

    def plan(self, subject: Any, request: Request) -> Cost:
        """Costs of one batch and one step, from the configuration alone."""
        from .lm.cost import cost

        return cost(subject, request)


adapter = TransformersAdapter()
