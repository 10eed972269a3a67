"""Proof that a model's graph is the model: the user's own module under hooks, nothing of ours.

Of layers whose mixer is one node, what the module (or the norm behind it) gives is the message; of
layers taken in steps, what the stream in the middle and the layer's output add to what went in.

``Family`` only says which module is which; every number comes from plain Hugging Face forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import graphprune as gp

SHARE = 0.3  # of its own message that a patched writer still sends


class HookedModel:
    """A module's plain runs, and runs in which one head, mixer or MLP sends something else.

    ``heads``: how many each layer has.
    """

    def __init__(self, module: Any, family: Any, heads: list[int]) -> None:
        self.module, self.family, self.heads = module, family, heads
        base = module.get_submodule(family.base)
        self.layers = list(base.get_submodule(family.layers))

    def part(self, layer: int, path: str) -> nn.Module:
        return self.layers[layer].get_submodule(path)

    def output(self, layer: int) -> nn.Module:
        return self.part(layer, f"{self.family.attention}.{self.family.output}")

    def mixer(self, layer: int) -> nn.Module | None:
        """The module that gives a layer's message as one node; ``None``: it has heads."""
        names = dict(self.layers[layer].named_modules())
        paths = [path for _, path in self.family.blocks if path in names]
        return names[self.family.attention_post_norm or paths[0]] if paths else None

    def logits(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            return self.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1]

    @contextmanager
    def hooks(self, *triples: tuple[nn.Module, str, Callable[..., Any]]) -> Iterator[None]:
        handles = [getattr(m, kind)(hook, with_kwargs=True) for m, kind, hook in triples]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def seen(self, ids: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
        """What a module is called with and what it gives in a plain run."""
        kept: list[tuple[Tensor, Tensor]] = []

        def note(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            read = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            kept.append((read, out if isinstance(out, Tensor) else out[0]))

        with self.hooks((module, "register_forward_hook", note)):
            self.logits(ids)
        return kept[-1]

    def patched_head(self, clean: Tensor, corrupt: Tensor, layer: int, head: int) -> Tensor:
        """Logits where a head sends a share of its message and the rest of its corrupted one."""
        output = self.output(layer)
        width = self.seen(clean, output)[0].shape[-1] // self.heads[layer]
        own = slice(head * width, (head + 1) * width)
        other, _ = self.seen(corrupt, output)
        post = self.family.attention_post_norm
        if post is None:

            def mix(_: nn.Module, args: Any, kwargs: Any) -> Any:
                z = args[0].clone()
                z[..., own] = SHARE * z[..., own] + (1 - SHARE) * other[..., own]
                return (z, *args[1:]), kwargs

            with self.hooks((output, "register_forward_pre_hook", mix)):
                return self.logits(clean)
        # Behind a post-norm a message is the head's share times what the norm multiplies with.
        norm = self.part(layer, post)

        def message(ids: Tensor) -> Tensor:
            z = self.seen(ids, output)[0]
            alone = torch.zeros_like(z)
            alone[..., own] = z[..., own]
            total, normed = self.seen(ids, norm)
            return output.forward(alone) * normed / total  # type: ignore[no-any-return]

        change = (1 - SHARE) * (message(corrupt) - message(clean))

        def add(_: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            return out + change

        with self.hooks((norm, "register_forward_hook", add)):
            return self.logits(clean)

    def patched_mixer(self, clean: Tensor, corrupt: Tensor, layer: int) -> Tensor:
        """The same for a mixer that is one node."""
        mixer = self.mixer(layer)
        assert mixer is not None
        other = self.seen(corrupt, mixer)[1]

        def mix(_: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            own = out if isinstance(out, Tensor) else out[0]
            new = SHARE * own + (1 - SHARE) * other
            return new if isinstance(out, Tensor) else (new, *out[1:])

        with self.hooks((mixer, "register_forward_hook", mix)):
            return self.logits(clean)

    def _mlp_message(self, ids: Tensor, layer: int) -> Tensor:
        """What is left of a layer's output without the stream and what attention added to it."""
        family, own = self.family, self.layers[layer]
        x, out = self.seen(ids, own)
        if family.parallel:
            mixer = self.mixer(layer) or self.output(layer)
            return out - x - self.seen(ids, mixer)[1].view(x.shape)
        entrance = family.mlp_norm or family.mlp
        return out - self.seen(ids, self.part(layer, entrance))[0].view(x.shape)

    def _middle(self, ids: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """The stream that enters a layer taken in steps, that in its middle, and that it gives."""
        steps = self.family.steps[layer]
        x, out = self.seen(ids, self.layers[layer])
        if steps.middle is None:
            return x, out, out
        pair = self.seen(ids, self.part(layer, steps.middle))
        return x, pair[steps.side == "output"].view(x.shape), out

    def _handed(self, ids: Tensor, layer: int) -> list[tuple[Tensor | None, Tensor]]:
        """What a layer is called with and gives of each tensor of a stream of several."""
        kept: list[list[tuple[Tensor | None, Tensor]]] = []

        def note(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            given = {**dict(enumerate(args)), **kwargs}
            kept.append(
                [
                    (given.get(c.argument), out if c.output is None else out[c.output])
                    for c in self.family.carried
                ]
            )

        with self.hooks((self.layers[layer], "register_forward_hook", note)):
            self.logits(ids)
        return kept[-1]

    def patched_layer(self, clean: Tensor, corrupt: Tensor, layer: int) -> Tensor:
        """The same for a layer of a stream of several tensors."""
        pairs = zip(*(self._handed(ids, layer) for ids in (clean, corrupt)), strict=True)
        changes = []
        for (x, y), (other_x, other_y) in pairs:
            old = y if x is None else y - x
            new = other_y if other_x is None else other_y - other_x
            changes.append((1 - SHARE) * (new - old))

        def add(_: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            if self.family.carried[0].output is None:
                return out + changes[0]
            parts = list(out)
            for c, change in zip(self.family.carried, changes, strict=True):
                parts[c.output] = parts[c.output] + change
            return type(out)(*parts) if hasattr(out, "_fields") else type(out)(parts)

        with self.hooks((self.layers[layer], "register_forward_hook", add)):
            return self.logits(clean)

    def patched_step(self, clean: Tensor, corrupt: Tensor, layer: int, second: bool) -> Tensor:
        """The same for a step of a layer."""
        steps = self.family.steps[layer]
        ends = [self._middle(ids, layer)[second : second + 2] for ids in (clean, corrupt)]
        old, new = (after - before for before, after in ends)
        change = (1 - SHARE) * (new - old)

        def add(out: Any, change: Tensor) -> Any:
            return (
                out + change if isinstance(out, Tensor) else type(out)((out[0] + change, *out[1:]))
            )

        def after(module: nn.Module, change: Tensor) -> Any:
            return module, "register_forward_hook", lambda _, a, k, out: add(out, change)

        def entering(module: nn.Module, change: Tensor) -> Any:
            def more(_: nn.Module, args: Any, kwargs: Any) -> Any:
                if "hidden_states" in kwargs:
                    return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + change}
                return (args[0] + change, *args[1:]), kwargs

            return module, "register_forward_pre_hook", more

        if second or steps.middle is None:
            with self.hooks(after(self.layers[layer], change)):
                return self.logits(clean)
        middle = self.part(layer, steps.middle)
        if steps.given == steps.middle and steps.side == "input":
            with self.hooks(entering(middle, change)):
                return self.logits(clean)
        if steps.given == steps.middle:
            with self.hooks(after(middle, change)):
                return self.logits(clean)
        # The change comes in by the stream, and the mixers send what they sent without it.
        hooks = []
        for path in steps.silent:
            mixer = self.part(layer, path)
            sent = self.seen(clean, mixer)[1]

            def put(_: nn.Module, args: Any, kwargs: Any, out: Any, sent: Tensor = sent) -> Any:
                return sent if isinstance(out, Tensor) else type(out)((sent, *out[1:]))

            hooks.append((mixer, "register_forward_hook", put))
        if steps.scaled:
            before = self._middle(clean, layer)[1]
            with self.hooks(*hooks, entering(self.layers[layer], change)):
                change = change**2 / (self._middle(clean, layer)[1] - before)
        if steps.given is None:
            hooks.append(entering(self.layers[layer], change))
        else:
            hooks.append(after(self.part(layer, steps.given), change))
        with self.hooks(*hooks):
            return self.logits(clean)

    def patched_mlp(self, clean: Tensor, corrupt: Tensor, layer: int) -> Tensor:
        """The same for an MLP, or a mixture of experts."""
        old, new = self._mlp_message(clean, layer), self._mlp_message(corrupt, layer)
        change = (1 - SHARE) * (new - old)

        def add(_: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            return out + change if isinstance(out, Tensor) else (out[0] + change, *out[1:])

        with self.hooks((self.layers[layer], "register_forward_hook", add)):
            return self.logits(clean)


def prove(module: Any, *, gradients: bool = False, nodes: str = "auto") -> dict[str, float]:
    """The largest gap between masked runs and hooked plain ones, over the largest logit.

    ``gradients``: also of mask gradients against finite differences; ``nodes``: as ``gp.wrap``'s.
    """
    model: Any = gp.wrap(module, nodes=nodes)
    graph, family = model.graph, gp.describe(model)
    shapes: dict[int, Any] = {}  # of each layer's first part
    for i, shape in enumerate(model.layout.shapes):
        shapes.setdefault(i if shape.number is None else shape.number, shape)
    hooked = HookedModel(module, family, [shape.heads for shape in shapes.values()])
    generator = torch.Generator().manual_seed(3)
    clean, corrupt = torch.randint(model.arch.outputs, (2, 2, 7), generator=generator)
    batch = gp.Batch({"input_ids": clean}, {"input_ids": corrupt}, 2)
    reference = model.reference(batch)
    size = float(hooked.logits(clean).abs().max()) + 1

    def masked(cut: str | None, value: float) -> Tensor:
        mask = torch.ones(graph.num_edges)
        names = [graph.nodes[int(n)].name for n in graph.edge_index[0]]
        mask[[cut is None or name == cut for name in names]] = value
        return model.run(batch, mask, reference)  # type: ignore[no-any-return]

    last = len(hooked.layers) - 1
    pairs = {
        "mask 1": (masked(None, 1.0), hooked.logits(clean)),
        "mask 0": (masked(None, 0.0), hooked.logits(corrupt)),
    }
    first_split = next((i for i, shape in shapes.items() if shape.block is None), 0)
    for layer in sorted({0, first_split, last}):
        shape = shapes[layer]
        steps = family.steps[layer] if family.steps else None
        if steps is not None:
            for second in range(1 + (steps.middle is not None)):
                name = f"m{layer}" if second else f"{steps.node}{layer}"
                if family.carried:
                    theirs = hooked.patched_layer(clean, corrupt, layer)
                else:
                    theirs = hooked.patched_step(clean, corrupt, layer, bool(second))
                pairs[name] = masked(name, SHARE), theirs
            continue
        if shape.block is None:
            head = shape.heads - 1 if layer == last else 1 % shape.heads
            name, theirs = f"a{layer}.h{head}", hooked.patched_head(clean, corrupt, layer, head)
        else:
            name, theirs = f"{shape.block}{layer}", hooked.patched_mixer(clean, corrupt, layer)
        pairs[name] = masked(name, SHARE), theirs
        if not shape.mlp:
            continue
        theirs = hooked.patched_mlp(clean, corrupt, layer)
        pairs[f"m{layer}"] = masked(f"m{layer}", SHARE), theirs
    kept = (torch.rand(graph.num_edges, generator=generator) < 0.2).float()
    pairs["the circuit alone"] = (
        model.run(batch, kept, reference, sparse=True),
        model.run(batch, kept, reference, sparse=False),
    )
    gaps = {name: float((a - b).abs().max()) / size for name, (a, b) in pairs.items()}
    if gradients:
        gaps["gradients"] = _gradient_gap(model, batch, reference)
    return gaps


def _gradient_gap(model: Any, batch: gp.Batch, reference: Any) -> float:
    """Mask gradients against central differences at a random fractional mask, relative."""
    generator = torch.Generator().manual_seed(4)
    count = model.graph.num_edges
    mask = torch.rand(count, generator=generator, dtype=torch.float64)
    weights = torch.randn(model.reference(batch).full.shape, generator=generator).double()

    def loss(m: Tensor) -> Tensor:
        return (model.run(batch, m, reference).double() * weights).sum()

    leaf = mask.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    gap, step = 0.0, 1e-3
    for edge in torch.randperm(count, generator=generator)[:12].tolist():
        ends = [mask.clone(), mask.clone()]
        ends[0][edge] += step
        ends[1][edge] -= step
        with torch.no_grad():
            slope = (loss(ends[0]) - loss(ends[1])) / (2 * step)
        gap = max(gap, float((slope - gradient[edge]).abs()))
    return gap / float(gradient.abs().max())
