"""Which features of an attention module's projections are whose query, key and value.

Told by what they do, not by their names. The user's module runs on drawn projections, and one block
of ``dh`` features at one token has its sign turned (which no norm of queries or keys notices):

- a query changes its own head, at that token alone;
- a value turns the sign of its heads' output at the first token, which sees only itself;
- a key changes its heads at later tokens, and does not do that.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from ..family import Family
from ..module_copies import Call, Slice, Stop, replaced, run_between
from ..norms import HALF, wide
from .refusal import cannot_read

__all__ = ["AttentionModule", "Roles", "as_family", "find_roles"]

_CHANGED = 1e-4  # of the output's size: less is rounding


@dataclass(frozen=True, eq=False)
class AttentionModule:
    """A layer's attention: its module, the paths of its projections and of its output map.

    ``widths``: features that each projection gives; ``call``: what the module is called with
    beside its input; ``at`` names it.
    """

    module: nn.Module
    projections: tuple[str, ...]
    widths: tuple[int, ...]
    output: str
    call: Call
    at: str


@dataclass(frozen=True)
class Roles:
    """A head's number is that of a query head, or of a key/value head, of so many."""

    kinds: tuple[tuple[tuple[str, int], ...], ...]
    heads: int
    kv_heads: int
    norms_couple: bool
    coupled: bool


