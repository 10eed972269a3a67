"""Intervals over test prompts: of one method's figure, and of the difference of two methods.

Jobs of several seeds are pooled: a prompt that several seeds have is one prompt with all its
values. Figures at a density, such as ``kl@0.05``, are means over prompts, and their differences are
taken prompt by prompt. Areas under the curve (``cmd``, ``cpr`` and the like) are functions of means
over prompts; prompts are drawn anew, for both methods the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphprune.errors import InputError
from graphprune.util.numbers import UNBOUNDED, bootstrap_interval, function_interval

__all__ = [
    "AREAS",
    "AT_A_DENSITY",
    "PromptInterval",
    "difference_over_prompts",
    "has_prompt_values",
    "over_prompts",
]

Records = Sequence[Mapping[str, Any]]

AT_A_DENSITY: Mapping[str, tuple[float, float]] = {
    "kl": (0.0, UNBOUNDED[1]),
    "metric": UNBOUNDED,
    "accuracy": (0.0, 1.0),
    "top1_accuracy": (0.0, 1.0),
    "top1_match": (0.0, 1.0),
}
"""Figures that have a value for each prompt, with their least and largest values."""


class PromptInterval(NamedTuple):
    """A figure's ``value`` over so many ``prompts`` of so many ``seeds``, and its 95 % interval.

    ``sides``: of a difference the two figures, else the one.
    """

    value: float
    low: float
    high: float
    prompts: int
    seeds: int
    sides: tuple[float, ...]


@dataclass(frozen=True)
class _Area:
    """The integral of ``of(f)`` over the sizes: ``ranking`` says of which circuits.

    ``sizes``: requested shares (``"requested"``), their logarithms, divided by the length
    (``"log"``), or MIB's counts of the edges really kept (``"weighted"``).
    """

    ranking: str
    of: Callable[[Tensor], Tensor]
    sizes: str = "requested"

    def columns(self, record: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        """The metric by prompt, ``[n, 2 + sizes]`` with both ends first, and the sizes' places."""
        curve = record.get("examples", {}).get("curve")
        if curve is None:
            return None
        sizes = record["curve"]["sizes"]
        if self.sizes == "weighted":
            sizes = record["curve"]["weighted"][self.ranking]
        values = torch.tensor(curve["values"], dtype=torch.float64)
        places = torch.tensor(sizes, dtype=torch.float64)
        if self.sizes == "log":
            places = places.log() / (places[-1] / places[0]).log()
        return values[[0, 1, *curve["at"][self.ranking]]].T, places

    def area(self, means: Tensor, places: Tensor) -> Tensor:
        """``[D]`` from means ``[D, 2 + sizes]`` of :meth:`columns`."""
        ablated, full = means[:, :1], means[:, 1:2]
        return torch.trapezoid(self.of((means[:, 2:] - ablated) / (full - ablated)), places, dim=-1)


def _distance(f: Tensor) -> Tensor:
    return (1 - f).abs()


def _clipped(f: Tensor) -> Tensor:
    return f.clamp(max=1.0)


AREAS = {
    "cpr": _Area("signed", torch.clone),
    "cpr_clipped": _Area("signed", _clipped),
    "cmd": _Area("abs", _distance),
    "log_area": _Area("signed", _clipped, "log"),
    "cpr_weighted": _Area("signed", torch.clone, "weighted"),
    "cmd_weighted": _Area("abs", _distance, "weighted"),
}
"""Areas under the curve, by the names that tables have."""


def has_prompt_values(figure: str) -> bool:
    """Whether :func:`over_prompts` knows the figure.

    Example:
        >>> has_prompt_values("kl@0.05"), has_prompt_values("cmd"), has_prompt_values("seconds")
        (True, True, False)
    """
    name, at, _ = figure.partition("@")
    return figure in AREAS or (bool(at) and name in AT_A_DENSITY)


def over_prompts(figure: str, records: Records) -> PromptInterval | None:
    """A figure of one method over the prompts of its ``records``, one a seed; ``None``: no values.

    Raises :class:`InputError` for a figure that has no value for each prompt.
    """
    return _interval(figure, [records])


def difference_over_prompts(figure: str, first: Records, second: Records) -> PromptInterval | None:
    """The first method's figure minus the second's, prompt by prompt.

    Records stand in pairs of one seed. ``None`` where no pair has values for both.
    """
    return _interval(figure, [first, second])


