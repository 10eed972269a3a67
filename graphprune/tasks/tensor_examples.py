"""Examples whose inputs are tensors by name: of tasks on a graph, of images, of encoders' texts.

:mod:`graphprune.tasks.graphs` and :mod:`graphprune.tasks.inputs` say which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.core.batch import Batch, Examples
from graphprune.core.contents import fingerprint
from graphprune.core.overlap import digest
from graphprune.errors import InputError
from graphprune.tasks.pairs import TokenPairs
from graphprune.tasks.tables import id_table, integer_tensor, overlap
from graphprune.util.modes import ordinary

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class TensorExamples:
    """A source of examples that are rows of tensors.

    Args:
        size: how many there are.
        clean, corrupt: tensors ``[size, ...]``, a row for each example; ``corrupt`` may be None.
        shared, shared_corrupt: tensors that all examples share.
        positions: ``[size]`` or ``[size, P]`` node numbers, where answers are read.
        answer, distractor: ``[size, A]`` ids of outputs.
        classes: ``[size]``, where the corrupted inputs are those of an example of another class.
        seed: draws such examples again.
    """

    size: int
    clean: Tensors = field(default_factory=dict)
    corrupt: Tensors | None = None
    shared: Tensors = field(default_factory=dict)
    shared_corrupt: Tensors | None = None
    positions: Tensor | None = None
    answer: Tensor | None = None
    distractor: Tensor | None = None
    classes: Tensor | None = field(default=None, compare=False)
    seed: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        for name in ("clean", "corrupt", "shared", "shared_corrupt"):
            given = getattr(self, name)
            if given is not None:  # a batch holds the shared tensors themselves, not copies
                object.__setattr__(self, name, {k: ordinary(v) for k, v in given.items()})
        rows = {**self.clean, "positions": self.positions, "answer": self.answer}
        rows |= {f"corrupt {k}": v for k, v in (self.corrupt or {}).items()}
        rows["distractor"] = self.distractor
        for name, value in rows.items():
            if value is not None and len(value) != self.size:
                raise InputError(
                    f"{name} has {len(value)} rows for {self.size} examples, got the shape "
                    f"{list(value.shape)}"
                )
        for name, value in {**self.clean, **self.shared}.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise InputError(f"{name} holds NaN or infinite values")

    def __len__(self) -> int:
        return self.size

    def lengths(self) -> Sequence[int]:
        """Numbers of tokens; of examples that are no texts 1."""
        ids, mask = self.clean.get("input_ids"), self.clean.get("attention_mask")
        if mask is not None and mask.ndim == 2:
            lengths: list[int] = (mask != 0).sum(1).tolist()
            return lengths
        return [1 if ids is None or ids.ndim != 2 else ids.shape[1]] * self.size

    def fingerprints(self) -> NDArray[np.int64]:
        """``[size, 2]``: fingerprints of the clean and the corrupted inputs (0: none).

        An example is known by the tensors of its own; where it has none, by its node.
        """
        table = np.zeros((self.size, 2), dtype=np.int64)
        table[:, 0] = self._fingerprints(self.shared, self.clean)
        if self.corrupt is not None or self.shared_corrupt is not None:
            shared = {**self.shared, **(self.shared_corrupt or {})}
            table[:, 1] = self._fingerprints(shared, {**self.clean, **(self.corrupt or {})})
        return table

    def _fingerprints(self, shared: Tensors, own: Tensors) -> list[int]:
        # A number is itself in every dtype.
        base = fingerprint({name: _wide(tensor) for name, tensor in shared.items()}).encode()
        rows = {name: _wide(tensor) for name, tensor in own.items()}
        if not rows:  # examples without answers' places cannot be told apart
            at = torch.arange(self.size) if self.positions is None else self.positions
            rows = {"positions": at}
        tables = {k: rows[k].detach().cpu().reshape(self.size, -1).numpy() for k in sorted(rows)}
        kinds = {k: f"{k} {list(rows[k].shape[1:])}".encode() for k in tables}
        return [
            digest(base + b"".join(kinds[k] + v[i].tobytes() for k, v in tables.items()))
            for i in range(self.size)
        ]

    def redrawn(
        self, wanted: NDArray[np.int64], part: NDArray[np.int64], taken: Set[int]
    ) -> tuple[TensorExamples, list[int]]:
        """The examples with corrupted inputs of those ``wanted`` from ``part``, and which were.

        Only where corrupted inputs are other examples'; none has a fingerprint of ``taken``.
        """
        if self.classes is None or self.corrupt is None:
            return self, []
        clean = self.fingerprints()[:, 0]
        free = np.asarray([i for i in part.tolist() if int(clean[i]) not in taken], dtype=np.int64)
        classes = self.classes.numpy()
        source = np.random.default_rng(self.seed)
        twins = {}
        for i in wanted.tolist():
            others = free[classes[free] != classes[i]]
            if len(others):
                twins[i] = int(source.choice(others))
        corrupt = {name: value.clone() for name, value in self.corrupt.items()}
        for i, twin in twins.items():
            for name, value in corrupt.items():
                value[i] = self.clean[name][twin]
        return replace(self, corrupt=corrupt), list(twins)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples ``indices``."""
        chosen = torch.as_tensor(list(indices), dtype=torch.int64)

        def rows(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[chosen]

        corrupt: dict[str, Tensor] | None = None
        if self.corrupt is not None or self.shared_corrupt is not None:
            corrupt = {**self.shared, **(self.shared_corrupt or {})}
            own = self.clean if self.corrupt is None else {**self.clean, **self.corrupt}
            corrupt |= {name: value[chosen] for name, value in own.items()}
        return Batch(
            clean={**self.shared, **{name: value[chosen] for name, value in self.clean.items()}},
            corrupt=corrupt,
            size=len(chosen),
            indices=tuple(int(i) for i in indices),
            positions=rows(self.positions),
            answer=rows(self.answer),
            distractor=rows(self.distractor),
        )


def examples_of(
    clean: Any, corrupt: Any, answer: Any, distractor: Any, positions: Any, attention_mask: Any
) -> Examples:
    """The examples of :meth:`graphprune.Task.from_tensors`.

    ``clean`` (and ``corrupt``) are token ids, images as floating-point tensors, or a mapping of
    tensors with a row for each example.
    """
    if not isinstance(clean, Mapping):
        if not (isinstance(clean, Tensor) and clean.is_floating_point()):
            return TokenPairs.from_tensors(
                clean, corrupt, answer, distractor, positions, attention_mask
            )
        clean = {"pixel_values": clean}
        corrupt = corrupt if corrupt is None else {"pixel_values": corrupt}
    if attention_mask is not None:
        raise InputError("attention_mask stands among the inputs, clean={'attention_mask': ...}")
    if corrupt is not None and not isinstance(corrupt, Mapping):
        raise InputError(f"corrupt must be a mapping as clean is, got {type(corrupt).__name__}")
    wrong = [k for side in (clean, corrupt or {}) for k, v in side.items()
             if not isinstance(v, Tensor)]  # fmt: skip
    if wrong or not clean:
        raise InputError(f"inputs are tensors by name; {wrong[:1] or 'none'} is not one")
    size = len(next(iter(clean.values())))
    places = None if positions is None else integer_tensor(positions, "positions")
    if places is not None and places.ndim == 0:
        places = places.expand(size).clone()
    if places is not None and (places.ndim > 2 or len(places) != size):
        raise InputError(
            f"positions must be one number, [{size}] or [{size}, P], got {list(places.shape)}"
        )
    asked = np.zeros(size, np.int32) if places is None else places.numpy().astype(np.int32)
    tables = [id_table(v, asked, n) for v, n in ((answer, "answer"), (distractor, "distractor"))]
    shared = overlap(*tables)
    if shared is not None:
        raise InputError(
            f"example {shared[0]} has the id {shared[1]} both as an answer and as a distractor"
        )
    right, wrong_ids = (None if t is None else torch.from_numpy(t.astype(np.int64)) for t in tables)
    return TensorExamples(
        size, dict(clean), corrupt, positions=places, answer=right, distractor=wrong_ids
    )


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor.long()
