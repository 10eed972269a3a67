"""One forward of the user's own module in which every reader reads its own masked stream.

While it runs, the modules that read or write the residual stream do something else than usual: a
projection or an MLP reads the streams of its place, whatever it is handed; what is written to the
stream is recorded, and zeros are handed on. So the stream that the module itself carries holds
nothing but what cannot be masked, and a reader that a family forgot shows in the self-check.
Everything else (attention, its masks and position biases, pooling, heads) is the module's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from graphprune.util.modes import quiet

from ..lm.describe.hooks import is_plain
from ..lm.describe.norms import wide
from .parts import AttentionParts, Function, MlpParts, Parts, Place

__all__ = ["Ablated", "Forward", "Probe"]


@dataclass(frozen=True, eq=False)
class Ablated:
    """What stands in for each group's messages: ``[w, B, T, D]``, where an axis may be 1."""

    messages: list[Tensor]

    def totals(self) -> list[Tensor]:
        """The sums of each group's."""
        return [wide(messages).sum(0) for messages in self.messages]


@dataclass(frozen=True, eq=False)
class Probe:
    """Zeros whose gradients are attributions.

    ``edges [E]`` or ``[T, E]`` times ``deltas`` is added to what each reader reads; ``neurons``
    (``[w, D]`` for each group) times the deltas to what all of the group's readers read.
    ``constants``: for each group, which nodes' messages are those of ``clean``, with no gradient.
    """

    edges: Tensor
    deltas: list[Tensor]
    neurons: list[Tensor] | None
    clean: list[Tensor]
    constants: list[Tensor] | None


