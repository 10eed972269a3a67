"""Ensembles of scorers: side by side, one after another, and both.

The three kinds are those of Mondorf et al. (arXiv 2510.06811), whose sequential one is edge pruning
that starts from EAP-IG. Other optimisers and losses in its place, such as a warm-started
Matryoshka, the mappings ``density`` and ``ranks`` and the normalisations are ours.

All are scorers, so that they nest and every selection, curve and export takes them. Scores:
positive = useful.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, Literal, Self, cast

import torch

from graphprune.core.mask import some_edges
from graphprune.core.method import Method, Pruner, Scorer
from graphprune.core.model import MaskedModel, require_model
from graphprune.core.result import Result
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.core.variants import HasVariants
from graphprune.errors import InputError
from graphprune.search.warm_start import StartMapping, WarmStart
from graphprune.selection.combine import (
    How,
    Normalize,
    check_combination,
    combine_scores,
    full_name,
    require_informative,
)
from graphprune.util.checks import at_least, require_one_of

from .edge_pruning import EdgePruning
from .gradient import EAP, EAPIG
from .members import (
    AroundScorer,
    Member,
    as_member,
    as_members,
    describe,
    inherit,
    member_scores,
    require_served,
)
from .optimiser import MaskOptimiser

__all__ = ["HybridEnsemble", "ParallelEnsemble", "SequentialEnsemble"]

_FIRST = (EAP(), EAPIG(), EAPIG(integrate="activations", points_at="right"))
_PUBLISHED = (EAP(), EAPIG(variant="paper"), EAPIG(variant="paper-activations"))


@dataclass(frozen=True)
class SequentialEnsemble(AroundScorer, HasVariants, Pruner, Scorer):
    """Scores warm-start a mask optimiser, and its gates are the new scores.

    Their magnitudes are the optimiser's own scores, which rank the gates.

    Args:
        variant: ``"default"``, or ``"paper"``, see below.
        scorer: a scorer, scores, a registered name, or ``{"name": ..., settings}``.
        optimiser: any mask optimiser, or its name or name and settings. Its ``warm_start`` is this
            ensemble's to set.
        mapping: ``"density"``: gates by rank, without noise, placed so that the expected share of
            open edges at the first step is ``start_density``, however low; ``"ranks"``: ranks added
            to the optimiser's cold start; ``"paper"``: with the defects that
            :mod:`graphprune.search.warm_start` lists, for hard concrete gates. Then scores are
            ``sigmoid(1.2 log alpha)``, as published.
        start_density: ``None``: the root of the final density for ``"density"`` (half-way down on a
            log scale), 0.1 for ``"paper"``.
        spread: of the first gates, see :class:`~graphprune.search.warm_start.WarmStart`.
        signs: ``"scorer"``: an edge the scorer finds harmful scores negative; ``"none"``: none
            does; ``None``: ``"scorer"`` for the paper's mapping and inside other ensembles (where
            magnitudes of opposite signs cancel), else ``"none"``, since gates know better than an
            attribution which edges to keep. (The published alternative, the sign of the loss's
            gradient, is inverted there.)
        seed: given to members that say none.
        ablation: given to a scorer and an optimiser that say none; where this ensemble says none,
            an optimiser's own is given to the scorer too.
        batch_size: the scorer's; the optimiser's is one of its settings.

    Variants:

    - ``"paper"`` (github.com/cisnlp/MIB-circuit-track at c18eb53): scorer EAPIG(variant="paper"),
      mapping "paper" (edge_pruning/importance_scores/scores_to_logalphas.py), signs "scorer"
      (scripts/run_ep_warmstart.py, signs_from_file). The optimiser is EdgePruning(variant="paper")
      with steps 1000 and batch_size 20 (sweeps/ep_gpt2_ioi_warmstart.yaml). Which values the sweep
      there chose is not published. Of those it tries, taken here: lr and lr_lambda 0.8, ramp 250,
      target 0.99, node_target 0.69, start_density 0.1.

    Example:
        >>> SequentialEnsemble(gp.EAP(), gp.EdgePruning(steps=20)).fit(model, task, size=8).mask
        EdgeMask(8 of 24 edges, 33.3333%)
    """

    variants: ClassVar = {
        "paper": {
            "scorer": EAPIG(variant="paper"),
            "optimiser": EdgePruning(
                variant="paper",
                steps=1000,
                batch_size=20,
                ramp=250,
                target=0.99,
                node_target=0.69,
            ),
            "mapping": "paper",
            "start_density": 0.1,
            "signs": "scorer",
        }
    }
    scorer: Member = field(default_factory=EAPIG)
    optimiser: Member = field(default_factory=EdgePruning)
    _: KW_ONLY
    mapping: StartMapping = "density"
    start_density: float | None = None
    spread: float | None = None
    signs: Literal["scorer", "none"] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.chosen_seed, 0, "seed")
        require_one_of(self.signs, (None, "scorer", "none"), "signs")
        object.__setattr__(self, "scorer", as_member(self.scorer, "the scorer"))
        made = as_member(self.optimiser, "the optimiser")
        if not isinstance(made, MaskOptimiser):
            raise InputError(
                "the second part of a sequential ensemble is a mask optimiser, such as "
                f"EdgePruning or UGS; got {describe(made)}"
            )
        if made.warm_start is not None:
            raise InputError("the ensemble's scorer warm-starts the optimiser: leave its own "
                             "warm_start out")  # fmt: skip
        if self.ablation is None:
            object.__setattr__(self, "ablation", made.ablation)
        if made.ablation not in (None, self.ablation):
            raise InputError(
                f"the ensemble's ablation is {self.ablation!r}, its optimiser's {made.ablation!r}"
            )
        object.__setattr__(self, "optimiser", made)
        made = self._optimiser
        if self.mapping == "density" and self.start_density is None:
            density: float | None = None if made.gate_kind in ("budget", "ranking") else 0.5
        else:
            density = self._density(1.0)
        replace(made, warm_start=WarmStart(_FIRST[0], self.mapping, density, self.spread))

    def _density(self, final: float) -> float | None:
        if self.start_density is not None or self.mapping == "ranks":
            return self.start_density
        if self.mapping == "paper":
            return 0.1
        return None if self._optimiser.gate_kind == "ranking" else float(final**0.5)

    @property
    def _optimiser(self) -> MaskOptimiser:
        given = cast("MaskOptimiser", self.optimiser)
        return cast("MaskOptimiser", inherit(given, self.ablation, None, self.seed))

    @property
    def _scorer(self) -> Scorer | EdgeScores:
        ablation = "mean" if self.ablation == "optimal" else self.ablation
        given = cast("Scorer | EdgeScores", self.scorer)
        return inherit(given, ablation, self.batch_size, self.seed)

    def resolved(self) -> Self:
        """The same with everything said that its parts inherit."""
        said = super().resolved()
        return replace(said, scorer=_said(said._scorer), optimiser=_said(said._optimiser))

    def sized(self, size: int | float | None) -> Self:
        """The same with an optimiser that keeps ``size`` edges (int) or that share of them."""
        return replace(self, optimiser=self._optimiser.sized(size))

    def fit(self, model: MaskedModel, task: Task, size: int | float | None = None) -> Result:
        """The optimisation's result; its scores are the gates' ranking, with signs if wanted."""
        require_model(model)
        if size is not None:
            some_edges(size, model.graph.num_edges)
            return self.sized(size).fit(model, task)
        scorer = self._scorer
        require_served(model, {"the scorer": scorer}, "scorer=gp.EAP()")
        start = member_scores(scorer, model, task, "the scorer")
        require_informative(start, f"the scorer ({describe(scorer)})")
        return self._fit(model, task, start)

    def _fit(self, model: MaskedModel, task: Task, start: EdgeScores) -> Result:
        graph, optimiser = model.graph, self._optimiser
        count = optimiser.count(graph)
        density = self._density((count or graph.num_edges) / graph.num_edges)
        if density is not None and density >= 1 and self.start_density is None:
            density = None if optimiser.gate_kind == "budget" else 0.99
        warm = WarmStart(start, self.mapping, density, self.spread)
        fit = replace(optimiser, warm_start=warm).fit(model, task)
        assert fit.scores is not None
        values = fit.scores.values
        if self.mapping == "paper" and "gates" in fit.values:
            values = torch.sigmoid(1.2 * fit.values["gates"])
        signed = self.mapping == "paper" if self.signs is None else self.signs == "scorer"
        if signed:
            values = torch.where(start.values < 0, -values, values)
        return replace(fit, scores=EdgeScores(graph, values, method=self.label))

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """The gates' ranking, with the scorer's signs if wanted."""
        return Pruner.score(self, model, task)


@dataclass(frozen=True)
class _Combination(HasVariants, Scorer):
    scorers: Sequence[Member] = _FIRST
    _: KW_ONLY
    how: How = "mean"
    weights: Sequence[float] | None = None
    normalize: Normalize = None
    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.chosen_seed, 0, "seed")
        object.__setattr__(self, "normalize", full_name(self.normalize))
        listed = as_members(self.scorers, "the scorers")
        made = tuple(as_member(m, f"member {i}") for i, m in enumerate(listed, start=1))
        if len(made) > 1:
            made = tuple(_signed(member) for member in made)
        object.__setattr__(self, "scorers", made)
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(float(w) for w in self.weights))
        check_combination(len(made), self.how, self.weights, self.normalize)

    @property
    def _instead(self) -> str:
        """Members that any model serves, as an error names them."""
        return "scorers=[gp.EAP(), gp.IntegratedMaskGradient()]"

    @property
    def needs(self) -> tuple[type, ...]:
        """What its members need."""
        methods = [member for member in self._members if isinstance(member, Method)]
        return tuple(dict.fromkeys(need for method in methods for need in method.needs))

    @property
    def _members(self) -> tuple[Scorer | EdgeScores, ...]:
        given = cast("Sequence[Scorer | EdgeScores]", self.scorers)
        return tuple(inherit(m, self.ablation, self.batch_size, self.seed) for m in given)

    @property
    def members(self) -> tuple[Method, ...]:
        """The scorers; a hybrid must have its sequential part as it is."""
        return tuple(
            m for m in self._members if isinstance(m, Scorer) and not isinstance(m, Pruner)
        )

    def with_scores(self, known: Mapping[Method, EdgeScores]) -> Self:
        """The same with the members' scores, where they are known."""
        free, given = self.members, cast("Sequence[Scorer | EdgeScores]", self.scorers)
        pairs = zip(given, self._members, strict=True)
        made = tuple(known.get(m, old) if m in free else old for old, m in pairs)
        return replace(self, scorers=made)

    def resolved(self) -> Self:
        """The same with everything said that its members inherit."""
        said = super().resolved()
        return replace(said, scorers=tuple(map(_said, said._members)))

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """The members' scores combined; equal members are run once."""
        require_model(model)
        named = {f"member {i}": member for i, member in enumerate(self._members, start=1)}
        require_served(model, named, self._instead)
        known: dict[Any, EdgeScores] = {}
        found = []
        for what, member in named.items():
            if member not in known:
                ready = _ready(member, known)
                known[member] = member_scores(ready, model, task, what)
            found.append(replace(known[member], method=describe(member)))
        combined = combine_scores(found, self.how, self.weights, self.normalize)
        return replace(combined, method=self.label)


