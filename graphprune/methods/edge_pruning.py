"""Edge pruning: a circuit by minimising a loss over gates under a budget of edges.

The variants that begin with "paper" are the published method (Bhaskar et al., NeurIPS 2024, arXiv
2406.16778): hard concrete gates, one draw a step shared by the batch, a Lagrangian that pulls the
sampled sparsity along a linear ramp, and AdamW whose default weight decay acts on the gates' log
alpha (at its learning rate that decay, not the loss, is what closes gates that nothing holds open).
Senders have gates too, and gradients are cut to a norm of 1.

The default variant meets its budget by construction: gates are sigmoids shifted so that they sum to
the number of edges allowed, which falls geometrically to the budget while they sharpen. No
multiplier has to find the sparsity. A local search ends the run.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from graphprune.capabilities import CompiledCircuits
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import budget
from graphprune.core.model import MaskedModel
from graphprune.errors import InputError
from graphprune.search.gates import budgeted_sigmoid, hard_concrete, noise, of_senders
from graphprune.search.loop import Draw, Moment, Parameters
from graphprune.search.schedule import Shape, learning_rate, ramp
from graphprune.search.warm_start import StartingScores
from graphprune.util.checks import at_least, at_least_0, require_one_of

from .optimiser import GateKind, MaskOptimiser

__all__ = ["EdgePruning"]

_NODE_LOSSES = ("off", "idle", "on")
_MANY_EDGES = 100_000

# What all released runs share.
_RELEASED: dict[str, Any] = {
    "loss": "kl",
    "weight_decay": 0.01,
    "node_gates": True,
    "clip": 1.0,
    "refine": 0,
}
_GPT2 = _RELEASED | {
    "steps": 3000,
    "batch_size": 32,
    "lr": 0.8,
    "lr_lambda": 0.8,
    "node_loss": "idle",
}


@dataclass(frozen=True, kw_only=True)
class EdgePruning(MaskOptimiser):
    """Edge pruning (arXiv 2406.16778), in our best form or as published.

    Args:
        variant: ``"default"``, or the released settings of one of the paper's tasks, see below.
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
        warmup: steps of learning-rate warm-up (int) or a share of all steps (float); ``None``: a
            twentieth of the steps, as published 200 (a fifteenth, if that is less).
        ramp: steps (int) or a share of all steps (float) over which the paper's target rises to
            where it stays; ``None``: five sixths, as published 2,500 of 3,000.
        weight_decay: the paper's decay on log alpha and the multipliers.
        target: the sparsity the paper's Lagrangian aims at; ``None``: the one asked for. (The
            published runs aim higher than what they get.)
        node_gates: ``None``: with the paper variant yes, else no.
        node_loss: the paper's Lagrangian of a sparsity of senders, whose gates the loss and the
            decay train in any case. ``"on"``: it is minimised. ``"idle"``: its multipliers stay at
            0, so that it moves nothing, but their gradients count in the norm that ``clip`` cuts.
            ``"off"``: it is left out. ``None``: idle.
        node_target: the sparsity of senders that it measures; ``None``: .72.
        clip: gradients of all gates, multipliers and learned constants together are cut to this
            norm; ``None``: none, or 1 as released; ``float("inf")``: none.
        refine: rounds of local search from the final circuit, each a gradient and a few sparse runs
            of up to eight batches; ``None``: 8, none as published, and 2 on more than 100,000 edges
            where each run is one of the whole model (graph networks).
        path: further sizes (counts or shares): a whole trade-off curve from one run of the default
            variant, in ``fit(...).circuits``. Of each size it is, by the loss, the best of the
            circuit that the falling budget passed, the final one with further edges, and the warm
            start's.

    Variants of the release (github.com/princeton-nlp/Edge-Pruning at a918efd). All have ``loss``
    "kl" and ``node_gates`` True (src/prune), ``clip`` 1.0 and no ``refine`` (0) (the Trainer of
    Hugging Face), ``weight_decay`` 0.01 (torch's AdamW), and the ``steps``, ``batch_size``, ``lr``,
    ``lr_lambda``, ``warmup``, ``ramp`` and targets of the task's file in run_scripts:

    - ``"paper"``, indirect object identification (ioi_sweep.sh): 3000 steps of 32 examples, lr 0.8
      and lr_lambda 0.8, warmup 200 and ramp 2,500 by the rules above, node_loss "idle",
      node_target 0.72; the target is swept from .94 to 1.1.
    - ``"paper-greater-than"`` (gt_sweep.sh): the same, node_target 0.68.
    - ``"paper-gendered-pronoun"`` (gp_sweep.sh): the same, node_target 0.69.
    - ``"paper-tracr-reverse"`` (tracr_reverse.sh): 6000 steps of 16, lr 0.03, lr_lambda 0.001,
      warmup 1,500, ramp 5,900, target 1.02, node_loss "off", ablation "zero".
    - ``"paper-tracr-xproportion"`` (tracr_xproportion.sh): 720 steps of 16, lr 1.0, lr_lambda
      0.0001, warmup 96, ramp 640, target 0.92, node_loss "on", node_target 0.4, ablation "zero".
    - ``"paper-boolean-expressions"``, CodeLlama-13B (launch_fllama_fs_prune.sh): 6000 steps of 32
      (one on each of 32 GPUs), lr 0.8, lr_lambda 0.4, warmup 200, ramp 5,500, target 1.2,
      node_loss "off".

    Example:
        >>> EdgePruning(size=8, steps=20, warm_start=scores).prune(model, task)
        EdgeMask(8 of 24 edges, 33.3333%)
    """

    variants: ClassVar = {
        "paper": _GPT2 | {"node_target": 0.72},
        "paper-greater-than": _GPT2 | {"node_target": 0.68},
        "paper-gendered-pronoun": _GPT2 | {"node_target": 0.69},
        "paper-tracr-reverse": _RELEASED
        | {"steps": 6000, "batch_size": 16, "lr": 0.03, "lr_lambda": 0.001}
        | {"warmup": 1500 / 6000, "ramp": 5900 / 6000, "target": 1.02}
        | {"node_loss": "off", "ablation": "zero"},
        "paper-tracr-xproportion": _RELEASED
        | {"steps": 720, "batch_size": 16, "lr": 1.0, "lr_lambda": 0.0001}
        | {"warmup": 96 / 720, "ramp": 640 / 720, "target": 0.92}
        | {"node_loss": "on", "node_target": 0.4, "ablation": "zero"},
        "paper-boolean-expressions": _RELEASED
        | {"steps": 6000, "batch_size": 32, "lr": 0.8, "lr_lambda": 0.4}
        | {"warmup": 200 / 6000, "ramp": 5500 / 6000, "target": 1.2, "node_loss": "off"},
    }
    lr: float | None = None
    temperature: tuple[float, float] = (0.5, 0.05)
    gates: Literal["soft", "hard"] | None = None
    samples: int = 16
    start: float | None = None
    hold: float = 0.2
    shape: Shape | None = None
    lr_lambda: float | None = None
    warmup: int | float | None = None
    ramp: int | float | None = None
    weight_decay: float = 0.01
    target: float | None = None
    node_loss: Literal["off", "idle", "on"] | None = None
    node_target: float | None = None
    clip: float | None = None
    refine: int | None = None
    path: tuple[int | float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_ranges()
        self._require_read()
        if self._paper and self.is_minimal:
            raise InputError(
                f"variant={self.variant!r} aims at a size; 'minimal' needs the default one"
            )
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
        for name in ("lr", "lr_lambda", "weight_decay", "refine", "warmup", "ramp"):
            at_least_0(getattr(self, name), name)
        for name in ("warmup", "ramp"):
            value = getattr(self, name)
            if isinstance(value, float) and value > 1:
                raise InputError(
                    f"{name} is a number of steps (int) or a share of them in [0, 1], got {value}"
                )
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip must be a positive norm, got {self.clip!r}")
        require_one_of(self.shape, (None, "geometric", "linear", "cosine"), "shape")
        require_one_of(self.node_loss, (None, *_NODE_LOSSES), "node_loss")

    def _require_read(self) -> None:
        """Raises where a setting is given that the variant does not read."""
        budgeted = ("temperature", "gates", "samples", "start", "hold", "shape")
        published = ("lr_lambda", "weight_decay", "target", "ramp", "node_loss", "node_target")
        unread = budgeted if self._paper else published
        defaults = {f.name: f.default for f in fields(self)}
        given = [name for name in unread if getattr(self, name) != defaults[name]]
        if given:
            raise InputError(
                f"variant={self.variant!r} does not read {', '.join(given)}; they belong to the "
                "other variant"
            )

    @property
    def _paper(self) -> bool:
        return self.variant != "default"

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
    def _start_share(self) -> float:
        if self.start is not None:
            return self.start
        warm = None if self._paper else self.start_density
        return (0.98 if self._hard else 0.9) if warm is None else warm

    @property
    def _rate(self) -> float:
        return 0.1 if self.lr is None else self.lr

    # ---------------------------------------------------------------- recipe

    def cold_gates(self, count: int, generator: torch.Generator) -> Tensor:
        """Around 10 as published, around 0 else."""
        middle = 10.0 if self._paper else 0.0
        return middle + 0.01 * torch.randn(count, generator=generator)

    def parameters(self, graph: ComputationalGraph, start: StartingScores | None) -> Parameters:
        """Gates of edges (and senders), and the paper's multipliers of either sparsity."""
        gates = super().parameters(graph, start)
        if self._paper:
            gates["multipliers"] = torch.zeros(2)
            if "nodes" in gates and self.node_loss != "off":
                gates["node_multipliers" if self.node_loss == "on" else "idle"] = torch.zeros(2)
        return gates

    def optimiser(self, parameters: Parameters, constants: list[Tensor]) -> torch.optim.Optimizer:
        """AdamW with ascent on the multipliers, as published; Adam."""
        rate = self._rate
        gates = [p for name, p in parameters.items() if name in ("edges", "nodes")]
        groups = self.groups(gates, constants)
        if not self._paper:
            return torch.optim.Adam(groups, lr=rate)
        up = rate if self.lr_lambda is None else self.lr_lambda
        for name in ("multipliers", "node_multipliers"):
            if name in parameters:
                groups.append({"params": [parameters[name]], "lr": up, "maximize": True})
        return torch.optim.AdamW(groups, lr=rate, weight_decay=self.weight_decay)

    def rate(self, moment: Moment) -> float:
        """Linear warm-up, linear decay to 0."""
        steps = moment.steps
        usual = max(1, min(200, steps // 15)) if self._paper else max(1, steps // 20)
        return learning_rate(moment.step, steps, _of_steps(self.warmup, steps, usual))

    def draw(self, parameters: Parameters, graph: ComputationalGraph, moment: Moment) -> Draw:
        """One mask for the whole batch."""
        draw = self._published if self._paper else self._budgeted
        return draw(parameters, graph, moment)

    def _published(self, parameters: Parameters, graph: ComputationalGraph, moment: Moment) -> Draw:
        edges, nodes = parameters["edges"], parameters.get("nodes")
        on_nodes = 0 if nodes is None else len(nodes)
        u = noise((len(edges) + on_nodes,), self.chosen_seed, moment.step, edges.device)
        z = hard_concrete(edges, u[: len(edges)])
        z_nodes = None if nodes is None else hard_concrete(nodes, u[len(edges) :])
        goal = self._goal(graph)
        over = _of_steps(self.ramp, moment.steps, max(1, moment.steps * 5 // 6))
        warm = self.start_density
        first_sparsity = 0.0 if warm is None else min(1.0 - warm, goal)
        gap = 1.0 - z.mean() - ramp(moment.step, first_sparsity, goal, over)
        penalty = _lagrangian(parameters["multipliers"], gap)
        of_nodes = parameters.get("idle", parameters.get("node_multipliers"))
        if z_nodes is not None and of_nodes is not None:
            node_goal = 0.72 if self.node_target is None else self.node_target
            open_share = z_nodes[graph.edge_index[0].unique().to(z_nodes.device)].mean()
            node_gap = 1.0 - open_share - ramp(moment.step, 0.0, node_goal, over)
            penalty = penalty + _lagrangian(of_nodes, node_gap)
        first, second = parameters["multipliers"].detach().tolist()
        return Draw(
            z if z_nodes is None else z * of_senders(z_nodes, graph),
            density=float(z.detach().mean()),
            penalty=penalty,
            clip=self.clip,
            shown={"lambda1": first, "lambda2": second},
        )

    def _goal(self, graph: ComputationalGraph) -> float:
        if self.target is not None:
            return self.target
        return 1.0 - (self.count(graph) or 0) / graph.num_edges

    def _budgeted(self, parameters: Parameters, graph: ComputationalGraph, moment: Moment) -> Draw:
        count = self.allowed(graph, moment)
        hot, cold = self.temperature
        temperature = ramp(moment.step, hot, cold, moment.steps, "geometric")
        z, _ = budgeted_sigmoid(self.values(parameters, graph), count, temperature)
        if self._hard:
            return self._drawn(z, count / graph.num_edges, temperature, moment)
        shown = {"temperature": temperature}
        return Draw(z, density=count / graph.num_edges, clip=self.clip, shown=shown)

    def _drawn(self, z: Tensor, density: float, temperature: float, moment: Moment) -> Draw:
        chance = z.clamp(1e-4, 1 - 1e-4)
        u = noise((self.samples, len(chance)), self.chosen_seed, moment.step, chance.device)
        mask = (u < chance.detach()).float()
        log_chance = (mask * chance.log() + (1 - mask) * (1 - chance).log()).sum(-1)
        shown = {"temperature": temperature}
        return Draw(mask, density, log_chance=log_chance, clip=self.clip, shown=shown)

    def allowed(self, graph: ComputationalGraph, moment: Moment) -> float:
        """How many edges the default variant's gates sum to."""
        last = self.count(graph) or 1
        first = max(self._start_share * graph.num_edges, float(last))
        over = int(moment.steps * (1.0 - self.hold))
        shape = self.shape or ("linear" if self._hard else "geometric")
        found = ramp(moment.step, first, float(last), over, shape)
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

    def rounds(self, model: MaskedModel) -> int:
        """Eight unless said otherwise; none as published.

        Two on more than 100,000 edges where each trial is a pass of the whole model.
        """
        if self.refine is not None:
            return self.refine
        cheap = model.graph.num_edges <= _MANY_EDGES or isinstance(model, CompiledCircuits)
        return 8 if cheap else 2

    def points(self) -> list[int]:
        """The default variant also judges masks on the way once the budget is reached."""
        if self._paper:
            return [self.steps]
        held = int(self.steps * self.hold)
        return sorted({self.steps - held * k // 4 for k in range(4)} - {0})


def _of_steps(given: int | float | None, steps: int, usual: int) -> int:
    """A number of steps from a number or a share of all of them, or the usual one."""
    if given is None:
        return usual
    return given if isinstance(given, int) else round(given * steps)


def _lagrangian(multipliers: Tensor, gap: Tensor) -> Tensor:
    """The multipliers ``[2]`` times the gap and its square."""
    return multipliers[0] * gap + multipliers[1] * gap.square()
