"""The loop: draw a mask, run it, step the gates; keep what is needed to go on after a stop.

A step's outcome is a function of the gates before it, the seed and the step's number. Ctrl-C ends
the run after the step at hand with a mask (``made_at`` says of which step's gates); a NaN ends it
with an error that names the step and the cause, and leaves the last good checkpoint.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.core.model import Ablation, MaskedModel, Reference
from graphprune.core.task import Task
from graphprune.errors import FormatError, NumericalError
from graphprune.search.checkpoint import (
    RunDirectory,
    RunState,
    optimiser_tensors,
    restore_optimiser,
    same_columns,
)
from graphprune.search.losses import Loss
from graphprune.search.minibatches import MiniBatches
from graphprune.search.warm_start import StartingScores
from graphprune.util.interrupts import interruptible
from graphprune.util.progress import bar

if TYPE_CHECKING:
    from graphprune.core.batch import Batch

__all__ = ["Draw", "Moment", "Optimisation", "Recipe"]

log = logging.getLogger(__name__)

Parameters = dict[str, Tensor]


class _Notes(BaseModel):
    columns: list[str]
    best_loss: float = 0.0
    best_step: int | None = None


@dataclass(frozen=True)
class Moment:
    """Where in a run a mask is drawn: ``step`` of ``steps``.

    ``rows`` are the places of this process's examples in a batch of ``total``. ``from_inputs``:
    whether a node that no kept path reaches from the input counts as cut.
    """

    step: int
    steps: int
    total: int
    rows: tuple[int, ...]
    from_inputs: bool = True


@dataclass(frozen=True, eq=False)
class Draw:
    """A mask ``[E]``, ``[K, E]`` or ``[K, B, E]`` of one step, differentiable in the gates.

    ``penalty`` is added to the loss; ``density`` is shown; ``shown`` holds further figures;
    gradients of a norm above ``clip`` are cut to it: all together, or with ``clip_groups`` (for
    each of some parameters a group number for every entry) each group by itself and the rest not
    at all. With ``log_chance [K]`` the mask is a random
    0/1 one, not differentiable, drawn with that log probability: the gradient is the score
    function's, with the mean loss of the other masks as the baseline.
    """

    mask: Tensor
    density: float
    penalty: Tensor | None = None
    shown: Mapping[str, float] = field(default_factory=dict)
    clip: float | None = None
    clip_groups: Mapping[str, Tensor] | None = None
    log_chance: Tensor | None = None


class Recipe(ABC):
    """What a method gives the loop. All of it is a function of the parameters and the moment."""

    @abstractmethod
    def parameters(self, graph: ComputationalGraph, start: StartingScores | None) -> Parameters:
        """Leaf tensors to optimise, float32; ``start`` holds the scores of a warm start."""

    @abstractmethod
    def optimiser(self, parameters: Parameters, constants: list[Tensor]) -> torch.optim.Optimizer:
        """Over the parameters and an ablation's learned ``constants``."""

    @abstractmethod
    def rate(self, moment: Moment) -> float:
        """The factor on every learning rate."""

    @abstractmethod
    def draw(self, parameters: Parameters, graph: ComputationalGraph, moment: Moment) -> Draw:
        """The masks of one step."""

    @abstractmethod
    def values(self, parameters: Parameters, graph: ComputationalGraph) -> Tensor:
        """``[E]``: the ranking that the gates stand for, higher is kept."""


