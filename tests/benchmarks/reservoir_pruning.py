"""Ways to cut a reservoir's edges to a number, spectral ones and their peers, and a study of them.

    PYTHONPATH=tests python -m benchmarks.reservoir_pruning --wiring celegans --seeds 8 --out DIR
    PYTHONPATH=tests python -m benchmarks.reservoir_pruning --table DIR

The first writes a row for each seed, density, method, scaling and task; the second prints what all
files in a folder say. Every readout is fitted anew, the uncut reservoir's too. ``as cut`` leaves
the weights as they are, ``rescaled`` brings the spectral radius back to .9, as users of reservoirs
do; a reservoir without cycles cannot be rescaled.

Peers: ProxyDelete (Jamadandi, Rubio-Madrigal and Burkholz, NeurIPS 2024, arXiv 2404.04612) and
spectrum-preserving rewiring (GOKU: Liang et al., ICML 2025, arXiv 2506.16110). Both are of
undirected graphs: they see both directions' |w| added, and cut one direction at a time.
"""

import argparse
import itertools
import math
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse.csgraph import connected_components

import graphprune as gp
from benchmarks.reservoirs import Questions, scaled, wiring
from graphprune.spectral.methods.baselines import effective_resistance
from graphprune.util.numbers import bootstrap_interval

DENSITIES = (0.8, 0.5, 0.2)
STEP = "stable step"


# ---------------------------------------------------------------- ways to cut


def largest(scores, count):
    kept = np.zeros(len(scores), dtype=bool)
    kept[np.argsort(-scores, kind="stable")[:count]] = True
    return kept


def spectral(wires, count, laplacian, goal):
    weights = wires.weights if laplacian == "adjacency" else np.abs(wires.weights)
    mask = gp.spectral.prune(
        (wires.index, wires.nodes), weights, laplacian, goal=goal, size=int(count), effort=0
    )
    return mask.kept.numpy()


def undirected(index, weights, nodes):
    conductance = np.zeros((nodes, nodes))
    np.add.at(conductance, tuple(index), np.abs(weights))
    return conductance + conductance.T


def proxy_deletion_gains(index, weights, nodes):
    """``[E]``: the first-order change of the spectral gap of ``I - D^-1/2 W D^-1/2`` by deletions.

    ``-dw ((f_u - f_v)^2 - gap (f_u^2 + f_v^2))``, f the gap's eigenvector of ``L f = gap D f``,
    ``f^T D f = 1``.
    """
    conductance = undirected(index, weights, nodes)
    root = 1 / np.sqrt(np.maximum(conductance.sum(1), 1e-12))
    values, vectors = np.linalg.eigh(np.eye(nodes) - root[:, None] * conductance * root)
    f = root * vectors[:, 1]
    u, v = index
    return -np.abs(weights) * ((f[u] - f[v]) ** 2 - values[1] * (f[u] ** 2 + f[v] ** 2))


def proxy_delete(wires, count, weights, share=0.01):
    """ProxyDelete: the edges that widen the gap most go, as long as the graph stays connected.

    Eigenvectors are of the graph as it is, renewed after each ``share`` of the edges.
    """
    alive = np.ones(len(weights), dtype=bool)
    pieces = connected_components(undirected(wires.index, weights, wires.nodes))[0]
    needed = np.zeros(len(weights), dtype=bool)  # bridges stay bridges
    while (excess := int(alive.sum()) - count) > 0:
        gains = proxy_deletion_gains(wires.index[:, alive], weights[alive], wires.nodes)
        order = np.flatnonzero(alive)[np.argsort(-gains, kind="stable")]
        wanted = min(excess, math.ceil(share * len(weights)))
        for edge in order[~needed[order]]:
            alive[edge] = False
            now = undirected(wires.index[:, alive], weights[alive], wires.nodes)
            if connected_components(now)[0] > pieces:
                alive[edge], needed[edge] = True, True
                continue
            wanted -= 1
            if not wanted:
                break
        else:
            raise ValueError(f"fewer than {count} edges do not connect {wires.nodes} nodes")
    return alive


