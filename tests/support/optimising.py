"""Runs of a mask optimiser that are killed at a step of one's choice, each in a forked process.

Arguments: a folder, and the runs as ``kind,step``.
"""

import os
import signal
import sys

import torch

import graphprune as gp

from .toy import Toy, ToyExamples

EVENTS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT}


def make_loss(event: str = "", at: int = -1):
    """The mean squared error, with an event in the ``at``-th call of a step (not of judging)."""
    calls, plan = [0], [event, at]  # a list is a function's notes: the loss is the same one

    def loss(outputs, batch, full):
        if torch.is_grad_enabled():
            event, at = plan
            calls[0] += 1
            if calls[0] == at and event in EVENTS:
                os.kill(os.getpid(), EVENTS[event])
            if calls[0] == at and event == "nan":
                return outputs.square().mean(-1) * float("nan")
        return (outputs - full).square().mean(-1)

    return loss


def make_method(kind: str, folder, loss, **options):
    common = {"size": 4, "steps": 40, "batch_size": 4, "loss": loss, "run_dir": folder}
    common |= {"checkpoint_every": 6, **options}
    kinds = {
        "default": lambda: gp.EdgePruning(path=(7, 6), **common),
        "paper": lambda: gp.EdgePruning(variant="paper", node_gates=True, **common),
        "ugs": lambda: gp.UGS(samples=2, **common),
        "matryoshka": lambda: gp.MatryoshkaPruning(**common),
        "minimal": lambda: gp.EdgePruning(**{**common, "size": "minimal"}),
    }
    return kinds[kind]()


def toy_task(n: int = 10) -> gp.Task:
    return gp.Task(ToyExamples(n), "accuracy", batch_size=4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in sys.argv[2:]:
        kind, at = case.split(",")
        child = os.fork()
        if child == 0:
            method = make_method(kind, f"{sys.argv[1]}/{case}", make_loss("kill", int(at)))
            method.fit(Toy(seed=3), toy_task())
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status), f"{case} was not killed"
        assert os.WTERMSIG(status) == signal.SIGKILL, case
