"""Boolean expressions: "(True and not False) or False is" goes on with " True".

Drawn as in Edge Pruning (Bhaskar et al. 2024, arXiv 2406.16778): a list of one to six truth values
is folded into one expression by joining neighbours with ``and`` or ``or`` or negating an entry,
with brackets around compound parts, at most three levels deep and at most two nested ``not``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.tasks.building import Candidate, MetricLike, build
from graphprune.tasks.encoding import Encoder
from graphprune.tasks.words import PROMPTS

SHOTS: tuple[str, ...] = PROMPTS["boolean_expressions"]["shots"]
MAX_DEPTH = 3
MAX_NOTS = 2


@dataclass(frozen=True)
class Expression:
    """A truth value (``parts`` empty) or ``operator`` over one or two expressions.

    Example:
        >>> both = Expression("and", (Expression("True"), Expression("False")))
        >>> str(Expression("not", (both,))), Expression("not", (both,)).value
        ('not (True and False)', True)
    """

    operator: str
    parts: tuple[Expression, ...] = ()

    @property
    def value(self) -> bool:
        """The truth value of the expression."""
        if self.operator in ("True", "False"):
            return self.operator == "True"
        values = [part.value for part in self.parts]
        if self.operator == "not":
            return not values[0]
        return all(values) if self.operator == "and" else any(values)

    @property
    def depth(self) -> int:
        """Operators on the longest way to a truth value."""
        return 1 + max(part.depth for part in self.parts) if self.parts else 0

    @property
    def nots(self) -> int:
        """Most ``not`` on one way to a truth value."""
        below = max((part.nots for part in self.parts), default=0)
        return below + (self.operator == "not")

    def __str__(self) -> str:
        texts = [f"({part})" if part.parts else str(part) for part in self.parts]
        if not texts:
            return self.operator
        return f"not {texts[0]}" if len(texts) == 1 else f" {self.operator} ".join(texts)

    def changed(self) -> Iterator[Expression]:
        """The expressions that differ in one truth value, or in one ``and`` or ``or``."""
        other = {"True": "False", "False": "True", "and": "or", "or": "and"}.get(self.operator)
        if other is not None:
            yield Expression(other, self.parts)
        for i, part in enumerate(self.parts):
            for new in part.changed():
                yield Expression(self.operator, (*self.parts[:i], new, *self.parts[i + 1 :]))


def boolean_expressions(
    tokenizer: Any,
    n: int = 200,
    seed: int = 0,
    *,
    shots: int = 3,
    metric: MetricLike = "logit_diff",
    batch_size: int = 32,
) -> Task:
    """``n`` prompts such as "not (True and False) is" (" True", not " False").

    The corrupted prompt changes one truth value or one ``and``/``or`` so that the value turns
    round. ``shots`` (0 to 6) solved expressions stand in front, the same in every prompt. Both
    values are drawn equally often, before prompts that repeat are left out. Notes and errors as
    :func:`~graphprune.tasks.ioi`.

    Example:
        >>> batch = next(boolean_expressions(tokenizer, n=4, shots=1).batches(1))
        >>> tokenizer.decode(batch.clean["input_ids"][0]), tokenizer.decode(batch.answer[0][:1])
        ('True and False is False\\nFalse is', ' False')
    """
    if type(shots) is not int or not 0 <= shots <= len(SHOTS):
        raise InputError(f"shots must lie in 0..{len(SHOTS)}, got {shots!r}")
    draw = partial(_draw, "".join(SHOTS[:shots]), seed)
    all_candidates = partial(draw, every=True)
    notes = {"corruption": "one truth value or operator", "shots": shots}
    name, encoder = "boolean_expressions", Encoder(tokenizer)
    return build(
        name, encoder, draw(), n, seed, metric, batch_size, notes, all_candidates=all_candidates
    )


def _draw(lead: str, seed: int, every: bool = False) -> Iterator[Candidate]:
    """Expressions with one that differs and has another value; ``every``: with each such one."""
    source, order = random.Random(seed), random.Random(seed)
    wanted = True
    while True:
        expression = _expression(source)
        turned = [e for e in expression.changed() if e.value != expression.value]
        if expression.value != wanted or not turned:
            continue
        wanted = not wanted
        chosen = [source.choice(turned)]
        for other in order.sample(turned, len(turned)) if every else chosen:
            answer, distractor = (f" {expression.value}",), (f" {not expression.value}",)
            yield Candidate(f"{lead}{expression} is", f"{lead}{other} is", answer, distractor)


def _expression(source: random.Random) -> Expression:
    """A random expression within the limits on depth and nested ``not``."""
    while True:
        row = [Expression(source.choice(("True", "False"))) for _ in range(source.randint(1, 6))]
        row[:1] = [_negated(row[0])] if source.random() < 0.5 else row[:1]
        while len(row) > 1:
            at = source.randrange(len(row))
            if source.random() < 0.3:
                row[at] = _negated(row[at])
            elif at + 1 < len(row):
                operator = source.choice(("and", "or"))
                row[at : at + 2] = [Expression(operator, (row[at], row[at + 1]))]
        if row[0].depth <= MAX_DEPTH and row[0].nots <= MAX_NOTS:
            return row[0]


def _negated(part: Expression) -> Expression:
    return Expression("not", (part,))