def find_roles(attention: AttentionModule, heads: int, dim: int, like: Tensor) -> Roles:
    """The role of every block of ``dim`` features; ``like``: any tensor of the model's dtype."""
    if any(width % dim for width in attention.widths):
        cannot_read(
            attention.at,
            f"its projections {_named(attention)} are no multiples of the head width {dim}: "
            "it has no queries, keys and values of its own for each head",
        )
    probes = _Probes(attention, heads, dim, like)
    found = [probes.role(block) for block in range(probes.blocks)]
    sharing = {len(group) for kind, group in found if kind in "kv"}
    if len(sharing) != 1:
        cannot_read(attention.at, "its keys and values serve different numbers of heads")
    share = sharing.pop()
    numbered = [
        (kind, _number(group, 1 if kind == "q" else share, attention.at)) for kind, group in found
    ]
    kinds, start = [], 0
    for width in attention.widths:
        kinds.append(tuple(numbered[start : start + width // dim]))
        start += width // dim
    want = sorted(
        [("q", h) for h in range(heads)]
        + [(kind, j) for kind in "kv" for j in range(heads // share)]
    )
    if sorted(numbered) != want:
        counts = {kind: sum(k == kind for k, _ in numbered) for kind in "qkv"}
        cannot_read(
            attention.at,
            f"its projections give {counts['q']} queries, {counts['k']} keys and {counts['v']} "
            f"values for {heads} heads",
        )
    values = [b for b, (kind, _) in enumerate(found) if kind == "v"]
    rest = [b for b, (kind, _) in enumerate(found) if kind != "v"]
    coupled = probes.couple(values)  # by what stands behind attention, which queries meet too
    norms_couple = not coupled and probes.couple(rest)
    return Roles(tuple(kinds), heads, heads // share, norms_couple, coupled)


def _named(attention: AttentionModule) -> str:
    pairs = zip(attention.projections, attention.widths, strict=True)
    return ", ".join(f"{name} ({width})" for name, width in pairs)


def _number(group: tuple[int, ...], share: int, at: str) -> int:
    first = group[0]
    if first % share or group != tuple(range(first, first + share)):
        cannot_read(at, f"one projected block serves the heads {group}, which are no neighbours")
    return first // share


def _widened(value: Any) -> Any:
    """The same arguments with tensors of half precision in float32."""
    if isinstance(value, Tensor):
        return wide(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_widened(each) for each in value)
    if isinstance(value, dict):
        return {key: _widened(each) for key, each in value.items()}
    return value


class _Probes:
    """Runs of the module on drawn projections, one block of one token changed in each."""

    def __init__(self, attention: AttentionModule, heads: int, dim: int, like: Tensor) -> None:
        self.attention, self.heads, self.dim = attention, heads, dim
        starts = [sum(attention.widths[:i]) for i in range(len(attention.widths))]
        parts: dict[str, nn.Module] = {
            name: Slice(start, start + width)
            for name, start, width in zip(
                attention.projections, starts, attention.widths, strict=True
            )
        }
        self.core = replaced(attention.module, {**parts, attention.output: Stop()})
        self.call = attention.call
        if like.dtype in HALF:  # whose rounding is larger than what some keys do
            self.core = copy.deepcopy(self.core).float()
            self.call, like = _widened(self.call), like.float()
        self.blocks = sum(attention.widths) // dim
        self.tokens = like.shape[1]
        self.token = self.tokens - 2  # that is changed, and the next one may see it
        generator = torch.Generator().manual_seed(0)
        shape = (1, self.tokens, sum(attention.widths))
        self.drawn = torch.randn(shape, generator=generator).to(like)
        runs = [self.drawn]
        for token, factor in ((self.token, -1.0), (0, -1.0), (self.token, 1.7)):
            for block in range(self.blocks):
                changed = self.drawn.clone()
                changed[:, token, block * dim : (block + 1) * dim] *= factor
                runs.append(changed)
        z = self._run(torch.cat(runs))
        self.plain, self.late, self.early, self.scaled = z.split(
            [1, self.blocks, self.blocks, self.blocks]
        )
        self.small = _CHANGED * float(self.plain.abs().max())

    def _run(self, inputs: Tensor) -> Tensor:
        """``[n, T, H, dh]``: what the output map would read."""
        one = run_between(self.core, inputs[:1], self.call)
        z = None
        with suppress(RuntimeError, ValueError, IndexError):  # arguments made for one example
            z = run_between(self.core, inputs, self.call)
        if z is None or len(z) != len(inputs):
            z = torch.cat([run_between(self.core, x[None], self.call) for x in inputs])
        if not torch.allclose(z[:1], one, atol=1e-3):
            cannot_read(self.attention.at, "several prompts at once give other numbers than one")
        return z.reshape(*inputs.shape[:2], self.heads, -1).double()

    def _touched(self, z: Tensor, tokens: slice) -> tuple[int, ...]:
        """Heads whose output at some tokens is not the plain one, nor that times a number.

        A norm over all heads behind attention (BitNet) scales the others' output.
        """
        new, plain = z[tokens], self.plain[0, tokens]
        along = (new * plain).sum(-1, keepdim=True) / plain.square().sum(-1, keepdim=True)
        size = (new - along * plain).abs().amax((0, 2))
        return tuple(torch.nonzero(size > self.small)[:, 0].tolist())

    def _moved(self, z: Tensor) -> set[int]:
        """Heads whose output is not the plain one."""
        size = (z - self.plain[0]).abs().amax((0, 2))
        return set(torch.nonzero(size > self.small)[:, 0].tolist())

    def role(self, block: int) -> tuple[str, tuple[int, ...]]:
        """The block's kind, and the heads that it serves."""
        here, later = slice(self.token, self.token + 1), slice(self.token + 1, None)
        if not (after := self._touched(self.late[block], later)):
            group = self._touched(self.late[block], here)
            if len(group) != 1 or self._touched(self.late[block], slice(0, self.token)):
                self._refuse(block, group)
            return "q", group
        group = tuple(sorted({*after, *self._touched(self.late[block], here)}))
        turned = (self.early[block] + self.plain[0])[0, list(group)].abs().max()
        return ("v" if float(turned) <= self.small else "k"), group

    def _refuse(self, block: int, group: tuple[int, ...]) -> None:
        first, last = block * self.dim, (block + 1) * self.dim
        what = f"the heads {group}" if group else "nothing"
        cannot_read(
            self.attention.at,
            f"features {first} to {last} of {_named(self.attention)} change {what} at their own "
            "token alone, which is no query's, key's or value's part",
        )

    def couple(self, blocks: Sequence[int]) -> bool:
        """Whether the size of one head's projections changes other heads."""
        for block in blocks:
            served = {*self.role(block)[1]}
            if (self._moved(self.scaled[block]) | self._moved(self.late[block])) - served:
                return True
        return False


def as_family(roles: Roles, attention: AttentionModule) -> dict[str, Any]:
    """The settings of a :class:`Family` that say so."""
    settings: dict[str, Any] = {"output": attention.output}
    if roles.norms_couple:
        settings["full_width_qk_norm"] = True
    if roles.coupled:
        settings["coupled"] = True
    names = attention.projections
    if len(names) == 3:
        kinds = ["".join(sorted({kind for kind, _ in part})) for part in roles.kinds]
        rows = [[number for _, number in part] for part in roles.kinds]
        if sorted(kinds) == ["k", "q", "v"] and all(r == sorted(r) for r in rows):
            keys = {"q": "query", "k": "key", "v": "value"}
            return settings | {keys[k]: name for k, name in zip(kinds, names, strict=True)}
    if len(names) == 1:
        first = {"q": 0, "k": roles.heads, "v": roles.heads + roles.kv_heads}
        stored = [first[kind] + number for kind, number in roles.kinds[0]]
        chunks = [n for n in range(2, roles.kv_heads) if roles.kv_heads % n == 0]
        for fused in ("blocks", "interleaved", *chunks):
            for order in permutations("qkv"):
                family = Family((), fused=fused, fused_order="".join(order))  # type: ignore[arg-type]
                if family.stored_order(roles.heads, roles.kv_heads) == stored:
                    settings |= {"query": names[0], "fused": fused}
                    plain = order == ("q", "k", "v")
                    return settings | ({} if plain else {"fused_order": "".join(order)})
    stored_as = ", ".join(
        f"{name}: " + " ".join(f"{kind}{number}" for kind, number in part)
        for name, part in zip(names, roles.kinds, strict=True)
    )
    cannot_read(attention.at, f"the order of queries, keys and values is not known ({stored_as})")
