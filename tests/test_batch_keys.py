"""Every key of a batch is used, as Hugging Face's model uses it, or refused by its name."""

from __future__ import annotations

import pytest
import torch
from support.tiny import VOCAB, tiny
from torch_geometric.data import Batch as Graphs
from torch_geometric.data import Data
from torch_geometric.nn import GraphConv, global_add_pool

import graphprune as gp
from graphprune import Ablation
from graphprune.errors import InputError

T, LENGTHS = 7, (7, 4, 5)
LONGER = (7, 6, 5)


def ids(seed):
    return torch.randint(1, VOCAB, (3, T), generator=torch.Generator().manual_seed(seed))


def real(lengths):
    return (torch.arange(T) < torch.tensor(lengths)[:, None]).long()


def answers(module, side, lengths):
    """Plain Hugging Face with the same keys, at the last real token."""
    with torch.no_grad():
        logits = module(**side).logits
    return logits[torch.arange(3), torch.tensor(lengths) - 1]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma3"])
@pytest.mark.parametrize("keys", ["mask", "positions", "longer", "no corrupt mask"])
def test_what_is_read_is_read_as_hugging_face_reads_it(family, keys):
    module = tiny(family)
    model = gp.wrap(module)
    sides = [{"input_ids": ids(s), "attention_mask": real(LENGTHS)} for s in (0, 1)]
    if keys == "positions":
        for side in sides:
            side["position_ids"] = (side["attention_mask"].cumsum(1) - 1).clamp(min=0)
    if keys == "longer":
        sides[1]["attention_mask"] = real(LONGER)
    if keys == "no corrupt mask":
        del sides[1]["attention_mask"]
    batch = gp.Batch(*sides, 3)
    for mask, side in ((gp.EdgeMask.full, sides[0]), (gp.EdgeMask.empty, sides[1])):
        got = model.run(batch, mask(model.graph))
        torch.testing.assert_close(got, answers(module, side, LENGTHS), atol=2e-5, rtol=1e-4)


