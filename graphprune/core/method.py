"""Methods: frozen dataclasses of settings that score or prune any masked model."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from graphprune.capabilities import identity_of
from graphprune.core.ablation import DEFAULT_ABLATION, AblationLike, resolve_ablation
from graphprune.core.batch import Batch
from graphprune.core.mask import EdgeMask, as_size, budget
from graphprune.core.model import Ablation, MaskedModel, Reference, require_model
from graphprune.core.result import Result
from graphprune.core.sanity_checks import IdleAblationCheck
from graphprune.core.scores import EdgeScores, NodeScores
from graphprune.core.task import Task, require_task
from graphprune.errors import InputError
from graphprune.util.modes import decorate, with_gradients
from graphprune.util.plain import HasToDict, plain, versions_now
from graphprune.util.progress import track

_DEFAULT_SEED = 0  # where nobody says one


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A frozen dataclass of settings with one verb, :meth:`fit`.

    :meth:`score` and :meth:`prune` give the parts of its result. A new method is a :class:`Scorer`,
    which writes ``score``, or a :class:`Pruner`, which writes ``fit``. A method runs with gradients
    on, in ``torch.no_grad`` and ``torch.inference_mode`` too.

    Args:
        ablation: what an ablated message is replaced by: ``"counterfactual"``, ``"zero"``,
            ``"mean"``, ``"mean_positional"``, ``"delete"`` (graph networks: the edge is absent) or
            an :class:`~graphprune.Ablation` (learned constants are one too). ``None`` is not
            said: an ensemble's own then holds, and where nobody says one, counterfactual.
        batch_size: examples at a time; ``None`` takes the task's.

    Example:
        >>> result = gp.EAP().fit(model, task, size=6)
        >>> result.mask, result.ablation
        (EdgeMask(6 of 24 edges, 25.0000%), 'counterfactual')
        >>> gp.EAP(ablation="zero").label
        "EAP(ablation='zero')"
    """

    ablation: AblationLike | None = None
    batch_size: int | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        decorate(cls, ("fit", "score", "prune"), _entered)

    @property
    def chosen_ablation(self) -> AblationLike:
        """The ablation it runs under: the one that was said, else counterfactual."""
        return DEFAULT_ABLATION if self.ablation is None else self.ablation

    @property
    def chosen_seed(self) -> int:
        """The seed it draws by: the one that was said, else 0."""
        seed = self.seed if isinstance(self, Seeded) else None
        return _DEFAULT_SEED if seed is None else seed

    @property
    def needs(self) -> tuple[type, ...]:
        """The capabilities without which it cannot run, see :mod:`graphprune.capabilities`."""
        return ()

    @property
    def members(self) -> tuple[Method, ...]:
        """Methods inside it whose scores may take their place, with what they inherit from it."""
        return ()

    def with_scores(self, known: Mapping[Method, EdgeScores]) -> Self:
        """The same method with scores in the place of those ``members`` whose scores are known."""
        return self

    def resolved(self) -> Self:
        """The same method with its ablation and its seed said: what a record of it must hold."""
        said: dict[str, Any] = {"ablation": self.chosen_ablation}
        if any(f.name == "seed" for f in fields(self)):
            said["seed"] = self.chosen_seed
        return replace(self, **said)

    @abstractmethod
    def fit(self, model: MaskedModel, task: Task, size: int | float | None = None) -> Result:
        """Everything that the method finds.

        Args:
            model: any masked model.
            task: the examples and the metric.
            size: how many edges the circuit keeps: a count (int) or a share of all edges (float).
                A scorer's best edges may hold dead ends; these go, so that fewer are left
                (``remarks`` says so; ``scores.connected(n)`` keeps exactly n). ``None`` takes the
                method's own setting; of a scorer, which has none, the ranking alone.

        Raises:
            InputError: a size for a method that chooses the number of edges itself.
            UnsupportedModelError: the model lacks what the method needs.
        """

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """The ranking of :meth:`fit`: positive = useful; :class:`InputError` where it has none."""
        scores = self.fit(model, task).scores
        if scores is None:
            raise InputError(f"{self.label} chooses edges and ranks none; use prune or fit")
        return scores

    def prune(self, model: MaskedModel, task: Task, size: int | float | None = None) -> EdgeMask:
        """The circuit of :meth:`fit`; :class:`InputError` where a size is missing."""
        mask = self.fit(model, task, size).mask
        if mask is None:
            raise InputError(f"{self.label} ranks all edges; say how many to keep: size=0.01")
        return mask

    @property
    def label(self) -> str:
        """The method and the settings that differ from its defaults, or from its variant's.

        Fields that do not take part in comparison (where a run is kept) are no settings.
        """
        usual = self._usual_settings()
        shown = [
            f"{f.name}={_shown(getattr(self, f.name))}"
            for f in fields(self)
            if f.compare and getattr(self, f.name) != usual[f.name]
        ]
        return f"{type(self).__name__}({', '.join(shown)})" if shown else type(self).__name__

    def _usual_settings(self) -> dict[str, Any]:
        """What each setting is where nobody says it."""
        return {f.name: f.default for f in fields(self)}

    def _each(
        self, model: MaskedModel, task: Task, *, reference: bool = True, check: bool = True
    ) -> Iterator[tuple[Batch, Reference | None]]:
        """Batches with their references; ``check``: whether the ablation is seen to matter."""
        require_model(model)
        require_task(task)
        ablation = resolve_ablation(model, task, self.chosen_ablation)
        size, total = self.batch_size, task.num_batches(self.batch_size)
        idle = IdleAblationCheck(model, self.label)
        held: list[tuple[Batch, Reference | None]] = []
        for batch in track(task.batches(size), type(self).__name__, total):
            made = model.reference(batch, ablation) if reference else None
            held.append((batch, made))
            if made is not None and check:
                idle.see(batch, made)
                if not idle.settled:
                    continue  # nothing is computed of an ablation that may change nothing
            yield from held
            held.clear()
        idle.finish()