def _interval(figure: str, sides: Sequence[Records]) -> PromptInterval | None:
    """Of one side, or of the first minus the second."""
    if not has_prompt_values(figure):
        known = [*AREAS, *(f"{one}@DENSITY" for one in AT_A_DENSITY)]
        raise InputError(f"{figure!r} has no value for each prompt; these have: {', '.join(known)}")
    if figure in AREAS:
        return _of_areas(AREAS[figure], sides)
    name, _, density = figure.partition("@")
    bounds = AT_A_DENSITY[name] if len(sides) == 1 else UNBOUNDED
    return _of_means(name, density, sides, bounds)


def _of_means(
    name: str, density: str, sides: Sequence[Records], bounds: tuple[float, float]
) -> PromptInterval | None:
    parts = []
    for records in zip(*sides, strict=True):
        columns = [_at_density(record, name, density) for record in records]
        if all(column is not None for column in columns):
            parts.append((_prompts(records), torch.tensor(columns, dtype=torch.float64).T))
    if not parts:
        return None
    pooled = _pooled(parts).sum(1)  # a row for each prompt, whatever its number of seeds
    counts, each = pooled[:, 0], pooled[:, 1:]
    sums = each[:, 0] - each[:, 1:].sum(1)
    if bool((counts == 1).all()):
        low, high = bootstrap_interval(sums, bounds=bounds)
    else:
        low, high = function_interval(
            torch.stack([counts, sums], dim=1), lambda means: means[:, 1] / means[:, 0],
            bounds=bounds,
        )  # fmt: skip
    value = float(sums.sum() / counts.sum())
    means = tuple((each.sum(0) / counts.sum()).tolist())
    return PromptInterval(value, low, high, len(pooled), len(parts), means)


def _at_density(record: Mapping[str, Any], name: str, density: str) -> list[float] | None:
    """The values by prompt of a circuit that keeps an edge."""
    by_density = record.get("examples", {}).get("rows", ())
    for row, values in zip(record.get("rows", ()), by_density, strict=False):
        if f"{row['density']:g}" == density and row["kept"]:
            found: list[float] | None = values.get(name)
            return found
    return None


def _of_areas(area: _Area, sides: Sequence[Records]) -> PromptInterval | None:
    parts, places = [], []
    for records in zip(*sides, strict=True):
        found = [columns for columns in map(area.columns, records) if columns is not None]
        if len(found) == len(sides):
            parts.append((_prompts(records), torch.cat([values for values, _ in found], dim=1)))
            places.append([place for _, place in found])
    if not parts:
        return None
    pooled = _pooled(parts)

    def areas(means: Tensor) -> Tensor:
        """``[D, sides]``: means over seeds of each side's area."""
        of_seeds = []
        by_seed = means.reshape(len(means), len(places), -1).unbind(1)
        for part, of_sides in zip(by_seed, places, strict=True):
            columns = (part[:, 1:] / part[:, :1]).chunk(len(of_sides), dim=1)
            pairs = zip(columns, of_sides, strict=True)
            of_seeds.append(torch.stack([area.area(c, place) for c, place in pairs], dim=1))
        return torch.stack(of_seeds).mean(0)

    def value(means: Tensor) -> Tensor:
        """``[D]``: the area, or the difference of both sides'."""
        found = areas(means)
        return found[:, 0] - found[:, 1:].sum(1)

    rows = pooled.flatten(1)
    bounds = (0.0, UNBOUNDED[1]) if area.of is _distance and len(sides) == 1 else UNBOUNDED
    low, high = function_interval(rows, value, bounds=bounds)
    means = rows.mean(0, keepdim=True)
    of_sides = tuple(areas(means)[0].tolist())
    return PromptInterval(float(value(means)), low, high, len(rows), len(parts), of_sides)


def _prompts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The hashes of a pair's prompts, which are of one seed and so the same."""
    first, *others = [list(record["examples"]["prompts"]) for record in records]
    if any(other != first for other in others):
        raise InputError("these jobs were judged on different prompts; they cannot be paired")
    return first


def _pooled(parts: Sequence[tuple[list[str], Tensor]]) -> Tensor:
    """``[prompts, seeds, 1 + K]``: how often a seed has a prompt, and the sums of its values."""
    numbers = {name: at for at, name in enumerate(dict.fromkeys(p for ps, _ in parts for p in ps))}
    pooled = torch.zeros(len(numbers), len(parts), 1 + parts[0][1].shape[1], dtype=torch.float64)
    for seed, (prompts, values) in enumerate(parts):
        rows = torch.cat([torch.ones(len(values), 1, dtype=torch.float64), values], dim=1)
        pooled[:, seed].index_add_(0, torch.tensor([numbers[p] for p in prompts]), rows)
    return pooled
