"""The adapter for Hugging Face's transformers, and its check of language models at wrap time.

A model is only accepted if masked runs reproduce it exactly.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graphprune.core.batch import Batch
from graphprune.core.model import MaskedModel
from graphprune.core.registry import require_known_options
from graphprune.core.sanity_checks import require_alike, runs_beside
from graphprune.errors import NumericalError, UnsupportedModelError
from graphprune.methods.costs import CostEstimate, RunShape
from graphprune.util.modes import quiet

if TYPE_CHECKING:
    from .lm.describe.family import Family
    from .lm.model import LanguageModel
    from .residual.families import ResidualFamily

__all__ = ["TransformersAdapter", "adapter", "self_check"]


class TransformersAdapter:
    """Wraps transformers: known families by their data, other language models as they are read."""

    name = "transformers"

    def matches(self, module: object) -> bool:
        """Whether the object is a Hugging Face model (told by its classes' home)."""
        return any(
            c.__module__.startswith("transformers.") for c in type(_original(module)).__mro__
        )

    def supported(self) -> list[str]:
        """Model types that are known."""
        from .lm.describe.family import known_types
        from .residual.families import RESIDUAL_FAMILIES

        return sorted([*known_types(), *RESIDUAL_FAMILIES])

    def wrap(self, module: nn.Module, *, check: bool = True, **options: Any) -> MaskedModel:
        """The module as a masked model, checked for exactness on a tiny input unless told not to.

        Raises :class:`UnsupportedModelError` with what failed.
        """
        from .lm import LanguageModel
        from .lm.describe.family import FAMILY_BY_TYPE

        module = _original(module)
        kind = getattr(getattr(module, "config", None), "model_type", "")
        family = FAMILY_BY_TYPE.get(kind)
        if family is None:
            from .residual.families import ResidualFamily

            said = options.get("family") or _residual_family(module)
            if isinstance(said, ResidualFamily):
                require_known_options(options, ("family",), f"a {type(module).__name__}")
                return _residual(module, said, check)
        causal: Any = module
        if not hasattr(causal, "get_output_embeddings") or causal.get_output_embeddings() is None:
            raise UnsupportedModelError(
                f"{type(module).__name__} has no language-model head; expected a causal language "
                "model such as AutoModelForCausalLM gives"
            )
        known = ("check", "checkpointing", "embedding_nodes", "experts", "family", "nodes")
        require_known_options(options, known, "a language model")
        given, fine = options.pop("family", None), options.pop("nodes", "auto")
        known_family = given or family
        if known_family is None:
            from .lm.describe.reading.reader import read_family

            known_family = read_family(module, split=fine == "head")
        if fine != "auto":
            from .lm.describe.one_node import as_fine_as

            known_family = as_fine_as(fine, known_family)
        if options.pop("experts", False):
            known_family = replace(known_family, experts=True)
        if any(type(part).__name__ == "Linear8bitLt" for part in module.modules()):
            known_family = replace(known_family, coupled=True)  # a token's heads share one scale
        model = LanguageModel(module, known_family, **options)
        if check:
            if given is not None:
                from .lm.confirm import require_roles

                require_roles(model)
            self_check(model, read_off=given is not None or family is None)
        return model

    def load(self, name: str, device: torch.device | str | None, dtype: torch.dtype | None) -> Any:
        """The model that ``--model NAME`` of the command line names."""
        from graphprune.study.by_name import choose_model

        kind = str(dtype or "auto").removeprefix("torch.")
        return choose_model(name, dtype=kind, device=str(device or "cpu")).load_module()

    def describe(self, module: object) -> Family | ResidualFamily:
        """Where a model's parts are: as data for what is known or wrapped, else read off."""
        from .lm import LanguageModel
        from .lm.describe.family import FAMILY_BY_TYPE
        from .lm.describe.reading.reader import read_family
        from .residual import ResidualModel

        if isinstance(module, LanguageModel):
            return module.arch.family
        if isinstance(module, ResidualModel):
            return module.parts.family
        original: nn.Module = _original(module)
        kind = getattr(getattr(original, "config", None), "model_type", "")
        known = FAMILY_BY_TYPE.get(kind) or _residual_family(original)
        return known or read_family(original)

    def plans(self, subject: object) -> bool:
        """Whether it is a folder, an id, or a configuration or model of Hugging Face's."""
        if isinstance(subject, (str, Path)):
            return True
        known = getattr(subject, "module", subject) if isinstance(subject, MaskedModel) else subject
        return self.matches(known)

    def plan(self, subject: Any, request: RunShape) -> CostEstimate:
        """Costs of one batch and one step, from the configuration alone."""
        from .lm.cost.estimate import cost
        from .lm.describe.shape import config_of
        from .residual.families import RESIDUAL_FAMILIES

        kind = getattr(config_of(subject), "model_type", "")
        if kind in RESIDUAL_FAMILIES:
            raise UnsupportedModelError(
                f"costs of encoders, vision transformers and encoder-decoders ({kind!r}) are not "
                "estimated: what their own forwards keep is not known before a run. Time one "
                "batch, such as gp.EAP().score(model, task.take(8)); the documentation's "
                "benchmarks have ratios to a plain pass"
            )

        return cost(subject, request)


adapter = TransformersAdapter()


def _residual_family(module: nn.Module) -> ResidualFamily | None:
    """The family of an encoder or encoder-decoder that is known; its decoder alone is not meant."""
    from .residual.families import RESIDUAL_FAMILIES

    if type(module).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        return None
    return RESIDUAL_FAMILIES.get(getattr(getattr(module, "config", None), "model_type", ""))


def _residual(module: nn.Module, family: ResidualFamily, check: bool) -> MaskedModel:
    """An encoder or encoder-decoder as a masked model."""
    from .residual import ResidualModel
    from .residual.check import check_exactness

    model = ResidualModel(module, family)
    if check:
        check_exactness(model)
    return model


def _original(module: Any) -> Any:
    """Hugging Face's own model inside PEFT's or TransformerLens's, else what was given."""
    home = type(module).__module__.partition(".")[0]
    if home == "peft" and hasattr(module, "get_base_model"):
        config = module.active_peft_config
        if config.is_prompt_learning:
            raise UnsupportedModelError(
                f"{type(module).__name__} puts virtual tokens of its own before the prompt "
                f"({type(config).__name__}), which are no part of the model's graph; expected "
                "adapters beside weights, such as LoRA"
            )
        return module.get_base_model()
    if home == "transformer_lens" and isinstance(
        inner := getattr(module, "original_model", None), nn.Module
    ):
        return inner
    return module


def self_check(model: LanguageModel, length: int = 5, *, read_off: bool = False) -> None:
    """Compares with the plain model on random prompts of ``length``, one shorter and padded.

    Mask 1 must give the model's logits, mask 0 those on the corrupted prompts, both within a
    relative tolerance for the dtype. Raises :class:`UnsupportedModelError` naming what failed.

    ``read_off``: nobody has tried the family yet, so that its heads and readers are looked at too.
    """
    from .lm.passes.inputs import may_pad

    arch = model.arch
    length = min(length, arch.table_positions or length)
    ids = arch.drawn_ids(2, 2, length)
    mask = torch.ones(2, length, dtype=torch.int64, device=arch.device)
    if may_pad(arch):
        mask[1, max(1, length - 2) :] = 0
    batch = Batch(
        clean={"input_ids": ids[0], "attention_mask": mask},
        corrupt={"input_ids": ids[1], "attention_mask": mask},
        size=2,
    )
    name = type(model.module).__name__
    causal: Any = model.module
    plain: list[Tensor] = []
    try:
        with quiet(model.module), torch.no_grad():
            for side in ids:
                logits = causal(input_ids=side, attention_mask=mask, use_cache=False).logits
                plain.append(logits[torch.arange(2), mask.sum(1) - 1])
    except Exception as error:
        raise UnsupportedModelError(
            f"{name} itself could not be run on {length} random tokens: "
            f"{type(error).__name__}: {error}"
        ) from error
    for logits in plain:
        if logits.ndim != 2 or not bool(torch.isfinite(logits).all()):
            raise NumericalError(f"{name} gives NaN or infinite logits on random tokens")
    try:
        compared = {**runs_beside(model, batch, *plain)}
        if read_off:
            from .lm.confirm import hooked_pair

            what = "a run without some heads and with readers that miss the embedding"
            compared[what] = hooked_pair(model, ids[0, :1])
    except UnsupportedModelError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{name} could not be run layer by layer as its family describes it: "
            f"{type(error).__name__}: {error}; {_blame(model)}"
        ) from error
    require_alike(compared, name, arch.dtype, lambda: _blame(model))


def _blame(model: LanguageModel) -> str:
    """The likely cause: a forward that somebody replaced or wrote, or else the architecture."""
    patched = model.arch.snapshot.patched
    if patched:
        return (
            f"the forward of {', '.join(patched[:3])} was replaced on the module itself, and "
            "graphprune calls and reads the parts of modules instead: take it off before wrapping"
        )
    read = {m for block in model.arch.blocks for m in block.attention.modules()}
    derived = model.arch.snapshot.derived(read)
    if derived:
        shown = ", ".join(f"{name} is a {kind}" for name, kind in derived[:3])
        more = f" (and {len(derived) - 3} more)" if len(derived) > 3 else ""
        return (
            f"{shown}{more}, with a forward of its own, of which graphprune reads the weight "
            "alone: merge adapters such as LoRA into the weights before wrapping, or say what the "
            "class does to its weight as a parametrization (torch.nn.utils.parametrize)"
        )
    return "its architecture is not what its family describes"
