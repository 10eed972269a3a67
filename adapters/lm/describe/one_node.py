"""A mixer that is not split by head, as an attention module with one head as wide as the stream.

It reads the normed stream through a projection that changes nothing, and sends what the user's
module gives through an output map that changes nothing. So every pass, gradient and plan treats it
as a layer of one head with one reader, whose code is its message.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import InputError, UnsupportedModelError

from .experts import ExpertNodes
from .family import Family
from .module_copies import part
from .reading.trace import first_tensor

__all__ = ["OneNode", "Same", "as_fine_as", "one_node", "require_split"]


class Same(nn.Linear):
    """A linear map whose weight is the identity: what it gives is what it reads."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(width, width, bias=False, dtype=dtype, device="meta")
        eye = torch.eye(width, dtype=dtype, device=device)
        self.weight = nn.Parameter(eye, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """``input`` itself."""
        return input


class OneNode(nn.Module):
    """The user's ``mixer``, and the norm behind it (``None``: there is none).

    ``same``: stands for the projection and the output map; all layers share it.
    """

    def __init__(self, mixer: nn.Module, post_norm: nn.Module | None, same: Same) -> None:
        super().__init__()
        self.mixer, self.post_norm = mixer, post_norm
        self.read = self.send = same

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """The message ``[B, T, D]`` of a normed stream ``x [B, T, D]``, as attention gives it."""
        message = first_tensor(self.mixer(self.read(x), *args, **kwargs))
        assert message is not None
        if self.post_norm is not None:
            message = self.post_norm(message)
        return self.send(message), None


def as_fine_as(nodes: Any, family: Family) -> Family:
    """The family whose nodes are as fine as ``nodes`` says: ``"head"``, ``"block"``, ``"auto"``.

    Raises :class:`InputError` for another word, and :class:`UnsupportedModelError` where mixers
    are to be split by head that the family has as one node.
    """
    if nodes not in ("head", "block", "auto"):
        raise InputError(f"nodes must be 'head', 'block' or 'auto', got {nodes!r}")
    if nodes == "head" and (family.blocks or family.steps):
        paths = ", ".join([path for _, path in family.blocks] or ["steps"])
        raise UnsupportedModelError(
            f"the layers' {paths} cannot be split by head; use nodes='auto', which makes each of "
            "them one node"
        )
    return family.with_blocks() if nodes == "block" else family


def one_node(
    layer: nn.Module, family: Family, same: Same, mixer: nn.Module | None = None
) -> OneNode | ExpertNodes:
    """A layer's mixer and the norm behind it; ``family`` describes the layer alone.

    ``mixer``: what stands for it, where it is no module of the layer's.
    """
    if isinstance(mixer, ExpertNodes):
        return mixer
    if mixer is not None:
        return OneNode(mixer, None, same)
    behind = family.attention_post_norm
    post_norm = None if behind is None else part(layer, behind)
    return OneNode(part(layer, family.attention), post_norm, same)


def require_split(blocks: Any, what: str, instead: str) -> None:
    """Raises :class:`UnsupportedModelError` naming the first layer whose mixer is one node.

    Args:
        blocks: the model's layers.
        what: what is not built for such layers, as the sentence's subject.
        instead: what to do.
    """
    for block in blocks:
        letter = block.shape.block
        if letter is not None:
            raise UnsupportedModelError(
                f"{what} is not built for mixers that are one node, and layer {block.index}'s "
                f"{block.family.attention or 'change of its stream'} is one "
                f"({letter}{block.index}): {instead}"
            )
