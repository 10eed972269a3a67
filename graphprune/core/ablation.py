"""Ablations from the names that users give."""

from __future__ import annotations

from collections.abc import Iterable

from graphprune.capabilities import MeanMessages, require
from graphprune.core.mask import EdgeMask, Masked, known_ablations
from graphprune.core.model import Ablation, AblationKind, MaskedModel
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task, require_task
from graphprune.errors import InputError, unknown_name

AblationLike = str | Ablation
DEFAULT_ABLATION = "counterfactual"  # what comes where nobody says one
ABLATIONS = ("counterfactual", "zero", "mean", "mean_positional", "delete")


def resolve_ablation(
    model: MaskedModel, task: Task, ablation: AblationLike | None, *circuits: object
) -> Ablation:
    """An :class:`Ablation` from its name.

    ``None`` is not said: then it is the one that ``circuits`` or results were found
    under, and where they know none, counterfactual.

    ``mean`` and ``mean_positional`` are taken over the task's corrupted prompts (over its clean
    ones where it has none). For another reference set give ``model.mean_ablation(batches)``.

    Example:
        >>> resolve_ablation(model, task, "zero").name, resolve_ablation(model, task, None).name
        ('zero', 'counterfactual')
    """
    if ablation is None:
        ablation = own_ablation(circuits) or DEFAULT_ABLATION
    if isinstance(ablation, Ablation):
        return ablation
    if ablation == "optimal":
        raise InputError(
            "ablation='optimal' names constants that are still to be learned: a mask optimiser "
            "does that, gp.EdgePruning(ablation='optimal'); elsewhere give the Ablation it learned"
        )
    require_task(task)
    if not isinstance(ablation, str) or ablation not in ABLATIONS:
        raise unknown_name("ablation", ablation, ABLATIONS)
    if ablation.startswith("mean"):
        inside = require(model, MeanMessages, f"{ablation} ablation")
        return inside.mean_ablation(task.batches(), per_position=ablation == "mean_positional")
    kinds: dict[str, AblationKind] = {"zero": "zero", "delete": "delete"}
    return Ablation(kinds.get(ablation, "counterfactual"))


def said_or_own(ablation: AblationLike | None, *circuits: object) -> AblationLike | None:
    """The ablation that was said, else the one that circuits and results were found under."""
    return own_ablation(circuits) if ablation is None else ablation


def own_ablation(circuits: Iterable[object]) -> AblationLike | None:
    """The one ablation that these were found under; ``None`` where none knows it.

    Circuits, results, masks and scores may know one. Raises :class:`InputError` where they were
    found under different ones.
    """
    found = (Masked, EdgeMask, EdgeScores)
    known = known_ablations(*(one.ablation for one in circuits if isinstance(one, found)))
    if len(known) > 1:
        raise InputError(
            f"these circuits were found under {' and '.join(sorted(map(str, known)))}; say which "
            "ablation they are compared under: ablation="
        )
    return next(iter(known), None)