class Forward:
    """A forward under a mask; without one it records what the plain module sends.

    ``sent`` are the groups' messages ``[w, B, T, D]``, ``entries`` each stack's stream without any
    of them, ``fronts`` how many of its positions stand before those that its embedding fills (a
    class token).
    """

    def __init__(
        self,
        parts: Parts,
        mask: Tensor | None = None,
        ablated: Ablated | None = None,
        probe: Probe | None = None,
    ) -> None:
        self.parts, self.mask, self.ablated, self.probe = parts, mask, ablated, probe
        self.sent: list[Tensor] = []
        self.entries: list[Tensor] = []
        self.fronts: list[int] = []
        self._totals = None if ablated is None else ablated.totals()
        self._by_group: dict[int, Tensor] = {}
        self._deltas: dict[int, Tensor] = {}
        self._biases: dict[int, Tensor] = {}
        self._embedded: dict[int, Tensor] = {}
        self._entry: dict[int, Tensor] = {}
        self._read: dict[Place, Tensor] = {}

    def run(self, inputs: Mapping[str, Any]) -> Any:
        """What the module gives on ``inputs``."""
        with quiet(self.parts.model), self._diverted():
            outputs = self.parts.model(**inputs)
        self.sent = [self._by_group[i] for i in range(len(self.parts.groups))]
        self.entries = [self._entry[i] for i in range(len(self.parts.entries))]
        self._read.clear()
        return outputs

    # ---------------------------------------------------------------- what modules do meanwhile

    @contextmanager
    def _diverted(self) -> Iterator[None]:
        """The user's modules doing what a masked run needs; as they were afterwards."""
        before: list[tuple[nn.Module, Any]] = []

        def divert(module: nn.Module, make: Any, *args: Any) -> None:
            before.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = make(module, module.forward, *args)

        try:
            self._divert_all(divert)
            yield
        finally:
            for module, own in reversed(before):
                if own is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = own

    def _divert_all(self, divert: Any) -> None:
        parts = self.parts
        for module in dict.fromkeys(parts.embeddings):
            stacks = [i for i, other in enumerate(parts.embeddings) if other is module]
            divert(module, self._embedding, stacks)
        for stack, module in enumerate(parts.entries):
            divert(module, self._entering, stack)
        for branch in parts.branches:
            if isinstance(branch, MlpParts):
                for module in branch.inputs:
                    divert(module, self._reading, branch)
                divert(branch.output, self._mlp_output, branch)
            else:
                for module, place, rows in branch.projections:
                    divert(module, self._projecting, place, rows)
                divert(branch.output, self._heads_output, branch)
        divert(parts.last_layer, self._last_layer)

    def _embedding(self, module: nn.Module, forward: Function, stacks: list[int]) -> Function:
        calls = iter(stacks)  # a table that both stacks share is asked by one after the other

        def embed(*args: Any, **options: Any) -> Tensor:
            out: Tensor = forward(*args, **options)
            self._embedded[next(calls)] = out if out.ndim == 3 else out.flatten(2).mT
            return torch.zeros_like(out)

        return embed

    def _entering(self, module: nn.Module, forward: Function, stack: int) -> Function:
        def enter(*args: Any, **options: Any) -> Any:
            x = args[0] if args else options["hidden_states"]
            own = self._embedded.pop(stack)
            front = x.shape[1] - own.shape[1]
            self.fronts.append(front)
            self._entry[stack] = x
            padded = nn.functional.pad(own, (0, 0, front, 0))
            self._record(self.parts.first_group(stack), padded[None])
            return forward(*args, **options)

        return enter

    def _projecting(
        self, module: nn.Module, forward: Function, place: Place, rows: slice
    ) -> Function:
        def project(x: Tensor, *args: Any, **options: Any) -> Tensor:
            streams = self._stream(place)
            if len(streams) == 1:
                out: Tensor = forward(streams[0])
                return out
            return _by_row(module, forward, streams[rows])

        return project

    def _heads_output(
        self, module: nn.Module, forward: Function, branch: AttentionParts
    ) -> Function:
        def send(x: Tensor) -> Tensor:
            messages, bias = _by_head(module, forward, x, branch.heads)
            if bias is not None:
                self._biases[branch.group] = bias
            self._record(branch.group, messages)
            for _, place, _ in branch.projections:
                self._read.pop(place, None)
            return torch.zeros_like(messages[0])

        return send

    def _reading(self, module: nn.Module, forward: Function, branch: MlpParts) -> Function:
        def read(x: Tensor, *args: Any, **options: Any) -> Any:
            return forward(self._stream(branch.place)[0], *args, **options)

        return read

    def _mlp_output(self, module: nn.Module, forward: Function, branch: MlpParts) -> Function:
        def send(x: Tensor, *args: Any, **options: Any) -> Tensor:
            out: Tensor = forward(x, *args, **options)
            self._record(branch.group, out[None])
            self._read.pop(branch.place, None)
            return torch.zeros_like(out)

        return send

    def _last_layer(self, module: nn.Module, forward: Function) -> Function:
        def finish(*args: Any, **options: Any) -> Any:
            out = forward(*args, **options)
            x = self._stream(self.parts.final)[0]
            return x if isinstance(out, Tensor) else (x, *out[1:])

        return finish

    # ---------------------------------------------------------------- streams

    def _record(self, group: int, messages: Tensor) -> None:
        """Keeps a group's messages and how far they are from the ablated ones."""
        probe = self.probe
        if probe is not None and probe.constants is not None:
            chosen = probe.constants[group].to(messages.device)[:, None, None, None]
            messages = torch.where(chosen, probe.clean[group], messages)
        self._by_group[group] = messages
        if self.ablated is not None:
            self._deltas[group] = wide(messages) - wide(self.ablated.messages[group])

    def _stream(self, place: Place) -> Tensor:
        """``[R, B, T, D]``: what the readers of a place read; one row where all read the same."""
        if place not in self._read:
            norms = sum(self.parts.groups[i].norm is not None for i in place.groups)
            if norms > 1 and self.mask is not None and torch.is_grad_enabled():
                # A post-norm stack keeps each reader's stream at every norm on its way otherwise.
                out = checkpoint(
                    self._computed_again, place, use_reentrant=False, preserve_rng_state=False
                )
            else:
                out = self._computed(place)
            self._read[place] = out
        return self._read[place]

    def _computed_again(self, place: Place) -> Tensor:
        with quiet(self.parts.model):  # the backward pass comes when the module is the user's again
            return self._computed(place)

    def _computed(self, place: Place) -> Tensor:
        entry, start = self._entry[place.stack], 0
        x = wide(entry)
        mask = None if self.mask is None else place.of(self.mask)
        for number in place.groups:
            group = self.parts.groups[number]
            stop = start + len(group.nodes)
            if number in self._biases:
                x = x + self._biases[number]
            if mask is None or self._totals is None:
                x = x + wide(self._by_group[number]).sum(0)
            else:
                mixed = _mix(mask[..., start:stop], self._deltas[number])
                x = x + self._totals[number] + mixed
            if self.probe is not None:
                x = x + self._probed(self.probe, place, number, slice(start, stop))
            if group.norm is not None:
                x = wide(group.norm(x.to(entry.dtype)))
            start = stop
        x = x.to(entry.dtype)
        if place.norm is not None:
            x = place.norm(x)
        return x if x.ndim == 4 else x[None]

    def _probed(self, probe: Probe, place: Place, group: int, writers: slice) -> Tensor:
        """The probe's zeros in what a place reads of one group."""
        values, deltas = place.of(probe.edges)[..., writers], probe.deltas[group]
        if values.ndim == 3:
            # Positions are counted from the front in both stacks, of which one may be longer.
            each = values[: deltas.shape[2]].to(deltas)
            out = torch.einsum("trw,wbtd->rbtd", each, deltas)
        else:
            out = torch.tensordot(values.to(deltas), deltas, 1)
        if probe.neurons is not None:
            out = out + torch.einsum("wd,wbtd->btd", probe.neurons[group], deltas)
        return out


