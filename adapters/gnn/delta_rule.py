"""The published local learning rule: every node adjusts its incoming weights when it updates.

Source: arXiv 2502.17522, from the behaviour of its published code. Node n reads the newest states,
``V_n = sigmoid(sum_i W_in V_i)``; then its error is ``rate * (V_n - y_n)`` where it is an output,
else ``(sum_k W_nk E_k) V_n (1 - V_n)`` from the present errors of the nodes that read it; then
``W_in -= E_n V_i``, clipped. States carry over from sample to sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError, UnsupportedModelError
from graphprune.search.cut_edges import CutEdges

from .argnn import ARGNN
from .masked_argnn import network_graph

__all__ = ["DeltaRule"]


class DeltaRule:
    """Trains a scalar sigmoid ARGNN online, sample after sample.

    Args:
        network: the network; :meth:`write` gives it what was learned.
        rate: of learning, at the outputs.
        sweeps: sequential sweeps over all free nodes for each sample.
        clip: weights stay within plus and minus this.
        seed: draws the order of every sweep.
        after_update: called as ``after_update(self, node)`` after every node's update; it may
            change ``weight`` and ``keep``.

    Attributes:
        weight, keep: ``[N, N]`` float64 and bool, source by target.
        state, error: ``[N]`` float64.

    Raises:
        UnsupportedModelError: states of several numbers, another activation, a bias, or two edges
            between the same nodes.

    Example:
        >>> edges = torch.tensor([[0, 1, 0, 1, 2, 3], [2, 2, 3, 3, 3, 2]])
        >>> net = ARGNN(edges, inputs=[0, 1], outputs=[3], activation="sigmoid",
        ...             update="sequential")
        >>> rule = DeltaRule(net)
        >>> errors = [rule.learn([a, b], [a or b]) for _ in range(500) for a in (0, 1)
        ...           for b in (0, 1)]
        >>> errors[-1] < 0.1 < errors[0]
        True
    """

    def __init__(
        self,
        network: ARGNN,
        *,
        rate: float = 0.15,
        sweeps: int = 10,
        clip: float = 10.0,
        seed: int = 0,
        after_update: Callable[[DeltaRule, int], None] | None = None,
    ) -> None:
        _require_published(network)
        self.network, self.rate, self.sweeps, self.clip = network, rate, sweeps, clip
        self.after_update = after_update
        self._random = np.random.default_rng(seed)
        nodes = network.num_nodes
        source, target = network.edge_index.cpu().numpy()
        self.weight = np.zeros((nodes, nodes))
        self.weight[source, target] = network.edge_weight.detach().cpu().double().numpy()
        self.keep = np.zeros((nodes, nodes), dtype=bool)
        self.keep[source, target] = network.edge_keep.cpu().numpy()
        self.state, self.error = np.zeros(nodes), np.zeros(nodes)
        self._inputs = network.input_nodes.cpu().numpy()
        self._outputs = network.output_nodes.cpu().numpy()
        self._free = np.flatnonzero(network.free.cpu().numpy())
        self._is_output = np.zeros(nodes, dtype=bool)
        self._is_output[self._outputs] = True
        self._wanted = np.zeros(nodes)

    @contextmanager
    def cutting(self) -> Iterator[CutEdges]:
        """See :class:`~graphprune.capabilities.CutsWhileTraining`; ``keep`` stays as it becomes."""
        before = self.after_update
        try:
            yield _RuleEdges(self, network_graph(self.network))
        finally:
            self.after_update = before

    def learn(self, x: ArrayLike, y: ArrayLike) -> float:
        """One sample: inputs ``[n_in]`` and wanted outputs ``[n_out]``.

        Gives the mean absolute error of the outputs after the last sweep.
        """
        given, wanted = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        if given.shape != self._inputs.shape or wanted.shape != self._outputs.shape:
            raise InputError(
                f"expected {len(self._inputs)} inputs and {len(self._outputs)} outputs, got "
                f"{list(given.shape)} and {list(wanted.shape)}"
            )
        self.state[self._inputs] = given
        self._wanted[self._outputs] = wanted
        for _ in range(self.sweeps):
            for node in self._random.permutation(self._free):
                self._update(int(node))
                if self.after_update is not None:
                    self.after_update(self, int(node))
        return float(np.abs(self.state[self._outputs] - wanted).mean())

    def _update(self, node: int) -> None:
        keep = self.keep[:, node]
        incoming = self.weight[:, node] * keep
        value = 1.0 / (1.0 + np.exp(-(incoming @ self.state)))
        self.state[node] = value
        if self._is_output[node]:
            error = self.rate * (value - self._wanted[node])
        else:
            outgoing = self.weight[node] * self.keep[node]
            error = (outgoing @ self.error) * value * (1.0 - value)
        self.error[node] = error
        learned = np.clip(self.weight[:, node] - error * self.state, -self.clip, self.clip)
        self.weight[:, node] = np.where(keep, learned, self.weight[:, node])

    @torch.no_grad()
    def write(self) -> ARGNN:
        """Gives the network the weights and the edges kept; gives the network."""
        network = self.network
        source, target = network.edge_index.cpu().numpy()
        network.edge_weight.copy_(torch.from_numpy(self.weight[source, target]))
        network.edge_keep.copy_(torch.from_numpy(self.keep[source, target]))
        return network


def _require_published(network: ARGNN) -> None:
    pairs = network.edge_index.T.tolist()
    if (
        network.channels != 1
        or network.activation != "sigmoid"
        or network.output_activation not in (None, "sigmoid")
        or network.bias is not None
        or len({tuple(pair) for pair in pairs}) < len(pairs)
    ):
        raise UnsupportedModelError(
            "the local rule is published for scalar sigmoid states without biases and one edge "
            f"between two nodes; got {network!r} with activation {network.activation!r}, channels "
            f"{network.channels}, bias {network.bias is not None}"
        )


class _RuleEdges(CutEdges):
    """The edges of a network that learns by the local rule, node by node."""

    def __init__(self, rule: DeltaRule, graph: ComputationalGraph) -> None:
        super().__init__(graph)
        self.rule = rule
        self._ends = tuple(graph.edge_index.numpy())

    @property
    def kept(self) -> Tensor:
        """See :class:`CutEdges`."""
        return torch.from_numpy(self.rule.keep[self._ends])

    def keep(self, kept: Tensor, grown: Tensor) -> None:
        """See :class:`CutEdges`."""
        self.rule.keep[self._ends] = kept.numpy()
        source, target = (end[grown.numpy()] for end in self._ends)
        self.rule.weight[source, target] = 0.0

    def weights(self) -> Tensor:
        """See :class:`CutEdges`."""
        return torch.from_numpy(self.rule.weight[self._ends])

    def gradients(self) -> Tensor:
        """See :class:`CutEdges`: what the rule would add to each weight now, times -1."""
        source, target = self._ends
        return torch.from_numpy(self.rule.error[target] * self.rule.state[source])

    def forget(self) -> None:
        """See :class:`CutEdges`: the rule keeps no sums."""
