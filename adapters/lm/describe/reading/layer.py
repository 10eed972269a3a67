"""One layer's structure, read off one run of it and confirmed by numbers.

Names only propose. What counts is which module was called with which tensor and gave which: the
norm in front is the module that was called with the stream and gave what the projections read; what
the layer adds to the stream is the attention's output and the MLP's, times a number or behind a
norm, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import UnsupportedModelError

from ..family import Family
from ..norms import HALF, is_norm, matrix
from .heads import head_settings
from .mixers import letter, mixes
from .refusal import FOREIGN, cannot_read
from .roles import AttentionModule, as_family, find_roles
from .trace import Traced, linear, record, relative, under
from .whole_layer import MlpBranch, with_hidden

__all__ = ["read_layer"]


def read_layer(
    call: Traced,
    calls: list[Traced],
    config: Any,
    index: int,
    known: dict[Any, Any],
    *,
    split: bool,
) -> dict[str, Any]:
    """The settings of a :class:`Family` that describe the layer.

    Args:
        call: how the model called the layer, with one prompt.
        calls: the calls of the modules inside it, in order, paths as they are in the layer.
        config: the model's configuration, which knows how many heads there are.
        index: the layer's number, for messages.
        known: what was found out by running layers of the same make, which this one adds to.
        split: whether attention must be split by head; if not, what cannot be is one node, and
            the settings have ``block``, its letter and path, in place of the attention's.

    Raises:
        UnsupportedModelError: what is no sum of attention by heads and an MLP, and where.
    """
    layer = _Layer(call, calls, config, f"layer {index}", known)
    try:
        return layer.settings()
    except (UnsupportedModelError, *FOREIGN) as error:
        found = None if split else layer.one_node()
        if found is not None:
            return found
        if layer.why_not is not None:
            raise layer.why_not from error
        if isinstance(error, UnsupportedModelError):
            raise
        cannot_read(
            f"layer {index} ({type(call.module).__name__})",
            f"a part of it could not be run by itself: {type(error).__name__}: {error}",
        )


@dataclass(frozen=True, eq=False)
class _Added:
    """What attention adds to the stream: ``message`` times a number, and the norm behind it."""

    message: Tensor
    post_norm: str | None


class _Layer:
    def __init__(
        self, call: Traced, calls: list[Traced], config: Any, at: str, known: dict[Any, Any]
    ) -> None:
        self.layer, self.call, self.calls = call.module, call, calls
        self.config, self.at, self.known = config, at, known
        hidden, result = call.read, call.gave
        assert hidden is not None
        assert result is not None
        self.x, self.out = hidden, result
        half = hidden.dtype in HALF
        self.loose = 3e-2 if half else 1e-4  # of single numbers
        self.exact = 3e-3 if half else 1e-4  # of factors, which many numbers tell
        self._norms: dict[nn.Module, bool] = {}
        self.why_not: UnsupportedModelError | None = None  # is a mixer no single node either

    # ---------------------------------------------------------------- comparing numbers

    def same(self, one: Tensor | None, other: Tensor | None) -> bool:
        """Whether two tensors hold the same numbers, in whatever shape."""
        if one is None or other is None or one.numel() != other.numel():
            return False
        return one is other or torch.equal(one.reshape(-1), other.reshape(-1))

    def close(self, one: Tensor, other: Tensor, size: Tensor | None = None) -> bool:
        """Whether two tensors are the same but for rounding of something of ``size``."""
        largest = max(float(x.abs().max()) for x in (one, other, self.x if size is None else size))
        return float((one.reshape(-1) - other.reshape(-1)).abs().max()) <= self.loose * largest

    def multiple(self, what: Tensor, of: Tensor) -> float | None:
        """The number that ``of`` is multiplied with in ``what``; ``None`` if it is no multiple."""
        a, b = what.double().reshape(-1), of.double().reshape(-1)
        if a.shape != b.shape or not float(b.abs().max()):
            return None
        factor = float(a @ b / (b @ b))
        rest = float((a - factor * b).abs().max())
        allowed = self.loose * max(float(a.abs().max()), 0.1 * float(self.x.abs().max()))
        return factor if rest <= allowed and abs(factor) > 1e-3 else None

    def is_norm(self, call: Traced) -> bool:
        """Whether the module is a LayerNorm or an RMSNorm over the stream's width."""
        module = call.module
        if module not in self._norms:
            fits = call.read is not None and call.read.shape[-1] == self.x.shape[-1]
            if not fits or next(module.children(), None) is not None:
                return False
            self._norms[module] = is_norm(module, self.x)
        return self._norms[module]

    # ---------------------------------------------------------------- attention

    def _output_map(self) -> Traced:
        """The first linear map that reads something of other tokens."""
        make = _make(self.layer)
        if make not in self.known:
            self.known[make] = self._mixing_map().path
        return next(c for c in self.calls if c.path == self.known[make])

    def _mixing_map(self) -> Traced:
        """The same, found by running the layer with another token before the last."""
        moved = self.x.clone()
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(moved[:, -2].shape, generator=generator)
        moved[:, -2] = noise.to(moved) * moved.abs().max()
        args, kwargs = with_hidden(self.call.args, self.call.kwargs, moved)
        others: dict[str, list[Traced]] = {}
        for call in record(self.layer, *args, **kwargs)[0]:
            others.setdefault(call.path, []).append(call)
        for call in self.calls:
            if not linear(call.module) or not others.get(call.path):
                continue
            twin = others[call.path].pop(0).read
            if call.read is None or twin is None or twin.shape != call.read.shape:
                continue
            change = (call.read - twin).reshape(-1, twin.shape[-1]).abs().amax(-1)
            small = 1e-4 * float(call.read.abs().max())
            if float(change[0]) > small:
                cannot_read(
                    f"{self.at}'s {call.path}",
                    "it reads what later tokens send; encoders are not supported yet",
                )
            if float(change[-1]) > small:
                return call
        cannot_read(self.at, "no linear map in it reads what other tokens send")

    def _attention(self) -> tuple[AttentionModule, Traced, Traced, Tensor]:
        """The attention module, its call, its output map's, and what its projections read."""
        output = self._output_map()
        before = self.calls[: self.calls.index(output)]
        path = output.path
        inside: list[Traced] = []
        while path and not inside:
            path = path.rpartition(".")[0]
            inside = [c for c in before if linear(c.module) and path and under(c.path, path)]
        own = next((c for c in self.calls if c.path == path and path), None)
        if not inside or own is None:
            cannot_read(
                f"{self.at}'s {output.path}",
                "it reads what other tokens send, and no module around it holds projections too",
            )
        at = f"{self.at}'s {path} ({type(own.module).__name__})"
        read = inside[0].read
        assert read is not None
        for call in inside:
            if not self.same(call.read, read):
                name = relative(call.path, path)
                cannot_read(
                    at,
                    f"{name} reads what is no input of the module: queries, keys or values come "
                    "out of a shared latent, so that it cannot be split by head",
                )
        if output.gave is None or output.gave.shape[-1] != self.x.shape[-1]:
            cannot_read(at, f"{output.path}, which mixes tokens, gives no message to the stream")
        if not self.same(own.read, read):
            cannot_read(at, "its projections do not read what the module is called with")
        module = AttentionModule(
            own.module,
            tuple(relative(c.path, path) for c in inside),
            tuple(int(c.gave.shape[-1]) for c in inside if c.gave is not None),
            relative(output.path, path),
            own.rest,
            at,
        )
        return module, own, output, read

    # ---------------------------------------------------------------- the whole layer

    def settings(self) -> dict[str, Any]:
        """See :func:`read_layer`."""
        attention, own, output, read = self._attention()
        at = attention.at
        width = int(matrix(output.module, f"{at}'s {attention.output}")[0].shape[1])
        said = head_settings(self.config, own.module, width)
        if said is None:
            cannot_read(at, f"no number of heads that divides its width {width} is configured")
        make = (*_make(own.module), attention.projections, attention.widths, said.heads)
        if make not in self.known:
            self.known[make] = find_roles(attention, said.heads, width // said.heads, self.x)
        roles = self.known[make]
        settings = as_family(roles, attention) | said.settings(self.config, roles.kv_heads)
        settings |= {"attention": own.path, "attention_norm": self._norm_between(self.x, read, at)}
        outside = [c for c in self.calls if not under(c.path, own.path) and c.path]
        settings |= self._around(settings, outside, own, output, read)
        return settings

    def one_node(self) -> dict[str, Any] | None:
        """The settings if a module's whole message is what is added beside the MLP's."""
        reads = [self.x, *(c.gave for c in self.calls if self.same(c.read, self.x))]
        inside = [c for c in self.calls if c.path and not self.is_norm(c)]
        for call in sorted(inside, key=lambda c: c.path.count(".")):
            gave, read = call.gave, call.read
            if read is None or gave is None or gave.shape != self.x.shape:
                continue
            if not any(self.same(read, x) for x in reads) or call.repeats:
                continue
            outside = [c for c in self.calls if not under(c.path, call.path) and c.path]
            try:
                if not mixes(call):
                    continue
                norm = self._norm_between(self.x, read, f"{self.at}'s {call.path}")
                settings = {"attention": call.path, "attention_norm": norm}
                settings |= self._alone(gave) or self._around(settings, outside, call, call, read)
            except UnsupportedModelError as error:
                self.why_not = self.why_not or error
                continue
            except FOREIGN:
                continue
            del settings["attention"]
            return settings | {"block": (letter(call.module), call.path)}
        return None

    def _alone(self, message: Tensor) -> dict[str, Any] | None:
        """The settings if a mixer's message is all that the layer adds: there is no MLP."""
        factor = self.multiple(self.out - self.x, message)
        if factor is None:
            return None
        none = dict.fromkeys(("attention_post_norm", "mlp_norm", "mlp_post_norm"))
        number = self._configured(factor)
        more = {} if number == 1 else {"residual_multiplier": number}
        return {**none, "mlp": "", "parallel": False, **more}

    def _norm_between(self, x: Tensor, read: Tensor, at: str) -> str | None:
        """The path of the norm that was called with ``x`` and gave ``read``."""
        for call in self.calls:  # first, as a norm of what is normed already changes nothing
            if self.same(call.gave, read) and self.same(call.read, x) and self.is_norm(call):
                return call.path
        if self.same(x, read):
            return None
        cannot_read(at, "it reads neither the residual stream nor a LayerNorm or RMSNorm of it")

    def _around(
        self,
        settings: dict[str, Any],
        outside: list[Traced],
        own: Traced,
        output: Traced,
        read: Tensor,
    ) -> dict[str, Any]:
        """What stands around attention: norms, the MLP, and how both are added."""
        assert output.gave is not None
        posts = [c for c in outside if self.same(c.read, output.gave) and self.is_norm(c)]
        added = [_Added(c.gave, c.path) for c in posts if c.gave is not None]
        added.append(_Added(output.gave, None))
        norms = [c for c in outside if c.path != settings["attention_norm"] and self.is_norm(c)]
        for each in added:
            for call in norms:
                if call.read is None or call.gave is None:
                    continue
                moved = call.read.reshape(self.x.shape) - self.x
                factor = self.multiple(moved, each.message)
                if factor is not None:
                    found = self._branch(settings, outside, own, output, each, factor, call)
                    if found is not None:
                        return found
        for call in norms:  # parallel, with a norm of its own
            if self.same(call.read, self.x):
                for each in added:
                    found = self._branch(settings, outside, own, output, each, None, call)
                    if found is not None:
                        return found
        for each in added:  # no norm in front of the MLP
            for call in outside:
                if call.read is None or call.read.numel() != self.x.numel():
                    continue
                moved = call.read.reshape(self.x.shape) - self.x
                factor = self.multiple(moved, each.message)
                if factor is not None:
                    found = self._branch(
                        settings, outside, own, output, each, factor, None, call.read
                    )
                    if found is not None:
                        return found
        shared = next((c for c in outside if c.path == settings["attention_norm"]), None)
        if shared is not None:  # parallel, behind the attention's norm
            for each in added:
                found = self._branch(settings, outside, own, output, each, None, shared)
                if found is not None:
                    return found
        cannot_read(
            self.at,
            f"what it gives is not the stream plus what its attention ({output.path}) and one MLP "
            "behind a norm add to it (a layer that norms or scales the stream itself is not "
            "supported yet)",
        )

    def _branch(
        self,
        settings: dict[str, Any],
        outside: list[Traced],
        own: Traced,
        output: Traced,
        added: _Added,
        factor: float | None,
        norm: Traced | None,
        fed: Tensor | None = None,
    ) -> dict[str, Any] | None:
        """The settings if attention adds ``factor`` times ``added``, and the MLP the rest.

        ``factor=None``: parallel, and the factor is to be found. ``None`` if it is not so.
        """
        fed = fed if norm is None else norm.gave
        assert fed is not None
        around: dict[str, Any] = {
            "attention_post_norm": added.post_norm,
            "mlp_norm": None if norm is None else norm.path,
            "parallel": factor is None,
        }
        times = 1.0 if factor is None else factor
        plain = abs(times - 1) < self.exact
        middle = self.x + added.message.reshape(self.x.shape) * (1.0 if plain else times)
        standard = isinstance(own.output, tuple) and len(own.output) == 2
        if plain and standard and self.same(own.gave, output.gave):
            simple = self._one_module(outside, fed, self.out - middle)
            if simple is not None:
                return around | simple
        if norm is None:
            return None  # the layer cannot be run on an empty stream without a norm to stand in for
        around |= {"mlp": None, "mlp_post_norm": None}
        branch = MlpBranch(self.layer, Family((), **settings | around), self.call, own)
        try:
            with torch.no_grad():
                message = branch(fed.reshape(self.x.shape))
        except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError):
            return None
        rest = self.out - self.x - message
        found = self.multiple(rest, added.message)
        if found is None or (factor is not None and abs(found - factor) > 10 * self.exact):
            return None
        number = self._configured(found)
        return around | ({} if number == 1 else {"residual_multiplier": number})

    def _one_module(
        self, outside: list[Traced], fed: Tensor, message: Tensor
    ) -> dict[str, Any] | None:
        """The MLP's path, and that of a norm behind it, if one module gives the message."""
        whole = [
            c for c in outside if c.alone and isinstance(c.output, Tensor) and not self.is_norm(c)
        ]
        for call in sorted(whole, key=lambda c: c.path.count(".")):
            gave = call.gave
            if not self.same(call.read, fed) or gave is None or gave.shape != self.x.shape:
                continue
            if self.close(gave, message):
                return {"mlp": call.path, "mlp_post_norm": None}
            for post in outside:
                behind = self.same(post.read, gave) and self.is_norm(post)
                if behind and post.gave is not None and self.close(post.gave, message):
                    return {"mlp": call.path, "mlp_post_norm": post.path}
        return None

    def _configured(self, factor: float) -> float:
        """The configuration's number that a measured factor is, or 1, or the factor."""
        said = [float(v) for v in vars(self.config).values() if isinstance(v, float)]
        for value in (1.0, *said):
            if abs(factor - value) <= self.exact * abs(value):
                return value
        return factor


def _make(module: nn.Module) -> tuple[Any, ...]:
    """What modules of the same make have in common: their class, and the names of their parts."""
    return (type(module), *(name for name, _ in module.named_modules()))
