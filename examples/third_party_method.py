"""A method of your own: a frozen dataclass with ``score``, checked by the conformance suite.

This one scores an edge by the size of its message's change, with no gradient: the L1 norm of clean
minus corrupted, as a share of all that its reader reads. ``check_method`` says whether it keeps the
contract (reproducible, any batch size, the user's module untouched), and the faithfulness curve
whether it is any good.

    python examples/third_party_method.py
    python examples/third_party_method.py --quick    # fewer prompts

A package registers its methods in pyproject.toml, after which `gp.make_method("message-change")`
and `graphprune discover --method message-change` find them:

    [project.entry-points."graphprune.methods"]
    message-change = "my_package:MessageChange"
"""

import argparse
from dataclasses import dataclass, replace

import torch
from small_models import random_gpt2, small_tokenizer

import graphprune as gp
from graphprune.capabilities import PlacedMessages, require
from graphprune.conformance import check_method


@dataclass(frozen=True, kw_only=True)
class MessageChange(gp.Scorer):
    """How much a message changes from the corrupted to the clean input, as a share of its reader's.

    ``power`` sharpens the shares.
    """

    power: float = 1.0

    def score(self, model: gp.MaskedModel, task: gp.Task) -> gp.EdgeScores:
        inside = require(model, PlacedMessages, self.label)
        total = torch.zeros(model.graph.num_edges, dtype=torch.float64)
        for batch in task.batches(self.batch_size):
            swapped = replace(batch, clean=batch.corrupt, corrupt=batch.clean)
            for clean, corrupt in zip(
                inside.messages(batch), inside.messages(swapped), strict=True
            ):
                change = ((clean.values - corrupt.values).abs().sum(-1) * clean.weight).sum(-1)
                change = change.double() ** self.power
                share = change / change.sum(0, keepdim=True).clamp(min=1e-30)
                readers = clean.edges.shape[0]
                total[clean.edges.reshape(-1)] += share.sum(-1).repeat(readers)
        return gp.EdgeScores(model.graph, total / len(task), method=self.label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer prompts")
    args = parser.parse_args()

    tokenizer = small_tokenizer()
    model = gp.wrap(random_gpt2(len(tokenizer), layers=2))
    task = gp.tasks.ioi(tokenizer, n=8 if args.quick else 64, corruption="swap")

    for check, outcome in check_method(MessageChange(), model, task).items():
        print(f"{check}: {outcome}")
    for method in (MessageChange(), MessageChange(power=2.0), gp.Random(seed=0)):
        scores = method.score(model, task)
        curve = gp.faithfulness_curve(model, task, scores, (0.05, 0.1, 0.2, 0.5, 1.0))
        print(f"{method.label}: CPR {curve.cpr:.3f}, CMD {curve.cmd:.3f}")


if __name__ == "__main__":
    main()