@dataclass(eq=False)
class Optimisation:
    """One run of a recipe on a model and a task.

    Args:
        recipe, model, task, ablation, loss: what is optimised.
        minibatches: the examples of each step.
        steps, seed: how long, and which noise.
        from_inputs: whether a node that no kept path reaches from the input counts as cut.
        start: the scores of a warm start, or ``None``.
        folder: a run directory, or ``None``; ``every``: steps between checkpoints.
    """

    recipe: Recipe
    model: MaskedModel
    task: Task
    ablation: Ablation
    loss: Loss
    minibatches: MiniBatches
    steps: int
    seed: int
    from_inputs: bool = True
    start: StartingScores | None = None
    folder: RunDirectory | None = None
    every: int = 50
    label: str = "optimise"

    def __post_init__(self) -> None:
        self.minibatches.require_effect()
        first = self.minibatches.part(0)
        device = torch.device("cpu") if first is None else first[1].full.device
        leaves = self.recipe.parameters(self.model.graph, self.start)
        self.parameters = {
            name: p.detach().to(device, torch.float32).requires_grad_(True)
            for name, p in leaves.items()
        }
        self.constants = list(self.ablation.parameters)
        self.optimiser = self.recipe.optimiser(self.parameters, self.constants)
        self.rates = [float(group["lr"]) for group in self.optimiser.param_groups]
        self.step = 0
        self.columns: list[str] = []
        self.rows: list[list[float]] = []
        self.best: tuple[float, Tensor] | None = None
        self.made_at: int | None = None  # the step whose gates the best mask was made of
        self.path: dict[int, Tensor] = {}
        self.stopped = ""
        self.saved = 0
        self.asked: list[int] = []
        self._resume()

    # ---------------------------------------------------------------- state

    def _resume(self) -> None:
        saved = None if self.folder is None else self.folder.load()
        if saved is None or self.folder is None:
            return
        notes = self.folder.validated(_Notes, saved)
        try:
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(saved.tensors[f"gates.{name}"])
                for number, constant in enumerate(self.constants):
                    constant.copy_(saved.tensors[f"constants.{number}"])
            restore_optimiser(self.optimiser, saved.tensors)
            history = saved.tensors["history"]
            if history.numel() and history.shape[1:] != (len(notes.columns),):
                raise ValueError(f"its history {list(history.shape)} has other columns")
            self.path = {
                int(name.removeprefix("path.")): values
                for name, values in saved.tensors.items()
                if name.startswith("path.")
            }
        except (KeyError, RuntimeError, ValueError) as error:
            raise FormatError(
                f"the checkpoint in {self.folder.folder} does not belong to this method: {error}"
            ) from None
        self.step = self.saved = saved.step
        self.columns, self.rows = notes.columns, history.tolist()
        if "best" in saved.tensors:
            self.best, self.made_at = (notes.best_loss, saved.tensors["best"]), notes.best_step
        log.info("resumed at step %d of %d from %s", self.step, self.steps, self.folder)

    def save(self) -> None:
        """Writes a checkpoint, where there is a run directory and this is the main process."""
        if self.folder is None or not self.minibatches.workers.is_main:
            return
        tensors = {f"gates.{name}": p for name, p in self.parameters.items()}
        tensors |= {f"constants.{n}": c for n, c in enumerate(self.constants)}
        tensors |= optimiser_tensors(self.optimiser)
        tensors["history"] = torch.tensor(self.rows, dtype=torch.float64)
        tensors |= {f"path.{count}": values for count, values in self.path.items()}
        notes: dict[str, Any] = {"columns": self.columns}
        if self.best is not None:
            notes["best_loss"], tensors["best"] = self.best
            notes["best_step"] = self.made_at
        self.folder.save(RunState(self.step, tensors, notes))
        self.saved = self.step

    @property
    def values(self) -> Tensor:
        """``[E]`` on the CPU: the present ranking of the edges."""
        with torch.no_grad():
            return self.recipe.values(self.parameters, self.model.graph).detach().float().cpu()

    @property
    def edge_gates(self) -> Tensor | None:
        """``[E]`` on the CPU: the edges' own parameters, where the recipe has such."""
        gates = self.parameters.get("edges")
        return None if gates is None else gates.detach().float().cpu()

    @property
    def history(self) -> list[dict[str, float]]:
        """A row for each step done."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    # ---------------------------------------------------------------- running

    def run(self, *, until: int | None = None) -> None:
        """Steps up to ``until`` (default: all); sets ``stopped`` where Ctrl-C ended it sooner."""
        end = self.steps if until is None else min(until, self.steps)
        if self.step >= end or self.stopped:
            return
        with interruptible(self.asked) as stop, bar(self.label, self.steps, self.step) as shown:
            while self.step < end:
                row = self._step()
                self.step += 1
                self.columns = same_columns(self.columns, list(row), self.folder)
                self.rows.append([row[name] for name in self.columns])
                shown.update(1)
                shown.set_postfix(loss=f"{row['loss']:.4g}", density=f"{row['density']:.2%}")
                halt = self._any(bool(stop))
                if halt:
                    self.stopped = f"stopped at step {self.step} of {self.steps}"
                if self.step % self.every == 0 or self.step == end or halt:
                    self.save()
                if halt:
                    return

    def _any(self, flag: bool) -> bool:
        """Whether the flag is up in any process: all of them stop at the same step."""
        workers = self.minibatches.workers
        return bool(workers.mean_(torch.tensor(float(flag)), 1.0) > 0)

    def _step(self) -> dict[str, float]:
        part = self.minibatches.at(self.step)
        size = 0 if part is None else part[0].size
        total, rows = self.minibatches.places(self.step)
        moment = Moment(self.step, self.steps, total, rows, self.from_inputs)
        factor = self.recipe.rate(moment)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        draw = self.recipe.draw(self.parameters, self.model.graph, moment)
        leaves = [*self.parameters.values(), *self.constants]
        for leaf in leaves:  # those that no optimiser moves too: they may count in a norm
            leaf.grad = torch.zeros_like(leaf)
        value = torch.zeros((), dtype=torch.float64)
        if part is not None:
            losses = self._losses(draw, *part)
            value = losses.detach().mean().double().cpu()
            data = losses.mean()
            if draw.log_chance is not None:
                seen = losses.detach()
                others = (seen.sum() - seen) / (len(seen) - 1)
                data = ((seen - others) * draw.log_chance).mean()
                if self.constants:
                    data = data + losses.mean()
            # The user's weights may ask for gradients too: theirs stay as they are.
            data.backward(inputs=leaves, retain_graph=draw.penalty is not None)
        for leaf in leaves:
            assert leaf.grad is not None
            self.minibatches.workers.mean_(leaf.grad, size)
        self.minibatches.workers.mean_(value, size)
        if draw.penalty is not None:
            draw.penalty.backward(inputs=leaves)
        self._require_finite(value, leaves, draw)
        self._clip(draw, leaves)
        self.optimiser.step()
        return {
            "step": float(self.step),
            "loss": float(value),
            "density": draw.density,
            "rate": factor,
            **draw.shown,
        }

    def _clip(self, draw: Draw, leaves: list[Tensor]) -> None:
        if draw.clip is None:
            return
        if draw.clip_groups is None:
            torch.nn.utils.clip_grad_norm_(leaves, draw.clip)
            return
        for name, group in draw.clip_groups.items():
            grad = self.parameters[name].grad
            assert grad is not None
            group = group.to(grad.device)
            square = torch.zeros(int(group.max()) + 1, device=grad.device)
            norm = square.index_add_(0, group, grad.square()).sqrt()
            grad.mul_((draw.clip / (norm + 1e-6)).clamp(max=1.0)[group])

    def _losses(self, draw: Draw, batch: Batch, reference: Reference) -> Tensor:
        """``[K]``: the mean loss of each mask."""
        with torch.set_grad_enabled(draw.log_chance is None or bool(self.constants)):
            outputs = self.model.run(batch, draw.mask, reference)
        copies = outputs if draw.mask.ndim > 1 else outputs[None]
        try:
            values = [self.loss(out, batch, reference.full) for out in copies]
        except NumericalError as error:
            raise NumericalError(f"step {self.step}: {error}{self._left()}") from None
        return torch.stack([v.mean() for v in values])

    def _require_finite(self, value: Tensor, leaves: list[Tensor], draw: Draw) -> None:
        cause = ""
        if not bool(torch.isfinite(value)):
            cause = f"the loss is {float(value)}"
        elif draw.penalty is not None and not bool(torch.isfinite(draw.penalty)):
            cause = f"the sparsity penalty is {float(draw.penalty.detach())}"
        else:
            names = [*self.parameters, *["learned constants"] * len(self.constants)]
            for name, leaf in zip(names, leaves, strict=True):
                assert leaf.grad is not None
                wrong = int((~torch.isfinite(leaf.grad)).sum())
                if wrong:
                    cause = f"{wrong} of {leaf.numel()} gradients of {name} are NaN or infinite"
                    break
        if cause:
            raise NumericalError(f"step {self.step}: {cause}{self._left()}")

    def _left(self) -> str:
        if self.folder is None or not self.saved:
            return ""
        return f"; the checkpoint of step {self.saved} is kept in {self.folder.folder}"

    # ---------------------------------------------------------------- judging

    def _first_batches(self, count: int) -> Iterator[tuple[Batch, Reference]]:
        """This process's parts of the first ``count`` batches of the examples."""
        for index in range(min(count, self.minibatches.num_batches)):
            part = self.minibatches.part(index)
            if part is not None:
                yield part

    @torch.no_grad()
    def mask_loss(self, mask: EdgeMask, batches: int = 8) -> float:
        """The loss of a mask as it is, over the first ``batches`` batches of the examples."""
        total, count = torch.zeros((), dtype=torch.float64), 0
        for batch, reference in self._first_batches(batches):
            outputs = self.model.run(batch, mask, reference)
            total += self.loss(outputs, batch, reference.full).double().sum().cpu()
            count += batch.size
        mean = total / max(count, 1)
        return float(self.minibatches.workers.mean_(mean, count))

    def gradient(self, mask: EdgeMask, batches: int = 8) -> Tensor:
        """``[E]`` on the CPU: the loss's gradient at a mask, over the same examples."""
        total, count = torch.zeros(mask.graph.num_edges), 0
        for batch, reference in self._first_batches(batches):
            at = mask.values.clone().to(reference.full.device).requires_grad_(True)
            outputs = self.model.run(batch, at, reference)
            value = self.loss(outputs, batch, reference.full).sum()
            total += torch.autograd.grad(value, at)[0].float().cpu()
            count += batch.size
        return self.minibatches.workers.mean_(total / max(count, 1), count)

    def offer(self, mask: EdgeMask) -> float:
        """The loss of a mask, which is kept if it is the best so far."""
        loss = self.mask_loss(mask)
        if self.best is None or loss < self.best[0]:
            self.best = (loss, mask.values.clone())
            self.made_at = self.step
        return loss

    def say_stopped(self) -> dict[str, Any]:
        """Warns of a run that Ctrl-C ended, once, and gives the notes that its result carries."""
        if not self.stopped:
            return {}
        if self.made_at is None:
            what = "all edges, since none was dropped yet"
        elif self.made_at == self.step:
            what = f"the mask of the gates at step {self.step}, which were still moving"
        else:
            what = f"the mask of step {self.made_at}, the best of those judged"
        if self.folder is None:
            after = "with a run directory (run_dir=, --run-dir) a stopped run can go on"
        else:
            after = f"the same run goes on from {self.folder.folder}"
        log.warning("%s: the circuit is no finished result, but %s; %s", self.stopped, what, after)
        return {"stopped": self.stopped, "circuit_is": what}
