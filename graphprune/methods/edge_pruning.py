"""Edge pruning: a circuit by minimising a loss over gates under a budget of edges.

``variant="paper"`` is the published method (Bhaskar et al., NeurIPS 2024, arXiv 2406.16778): hard
concrete gates, one draw a step shared by the batch, a Lagrangian that pulls the sampled sparsity
along a linear ramp, and AdamW whose default weight decay acts on the gates' log alpha (at its
learning rate that decay, not the loss, is what closes gates that nothing holds open). As in the
released trainer, senders have gates too, trained by the loss and the decay alone, and gradients are
cut to a norm of 1, in which the idle multipliers of a sparsity of nodes count.

The default variant meets its budget by construction: gates are sigmoids shifted so that they sum to
the number of edges allowed, which falls geometrically to the budget while they sharpen. No
multiplier has to find the sparsity. A local search ends the run.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import budget
from graphprune.errors import InputError
from graphprune.search.gates import budgeted_sigmoid, hard_concrete, noise, of_senders
from graphprune.search.loop import Draw, Moment, Parameters
from graphprune.search.schedule import Shape, learning_rate, ramp
from graphprune.search.warm_start import StartingScores
from graphprune.util.checks import at_least, at_least_0, require_one_of

from .optimiser import GateKind, MaskOptimiser

__all__ = ["EdgePruning"]


@dataclass(frozen=True, kw_only=True)
class EdgePruning(MaskOptimiser):
    """Edge pruning (arXiv 2406.16778), in our best form or as published.

    Args:
        variant: ``"default"`` or ``"paper"``.
        lr: learning rate of the gates; ``None``: 0.1, or 0.8 as published.
        temperature: the default variant's sigmoids sharpen from the first to the second of these.
        gates: ``"soft"``: the default variant's sigmoids are the mask. ``"hard"``: they are keep
            chances of ``samples`` random 0/1 masks a step, and the gradient is the score
            function's with a leave-one-out baseline: for models in which nothing changes until a
            message is gone altogether, such as compiled programs. ``None``: hard for
            ``size="minimal"``, else soft.
        start: the share of edges that are open at the first step of the default variant; ``None``:
            a warm start's density, else .9, for hard gates .98.
        shape: how the default variant's budget falls: ``"geometric"`` (``None`` for soft gates),
            ``"linear"`` (for hard ones) or ``"cosine"``.
        hold: the share of steps spent at the final budget.
        lr_lambda: the paper's learning rate of the two multipliers.
        warmup: steps of learning-rate warm-up; ``None``: a twentieth of the steps, as published 200
            (a fifteenth, if that is less).
        weight_decay: the paper's decay on log alpha and the multipliers.
        target: the sparsity the paper's Lagrangian aims at; ``None``: the one asked for. (The
            published runs aim higher than what they get.)
        node_gates: ``None``: with the paper variant yes, else no.
        node_target: the sparsity of senders that the paper's idle multipliers measure: they move
            nothing but the norm that ``clip`` cuts. ``None``: .72, as released for IOI.
        clip: gradients of all gates, multipliers and learned constants together are cut to this
            norm; ``None``: 1 as released, none with the default variant; ``float("inf")``: none.
        refine: rounds of local search from the final circuit, each a gradient and a few sparse runs
            of up to eight batches; ``None``: 8, none as published.
        path: further sizes (counts or shares) whose circuits the default variant keeps as its
            budget passes them: a whole trade-off curve from one run, in ``fit(...).circuits``.

    Example:
        >>> EdgePruning(size=8, steps=20, warm_start=scores).prune(model, task)
        EdgeMask(8 of 24 edges, 33.3333%)
    """

    variant: Literal["default", "paper"] = "default"
    lr: float | None = None
    temperature: tuple[float, float] = (0.5, 0.05)
    gates: Literal["soft", "hard"] | None = None
    samples: int = 16
    start: float | None = None
    hold: float = 0.2
    shape: Shape | None = None
    lr_lambda: float | None = None
    warmup: int | None = None
    weight_decay: float = 0.01
    target: float | None = None
    node_target: float | None = None
    clip: float | None = None
    refine: int | None = None
    path: tuple[int | float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_ranges()
        self._require_read()
        require_one_of(self.variant, ("default", "paper"), "variant")
        if self._paper and self.is_minimal:
            raise InputError("variant='paper' aims at a size; 'minimal' needs the default one")
        if not 0.0 < self._start_share < 1.0 or not 0.0 <= self.hold < 1.0:
            raise InputError(
                f"start and hold are shares in (0, 1), got {self.start} and {self.hold}"
            )
        require_one_of(self.gates, (None, "soft", "hard"), "gates")
        at_least(self.samples, 2, "samples")
        if self.path and self._paper:
            raise InputError("path= follows the default variant's budget; the paper's has none")
        if self.is_minimal and (self.path or self.refine is not None):
            raise InputError("size='minimal' reads neither path nor refine: a polish ends it")
        if min(self.temperature) <= 0:
            raise InputError(f"temperatures must be positive, got {self.temperature}")

    def _require_ranges(self) -> None:
        for name in ("lr", "lr_lambda", "weight_decay", "refine", "warmup"):
            at_least_0(getattr(self, name), name)
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip must be a positive norm, got {self.clip!r}")
        require_one_of(self.shape, (None, "geometric", "linear", "cosine"), "shape")

    def _require_read(self) -> None:
        """Raises where a setting is given that the variant does not read."""
        mine = ("temperature", "gates", "samples", "start", "hold", "shape")
        theirs = ("lr_lambda", "weight_decay", "target", "node_target")
        unread = mine if self.variant == "paper" else theirs
        defaults = {f.name: f.default for f in fields(self)}
        given = [name for name in unread if getattr(self, name) != defaults[name]]
        if given:
            raise InputError(
                f"variant={self.variant!r} does not read {', '.join(given)}; they belong to the "
                "other variant"
            )

    @property
    def _paper(self) -> bool:
        return self.variant == "paper"

    @property
    def gate_kind(self) -> GateKind:
        """As published hard concrete, else under a budget."""
        return "hard concrete" if self._paper else "budget"

    @property
    def _hard(self) -> bool:
        if self.gates is None:
            return self.is_minimal
        return self.gates == "hard"

    @property
    def gates_on_nodes(self) -> bool:
        """Whether senders have gates too: unless said otherwise, with the paper variant alone."""
        return self._paper if self.node_gates is None else self.node_gates

    @property
    def _clip(self) -> float | None:
        if self.clip is not None:
            return self.clip
        return 1.0 if self._paper else None

    @property
    def _start_share(self) -> float:
        if self.start is not None:
            return self.start
        warm = None if self._paper else self.start_density
        return (0.98 if self._hard else 0.9) if warm is None else warm

    @property
    def _rate(self) -> float:
        return (0.8 if self._paper else 0.1) if self.lr is None else self.lr

    # ---------------------------------------------------------------- recipe

    def cold_gates(self, count: int, generator: torch.Generator) -> Tensor:
        """Around 10 as published, around 0 else."""
        middle = 10.0 if self._paper else 0.0
        return middle + 0.01 * torch.randn(count, generator=generator)

    def parameters(self, graph: ComputationalGraph, start: StartingScores | None) -> Parameters:
        """Gates of edges (and senders), and the paper's multipliers (the senders' stay at 0)."""
        gates = super().parameters(graph, start)
        if self._paper:
            gates["multipliers"] = torch.zeros(2)
            if "nodes" in gates:
                gates["idle"] = torch.zeros(2)
        return gates

    def optimiser(self, parameters: Parameters, constants: list[Tensor]) -> torch.optim.Optimizer:
        """AdamW with ascent on the multipliers, as published; Adam."""
        rate = self._rate
        gates = [p for name, p in parameters.items() if name in ("edges", "nodes")]
        groups = self.groups(gates, constants)
        if not self._paper:
            return torch.optim.Adam(groups, lr=rate)
        up = rate if self.lr_lambda is None else self.lr_lambda
        groups.append({"params": [parameters["multipliers"]], "lr": up, "maximize": True})
        return torch.optim.AdamW(groups, lr=rate, weight_decay=self.weight_decay)

    def rate(self, moment: Moment) -> float:
        """Linear warm-up, linear decay to 0."""
        steps = moment.steps
        usual = max(1, min(200, steps // 15)) if self._paper else max(1, steps // 20)
        return learning_rate(moment.step, steps, usual if self.warmup is None else self.warmup)

    def draw(self, parameters: Parameters, graph: ComputationalGraph, at: Moment) -> Draw:
        """One mask for the whole batch."""
        draw = self._published if self._paper else self._budgeted
        return draw(parameters, graph, at)

    def _published(self, p: Parameters, graph: ComputationalGraph, at: Moment) -> Draw:
        edges, nodes = p["edges"], p.get("nodes")
        extra = 0 if nodes is None else len(nodes)
        u = noise((len(edges) + extra,), self.chosen_seed, at.step, edges.device)
        z = hard_concrete(edges, u[: len(edges)])
        z_nodes = None if nodes is None else hard_concrete(nodes, u[len(edges) :])
        goal = self._goal(graph)
        over = max(1, at.steps * 5 // 6)
        warm = self.start_density
        first_gap = 0.0 if warm is None else min(1.0 - warm, goal)
        gap = 1.0 - z.mean() - ramp(at.step, first_gap, goal, over)
        first, second = p["multipliers"]
        penalty = first * gap + second * gap.square()
        if z_nodes is not None:
            wanted = 0.72 if self.node_target is None else self.node_target
            open_share = z_nodes[graph.edge_index[0].unique().to(z_nodes.device)].mean()
            node_gap = 1.0 - open_share - ramp(at.step, 0.0, wanted, over)
            penalty = penalty + p["idle"][0] * node_gap + p["idle"][1] * node_gap.square()
        return Draw(
            z if z_nodes is None else z * of_senders(z_nodes, graph),
            density=float(z.detach().mean()),
            penalty=penalty,
            clip=self._clip,
            shown={"lambda1": float(first.detach()), "lambda2": float(second.detach())},
        )

    def _goal(self, graph: ComputationalGraph) -> float:
        if self.target is not None:
            return self.target
        return 1.0 - (self.count(graph) or 0) / graph.num_edges

    def _budgeted(self, p: Parameters, graph: ComputationalGraph, at: Moment) -> Draw:
        count = self.allowed(graph, at)
        hot, cold = self.temperature
        temperature = ramp(at.step, hot, cold, at.steps, "geometric")
        z, _ = budgeted_sigmoid(self.values(p, graph), count, temperature)
        if self._hard:
            return self._drawn(z, count / graph.num_edges, temperature, at)
        shown = {"temperature": temperature}
        return Draw(z, density=count / graph.num_edges, clip=self._clip, shown=shown)

    def _drawn(self, p: Tensor, density: float, temperature: float, at: Moment) -> Draw:
        p = p.clamp(1e-4, 1 - 1e-4)
        u = noise((self.samples, len(p)), self.chosen_seed, at.step, p.device)
        mask = (u < p.detach()).float()
        log_chance = (mask * p.log() + (1 - mask) * (1 - p).log()).sum(-1)
        shown = {"temperature": temperature}
        return Draw(mask, density, log_chance=log_chance, clip=self._clip, shown=shown)

    def allowed(self, graph: ComputationalGraph, at: Moment) -> float:
        """How many edges the default variant's gates sum to."""
        last = self.count(graph) or 1
        first = max(self._start_share * graph.num_edges, float(last))
        over = int(at.steps * (1.0 - self.hold))
        shape = self.shape or ("linear" if self._hard else "geometric")
        found = ramp(at.step, first, float(last), over, shape)
        return min(found, graph.num_edges - 0.5)

    def passed(self, graph: ComputationalGraph, steps: int) -> dict[int, int]:
        """Sizes of ``path`` above the final one, and when the falling budget passes them."""
        last, found = self.count(graph) or 1, {}
        for size in self.path:
            count = budget(size, graph.num_edges)
            after = (
                step
                for step in range(1, steps + 1)
                if self.allowed(graph, Moment(step, steps, 1, (0,))) <= count
            )
            if count > last:
                found[count] = next(after, steps)
        return found

    def rounds(self) -> int:
        """Eight unless said otherwise; none as published."""
        if self.refine is not None:
            return self.refine
        return 0 if self._paper else 8

    def points(self) -> list[int]:
        """The default variant also judges masks on the way once the budget is reached."""
        if self._paper:
            return [self.steps]
        held = int(self.steps * self.hold)
        return sorted({self.steps - held * k // 4 for k in range(4)} - {0})
