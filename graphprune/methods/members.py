"""Methods inside methods: members given as objects, names or settings, and what they inherit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, cast

from graphprune.capabilities import require
from graphprune.core.ablation import AblationLike
from graphprune.core.mask import require_same_graph
from graphprune.core.method import Method, Pruner, Scorer, Seeded
from graphprune.core.model import MaskedModel
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.errors import InputError, NumericalError, UnsupportedModelError
from graphprune.util.readers import json_value

if TYPE_CHECKING:
    Member = Scorer | EdgeScores | str | Mapping[str, Any]
else:
    Member = Any  # the command line reads names and JSON itself, see `as_member`

__all__ = [
    "AroundScorer",
    "Member",
    "as_member",
    "as_members",
    "describe",
    "inherit",
    "member_scores",
    "require_served",
]


def as_member(given: object, what: str) -> Scorer | EdgeScores:
    """A scorer from an object, a registered name or ``{"name": ..., settings}`` (also as JSON).

    Scores stand for themselves. Raises :class:`InputError` saying ``what`` was wrong.
    """
    if isinstance(given, Scorer | EdgeScores):
        return given
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json_value(given)
        except ValueError as error:
            raise InputError(f"{what}: no JSON: {error}") from None
    settings = {"name": given} if isinstance(given, str) else given
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise InputError(
            f"{what} must be a scorer, EdgeScores, the name of a method, or its name and settings "
            f"such as {{'name': 'eap-ig', 'steps': 3}}; got {given!r:.80}"
        )
    from graphprune.core.registry import make_method

    try:
        made = make_method(**{str(key): value for key, value in settings.items()})
    except InputError as error:
        raise InputError(f"{what}: {error}") from None
    if not isinstance(made, Scorer):
        raise InputError(f"{what}: method {settings['name']!r} gives no scores, only a mask")
    return made


def as_members(given: object, what: str) -> Sequence[object]:
    """A list of members; a text is read as JSON or as names between commas."""
    if isinstance(given, str):
        if not given.lstrip().startswith(("[", "{")):
            return [name.strip() for name in given.split(",")]
        try:
            given = json_value(given)
        except ValueError as error:
            raise InputError(f"{what}: no JSON: {error}") from None
    if not isinstance(given, Sequence):
        raise InputError(f"{what} must be a list of scorers, got {given!r:.80}")
    return given


def inherit(
    member: Scorer | EdgeScores,
    ablation: AblationLike | None,
    batch_size: int | None,
    seed: int | None,
) -> Scorer | EdgeScores:
    """The member with its group's settings where its own were not said (``None``).

    A batch size goes to scorers alone: to a mask optimiser a batch is one of its steps.
    """
    if not isinstance(member, Scorer):
        return member
    changes: dict[str, Any] = {}
    if ablation is not None and member.ablation is None:
        changes["ablation"] = ablation
    if batch_size is not None and member.batch_size is None and not isinstance(member, Pruner):
        changes["batch_size"] = batch_size
    if seed is not None and isinstance(member, Seeded) and member.seed is None:
        changes["seed"] = seed
    return replace(member, **changes) if changes else member


def require_served(
    model: MaskedModel, members: Mapping[str, Scorer | EdgeScores], instead: str
) -> None:
    """Raises :class:`UnsupportedModelError` where a member needs what the model cannot do.

    It says which of ``members``, by what errors call each, and what to pass ``instead``.
    """
    for what, member in members.items():
        for capability in member.needs if isinstance(member, Method) else ():
            try:
                require(model, capability, f"{what} ({describe(member)})")
            except UnsupportedModelError as error:
                raise UnsupportedModelError(f"{error}. Pass for instance {instead}") from None


def member_scores(
    member: Scorer | EdgeScores, model: MaskedModel, task: Task, what: str
) -> EdgeScores:
    """The member's scores over the model's graph; errors begin with ``what``."""
    if isinstance(member, EdgeScores):
        require_same_graph(model.graph, member.graph, f"the model and {what}")
        return member
    from graphprune.util.interrupts import whole_results

    try:
        with whole_results():
            found = member.score(model, task)
    except NumericalError as error:
        raise NumericalError(f"{what} ({member.label}): {error}") from error
    require_same_graph(model.graph, found.graph, f"the model and {what} ({member.label})")
    return found


def describe(member: Scorer | EdgeScores) -> str:
    """What errors and labels call a member."""
    return member.label if isinstance(member, Method) else member.method or "scores"


class AroundScorer:
    """What a method has that begins with the scores of another one, its ``_scorer``."""

    @property
    def _scorer(self) -> Scorer | EdgeScores:
        """The scorer with what it inherits, or the scores that were given in its place."""
        raise NotImplementedError

    @property
    def needs(self) -> tuple[type, ...]:
        """What the scorer needs."""
        scorer = self._scorer
        return scorer.needs if isinstance(scorer, Method) else ()

    @property
    def members(self) -> tuple[Method, ...]:
        """The scorer."""
        scorer = self._scorer
        return (scorer,) if isinstance(scorer, Method) else ()

    def with_scores(self, known: Mapping[Method, EdgeScores]) -> Self:
        """The same with the scorer's scores, where they are known."""
        scorer = self._scorer
        found = known.get(scorer) if isinstance(scorer, Method) else None
        made: Any = self  # a frozen dataclass with the field
        return self if found is None else cast(Self, replace(made, scorer=found))
