"""NaN and overflow in bfloat16 and float16: an error that says where, never a wrong number."""

import pytest
import torch
from support.tiny import random_pair, tiny

import graphprune as gp
from graphprune.errors import NumericalError

# Beyond 65,504 in float16 and 3.4e38 in bfloat16, for weights of about 0.02 to 1.
FACTOR = {torch.float16: 3e5, torch.bfloat16: 1e38}
FAULTS = {
    "a token's NaN": lambda m, clean, _: m.model.embed_tokens.weight[clean[1, 2]].fill_(torch.nan),
    "infinite logits": lambda m, _, factor: m.lm_head.weight.mul_(factor),
    "an MLP that overflows": lambda m, _, factor: m.model.layers[0].mlp.down_proj.weight.mul_(
        factor
    ),
}


def broken(dtype, fault):
    """A module and its clean and corrupted prompts, the fault not in it yet."""
    module = tiny("llama", dtype=dtype)
    clean, corrupt = random_pair(module, batch=4)

    def break_it():
        with torch.no_grad():
            FAULTS[fault](module, clean, FACTOR[dtype])

    return (
        module,
        gp.Task.from_tensors(clean, corrupt, answer=[1] * 4, distractor=[2] * 4),
        break_it,
    )


@pytest.mark.parametrize("dtype", FACTOR)
@pytest.mark.parametrize("fault", [name for name in FAULTS if "token" not in name])
def test_a_model_that_overflows_is_not_wrapped(fault, dtype):
    module, _, break_it = broken(dtype, fault)
    break_it()
    with pytest.raises(NumericalError, match="NaN or infinite logits on random tokens"):
        gp.wrap(module)


@pytest.mark.parametrize("dtype", FACTOR)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_overflows_later_is_told_with_its_examples(fault, dtype):
    module, task, break_it = broken(dtype, fault)
    model = gp.wrap(module)
    break_it()
    calls = {
        "scores": lambda: gp.EAP().score(model, task),
        "scores along a path": lambda: gp.EAPIG().score(model, task),
        "exact": lambda: gp.ExactPatching().score(model, task),
        "greedy": lambda: gp.ACDC(tau=0.1).fit(model, task),
        "optimised": lambda: gp.EdgePruning(size=10, steps=2, seed=0).fit(model, task),
        "judged": lambda: gp.evaluate(model, task, gp.EdgeMask.full(model.graph)),
    }
    examples = r"\[1\]" if "token" in fault else r"example numbers \[\d"
    for call in calls.values():
        with pytest.raises(NumericalError, match=rf"NaN or infinite.*{examples}"):
            call()