def _entered(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method's ``fit``, ``score`` or ``prune`` with gradients on, given a task (or ``None``)."""
    run = with_gradients(function)

    @wraps(function)
    def call(self: Method, *args: Any, **options: Any) -> Any:
        task = args[1] if len(args) > 1 else options.get("task")
        if task is not None:  # a few methods read none
            require_task(task)
        result: Any = run(self, *args, **options)
        if isinstance(result, EdgeScores | EdgeMask) and result.ablation is None:
            return replace(result, ablation=self.chosen_ablation)
        if function.__name__ == "fit" and not isinstance(result, Result):
            raise InputError(
                f"{type(self).__name__}.fit gave {type(result).__name__}, expected a gp.Result"
            )
        if isinstance(result, Result) and result.task is None:
            return replace(result, task=task)
        return result

    return call


def _shown(value: object) -> str:
    """A setting as labels show it; methods inside it by their own labels."""
    if isinstance(value, Method):
        return value.label
    if isinstance(value, tuple):
        methods = any(isinstance(member, Method) for member in value)
        return f"[{', '.join(map(_shown, value))}]" if methods else repr(value)
    return repr(value)


class Scorer(Method):
    """A method that gives every edge a score: positive = useful.

    A circuit of a size is its strongest edges without dead ends, see
    :func:`~graphprune.selection.selectors.circuit_of_size`.

    Example:
        >>> gp.Random(seed=1).score(model, task).top(6)
        EdgeMask(6 of 24 edges, 25.0000%)
        >>> gp.Random(seed=1).fit(model, task, size=6).mask
        EdgeMask(6 of 24 edges, 25.0000%)
    """

    @abstractmethod
    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """Mean scores over the task's examples, float32."""

    def fit(self, model: MaskedModel, task: Task, size: int | float | None = None) -> Result:
        """The scores, and their circuit where a size is given."""
        return ranked(self.score(model, task), size, self.chosen_ablation, task)


class Pruner(Method):
    """A method that chooses the edges itself.

    Example:
        >>> gp.EdgePruning(steps=20).fit(model, task, size=6).mask
        EdgeMask(6 of 24 edges, 25.0000%)
    """

    def sized(self, size: int | float | None) -> Self:
        """The same method that keeps ``size`` edges (int) or that share of them (float).

        ``None`` leaves it as it is. A method with a setting ``size`` takes one. Raises
        :class:`InputError` where that setting was said and is another, or other settings decide how
        many edges stay.
        """
        if size is None:
            return self
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name == "size"}
        if not said:
            raise InputError(
                f"{type(self).__name__} takes no size, its settings decide how many edges stay; "
                f"got size={size!r}"
            )
        asked, before = as_size(size), said["size"]
        if before is not None and (type(before), before) != (type(asked), asked):  # 1 is not 1.0
            raise InputError(f"{self.label} was also asked for size={size!r}: give one of the two")
        chosen: dict[str, Any] = {"size": asked}
        return replace(self, **chosen)


@runtime_checkable
class Seeded(Protocol):
    """A method that draws by a seed; ``None`` is not said."""

    @property
    def seed(self) -> int | None:
        """The seed it draws by."""
        ...


