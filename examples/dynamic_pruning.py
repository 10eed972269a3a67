"""Pruning while an asynchronous network learns AND, OR and XOR: the published rule, and ours.

The networks, the local learning rule and the rule that cuts edges are those of arXiv 2502.17522:
two inputs, five hidden nodes and an output, all joined (42 edges), which learn from 2,000 samples
in random order with ten sweeps each. Every way of pruning gets the same ten networks and the same
samples. Ours leave 37 edges, as the published rule with summed weights does, by other criteria.

Three tables come out. ``results.csv``: edges left and errors with 95 % intervals over runs, and the
difference to the same network without pruning. ``errors.csv``: the error of the unpruned networks
as six readers of the paper may count it, beside the published one. ``training.csv``, and the figure
``training.png``: edges, rotation, time and error of XOR (the last gate) as training goes.

    python examples/dynamic_pruning.py --out dynamic-pruning    # about half an hour
    python examples/dynamic_pruning.py --out dynamic-pruning --quick
"""

import argparse
import time
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student_t

import graphprune as gp
from graphprune.adapters import ARGNN
from graphprune.adapters.gnn import DeltaRule
from graphprune.spectral.plotting import plot_training

GATES = {"AND": lambda a, b: a & b, "OR": lambda a, b: a | b, "XOR": lambda a, b: a ^ b}
# Errors as published, for five hidden nodes: without pruning, with counts, with weights; and edges
# that were removed, of 42.
PUBLISHED = {
    "AND": ((0.0118, 0.0039, 0.0037), (3.9, 4.9)),
    "OR": ((0.0007, 0.0008, 0.0008), (3.0, 4.7)),
    "XOR": ((0.0324, 0.0312, 0.0310), (3.6, 4.9)),
}
HIDDEN, SAMPLES, SWEEPS = 5, 2000, 10
UPDATES = SWEEPS * (HIDDEN + 1)  # of nodes, for each sample
LEFT = 37  # edges that ours leave: what the published rule with weights leaves
OURS = ("local", "damp", "preserve", "magnitude", "gradient", "random")


def make_network(seed: int) -> ARGNN:
    """Weights uniform between -1 and 1; no edge into an input, none from a node to itself."""
    nodes = 3 + HIDDEN
    pairs = [(u, v) for v in range(2, nodes) for u in range(nodes) if u != v]
    drawn = np.random.default_rng(seed).uniform(-1, 1, len(pairs))
    return ARGNN(
        torch.tensor(pairs).T, nodes, inputs=[0, 1], outputs=[nodes - 1], activation="sigmoid",
        update="sequential", weight=torch.tensor(drawn).float(),
    )  # fmt: skip


