"""Fixed reservoirs on weighted digraphs, and what a refitted linear readout does with them.

A reservoir is ``x[t + 1] = tanh(A^T x[t] + w_in u[t] + b)``: edge i -> j adds ``A[i, j] x_i`` to
node j. It runs on many independent streams at once; a ridge readout of all nodes is fitted on some
streams, its penalty is chosen on others, for each target, and the rest judge. Every score is larger
for better. Delayed asynchronous runs update each node with probability .7 a step and read every
edge one to three steps late.

Sources: memory capacity: Jaeger, GMD report 152, 2001; NARMA-10: Atiya and Parlos, IEEE TNN 11,
2000; Mackey and Glass, Science 197, 1977; parity of delayed bits: Bertschinger and Natschläger,
Neural Computation 16, 2004.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

import graphprune as gp

RADIUS = 0.9
WASHOUT, STEPS = 60, 100
TRAIN, VALIDATE, TEST = 12, 4, 8  # streams
STREAMS = TRAIN + VALIDATE + TEST
DELAYS, BITS, PERIODS, HORIZON = 40, (3, 4, 5), (5, 10, 20), 40
PENALTIES = 10.0 ** np.arange(-10, 0, 2)
UPDATED = 0.7

TASKS = (
    "memory", "oscillation", "long memory", "NARMA-10", "Mackey-Glass", "parity",
    "delayed memory", "delayed oscillation",
)  # fmt: skip


@dataclass(frozen=True)
class Wiring:
    """A weighted digraph: ``index [2, E]``, ``weights [E]`` of spectral radius RADIUS."""

    index: np.ndarray
    weights: np.ndarray
    nodes: int

    def matrix(self, kept=None, weights=None):
        """``A [N, N]`` of the kept edges; their own weights unless others are given."""
        values = self.weights if weights is None else weights
        dense = np.zeros((self.nodes, self.nodes))
        np.add.at(dense, tuple(self.index), values if kept is None else values * kept)
        return dense


def radius(matrix):
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def scaled(matrix):
    """The matrix at RADIUS; as it is where nothing but rounding is left of its spectrum."""
    size = radius(matrix)
    return matrix * (RADIUS / size) if size > 1e-3 else matrix


# ---------------------------------------------------------------- wirings


def drawn_edges(chances, edges, generator):
    """``[2, edges]``: different pairs drawn by ``chances [N, N]``, no self-loops."""
    chances = chances.copy()
    np.fill_diagonal(chances, 0.0)
    flat = chances.ravel() / chances.sum()
    return np.stack(
        np.unravel_index(generator.choice(flat.size, edges, False, flat), chances.shape)
    )


def wiring(name, seed):
    """A wiring by its name; the seed draws edges and weights, of real ones what is not known.

    ``scale-free`` and ``modular``: 64 nodes, 512 edges, normal weights; ``modular, +-1``: weights
    of one size; ``small``: 20 nodes, 80 edges. Scale-free: both degrees fall as a power law, by
    the static model (Goh, Kahng and Kim, PRL 87, 2001), senders and receivers in orders of their
    own. Modular: four modules of 16, 87 % of the edges inside. C. elegans: a quarter of neurons
    inhibit. The fly's optic lobe is one graph, whatever the seed.
    """
    generator = np.random.default_rng([seed, 1])
    if name in ("celegans", "fly"):
        graph, synapses = getattr(gp.tasks, name)()
        index, nodes = graph.edge_index.numpy(), graph.num_nodes
        weights = np.sign(synapses.numpy()) * np.sqrt(np.abs(synapses.numpy()))
        if name == "celegans":
            weights *= np.where(generator.random(nodes) < 0.25, -1.0, 1.0)[index[0]]
    else:
        nodes = 20 if name == "small" else 64
        chances = np.ones((nodes, nodes))
        if name == "scale-free":
            fitness = np.arange(1, nodes + 1) ** -0.5
            chances = np.outer(generator.permutation(fitness), generator.permutation(fitness))
        elif name.startswith("modular"):
            module = np.arange(nodes) // 16
            chances = np.where(module[:, None] == module, 0.9 / 15, 0.1 / 48)
        index = drawn_edges(chances, 4 * nodes if nodes == 20 else 8 * nodes, generator)
        weights = generator.standard_normal(index.shape[1])
        if name.endswith("+-1"):
            weights = np.sign(weights)
    made = Wiring(index, weights, nodes)
    return Wiring(index, weights * RADIUS / radius(made.matrix()), nodes)


# ---------------------------------------------------------------- what is asked


def mackey_glass(steps, streams, generator):
    """``[steps, streams]``: the series of delay 17 at steps of 1, standardised."""
    fine, late = 10, 170
    x = np.empty((late + fine * (steps + 200), streams))
    x[: late + 1] = 1.2 + 0.2 * generator.standard_normal(streams)
    for t in range(late, len(x) - 1):
        old = x[t - late]
        x[t + 1] = x[t] + (0.2 * old / (1 + old**10) - 0.1 * x[t]) / fine
    series = x[-fine * steps :: fine]
    return (series - series.mean()) / series.std()


def narma(u):
    """NARMA-10 of ``u`` between -1 and 1, which stands for 0 to .5; saturated by tanh."""
    u, y = 0.25 * (u + 1), np.zeros_like(u)
    for t in range(10, len(u)):
        mean = y[t - 10 : t].sum(0)
        y[t] = np.tanh(0.3 * y[t - 1] + 0.05 * y[t - 1] * mean + 1.5 * u[t - 10] * u[t - 1] + 0.1)
    return y


def filtered(u, kernel):
    """Each stream convolved with a kernel that begins at the present."""
    return np.stack([np.convolve(one, kernel)[: len(one)] for one in u.T], axis=1)


class Questions:
    """Inputs and targets of one seed: the same for every reservoir that it judges.

    ``inputs``: name to ``[T, S]``; ``targets``: name to (input, ``[T, S, K]``).
    """

    def __init__(self, seed):
        generator = np.random.default_rng([seed, 2])
        length = WASHOUT + STEPS
        slow = generator.uniform(-1, 1, (length, STREAMS))
        strong = generator.uniform(-1, 1, (length, STREAMS))
        bits = generator.choice([-1.0, 1.0], (length, STREAMS))
        glass = mackey_glass(length + HORIZON, STREAMS, generator)
        self.inputs = {"slow": slow, "strong": strong, "bits": bits, "glass": glass[:length]}
        past = np.stack([np.roll(slow, delay, 0) for delay in range(1, DELAYS + 1)], -1)
        ages = np.arange(length)
        ringing = [np.sin(2 * np.pi * ages / p) * np.exp(-ages / 15) for p in PERIODS]
        waves = np.stack([filtered(slow, kernel) for kernel in ringing], -1)
        parity = np.stack([np.prod([np.roll(bits, k, 0) for k in range(n)], 0) for n in BITS], -1)
        self.targets = {
            "memory": ("slow", past),
            "oscillation": ("slow", waves),
            "long memory": ("slow", filtered(slow, np.exp(-ages / 20))[..., None]),
            "NARMA-10": ("strong", narma(strong)[..., None]),
            "Mackey-Glass": ("glass", glass[HORIZON:, :, None]),
            "parity": ("bits", parity),
            "delayed memory": ("late", past),
            "delayed oscillation": ("late", waves),
        }
        self.seed = seed

    def judge(self, matrix):
        """Scores of the reservoir ``A``, by task.

        memory: the sum over delays 1 to 40 of the explained share of variance; parity: the mean
        accuracy over 3, 4 and 5 bits; Mackey-Glass: decades of precision, ``-log10`` of the
        unexplained share, 40 steps ahead; others: the mean explained share.
        """
        states = self._states(matrix)
        fits, scores = {}, {}
        for task, (source, target) in self.targets.items():
            fits[source] = fits.get(source) or Readout(states[source])
            guess, truth = fits[source](target)
            error = ((guess - truth) ** 2).mean(0) / truth.var(0)
            if task.endswith("memory") and target.shape[-1] == DELAYS:
                scores[task] = float(np.maximum(1 - error, 0).sum())
            elif task == "parity":
                scores[task] = float((np.sign(guess) == truth).mean())
            elif task == "Mackey-Glass":
                scores[task] = float(-np.log10(error[0]))
            else:
                scores[task] = float(np.maximum(1 - error, 0).mean())
        return scores

    def _states(self, matrix):
        """Node states ``[T, N, S]`` after each step, by input."""
        nodes = len(matrix)
        generator = np.random.default_rng([self.seed, 3])
        into, bias = generator.uniform(-1, 1, (2, nodes, 1))
        size = {"slow": 0.1, "strong": 0.5, "bits": 0.5, "glass": 0.5}
        given = np.concatenate([size[name] * u for name, u in self.inputs.items()], 1)
        lift = np.repeat([0.0, 0.2, 0.2, 0.2], STREAMS)
        along = csr_array(matrix.T)
        state = np.zeros((nodes, given.shape[1]))
        seen = np.empty((len(given), *state.shape))
        for t, u in enumerate(given):
            state = np.tanh(along @ state + into * u + bias * lift)
            seen[t] = state
        states = dict(zip(self.inputs, np.split(seen, len(self.inputs), -1), strict=True))
        states["late"] = self._late(matrix, into, generator)
        return states

    def _late(self, matrix, into, generator):
        lags = generator.integers(0, 3, matrix.shape)  # of a pair of nodes, not of a kept edge
        along = [csr_array((matrix * (lags == lag)).T) for lag in range(3)]
        seen = np.zeros((len(self.inputs["slow"]) + 3, len(matrix), STREAMS))
        for t, u in enumerate(self.inputs["slow"], start=3):
            arriving = sum(part @ seen[t - 1 - lag] for lag, part in enumerate(along))
            fresh = np.tanh(arriving + into * 0.1 * u)
            updated = generator.random(fresh.shape) < UPDATED
            seen[t] = np.where(updated, fresh, seen[t - 1])
        return seen[3:]


class Readout:
    """Ridge readouts of one input's states; see the module."""

    def __init__(self, states):
        x = states[WASHOUT:].transpose(0, 2, 1)
        self.parts = [self._flat(part) for part in self._split(x)]
        fit = self.parts[0]
        self.mean = fit.mean(0)
        self.parts = [part - self.mean for part in self.parts]
        self.values, self.vectors = np.linalg.eigh(self.parts[0].T @ self.parts[0])

    def __call__(self, target):
        """Guesses and the truth on the streams that judge, each ``[M, K]``."""
        truth = [self._flat(part) for part in self._split(target[WASHOUT:])]
        centre = truth[0].mean(0)
        x, check, unseen = self.parts
        turned = self.vectors.T @ (x.T @ (truth[0] - centre))
        largest = max(float(self.values[-1]), 1e-300)
        options = [
            self.vectors @ (turned / (np.maximum(self.values, 0) + share * largest)[:, None])
            for share in PENALTIES
        ]
        errors = [((check @ w + centre - truth[1]) ** 2).mean(0) for w in options]
        chosen = np.stack(options)[np.argmin(errors, 0), :, np.arange(target.shape[-1])]
        return unseen @ chosen.T + centre, truth[2]

    def _split(self, values):
        return np.split(values, [TRAIN, TRAIN + VALIDATE], axis=1)

    def _flat(self, part):
        return part.reshape(-1, part.shape[-1])