@runtime_checkable
class NodeScorer(Protocol):
    """A method that also scores nodes."""

    def score_nodes(self, model: MaskedModel, task: Task) -> NodeScores:
        """Mean node scores over the task's examples."""
        ...


@runtime_checkable
class Sweep(Protocol):
    """A method that gives circuits at many thresholds at once."""

    def sweep(
        self, model: MaskedModel, task: Task, taus: Sequence[float]
    ) -> Mapping[float, Result]:
        """Results by threshold, ascending."""
        ...


def ranked(
    scores: EdgeScores, size: int | float | None, ablation: AblationLike, task: Task
) -> Result:
    """The result of scores alone, with their circuit where a size is given."""
    if size is None:
        return Result(None, scores, ablation)
    from graphprune.selection.selectors import circuit_of_size

    mask = circuit_of_size(scores, size, ablation=ablation, task=task)
    selected = budget(size, scores.graph.num_edges)
    gone = selected - mask.num_kept
    remarks = (f"{gone} of the {selected} best edges are dead ends and were left out",)
    return Result(mask, scores, ablation, remarks=remarks if gone else ())


def ablation_of(method: object) -> AblationLike:
    """The ablation a method runs under; counterfactual for a function of the user's own."""
    return method.chosen_ablation if isinstance(method, Method) else DEFAULT_ABLATION


def objective(task: Task, batch: Batch, reference: Reference) -> Callable[[Tensor], Tensor]:
    """The task's metric, turned so that higher is better, as a function of outputs."""
    metric = task.metric
    if not metric.differentiable:
        raise InputError(
            f"metric {metric.name!r} has no gradient; use a gradient-free scorer "
            "(ExactPatching), or a metric such as logit_diff, prob_diff or kl"
        )
    full = reference.full if "full" in metric.needs else None

    def value(outputs: Tensor) -> Tensor:
        values = metric.sign * metric(outputs, batch, full)
        if outputs.requires_grad and not values.requires_grad:
            raise InputError(
                f"metric {metric.name!r} gave values without a gradient (does it detach its input?)"
            )
        return values

    return value


def mean(total: Tensor | None, count: int, what: str) -> Tensor:
    """A total over examples as their mean, float32; raises where there were none."""
    if total is None:
        raise InputError(f"{what} saw no examples")
    return (total / count).to(torch.float32)


def method_record(method: Any, scores: EdgeScores | None) -> dict[str, Any] | None:
    """A method's name and settings as plain values; ``None`` where neither it nor scores say."""
    if method is None:
        return {"name": scores.method} if scores is not None and scores.method else None
    if isinstance(method, str):
        return {"name": method}
    if isinstance(method, Mapping):
        return dict(plain(method))
    if isinstance(method, Method):  # what was used, said or not
        method = method.resolved()
    settings = plain(method) if dataclasses.is_dataclass(method) else {}
    fields = dataclasses.fields(method) if dataclasses.is_dataclass(method) else ()
    hidden = {"type", *(f.name for f in fields if not f.compare)}
    settings = {k: v for k, v in settings.items() if k not in hidden}
    return {"name": type(method).__name__, "settings": settings}


def provenance_of(
    model: MaskedModel | None,
    task: Task | None,
    method: Any,
    scores: EdgeScores | None,
    seed: int | None,
) -> dict[str, Any]:
    """The origin of a circuit: plain values by name, each where it is known."""
    provenance: dict[str, Any] = {}
    if model is not None:
        provenance["model"] = identity_of(model)
    if task is not None:
        provenance["task"] = {
            "name": task.name,
            "examples": len(task),
            "metric": task.metric.name,
            "notes": task.notes,
        }
    record = method_record(method, scores)
    if record is not None:
        provenance["method"] = record
        seed = record.get("settings", {}).get("seed") if seed is None else seed
    if seed is not None:
        provenance["seed"] = seed
    return {**provenance, **versions_now()}


def ablation_name(given: Any, method: Any = None, report: Any = None) -> str | None:
    """The ablation that was said: outright, by a method (or a record of one), or by a report."""
    if given is None and method is not None:
        given = method.chosen_ablation if isinstance(method, Method) else _setting(method)
    if given is None:
        given = _setting(report.to_dict() if isinstance(report, HasToDict) else report)
    name = given.name if isinstance(given, Ablation) else given
    return name if isinstance(name, str) else None


def _setting(record: Any) -> Any:
    """The ablation among the settings of a method's or a report's record."""
    settings = record.get("settings") if isinstance(record, Mapping) else None
    return settings.get("ablation") if isinstance(settings, Mapping) else None
