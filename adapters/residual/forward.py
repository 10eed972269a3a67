"""One forward of the user's own module in which every reader reads its own masked stream.

While it runs, the modules that read or write the residual stream do something else than usual: a
projection or an MLP reads the streams of its place, whatever it is handed; what is written to the
stream is recorded, and zeros are handed on. So the stream that the module itself carries holds
nothing but what cannot be masked, and a reader that a family forgot shows in the self-check.
Everything else (attention, its masks and position biases, pooling, heads) is the module's own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.util.modes import quiet

from ..lm.attribution.relevance import HalfRule, Rule, identity_rule
from ..lm.describe.hooks import is_plain
from ..lm.describe.module_copies import ACTIVATION_MODULES
from ..lm.describe.norms import describe_norm, is_norm
from .parts import AttentionParts, Function, MlpParts, Parts, Place
from .streams import Ablated, Streams, Watch

__all__ = ["Forward"]

Maker = Any  # of (module, forward) -> what the module does at one call


class Forward:
    """A forward under a mask; without one it records what the plain module sends.

    ``sent`` are the groups' messages ``[w, B, T, D]``, ``entries`` each stack's stream without any
    of them, ``fronts`` how many of its positions stand before those that its embedding fills (a
    class token). Arguments are those of :class:`Streams`, and the ``rule`` of gradients: with
    RelP's activations and norms that are modules, and products of two activations, have its rules
    all over the model.
    """

    def __init__(
        self,
        parts: Parts,
        mask: Tensor | None = None,
        ablated: Ablated | None = None,
        *,
        gates: Tensor | None = None,
        watch: Watch | None = None,
        rule: Rule = "gradient",
    ) -> None:
        self.parts, self.rule = parts, rule
        self.streams = Streams(parts, mask, ablated, gates, watch)
        self.sent: list[Tensor] = []
        self.entries: list[Tensor] = []
        self.fronts: list[int] = []
        self._embedded: dict[int, Tensor] = {}
        self._entry: dict[int, Tensor] = {}

    def run(self, inputs: Mapping[str, Any]) -> Any:
        """What the module gives on ``inputs``."""
        rules = nullcontext() if self.rule == "gradient" else HalfRule()
        with quiet(self.parts.model), self._diverted(), rules:
            outputs = self.parts.model(**inputs)
        self.sent = [self.streams.sent[i] for i in range(len(self.parts.groups))]
        self.entries = [self._entry[i] for i in range(len(self.parts.entries))]
        return outputs

    # ---------------------------------------------------------------- what modules do meanwhile

    @contextmanager
    def _diverted(self) -> Iterator[None]:
        """The user's modules doing what a masked run needs; as they were afterwards."""
        before: list[tuple[nn.Module, Any]] = []
        try:
            planned, rules = self._planned(), list(self._by_rule())
            for module, calls in planned.items():
                before.append((module, module.__dict__.get("forward")))
                module.__dict__["forward"] = _in_turn(module, module.forward, calls)
            for module, forward in rules:
                if module not in planned:
                    before.append((module, module.__dict__.get("forward")))
                    module.__dict__["forward"] = forward
            yield
        finally:
            for module, own in reversed(before):
                if own is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = own

    def _planned(self) -> dict[nn.Module, list[list[Maker]]]:
        """For each module and each of its calls, in order, what is done there.

        Layers may share modules, and two stacks a table. Calls beyond these are the module's own,
        such as those of DeBERTa's projections on its table of distances.
        """
        parts = self.parts
        planned: dict[nn.Module, list[list[Maker]]] = defaultdict(list)
        for stack, module in enumerate(parts.embeddings):
            planned[module].append([partial(self._embedding, stack)])
        for stack, module in enumerate(parts.entries):
            first = parts.layers[stack][0]
            if module is not first:
                planned[module].append([partial(self._entering, stack)])
            for index, layer in enumerate(parts.layers[stack]):
                makers: list[Maker] = []
                if module is first and index == 0:
                    makers.append(partial(self._entering, stack))
                if stack == len(parts.entries) - 1 and index == len(parts.layers[stack]) - 1:
                    makers.append(self._last_layer)
                planned[layer].append(makers)
        for branch in parts.branches:
            here: dict[nn.Module, list[Maker]] = defaultdict(list)
            if isinstance(branch, MlpParts):
                for module in branch.inputs:
                    here[module].append(partial(self._reading, branch))
                here[branch.output].append(partial(self._mlp_output, branch))
            else:
                for module, place, rows in branch.projections:
                    here[module].append(partial(self._projecting, place, rows))
                here[branch.output].append(partial(self._heads_output, branch))
            for module, makers in here.items():
                planned[module].append(makers)
        return planned

    def _by_rule(self) -> Iterator[tuple[nn.Module, Function]]:
        """The activations and norms whose gradients are a rule's."""
        if self.rule == "gradient":
            return
        like = next(p for p in self.parts.model.parameters() if p.is_floating_point())
        for name, module in self.parts.model.named_modules():
            if type(module).__module__ in ACTIVATION_MODULES:
                yield module, partial(identity_rule, module.forward)
            elif is_norm(module, like.detach().reshape(-1)[:8]):
                yield module, describe_norm(module, name).frozen

    def _embedding(self, stack: int, module: nn.Module, forward: Function) -> Function:
        def embed(*args: Any, **options: Any) -> Tensor:
            out: Tensor = forward(*args, **options)
            own = out if out.ndim == 3 else out.flatten(2).mT
            times = self.parts.multipliers[stack]
            self._embedded[stack] = own if times == 1 else own * times
            return torch.zeros_like(out)

        return embed

    def _entering(self, stack: int, module: nn.Module, forward: Function) -> Function:
        def enter(*args: Any, **options: Any) -> Any:
            x = args[0] if args else options["hidden_states"]
            own = self._embedded.pop(stack)
            front = x.shape[1] - own.shape[1]
            self.fronts.append(front)
            self._entry[stack] = x
            self.streams.enter(stack, x)
            padded = nn.functional.pad(own, (0, 0, front, 0))
            self.streams.add(self.parts.first_group(stack), padded[None])
            return forward(*args, **options)

        return enter

    def _projecting(
        self, place: Place, rows: tuple[int, ...], module: nn.Module, forward: Function
    ) -> Function:
        def project(x: Tensor, *args: Any, **options: Any) -> Tensor:
            streams = self.streams.read(place)
            if len(streams) == 1:
                out: Tensor = forward(streams[0])
                return out
            whole = rows == tuple(range(len(streams)))
            first, last = rows[0], rows[-1] + 1
            near = rows == tuple(range(first, last))
            own = streams if whole else streams[first:last] if near else streams[list(rows)]
            out = _by_row(module, forward, own)
            return out if self.rule != "relp-frozen" else self._values_only(out, place, rows)

        return project

    def _values_only(self, out: Tensor, place: Place, rows: tuple[int, ...]) -> Tensor:
        """Projections of which queries and keys have no gradient, so that patterns have none."""
        values = torch.tensor([place.rows[row][1] == 2 for row in rows], device=out.device)
        each = out.unflatten(-1, (len(rows), -1))
        return torch.where(values[:, None], each, each.detach()).flatten(-2)

    def _heads_output(
        self, branch: AttentionParts, module: nn.Module, forward: Function
    ) -> Function:
        def send(x: Tensor) -> Tensor:
            messages, bias = _by_head(module, forward, x, branch.heads)
            if branch.scale is not None:
                messages = branch.scale(messages)
                bias = None if bias is None else branch.scale(bias)
            self.streams.add(branch.group, messages, bias)
            for _, place, _ in branch.projections:
                self.streams.forget(place)
            return torch.zeros_like(messages[0])

        return send

    def _reading(self, branch: MlpParts, module: nn.Module, forward: Function) -> Function:
        def read(x: Tensor, *args: Any, **options: Any) -> Any:
            return forward(self.streams.read(branch.place)[0], *args, **options)

        return read

    def _mlp_output(self, branch: MlpParts, module: nn.Module, forward: Function) -> Function:
        def send(x: Tensor, *args: Any, **options: Any) -> Tensor:
            out: Tensor = forward(x, *args, **options)
            self.streams.add(branch.group, out[None])
            self.streams.forget(branch.place)
            return torch.zeros_like(out)

        return send

    def _last_layer(self, module: nn.Module, forward: Function) -> Function:
        def finish(*args: Any, **options: Any) -> Any:
            out = forward(*args, **options)
            x = self.streams.read(self.parts.final)[0]
            return x if isinstance(out, Tensor) else (x, *out[1:])

        return finish


def _in_turn(module: nn.Module, forward: Function, calls: list[list[Maker]]) -> Function:
    """A forward that does at each call what is planned for it, and then what it always did."""
    made: list[Function] = []
    for makers in calls:
        one = forward
        for make in makers:
            one = make(module, one)
        made.append(one)
    turns = iter(made)

    def run(*args: Any, **options: Any) -> Any:
        return next(turns, forward)(*args, **options)

    return run


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
