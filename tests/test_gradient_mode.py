"""Gradients switched off around a notebook: every method gives what it gives without that."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch_geometric.nn as pyg
from support.tiny import random_pair, tiny
from support.toy import Toy, ToyExamples
from torch_geometric.data import Data

import graphprune as gp
from graphprune.adapters.gnn import ARGNN
from graphprune.conformance import check_adapter
from graphprune.registry import method_names
from graphprune.tasks.graphs import nodes, patterns


@contextlib.contextmanager
def switched_off():
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(True)


MODES = [switched_off, torch.no_grad, torch.inference_mode]
IDS = ["set_grad_enabled(False)", "no_grad", "inference_mode"]


def language():
    module = tiny("llama")
    clean, corrupt = random_pair(module, batch=4)
    task = gp.Task.from_tensors(clean, corrupt, answer=[1] * 4, distractor=[2] * 4)
    return gp.wrap(module), task


def graph_network():
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = pyg.GCNConv(3, 4), pyg.GATConv(4, 2)

        def forward(self, x, edge_index):
            return self.b(torch.tanh(self.a(x, edge_index)), edge_index)

    module = Net()
    ring = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 2, 0]])
    data = Data(x=torch.randn(5, 3), edge_index=ring, y=torch.tensor([0, 1, 0, 1, 1]))
    return gp.wrap(module, data=data), nodes(data)


def argnn():
    torch.manual_seed(0)
    ring = torch.tensor([[0, 1, 2, 3, 4, 0, 2, 1], [1, 2, 3, 4, 0, 2, 0, 4]])
    module = ARGNN(5, ring, inputs=[0, 1], outputs=[3, 4])
    return gp.wrap(module, steps=4), patterns(torch.randn(6, 2), torch.tensor([0, 1] * 3))


def toy():
    return Toy(), gp.Task(ToyExamples(), "logit_diff", name="toy")


SYSTEMS = [language, graph_network, argnn, toy]
