"""The result that every test and measure of this package gives."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from graphprune.util.notebook import notebook_card

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """The question that was asked of a circuit, and the answer.

    Args:
        name: of the test, such as ``"equivalence"``.
        null: the null hypothesis in words; ``None`` for a measure that tests nothing.
        said: what was found, in one sentence.
        p_value: of the null hypothesis, corrected as ``correction`` says; ``None`` for measures.
        alpha: the level at which ``rejected`` and ``passed`` are decided.
        passed: whether the circuit did well. Of some tests that is a null hypothesis rejected (it
            beats random circuits), of others one that stands (it is equivalent). ``None`` where
            the measure sets no bar, or the test is underpowered and says nothing either way.
        least_p: the smallest p-value that the test could have given with these settings, corrected
            as ``p_value`` is. Above ``alpha`` no circuit could have been told apart: the test is
            *underpowered*, its summary says so, and ``passed`` is ``None``.
        remedy: what would give an underpowered test its power; empty where that is not known.
        correction: for how many comparisons, and how.
        values: statistics by name, plain values.
        rows: the table behind them, a dict for each row.
        settings: of the test, seeds included.
        remarks: what a reader should know before leaning on it.

    Example:
        >>> found = Finding(name="coin", null="the coin is fair", said="9 of 10 were heads",
        ...                 p_value=0.021, values={"heads": 9})
        >>> found.rejected, found.summary()
        (True, 'coin: 9 of 10 were heads (p = 0.021)')
    """

    name: str
    null: str | None
    said: str
    p_value: float | None = None
    alpha: float = 0.05
    passed: bool | None = None
    least_p: float | None = None
    remedy: str = ""
    correction: str = "none"
    values: dict[str, Any] = field(default_factory=dict)
    rows: Sequence[dict[str, Any]] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        object.__setattr__(self, "remarks", tuple(self.remarks))
        # A verdict that could only have come out one way is none.
        if self.underpowered:
            object.__setattr__(self, "passed", None)

    @property
    def underpowered(self) -> bool:
        """``True`` if the settings let no circuit have the null hypothesis rejected."""
        return self.least_p is not None and self.least_p > self.alpha

    @property
    def rejected(self) -> bool | None:
        """``True`` for a null hypothesis rejected at ``alpha``; ``None`` where there is none."""
        return None if self.p_value is None else self.p_value <= self.alpha

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise KeyError(f"{name}: not among {', '.join(self.values)}")
        return self.values[name]

    def summary(self) -> str:
        """One sentence: what was found, with its p-value, and whether the test was underpowered."""
        if self.p_value is None:
            return f"{self.name}: {self.said}"
        power = (
            f"; underpowered: with these settings p is at least {self.least_p:.2g}, so that "
            f"nothing is rejected at {self.alpha:g}{'; ' if self.remedy else ''}{self.remedy}"
            if self.underpowered
            else ""
        )
        return f"{self.name}: {self.said} (p = {self.p_value:.2g}{power})"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; the table under ``rows``."""
        from graphprune.util.plain import plain

        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "said"}
        for name in ("rejected", "underpowered"):
            facts[name] = getattr(self, name)
        whole: dict[str, Any] = plain({"summary": self.summary(), **facts})
        return whole

    def to_frame(self) -> pd.DataFrame:
        """The table behind the result; where it has none, a row of its statistics."""
        import pandas as pd

        if self.rows:
            return pd.DataFrame(list(self.rows))
        plain_values = {k: v for k, v in self.values.items() if not isinstance(v, dict | list)}
        return pd.DataFrame([{"p_value": self.p_value, **plain_values}])

    def _repr_html_(self) -> str:
        """The finding in a notebook: the sentence, its statistics and remarks."""
        facts = [("null hypothesis", self.null), ("p-value", self.p_value), ("passed", self.passed)]
        facts += [(k, v) for k, v in self.values.items() if not isinstance(v, dict | list)]
        known = [fact for fact in facts if fact[1] is not None]
        return notebook_card(self.summary(), known, remarks=self.remarks)

    def __repr__(self) -> str:
        return f"Finding({self.summary()!r})"


def power_at(setting: str, least_p: Callable[[int], float], alpha: float) -> str:
    """The ``remedy`` of a test whose least p-value falls with the number of a setting.

    Empty where no number below 100,000 gives it power.

    Example:
        >>> power_at("draws", lambda count: 0.9**count, alpha=0.05)
        'draws=29 or more would tell'
    """
    numbers = range(1, 100_000)
    place = bisect_left(numbers, True, key=lambda count: least_p(count) <= alpha)
    return f"{setting}={numbers[place]} or more would tell" if place < len(numbers) else ""


def first_names(names: Sequence[str]) -> str:
    """``": a, b, c, ..."``, what a sentence ends in that counted ``names``; empty for none."""
    more = ", ..." if len(names) > 3 else ""
    return f": {', '.join(names[:3])}{more}" if names else ""