def rewired(wires, count, seed, added=0.25):
    """GOKU's two stages, ``A [N, N]``: a denser graph, and as many of its edges as are wanted.

    Densification joins nodes of least degree on opposite sides of the Fiedler vector, ``added`` of
    the edges (the paper's theory sets this number); new edges have the mean size, a random
    direction and their sender's prevailing sign. Then edges are drawn by ``|w| R``, with
    replacement, until ``count`` different ones are there, and weigh what keeps the Laplacian's
    mean.
    """
    generator = np.random.default_rng([seed, 4])
    index, weights, nodes = wires.index, wires.weights, wires.nodes
    joined = undirected(index, weights, nodes)
    fiedler = np.linalg.eigh(np.diag(joined.sum(1)) - joined)[1][:, 1]
    degree = np.bincount(index.ravel(), minlength=nodes).astype(float)
    taken = {(int(u), int(v)) for u, v in index.T}
    fresh = []
    while len(fresh) < int(added * len(weights)):
        order = [int(u) for u in np.argsort(degree + 1e-6 * generator.random(nodes))]
        pairs = itertools.chain(
            ((u, v) for u in order for v in order if fiedler[u] * fiedler[v] < 0),
            itertools.permutations(order, 2),  # where the sides are joined already
        )
        u, v = next((u, v) for u, v in pairs if not {(u, v), (v, u)} <= taken)
        pair = (u, v) if (v, u) in taken or generator.random() < 0.5 else (v, u)
        if pair in taken:
            pair = pair[::-1]
        taken.add(pair)
        fresh.append(pair)
        degree[list(pair)] += 1
    senders = np.bincount(index[0], np.sign(weights), nodes)
    sign = np.where(senders == 0, 1.0, np.sign(senders))
    index = np.concatenate([index, np.array(fresh).T], axis=1)
    sizes = np.abs(weights).mean() * sign[index[0, len(weights) :]]
    weights = np.concatenate([weights, sizes])
    dense = gp.spectral.weighted_graph((index, nodes), np.abs(weights))
    chances = np.abs(weights) * effective_resistance(dense)
    chances /= chances.sum()
    times = np.zeros(len(weights))
    while (missing := count - int((times > 0).sum())) > 0:
        np.add.at(times, generator.choice(len(weights), missing, p=chances), 1)
    matrix = np.zeros((nodes, nodes))
    np.add.at(matrix, tuple(index), weights * times / (times.sum() * chances))
    return matrix


def rotation_loss(wires, goal):
    """The goal's loss of a set of edges, by all eigenvalues of the whole matrix."""
    measure = lambda kept: float(np.abs(np.linalg.eigvals(wires.matrix(kept)).imag).sum())  # noqa: E731
    whole = measure(np.ones(len(wires.weights)))
    return measure if goal == "damp" else lambda kept: abs(measure(kept) - whole)


def exact_greedy(wires, counts, goal):
    """Masks by count: the edge whose removal leaves the least loss goes, one at a time."""
    loss = rotation_loss(wires, goal)
    alive, found = np.ones(len(wires.weights), dtype=bool), {}
    while int(alive.sum()) > min(counts):
        losses = {}
        for edge in np.flatnonzero(alive):
            alive[edge] = False
            losses[edge] = loss(alive)
            alive[edge] = True
        alive[min(losses, key=losses.__getitem__)] = False
        if int(alive.sum()) in counts:
            found[int(alive.sum())] = alive.copy()
    return found


def annealed(wires, count, goal, seed, swaps=1000):
    """Swaps of a kept and a cut edge, the temperature falling a thousandfold, from a random set."""
    generator = np.random.default_rng([seed, 5])
    loss = rotation_loss(wires, goal)

    def swapped(alive):
        other = alive.copy()
        other[generator.choice(np.flatnonzero(alive))] = False
        other[generator.choice(np.flatnonzero(~alive))] = True
        return other

    alive = largest(generator.random(len(wires.weights)), count)
    now = least = loss(alive)
    best = alive
    warm = np.median([abs(loss(swapped(alive)) - now) for _ in range(20)])
    for step in range(swaps):
        other = swapped(alive)
        value = loss(other)
        if value <= now - warm * 1e-3 ** (step / swaps) * np.log(generator.random()):
            alive, now = other, value
            if now < least:
                best, least = alive, now
    return best


def cuts(wires, density, seed, wanted=None):
    """Matrices ``A`` with ``int(density E)`` edges, by method."""
    sizes = np.abs(wires.weights)
    count = int(density * len(sizes))
    random = np.random.default_rng([seed, 6]).random(len(sizes))
    given = gp.spectral.weighted_graph((wires.index, wires.nodes), sizes)
    ways = {
        "magnitude": lambda: largest(sizes + 1e-9 * random, count),
        "random": lambda: largest(random, count),
        "resistance": lambda: largest(sizes * effective_resistance(given), count),
        "preserve": lambda: spectral(wires, count, "adjacency", "preserve"),
        "damp": lambda: spectral(wires, count, "adjacency", "damp"),
        "damp (rw)": lambda: spectral(wires, count, "rw", "damp"),
        "gap": lambda: spectral(wires, count, "rw", "gap"),
        "ProxyDelete": lambda: proxy_delete(wires, count, sizes),
        "GOKU": lambda: rewired(wires, count, seed),
    }
    if wires.nodes <= 20:
        for goal in ("preserve", "damp"):
            ways[f"annealing, {goal}"] = lambda goal=goal: annealed(wires, count, goal, seed)
    made = {}
    for name, way in ways.items():
        if wanted is None or name in wanted:
            begun = time.process_time()
            found = way()
            matrix = found if name == "GOKU" else wires.matrix(found)
            assert (matrix != 0).sum() == count, name
            made[name] = matrix, time.process_time() - begun
    return made