def _mix(mask: Tensor, deltas: Tensor) -> Tensor:
    """``[R, B, T, D]`` from a mask ``[R, w]`` or ``[B, R, w]`` and ``deltas [w, B, T, D]``."""
    if mask.ndim == 2:
        mixed: Tensor = torch.tensordot(mask.to(deltas), deltas, 1)
        return mixed
    return torch.einsum("brw,wbtd->rbtd", mask.to(deltas), deltas)


def _by_row(module: Any, forward: Function, streams: Tensor) -> Tensor:
    """``[B, T, R * dh]``: of each reader's stream the output that belongs to its rows."""
    rows, batch, length, width = streams.shape
    if is_plain(module):
        weight = module.weight.detach().view(rows, -1, width)
        out = torch.bmm(streams.flatten(1, 2), weight.mT)
        out = out.view(rows, batch, length, -1).permute(1, 2, 0, 3).flatten(2)
        return out if module.bias is None else out + module.bias.detach()
    whole: Tensor = forward(streams)
    each = whole.unflatten(-1, (rows, -1))
    own: Tensor = each.diagonal(dim1=0, dim2=3).permute(0, 1, 3, 2).flatten(2)
    return own


def _by_head(module: Any, forward: Function, x: Tensor, heads: int) -> tuple[Tensor, Tensor | None]:
    """Each head's share ``[H, B, T, D]`` of an output map, and what no head sends (its bias)."""
    batch, length, _ = x.shape
    split = x.view(batch, length, heads, -1).permute(2, 0, 1, 3)
    if is_plain(module):
        weight = module.weight.detach().view(-1, heads, split.shape[-1]).permute(1, 2, 0)
        out = torch.bmm(split.flatten(1, 2), weight).view(heads, batch, length, -1)
        return out, None if module.bias is None else module.bias.detach()
    alone = x.new_zeros(heads, batch, length, heads, split.shape[-1])
    index = torch.arange(heads, device=x.device)
    alone[index, :, :, index] = split
    bias: Tensor = forward(x.new_zeros(1, 1, x.shape[-1]))
    shares: Tensor = forward(alone.flatten(3)) - bias
    return shares, bias[0, 0]


def zeros_for(sent: Sequence[Tensor]) -> Ablated:
    """Zero messages in place of those that were sent."""
    return Ablated([messages.new_zeros(len(messages), 1, 1, 1) for messages in sent])
