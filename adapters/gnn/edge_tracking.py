"""Follows a graph's edges through the tensors that a module makes of ``edge_index``.

A layer may take some of the edges at a time (RGCNConv), turn them round (DirGNNConv), renumber
their ends (TopKPooling), or add self-loops. While a module runs, every tensor that is made of
``edge_index`` by moving entries about has a second tensor beside it, which went the same way and
holds *origins*: ``2 * edge + end`` (0 its source, 1 its target), or -1 for what is no edge.

This also tells which sums go over edges. Deleting an edge is giving it weight 0 in every such sum:
of messages, of the exponentials of a softmax, of the ones in a degree or in a mean's count. So a
mask that weighs them is deletion wherever a layer does nothing else with edges than sum over them.
A model tries that against real deletion before it trusts it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .copies import CopiedEdges

__all__ = ["EdgeTracker"]

# Functions whose result holds entries of their first argument, by name.
_MOVES = frozenset({
    "__getitem__", "index_select", "masked_select", "narrow", "select", "take_along_dim", "gather",
    "flip", "roll", "clone", "contiguous", "detach", "to", "long", "int", "view", "reshape",
    "flatten", "expand", "expand_as", "unsqueeze", "squeeze", "t", "transpose", "movedim",
    "unbind", "split", "chunk", "repeat_interleave",
})  # fmt: skip
_JOINS = frozenset({"cat", "concat", "stack"})
# Of a whole number and entries: other numbers of the same ends.
_SHIFTS = frozenset({"add", "__add__", "__radd__", "sub", "__sub__", "__iadd__", "add_"})
_SCATTERS = frozenset({"scatter_add", "scatter_add_", "index_add", "index_add_"})


class EdgeTracker(TorchFunctionMode):
    """Origins of tensors while a module runs on ``edges``.

    Args:
        edges: of all copies.
        weights: ``[k * E]``: what an edge's entry counts in each sum over edges; ``None``: 1.
    """

    def __init__(self, edges: CopiedEdges, weights: Tensor | None = None) -> None:
        super().__init__()
        self._weights = weights
        self._edges = edges
        self.restart()

    def restart(self) -> None:
        """Forgets all tensors but those of ``edges``: between calls of a module that trains."""
        # Tensors are kept, so that their ids stay theirs. Most origins are never asked for.
        self._origins = dict[int, tuple[Tensor, Callable[[], Any]]]()
        for index, numbers in zip(self._edges.index, self._edges.numbers, strict=True):
            self.know(index, numbers)

    def know(self, index: Tensor, numbers: Tensor) -> None:
        """Says that ``index [2, M]`` holds the edges ``numbers [M]``."""
        self._origins[id(index)] = index, cache(lambda: torch.stack([2 * numbers, 2 * numbers + 1]))

    def origins(self, value: object) -> Tensor | None:
        """Origins of a tensor's entries, of a shape that broadcasts to its own; else ``None``."""
        known = self._origins.get(id(value))
        return None if known is None else known[1]()

    def _knows(self, value: object) -> bool:
        return id(value) in self._origins

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _SCATTERS and self._weights is not None:
            args, kwargs = self._weighed(args, kwargs)
        out = func(*args, **kwargs)
        if args and (name in _MOVES or name in _JOINS or name in _SHIFTS):
            self._remember(out, self._moved(func, name, args, kwargs))
        return out

    def _remember(self, out: Any, moved: Callable[[], Any] | None) -> None:
        if moved is None:
            return
        if isinstance(out, Tensor):
            if not out.is_floating_point():
                self._origins[id(out)] = out, moved
        else:
            for place, one in enumerate(out):
                self._remember(one, lambda place=place: moved()[place])  # type: ignore[misc]

    def _moved(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[], Any] | None:
        """What gives the origins of what ``func`` gave, ``None`` where they are not known.

        Where they hang on the contents of other tensors they are found at once: contents change.
        """
        first, rest = args[0], args[1:]
        if name in _JOINS:
            return self._joined(func, first, rest, kwargs)
        if name in _SHIFTS:
            plain = bool(rest) and (not isinstance(rest[0], Tensor) or rest[0].numel() == 1)
            return self._origins[id(first)][1] if plain and self._knows(first) else None
        if not self._knows(first):
            # A table of new numbers, read by old ones: the same ends.
            key = args[-1] if name in ("__getitem__", "index_select") else None
            table = isinstance(first, Tensor) and first.ndim == 1 and not first.is_floating_point()
            return self._origins[id(key)][1] if table and self._knows(key) else None
        own, shape = self._origins[id(first)][1], first.shape
        if name in ("expand", "expand_as"):
            return own
        later = cache(lambda: func(own().expand(shape), *rest, **kwargs))
        if any(isinstance(one, Tensor | tuple | list) for one in (*rest, *kwargs.values())):
            later()
        return later

    def _joined(
        self, func: Any, parts: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[], Any] | None:
        if not any(map(self._knows, parts)) or any(part.is_floating_point() for part in parts):
            return None
        each = [(part, self._origins.get(id(part))) for part in parts]

        def joined() -> Any:
            filled = [
                torch.full_like(part, -1) if known is None else known[1]().expand(part.shape)
                for part, known in each
            ]
            return func(filled, *rest, **kwargs)

        return cache(joined)

    def _weighed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments of a scatter with weights on the entries of edges."""
        names = ("self", "dim", "index", "src")
        given = dict(zip(names, args, strict=False)) | kwargs
        values = "source" if "source" in given else "src"  # index_add names it otherwise
        origins, source = self.origins(given.get("index")), given.get(values)
        if origins is None or not isinstance(source, Tensor) or not source.is_floating_point():
            return args, kwargs
        if origins.ndim < source.ndim:  # index_add takes [M] for any source
            dim = given["dim"] % source.ndim
            origins = origins.view(*[-1 if d == dim else 1 for d in range(source.ndim)])
        weight = self.weight_of(origins >> 1).to(source.dtype)
        if "src" in kwargs or "source" in kwargs:
            return args, {**kwargs, values: source * weight}
        return (*args[:3], source * weight, *args[4:]), kwargs

    def weight_of(self, numbers: Tensor) -> Tensor:
        """Weights of edges by number; 1 for what is no edge (-1)."""
        assert self._weights is not None
        return torch.where(numbers < 0, 1.0, self._weights[numbers.clamp(min=0)])
