"""What of a circuit a module of its own has to compute, told from the mask alone.

Every node is a constant, depends on positions alone, or varies with the tokens. Attention whose
values are the same at every position gives just these values, whatever its queries and keys are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..describe.layout import EdgeLayout, Place

__all__ = ["CONSTANT", "POSITIONAL", "VARYING", "Liveness", "liveness"]

CONSTANT, POSITIONAL, VARYING = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Liveness:
    """Kinds and needs of writers ``[W]`` and of attention's rows, layer by layer ``[rows]``.

    A writer is needed if an output depends on it; a row is needed if a needed head that is no
    constant reads it, or if it is the value that a needed constant head sends. ``whole [W]``: the
    needed writers that are wanted at all positions, not at the output's alone.
    """

    writers: Tensor
    needed: Tensor
    rows: list[Tensor]
    needed_rows: list[Tensor]
    whole: Tensor


def liveness(layout: EdgeLayout, kept: Tensor, floor: int, positions: bool, last: bool) -> Liveness:
    """Kinds and needs under ``kept [E]`` bool.

    ``floor``: the kind of what readers read besides kept messages. ``positions``: whether the
    second writer is the position table. ``last``: whether outputs are asked at the last positions
    alone; keys and values are wanted at all positions even so, and with them what they read.
    """
    attention, mlp, final = layout.places()
    kinds = torch.zeros(layout.writers, dtype=torch.int64)
    kinds[0] = VARYING
    if positions:
        kinds[1] = POSITIONAL

    def read(place: Place) -> Tensor:
        kind: Tensor = (place.of(kept) * kinds[: place.prefix]).amax(1).clamp(min=floor)
        return kind

    rows = []
    for layer in range(layout.layers):
        row, shape = read(attention[layer]), layout.shapes[layer]
        q, k, v = shape.rows_of(torch.arange(shape.heads))
        heads = torch.stack([row[q], row[k], row[v]]).amax(0)
        heads[row[v] == CONSTANT] = CONSTANT
        kinds[layout.heads_of(layer)] = heads.amax() if layout.coupled else heads
        kinds[layout.mlp(layer)] = read(mlp[layer])[0]
        rows.append(row)

    needed = torch.zeros(layout.writers, dtype=torch.bool)
    needed[:] = final.of(kept)[0]
    whole = torch.zeros_like(needed) if last else needed.clone()
    needed_rows = []
    for layer in reversed(range(layout.layers)):
        own, writer, shape = layout.heads_of(layer), layout.mlp(layer), layout.shapes[layer]
        if needed[writer]:
            needed[: mlp[layer].prefix] |= mlp[layer].of(kept)[0]
        if whole[writer]:
            whole[: mlp[layer].prefix] |= mlp[layer].of(kept)[0]
        wanted = needed[own]
        if layout.coupled and bool(wanted.any()):
            wanted = torch.ones_like(wanted)
        q, k, v = shape.rows_of(torch.arange(shape.heads))
        moving = wanted & (kinds[own] != CONSTANT)
        row_needed = torch.zeros(shape.rows, dtype=torch.bool)
        row_needed[v[wanted]] = True
        row_needed[q[moving]] = True
        row_needed[k[moving]] = True
        edges = attention[layer].of(kept)
        needed[: attention[layer].prefix] |= edges[row_needed].any(0)
        needed_rows.append(row_needed)
        # Heads that share keys and values are computed together, as are those of a coupled layer.
        group = whole[own] & wanted
        group = group.view(1 if layout.coupled else shape.kv_heads, -1).any(1, keepdim=True)
        every_position = group.expand(-1, shape.heads // len(group)).flatten() & wanted
        whole[own] = every_position
        row_needed = row_needed.clone()
        row_needed[: shape.heads] &= every_position
        whole[: attention[layer].prefix] |= edges[row_needed].any(0)
    needed_rows.reverse()
    return Liveness(kinds, needed, rows, needed_rows, whole)
