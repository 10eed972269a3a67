"""A Tracr-compiled transformer as a torch module, laid out as ``graphprune.adapters.lm`` reads it.

Post-embedding and pre-unembedding everything is Tracr's: no norms, attention over all positions
(causal only where it was compiled so), ReLU MLPs, one residual direction for each basis direction.
Padding is told by its token, which Tracr's vocabulary has: no position attends to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..lm.describe.family import Family

__all__ = ["TRACR", "TracrConfig", "TracrTransformer"]

TRACR = Family(
    ("tracr",),
    position="embed_positions",
    final_norm=None,
    attention_norm=None,
    mlp_norm=None,
    causal=False,
)


@dataclass(frozen=True)
class TracrConfig:
    """Sizes of a compiled program, and what its ids and directions stand for.

    Args:
        tokens: the values of the input ids, BOS and padding among them.
        bos_id, pad_id: their ids.
        directions: the label of each residual direction, such as ``"tokens:a"`` or ``"one"``.
        values: the values of the outputs of a categorical program, in order; ``None`` means the
            program is numerical and its one output is the value.
        max_length: the longest sequence, BOS not counted.
        vocab_size: how many outputs there are (1 where numerical).
    """

    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    mlp_hidden_size: int
    vocab_size: int
    max_length: int
    tokens: tuple[Any, ...]
    bos_id: int
    pad_id: int
    directions: tuple[str, ...]
    values: tuple[Any, ...] | None
    causal: bool = False
    model_type: str = "tracr"

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Ids of the program's own tokens: all but BOS and padding."""
        return tuple(i for i in range(len(self.tokens)) if i not in (self.bos_id, self.pad_id))

    @property
    def numerical(self) -> bool:
        """Whether the output is a number rather than a choice among ``values``."""
        return self.values is None


class TracrAttention(nn.Module):
    """Softmax attention of all heads; ``allowed [B, 1, T, T]`` says who may read whom."""

    def __init__(self, config: TracrConfig) -> None:
        super().__init__()
        width = config.num_attention_heads * config.head_dim
        self.heads, self.scale = config.num_attention_heads, config.head_dim**-0.5
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(len(config.directions), width) for _ in range(3)
        )
        self.o_proj = nn.Linear(width, len(config.directions))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, heads: int) -> Tensor:
        """``[B, T, heads * dh]``: values mixed by softmax attention, ``heads`` side by side."""
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        scores = (q @ k.transpose(-1, -2)) * self.scale
        pattern = scores.masked_fill(~allowed, -1e30).softmax(-1)
        out: Tensor = (pattern @ v).transpose(1, 2).flatten(-2)
        return out

    def forward(self, hidden: Tensor, allowed: Tensor) -> tuple[Tensor, None]:
        """``[B, T, D]`` to ``[B, T, D]``, and no weights."""
        q, k, v = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        return self.o_proj(self.mix(q, k, v, allowed, self.heads)), None


class TracrMLP(nn.Module):
    """Two linear maps around a ReLU."""

    def __init__(self, config: TracrConfig) -> None:
        super().__init__()
        self.fc_in = nn.Linear(len(config.directions), config.mlp_hidden_size)
        self.act = nn.ReLU()
        self.fc_out = nn.Linear(config.mlp_hidden_size, len(config.directions))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., D]``."""
        out: Tensor = self.fc_out(self.act(self.fc_in(x)))
        return out


class TracrLayer(nn.Module):
    """Attention, then the MLP, each added to the residual stream."""

    def __init__(self, config: TracrConfig) -> None:
        super().__init__()
        self.self_attn = TracrAttention(config)
        self.mlp = TracrMLP(config)

    def forward(self, hidden: Tensor, allowed: Tensor) -> Tensor:
        """``[B, T, D]`` to ``[B, T, D]``."""
        hidden = hidden + self.self_attn(hidden, allowed)[0]
        out: Tensor = hidden + self.mlp(hidden)
        return out


@dataclass(frozen=True, eq=False)
class TracrOutput:
    """``last_hidden_state [B, T, D]`` of the stack, or ``logits [B, T, V]`` of the whole model."""

    last_hidden_state: Tensor
    logits: Tensor | None = None


class TracrStack(nn.Module):
    """Embeddings and layers: everything but the output directions."""

    def __init__(self, config: TracrConfig) -> None:
        super().__init__()
        self.pad_id, self.causal = config.pad_id, config.causal
        width = len(config.directions)
        self.embed_tokens = nn.Embedding(len(config.tokens), width)
        self.embed_positions = nn.Embedding(config.max_length + 1, width)
        self.layers = nn.ModuleList(TracrLayer(config) for _ in range(config.num_hidden_layers))

    def allowed(self, input_ids: Tensor) -> Tensor:
        """``[B, 1, T, T]`` bool: nobody reads padding; where causal, nobody reads ahead."""
        length = input_ids.shape[1]
        real = (input_ids != self.pad_id)[:, None, None].expand(-1, 1, length, length)
        return real.tril() if self.causal else real

    def forward(self, input_ids: Tensor, **unused: Any) -> TracrOutput:
        """``[B, T]`` ids to ``[B, T, D]``. Padding is told by its id; no mask is read."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.embed_tokens(input_ids) + self.embed_positions(positions)
        allowed = self.allowed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, allowed)
        return TracrOutput(hidden)


class TracrTransformer(nn.Module):
    """The compiled program: ids ``[B, T]``, BOS first, to ``logits [B, T, V]``.

    Logits are Tracr's own values along its output directions: of a categorical program the largest
    is the output (the first of equals), of a numerical one the single value is.
    """

    def __init__(self, config: TracrConfig) -> None:
        super().__init__()
        self.config = config
        self.model = TracrStack(config)
        self.lm_head = nn.Linear(len(config.directions), config.vocab_size, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        """The map from the residual stream to the outputs."""
        return self.lm_head

    def forward(self, input_ids: Tensor | None, **options: Any) -> TracrOutput:
        """Runs the program; see the class. Options of Hugging Face's models are ignored."""
        hidden = self.model(input_ids, **options).last_hidden_state
        return TracrOutput(hidden, self.lm_head(hidden))

    def extra_repr(self) -> str:
        """What is compiled, in words."""
        c = self.config
        kind = "numerical" if c.numerical else f"{c.vocab_size} values"
        return f"{len(c.vocabulary)} tokens, up to {c.max_length}, output: {kind}"