def _said(member: Scorer | EdgeScores) -> Scorer | EdgeScores:
    return member.resolved() if isinstance(member, Scorer) else member


def _signed(member: Scorer | EdgeScores) -> Scorer | EdgeScores:
    """A sequential ensemble among others takes its scorer's signs, unless it says otherwise.

    Beside scores with a sign, an unsigned one would cancel the largest harmful ones.
    """
    if isinstance(member, SequentialEnsemble) and member.signs is None:
        return replace(member, signs="scorer")
    return member


def _ready(member: Scorer | EdgeScores, known: dict[Any, EdgeScores]) -> Scorer | EdgeScores:
    """A sequential ensemble whose scorer has been run already takes its scores."""
    return member.with_scores(known) if isinstance(member, SequentialEnsemble) else member


@dataclass(frozen=True)
class ParallelEnsemble(_Combination):
    """Several scorers' scores combined edge by edge, as they are or on a common scale.

    Args:
        variant: ``"default"``, or ``"paper"``, see below.
        scorers: scorers, scores, registered names, or ``{"name": ..., settings}``; by default EAP
            and EAP-IG over inputs and over activations.
        how: ``"mean"`` (the best published), ``"min"``, ``"max"``, ``"weighted"`` (a weighted
            mean; the published code's cannot run).
        weights: for ``how="weighted"``, one from 0 on for each scorer.
        normalize: ``None`` as published, where the method with the largest numbers decides;
            ``"rank"`` (recorded as ``"magnitude_rank"``), ``"signed_rank"``, ``"quantile"`` or
            ``"scale"``, see :func:`graphprune.combine_scores`.
        seed: given to members that say none.
        ablation: given to members that say none, as ``batch_size`` is to scorers.

    Variants:

    - ``"paper"``: scorers EAP, EAPIG(variant="paper") and EAPIG(variant="paper-activations"), as
      they are (normalize None), how "mean" (parallel/parallel.py of
      github.com/cisnlp/MIB-circuit-track at c18eb53).

    Example:
        >>> ParallelEnsemble(["eap", {"name": "eap-ig", "steps": 3}], normalize="rank").label
        "ParallelEnsemble(scorers=[EAP, EAPIG(steps=3)], normalize='magnitude_rank')"
    """

    variants: ClassVar = {"paper": {"scorers": _PUBLISHED, "how": "mean", "normalize": None}}