def test_a_mean_is_over_the_corrupted_prompts_own_tokens():
    """Against Hugging Face's hidden states: the embedding's mean over real corrupted tokens."""
    module = tiny("llama")
    model = gp.wrap(module)
    sides = [
        {"input_ids": ids(s), "attention_mask": real(n)} for s, n in ((0, LENGTHS), (1, LONGER))
    ]
    found = model.mean_ablation([gp.Batch(*sides, 3)])
    with torch.no_grad():
        states = module(**sides[1], output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(
        found.values.embed[0, 0, 0].float(), states[real(LONGER) > 0].mean(0)
    )


@pytest.mark.parametrize("side", ["clean", "corrupt"])
@pytest.mark.parametrize(
    ("family", "key", "value", "said"),
    [
        ("llama", "position_ids", torch.arange(T)[None] + 3, "position_ids are not 0, 1, 2"),
        ("gpt2", "position_ids", torch.arange(T).flip(0)[None].expand(3, -1), "position_ids"),
        ("llama", "position_ids", torch.arange(T - 1)[None], "position_ids"),
        ("gpt2", "token_type_ids", torch.zeros(3, T, dtype=torch.int64), "token_type_ids"),
        ("llama", "token_type_ids", torch.ones(3, T, dtype=torch.int64), "token_type_ids"),
        ("llama", "inputs_embeds", torch.zeros(3, T, 16), "inputs_embeds"),
        ("llama", "labels", ids(5), "labels"),
        ("llama", "use_cache", False, "use_cache"),
        ("llama", "attention_mask", torch.ones(3, T + 1), "attention_mask must have the shape"),
        ("llama", "attention_mask", torch.full((3, T), 0.5), "must hold 1 at tokens and 0 at"),
        ("llama", "attention_mask", real(LENGTHS).flip(1), "padded on the right"),
        ("llama", "attention_mask", real((7, 0, 3)), "padded on the right"),
        ("llama", "input_ids", torch.zeros(3, T), "input_ids must be ids"),
        ("llama", "input_ids", None, "needs a mapping with input_ids"),
    ],
)
def test_what_is_not_read_is_refused_by_name(side, family, key, value, said):
    sides = {name: {"input_ids": ids(i)} for i, name in enumerate(("clean", "corrupt"))}
    sides[side][key] = value
    model = gp.wrap(tiny(family))
    with pytest.raises(InputError, match=said):
        model.reference(gp.Batch(sides["clean"], sides["corrupt"], 3))


def test_types_of_zero_are_nothing_to_a_model_without_types():
    module = tiny("llama")
    model = gp.wrap(module)
    side = {"input_ids": ids(0), "token_type_ids": torch.zeros(3, T, dtype=torch.int64)}
    got = model.reference(gp.Batch(side, None, 3), Ablation("zero")).full
    torch.testing.assert_close(got, answers(module, side, (T,) * 3), atol=2e-5, rtol=1e-4)


def test_a_corrupted_prompt_that_ends_early_is_no_counterpart():
    model = gp.wrap(tiny("llama"))
    clean = {"input_ids": ids(0), "attention_mask": real(LONGER)}
    corrupt = {"input_ids": ids(1), "attention_mask": real(LENGTHS)}
    with pytest.raises(InputError, match=r"token 4 of example 1.*spans"):
        model.reference(gp.Batch(clean, corrupt, 3))
    without = {"input_ids": ids(0)}
    with pytest.raises(InputError, match="4 tokens and the clean one 7"):
        model.reference(gp.Batch(without, corrupt, 3))


def test_an_alignment_may_read_a_shorter_prompt_and_no_padding():
    module = tiny("llama").double()
    model = gp.wrap(module)
    clean = {"input_ids": ids(0)[:1]}
    corrupt = {"input_ids": ids(1)[:1], "attention_mask": real((5,))}
    alignment = torch.zeros(1, T, T)
    for token, reads in enumerate(([0], [1, 2], [1, 2], [1, 2], [1, 2], [3], [4])):
        alignment[0, token, reads] = 1 / len(reads)
    batch = gp.Batch(clean, corrupt, 1, alignment=alignment)
    with torch.no_grad():
        want = module.model.embed_tokens(corrupt["input_ids"])
    want = alignment[0].double() @ want[0]
    reference = model.reference(batch)
    torch.testing.assert_close(reference.ablated_values.embed[0, 0], want)
    alignment[0, 6] = torch.eye(T)[5]
    with pytest.raises(InputError, match="padding for a counterpart"):
        model.reference(gp.Batch(clean, corrupt, 1, alignment=alignment))


def test_graph_networks_refuse_what_they_do_not_read():
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    data = Data(x=torch.randn(3, 4), edge_index=edges)
    nodes = gp.wrap(GraphConv(4, 2).eval(), data=data)
    at = torch.tensor([0, 1])
    for side in ({"x": data.x, "graphs": at}, {"x": data.x, "position_ids": at}):
        with pytest.raises(InputError, match=r"'graphs'|'position_ids'"):
            model_run(nodes, gp.Batch(side, None, 2, positions=at))

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GraphConv(4, 2)

        def forward(self, x, edge_index, batch):
            return global_add_pool(self.conv(x, edge_index), batch)

    both = Graphs.from_data_list([data, data])
    graphs = gp.wrap(Whole().eval(), data=both)
    other = {"graphs": torch.tensor([1, 0]), "x": torch.randn(6, 4)}
    batch = gp.Batch({"graphs": at}, other, 2)
    with pytest.raises(InputError, match="other 'graphs'"):
        graphs.run(batch, gp.EdgeMask.full(graphs.graph), graphs.reference(batch))


def model_run(model, batch):
    zero = model.reference(batch, Ablation("zero"))
    return model.run(batch, gp.EdgeMask.full(model.graph), zero)