def make_pruning(how: str, samples: int, seed: int) -> gp.DynamicPruning:
    """The published rule by its two Laplacians, no pruning, or one of our criteria.

    Ours cut between a tenth and a half of the training, so that what is left can learn on.
    """
    if how.startswith("paper"):
        laplacian = "count" if how == "paper, counts" else "both"
        return gp.DynamicPruning("damp", variant="paper", laplacian=laplacian, every="update")
    updates = samples * UPDATES
    method, size = ("magnitude", 1.0) if how == "none" else (how, LEFT)
    times = {"begin": updates // 10, "end": updates // 2, "interval": updates // 40}
    return gp.DynamicPruning(
        method, size, "linear", every="update", laplacian="both", seed=seed, **times
    )


def errors_at_rest(rule: DeltaRule, gate, rounds: int = 4) -> np.ndarray:
    """``[4 * rounds]``: errors of each of the four inputs in turn; nothing is learned.

    States go on from what they are, as in training.
    """
    twin = DeltaRule(rule.network, rate=0.0, sweeps=SWEEPS)
    twin.weight[:], twin.keep[:], twin.state[:] = rule.weight, rule.keep, rule.state
    inputs = [(0, 0), (0, 1), (1, 0), (1, 1)] * rounds
    return np.array([twin.learn([a, b], [gate(a, b)]) for a, b in inputs])


def one_run(name: str, how: str, seed: int, samples: int, points: int | None = None):
    """Figures of one network, and the record of its training where ``points`` are asked for."""
    gate, network = GATES[name], make_network(seed)
    rule = DeltaRule(network, seed=seed, sweeps=SWEEPS)
    pruning = make_pruning(how, samples, seed)
    record, every = None, None
    if points is not None:
        record = lambda: {"error": float(errors_at_rest(rule, gate, 2).mean())}  # noqa: E731
        every = samples * UPDATES // points
    inputs = np.random.default_rng(1000 + seed).integers(0, 2, (samples, 2)).tolist()
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the published rule has a defect
        with pruning.on(rule, record=record, record_every=every):
            seen = np.array([rule.learn([a, b], [gate(a, b)]) for a, b in inputs])
    seconds = time.perf_counter() - started
    tested, last = errors_at_rest(rule, gate), seen[-samples // 20 :]
    row = {
        "gate": name, "method": how, "seed": seed, "edges": pruning.mask.num_kept,
        "error": tested.mean(), "seconds": seconds,
        "tested, absolute": tested.mean(), "tested, squared": (tested**2).mean(),
        "last 5 %, absolute": last.mean(), "last 5 %, squared": (last**2).mean(),
        "all samples, absolute": seen.mean(), "all samples, squared": (seen**2).mean(),
    }  # fmt: skip
    return row, None if points is None else pruning.to_frame().assign(seed=seed)


def interval(values) -> str:
    """The mean and its 95 % interval by Student's t."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return f"{values.mean():.4f}"
    half = student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.4f} ± {half:.4f}"


def compared(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each gate and method."""
    rows = []
    for (name, how), group in runs.groupby(["gate", "method"], sort=False):
        bare = runs[(runs.gate == name) & (runs.method == "none")].set_index("seed")["error"]
        change = group.set_index("seed")["error"] - bare
        place = ("none", "paper, counts", "paper, weights")
        published = PUBLISHED[name][0][place.index(how)] if how in place else float("nan")
        row = {"gate": name, "method": how, "edges": group["edges"].mean()}
        row |= {"error": interval(group["error"]), "error minus none": interval(change)}
        rows.append(row | {"published error": published, "seconds": group["seconds"].mean()})
    return pd.DataFrame(rows)


def counted(runs: pd.DataFrame) -> pd.DataFrame:
    """The unpruned networks' error, counted in six ways, beside the published one."""
    ways = [c for c in runs.columns if ", absolute" in c or ", squared" in c]
    rows = []
    for name, group in runs[runs.method == "none"].groupby("gate", sort=False):
        rows.append({"gate": name, "published": PUBLISHED[name][0][0]})
        rows[-1] |= {way: interval(group[way]) for way in ways}
    return pd.DataFrame(rows)


def main() -> None:
    """Runs the whole."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--gates", nargs="+", default=list(GATES), choices=list(GATES))
    parser.add_argument("--quick", action="store_true", help="two runs of 100 samples")
    options = parser.parse_args()
    runs, samples, points = (2, 100, 5) if options.quick else (options.runs, SAMPLES, 20)
    options.out.mkdir(parents=True, exist_ok=True)
    methods = ("none", "paper, counts", "paper, weights", *OURS)
    rows, frames = [], {}
    with gp.quiet():
        for seed in range(runs):
            for name, how in product(options.gates, methods):
                recorded = points if name == options.gates[-1] else None
                row, frame = one_run(name, how, seed, samples, recorded)
                rows.append(row)
                if frame is not None:
                    frames.setdefault(how, []).append(frame)
            pd.DataFrame(rows).to_csv(options.out / "runs.csv", index=False)
            print(f"run {seed + 1} of {runs} is done", flush=True)
    table = pd.DataFrame(rows)
    results, errors = compared(table), counted(table)
    results.to_csv(options.out / "results.csv", index=False)
    errors.to_csv(options.out / "errors.csv", index=False)
    along = {how: pd.concat(some) for how, some in frames.items()}
    pd.concat([frame.assign(method=how) for how, frame in along.items()]).to_csv(
        options.out / "training.csv", index=False
    )
    shown = ("none", "paper, weights", "damp", "preserve", "magnitude", "random")
    plot_training({how: along[how] for how in shown}, options.out / "training.png")
    print(results.to_string(index=False), errors.to_string(index=False), sep="\n\n")


if __name__ == "__main__":
    main()