@dataclass(frozen=True)
class HybridEnsemble(_Combination):
    """A parallel ensemble with a sequential one among its members, on a common scale.

    A mask optimiser's numbers are around 1 and attributions around 1e-5: without a normalisation
    the sequential member alone would decide, so one is required.

    Args:
        variant: ``"default"``, or ``"paper"``, see below.
        scorers: as :class:`ParallelEnsemble` takes them, a :class:`SequentialEnsemble` or mask
            optimiser among them; by default the published three and a sequential ensemble.
        how, weights, seed, ablation, batch_size: see :class:`ParallelEnsemble`.
        normalize: ``"quantile"`` (default: tails stay heavy), ``"rank"``, ``"signed_rank"`` or
            ``"scale"``.

    Variants:

    - ``"paper"``: scorers of ParallelEnsemble(variant="paper") and
      SequentialEnsemble(variant="paper"), how "mean" (parallel/parallel.py of
      github.com/cisnlp/MIB-circuit-track at c18eb53). The paper aligns scales (arXiv 2510.06811)
      where that file has nothing; normalize "scale" is our reading.

    Example:
        >>> both = gp.SequentialEnsemble(gp.EAP(), gp.EdgePruning(size=8, steps=20))
        >>> HybridEnsemble((gp.EAP(), both)).score(model, task).top(8)
        EdgeMask(8 of 24 edges, 33.3333%)
    """

    variants: ClassVar = {
        "paper": {
            "scorers": (*_PUBLISHED, SequentialEnsemble(variant="paper")),
            "how": "mean",
            "normalize": "scale",
        }
    }
    scorers: Sequence[Member] = (*_FIRST, SequentialEnsemble())
    _: KW_ONLY
    normalize: Normalize = "quantile"

    @property
    def _instead(self) -> str:
        return "scorers=[gp.EAP(), gp.SequentialEnsemble(gp.EAP())]"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize is None:
            raise InputError(
                "a hybrid ensemble needs a common scale: normalize='rank', 'quantile' or 'scale' "
                "(ParallelEnsemble combines scores as they are)"
            )
        if not any(isinstance(m, SequentialEnsemble | MaskOptimiser) for m in self.scorers):
            raise InputError(
                "a hybrid ensemble has a SequentialEnsemble or a mask optimiser among its members; "
                "ParallelEnsemble is for scorers alone"
            )
