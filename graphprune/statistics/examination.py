"""Several tests of one circuit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from graphprune.core.ablation import resolve_ablation
from graphprune.core.model import MaskedModel
from graphprune.core.task import Task
from graphprune.errors import InputError, unknown_name

from .completeness import completeness, minimality
from .controls import controls
from .finding import Finding
from .hypotheses import equivalence_test, independence_test, minimality_test
from .mask_evaluator import RunOptions, require_circuit
from .sufficiency import necessity_test, sufficiency_test

if TYPE_CHECKING:
    import pandas as pd


TESTS: Mapping[str, Callable[..., Finding]] = {
    "equivalence": equivalence_test,
    "independence": independence_test,
    "minimality": minimality_test,
    "sufficiency": sufficiency_test,
    "necessity": necessity_test,
    "controls": partial(controls, kinds=("random", "degree")),  # those that need no method
    "completeness": completeness,
    "wang-minimality": minimality,
}


@dataclass(frozen=True, eq=False)
class Examination:
    """The findings by name, and why tests that could not be made were not.

    Example:
        >>> examination = gp.statistics.examine(model, task, mask, ["equivalence"])
        >>> examination.findings["equivalence"].passed, examination.not_made
        (True, {})
    """

    findings: dict[str, Finding]
    not_made: dict[str, str]

    def __getitem__(self, name: str) -> Finding:
        if name not in self.findings:
            raise KeyError(f"{name}: {self.not_made.get(name, 'not asked for')}")
        return self.findings[name]

    def summary(self) -> str:
        """A line for each test."""
        made = [finding.summary() for finding in self.findings.values()]
        return "\n".join(made + [f"{name}: not made: {why}" for name, why in self.not_made.items()])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "findings": {name: finding.to_dict() for name, finding in self.findings.items()},
            "not_made": dict(self.not_made),
        }

    def to_frame(self) -> pd.DataFrame:
        """A row for each test: columns test, p_value, rejected, passed, underpowered, finding."""
        import pandas as pd

        columns = ["p_value", "rejected", "passed", "underpowered"]
        rows: list[dict[str, Any]] = [
            {"test": name, **{c: getattr(one, c) for c in columns}, "finding": one.said}
            for name, one in self.findings.items()
        ]
        rows += [{"test": name, "finding": f"not made: {w}"} for name, w in self.not_made.items()]
        return pd.DataFrame(rows, columns=["test", *columns, "finding"])


def examine(
    model: MaskedModel,
    task: Task,
    mask: Any,
    tests: Sequence[str] | None = None,
    *,
    draws: int | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Examination:
    """Several tests of one circuit, each at level ``alpha`` by itself.

    Args:
        tests: names from ``gp.statistics.TESTS``; ``None`` takes the five hypothesis tests
            (equivalence, independence, minimality, sufficiency, necessity).
        draws: permutations, random circuits or random sets of each; ``None`` means each test's own.
        options: ``metric``, ``ablation`` and more, see
            :class:`~graphprune.statistics.mask_evaluator.RunOptions`.

    Raises:
        InputError: an unknown test, one name in place of a list, or no test that can be made.
        GraphMismatchError: the circuit belongs to another graph.

    Example:
        >>> found = examine(model, task, mask, ["equivalence", "sufficiency"], draws=19)
        >>> found.to_frame()[["test", "p_value", "passed"]]
                  test   p_value passed
        0  equivalence  0.437   True
        1  sufficiency  0.135   None
    """
    if isinstance(tests, str):
        raise InputError(f"tests must be a list of names, got the text {tests!r}: say [{tests!r}]")
    names = list(TESTS)[:5] if tests is None else list(dict.fromkeys(tests))
    unknown = [name for name in names if name not in TESTS]
    if unknown or not names:
        raise unknown_name("test", unknown[0] if unknown else tests, TESTS)
    circuit = require_circuit(model, mask)
    # Means over a task are taken once for all tests.
    options["ablation"] = resolve_ablation(model, task, options.get("ablation"), mask)
    findings: dict[str, Finding] = {}
    not_made: dict[str, str] = {}
    for name in names:
        test = TESTS[name]
        takes = inspect.signature(test).parameters
        extra: dict[str, Any] = {"seed": seed, **options}
        if "alpha" in takes:
            extra["alpha"] = alpha
        if draws is not None and "draws" in takes:
            extra["draws"] = draws
        try:
            findings[name] = test(model, task, circuit, **extra)
        except InputError as error:
            not_made[name] = str(error)
    if not findings:
        raise InputError("; ".join(f"{name}: {why}" for name, why in not_made.items()))
    return Examination(findings, not_made)
