"""The messages of one batch: clean, corrupted, what stands in for ablated ones, and masked runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.model import Ablation, Messages, Reference
from graphprune.errors import InputError, UnsupportedModelError
from graphprune.util.modes import quiet

from .edge_values import storage_uses
from .graph_model import all_alike
from .hooks import MessageHooks
from .module_call import GraphModule
from .propagation import Propagation
from .self_check import Deletion

__all__ = ["MessageReference", "each_reader", "mean_messages"]

log = logging.getLogger(__name__)
_MOST_EDGES = 1 << 22  # side by side in one pass
_SOLE = storage_uses(torch.zeros(1).detach())


class MessageReference(Reference):
    """Messages and outputs of the clean and the ablated run; made when first asked for."""

    def __init__(
        self, module: GraphModule, deletion: Deletion, batch: Batch, ablation: Ablation
    ) -> None:
        self.module, self.deletion, self.batch, self.ablation = module, deletion, batch, ablation
        self.features = module.call.data.features(batch.clean, batch.size)
        own = any(len(value) > 1 for value in ablation.parameters)
        if own and self.features.shared:
            raise InputError(
                "all examples share their features, so an edge's message is the same for all and "
                "the best constant in its place is that message: every edge could be cut at no "
                "cost. gp.wrap(module, data=data, means='type') learns one constant for all edges "
                "of a type instead"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the messages of one run, or of two."""
        runs = 2 if self.ablation.kind == "counterfactual" else 1
        seen, _ = self.clean
        return runs * sum(p.messages.numel() * p.messages.element_size() for p in seen)

    @cached_property
    def clean(self) -> tuple[list[Propagation], Tensor]:
        """Messages of every propagation, and outputs ``[C, rows, V]`` of every copy."""
        return self.module.watched(self.features)

    @cached_property
    def corrupt(self) -> list[Propagation]:
        """Messages of the corrupted run."""
        return self._corrupt()

    def _corrupt(self) -> list[Propagation]:
        features = self.module.call.data.features(self.batch.corrupt, self.batch.size)
        if features.num_patterns != self.features.num_patterns:
            raise InputError(
                "clean and corrupted inputs must both be shared by all examples, or both be "
                "patterns"
            )
        return self.module.watched(features)[0]

    @property
    def patterns(self) -> Tensor:
        """``[C]``: the numbers of all patterns."""
        return torch.arange(self.features.num_patterns)

    @property
    def pattern_of(self) -> Tensor:
        """``[B]``: the pattern of each example."""
        return torch.arange(self.batch.size) % self.features.num_patterns

    def together(self, patterns: Tensor) -> tuple[Tensor, ...]:
        """The patterns that may stand side by side in one pass."""
        return patterns.split(1) if self.module.call.data.layout.alone else (patterns,)

    def clean_of(self, patterns: Tensor) -> list[Tensor]:
        """``[k * E_r, ...]`` of each propagation: the clean messages of ``patterns [k]``."""
        return [self._chosen(one, patterns) for one in self.clean[0]]

    def _chosen(self, one: Propagation, copies: Tensor) -> Tensor:
        """``[k * E_r, ...]``: a propagation's messages of ``copies [k]``."""
        count = self.features.num_patterns
        every = one.on_graph_edges(count)
        if len(copies) == count and torch.equal(copies, self.patterns):  # nothing is copied
            return every.flatten(0, 1)
        return every[copies].flatten(0, 1)

    def _taken(self, one: Propagation, copies: Tensor) -> Tensor:
        """The same, to be overwritten: taken from the propagation, or a copy.

        Its messages may be something that the user holds too, such as edge features that a layer
        sends as they are.
        """
        values = self._chosen(one, copies).detach()
        one.messages = values.new_zeros(0)
        return values if storage_uses(values) <= _SOLE else values.clone()

    def changes_nothing(self) -> bool | None:
        """Whether what stands in for each message is the message; learned constants may change."""
        kind = self.ablation.kind
        if kind == "delete":
            return None
        if kind in ("counterfactual", "optimal"):
            return False  # equal inputs are told before
        seen = self.clean[0]
        if kind == "zero":
            return not any(bool(one.messages[one.edges >= 0].any()) for one in seen)
        own = self.clean_of(self.patterns)
        instead: Sequence[Tensor | None] = self.replaced(self.patterns) or [None] * len(own)
        return all_alike(zip(own, instead, strict=True))

    @property
    def full(self) -> Tensor:
        """Outputs of the module itself."""
        return self.module.read(self.clean[1], self.batch, self.pattern_of)

    @property
    def ablated(self) -> Tensor:
        """Outputs with every edge's message replaced (or every edge absent)."""
        return self._ablated() if self.ablation.kind == "optimal" else self._fixed

    @cached_property
    def _fixed(self) -> Tensor:
        return self._ablated()

    @torch.no_grad()
    def _ablated(self) -> Tensor:
        _, out = self.clean
        return self.run(out.new_zeros(1, self.module.call.data.num_edges))[0]

    def replaced(self, copies: Tensor, *, keep: bool = True) -> list[Tensor] | None:
        """``[k * E_r, ...]`` of each propagation: stand-ins for messages of ``copies [k]``.

        ``keep=False``: they may be overwritten, and are not kept for the next call.
        """
        kind = self.ablation.kind
        if kind in ("zero", "delete"):
            return None
        if kind == "counterfactual":
            if keep or "corrupt" in vars(self):
                values = [self._chosen(one, copies) for one in self.corrupt]
                return values if keep else [value.clone() for value in values]
            return [self._taken(one, copies) for one in self._corrupt()]
        if kind in ("mean", "optimal"):
            return [
                value.expand(edges, *value.shape[1:]).repeat(len(copies), *[1] * (value.ndim - 1))
                for value, edges in self._constants()
            ]
        raise UnsupportedModelError(
            f"message passing knows no ablation {self.ablation.name!r}; use counterfactual, zero, "
            "mean, optimal or delete"
        )

    def _constants(self) -> list[tuple[Tensor, int]]:
        """Each propagation's constants ``[E_r or 1, ...]`` and its relation's number of edges."""
        seen, values = self.clean[0], list(self.ablation.values)
        counts = [self.module.call.data.edge_counts[one.relation] for one in seen]
        if len(values) != len(seen) or any(
            len(value) not in (1, count) or value.shape[1:] != one.messages.shape[1:]
            for value, count, one in zip(values, counts, seen, strict=True)
        ):
            raise InputError(f"the {self.ablation.name} messages were made by another model")
        return list(zip(values, counts, strict=True))

    # ---------------------------------------------------------------- masked runs

    def run(self, rows: Tensor) -> Tensor:
        """``[K, B, ...]``: outputs at answers under masks ``[K, E]`` or ``[K, B, E]``."""
        count, size, copies = len(rows), self.batch.size, self.features.num_patterns
        if rows.ndim == 3:  # each example has a mask of its own, so each is a copy
            masks, numbers = rows.flatten(0, 1), self.pattern_of.repeat(count)
            copy_of_example = torch.arange(count * size)
        else:
            masks, numbers = rows.repeat_interleave(copies, 0), self.patterns.repeat(count)
            copy_of_example = (torch.arange(count)[:, None] * copies + self.pattern_of).flatten()
        most = max(1, _MOST_EDGES // max(1, rows.shape[-1]))
        if self.module.call.data.layout.alone:
            most = 1
        parts = [
            self.masked(some, chosen)
            for some, chosen in zip(masks.split(most), numbers.split(most), strict=True)
        ]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        answers = self.module.read(out, self.batch, copy_of_example)
        return answers.reshape(count, size, *answers.shape[1:])

    def masked(self, masks: Tensor, numbers: Tensor) -> Tensor:
        """``[k, rows, V]`` of patterns ``numbers [k]``, each under its own mask ``[k, E]``."""
        delete = self.ablation.kind == "delete"
        flat, nodes = masks.flatten(), self.features.of(numbers)
        with quiet(self.module.call.module):
            if delete and not flat.requires_grad and bool(((flat == 0) | (flat == 1)).all()):
                return self.deletion.smaller(nodes, len(numbers), flat != 0)
            if delete:
                self.deletion.require_soft(masks.detach())
            copies = self.module.call.data.make_copies(nodes, len(numbers))
            hooks = MessageHooks(copies.edges, flat, self.replaced(numbers), delete)
            return self.module.outputs(copies, hooks)


def each_reader(reference: MessageReference) -> Iterator[Messages]:
    """The clean messages by relation and target node; a position is a propagation over it.

    Narrow ones are padded by zeros; a relation that no layer uses has zeros. Where all examples
    share their features there is one copy of each message, expanded over the examples.
    """
    seen, source, size = reference.clean[0], reference.module.call.data, reference.batch.size
    copies = reference.features.num_patterns  # 1 or one for each example
    wide = max(one.messages[0].numel() for one in seen if len(one.messages))
    like = seen[0].messages
    for relation, (first, count, index) in enumerate(
        zip(source.first_edges, source.edge_counts, source.relations.values(), strict=True)
    ):
        of_relation = [one for one in seen if one.relation == relation]
        ends, steps = {one.end for one in of_relation} or {1}, max(1, len(of_relation))
        if len(ends) > 1:
            raise UnsupportedModelError(
                "messages go both ways along an edge, so no one node reads it; take a method that "
                "asks for no readers, such as gp.EAP or gp.ExactPatching"
            )
        (end,) = ends
        nodes = source.types[source.end_types[relation][end]]
        values = like.new_zeros(copies, count, steps, wide if of_relation else 1)
        totals = like.new_zeros(copies, nodes, steps, wide if of_relation else 1)
        for step, one in enumerate(of_relation):
            if not count:
                continue
            flat = one.messages.flatten(1)
            width = flat.shape[1]
            values[:, :, step, :width] = one.on_graph_edges(copies).flatten(2)
            told = one.targets >= 0
            total = flat.new_zeros(copies * nodes, width)
            total = total.index_add(0, one.targets[told], flat[told])
            totals[:, :, step, :width] = total.unflatten(0, (copies, nodes))
        targets, weight = index[end].cpu(), like.new_ones(size, steps)
        for node in targets.unique().tolist():
            at = torch.nonzero(targets == node)[:, 0]
            read, total = values[:, at].transpose(0, 1), totals[:, node]
            yield Messages(
                (first + at)[None],
                read.expand(-1, size, -1, -1),
                total.expand(size, -1, -1),
                weight,
            )


def mean_messages(module: GraphModule, batches: Iterable[Batch], whole: bool) -> list[Tensor]:
    """``[E_r, ...]`` for each propagation, over the batches' corrupted inputs (clean without).

    ``whole``: ``[1, ...]``, over all edges of the propagation's relation too.
    """
    totals: list[Tensor] | None = None
    count, one = 0, not whole
    for batch in batches:
        side = batch.clean if batch.corrupt is None else batch.corrupt
        features = module.call.data.features(side, batch.size)
        seen, _ = module.watched(features)
        one = one and features.shared and batch.corrupt is not None
        share = batch.size // features.num_patterns
        parts = [each.on_graph_edges(features.num_patterns).sum(0) * share for each in seen]
        totals = parts if totals is None else [a + b for a, b in zip(totals, parts, strict=True)]
        count += batch.size
    if totals is None:
        raise InputError("the mean over an empty reference set is not defined")
    if one:
        _say_mean_is_counterfactual()
    means = [total / count for total in totals]
    return [mean.sum(0, keepdim=True) / max(1, len(mean)) for mean in means] if whole else means


@lru_cache(maxsize=1)
def _say_mean_is_counterfactual() -> None:
    """Once in a process: a run resolves its ablation many times."""
    log.warning(
        "all examples share one corrupted input, so each edge's mean message is its message there: "
        "mean ablation is counterfactual ablation on this task"
    )
