"""A model's parts and its forwards: what references and masked runs share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import InputError, UnsupportedModelError

from ..lm.describe.hooks import Snapshot
from .families import ResidualFamily
from .forward import Forward
from .inputs import Inputs, answered
from .parts import Parts

__all__ = ["Engine", "Ran"]


@dataclass(frozen=True, eq=False)
class Ran:
    """What a forward gave.

    ``outputs`` at the answers, ``sent`` the groups' messages; ``entries`` and ``fronts`` as
    :class:`Forward` has them.
    """

    outputs: Tensor
    sent: list[Tensor]
    fronts: list[int]
    entries: list[Tensor]


class Engine:
    """Runs the user's module, taken apart along its family.

    Raises :class:`UnsupportedModelError` for modules whose weights come and go, that have hooks, or
    that are not what the family describes.
    """

    def __init__(self, module: nn.Module, family: ResidualFamily) -> None:
        away = next((n for n, m in module.named_modules() if "_hf_hook" in m.__dict__), None)
        if away is not None or any(p.is_meta for p in module.parameters()):
            raise UnsupportedModelError(
                f"weights of {type(module).__name__} are not loaded, or come and go "
                f"({away or 'meta tensors'}): load it whole on one device"
            )
        self.module = module
        self.snapshot = Snapshot(module)
        self.parts = Parts(module, family)
        self.weight = next(p for p in module.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where the module computes."""
        return self.weight.device

    @property
    def summed_in(self) -> torch.dtype:
        """What attributions and learned constants are kept in: float32 at least."""
        return torch.float64 if self.weight.dtype == torch.float64 else torch.float32

    def is_embedding(self, group: int) -> bool:
        """Whether a group is what a token or patch embedding sends."""
        return self.parts.nodes[self.parts.groups[group].nodes[0]].kind == "embed"

    def run(self, forward: Forward, inputs: Inputs, *, corrupt: bool = False) -> Ran:
        """What one forward gives, on the clean or the corrupted inputs.

        Raises :class:`InputError` where the module does not take them.
        """
        self.snapshot.check()
        side: dict[str, Any] | None = inputs.corrupt if corrupt else inputs.clean
        assert side is not None
        try:
            given = forward.run(side)
        except (IndexError, ValueError) as error:
            told = "decoder_input_ids" in side or len(self.parts.embeddings) == 1
            hint = "" if told else "; they hold no decoder_input_ids"
            raise InputError(
                f"{type(self.module).__name__} does not take these inputs{hint}: {error}"
            ) from error
        return Ran(answered(given, inputs), forward.sent, forward.fronts, forward.entries)