def stable_step(matrix):
    """The largest stable step of ``h <- h - eps L h``, L the random walk's by sizes of weights."""
    index = np.nonzero(matrix)
    return gp.spectral.stable_step((np.stack(index), len(matrix)), np.abs(matrix[index]), "rw")


def study(name, seed, densities=DENSITIES, wanted=None):
    """Rows of one seed."""
    warnings.filterwarnings("ignore")
    wires, questions = wiring(name, seed), Questions(seed)
    rows = []

    def add(density, method, matrix, seconds=0.0):
        row = {"wiring": name, "seed": seed, "density": density, "method": method}
        row["cut seconds"] = seconds
        judged = {"as cut": matrix}
        if method != "dense":
            judged["rescaled"] = scaled(matrix)
        for scaling, one in judged.items():
            scores = {} if method == "damp (rw)" else questions.judge(one)
            if scaling == "as cut":
                scores[STEP] = stable_step(one)
            for task, score in scores.items():
                rows.append({**row, "scaling": scaling, "task": task, "score": score})

    add(1.0, "dense", wires.matrix())
    for density in densities:
        for method, (matrix, seconds) in cuts(wires, density, seed, wanted).items():
            add(density, method, matrix, seconds)
    if wires.nodes <= 20 and wanted is None:
        edges = len(wires.weights)
        for goal in ("preserve", "damp"):
            begun = time.process_time()
            found = exact_greedy(wires, {int(d * edges) for d in densities}, goal)
            for density in densities:
                matrix = wires.matrix(found[int(density * edges)])
                add(density, f"greedy, {goal}", matrix, time.process_time() - begun)
    return rows


# ---------------------------------------------------------------- what it says


def paired(frame, method, other="magnitude", by=("wiring", "density", "scaling", "task")):
    """Mean difference to another method over graphs, 95 % interval, least difference to be seen.

    The last would be found four times in five at a two-sided level of 5 %. Without ``wiring`` among
    ``by`` the graphs of all wirings are taken together.
    """
    rows = []
    for key, group in frame.groupby(list(by), sort=False):
        wide = group.pivot(index=["wiring", "seed"], columns="method", values="score")
        if not {method, other} <= set(wide):
            continue
        wide = wide.dropna(subset=[method, other])
        gap = (wide[method] - wide[other]).to_numpy()
        if len(gap) < 2:
            continue
        low, high = bootstrap_interval(torch.tensor(gap))
        rows.append(
            dict(zip(by, key, strict=True))
            | {"method": method, "graphs": len(gap), "mean": wide[method].mean()}
            | {other: wide[other].mean(), "gap": gap.mean(), "low": low, "high": high}
            | {"seen": least_seen(gap)}
        )
    return pd.DataFrame(rows)


def least_seen(values):
    from scipy.stats import t

    n = len(values)
    return float((t.ppf(0.975, n - 1) + t.ppf(0.8, n - 1)) * values.std(ddof=1) / math.sqrt(n))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wiring", default="modular")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--methods", nargs="*", help="all by default")
    parser.add_argument("--out", type=Path, default=Path("reservoirs"))
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    if args.table:
        frame = pd.concat(map(pd.read_csv, sorted(args.table.glob("*.csv"))))
        methods = [m for m in frame.method.unique() if m not in ("dense", "magnitude")]
        for by in (["wiring", "density", "scaling", "task"], ["density", "scaling", "task"]):
            table = pd.concat([paired(frame, method, by=by) for method in methods])
            print(table.round(3).to_string(index=False))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(args.first, args.first + args.seeds):
        begun = time.process_time()
        rows = study(args.wiring, seed, wanted=args.methods)
        pd.DataFrame(rows).to_csv(args.out / f"{args.wiring}-{seed}.csv", index=False)
        print(f"{args.wiring}, seed {seed}: {time.process_time() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
