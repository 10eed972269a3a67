"""A circuit exported as a model of its own, beside the plain Hugging Face model.

GPT-2 small's shape, random weights, 16 x 16 tokens, float32, one thread, mean ablation, logits at
all positions on both sides. Circuits are chosen greedily by EAP's scores. (The top of random scores
will not do: of 1 % two connected edges are left.) The program is what ``torch.export.load`` gives.

Figures of 2026-11-25, virtual machine with 2 AMD EPYC cores that others may have used, torch 2.13.0
(CPU); CPU seconds of the module (the program) next to Hugging Face's 0.82 to 0.90, two runs:

- 0.1 %, 6 heads and 7 MLPs on paths: 0.62x (0.62 to 0.63x), 0.67x of the parameters, 0.59x of the
  FLOPs;
- 1 %, 56 heads and 12 MLPs: 0.90 to 0.95x (0.86 to 0.91x), 0.92x, 0.82x; asked is 0.5x;
- 5 %, 142 heads and 12 MLPs: 1.15 to 1.18x (1.07 to 1.08x), 1.00x, 0.91x; asked is 0.8x.

What bounds it: the unembedding at all positions is 0.37x by itself and is never pruned, and the
twelve MLPs, all touched from 1 % on, are 0.46x of the multiplications.
"""

import functools

import pytest
import torch

import graphprune as gp
from graphprune.batch import Batch

from .measuring import VOCAB, gpt2_small, medians, objective

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

BATCH, TOKENS, WIDTH = 16, 16, 768


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def system():
    model = gp.wrap(gpt2_small())
    clean, corrupt = torch.randint(VOCAB, (2, 8, TOKENS))
    batch = Batch({"input_ids": clean}, {"input_ids": corrupt}, 8)
    scores = gp.EdgeScores(model.graph, model.edge_gradients(batch, objective).edge)
    return model, scores, model.mean_ablation([batch])


def export(share, folder):
    """The circuit, what was exported, and the program that was saved."""
    model, scores, ablation = system()
    circuit = gp.Circuit.from_mask(scores.greedy(share), model=model)
    exported = circuit.export_model(folder, ablation=ablation, shape=(BATCH, TOKENS), repeats=1)
    return circuit, exported, torch.export.load(exported.path / "model.pt2").module()


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05])
def test_sizes(share, tmp_path, capsys):
    circuit, exported, program = export(share, tmp_path / "out")
    report = exported.report
    names = gp.Circuit.from_mask(circuit.mask.prune_dead_ends()).nodes()
    mlps, heads = (sum(name.startswith(letter) for name in names) for letter in "ma")
    with capsys.disabled():
        print(f"\n{circuit.mask.num_kept} edges, on paths {heads} of 144 heads, {mlps} of 12 MLPs")
        for what in ("parameters", "bytes", "flops_per_token"):
            old, new = report["original"][what], report["exported"][what]
            print(f"{what:45s} {new / old:6.2f}x   ({old:,.0f} -> {new:,.0f})")
        print(f"largest difference {report['max_difference']:.2g}")
    ids = torch.randint(VOCAB, (3, 11))
    with torch.no_grad():
        torch.testing.assert_close(program(ids), exported.module(ids), rtol=1e-4, atol=1e-5)
    assert abs(circuit.mask.num_kept - share * 32_491) < 2
    assert report["max_difference"] < 1e-4
    for what in ("parameters", "bytes", "flops_per_token"):
        assert report["exported"][what] < report["original"][what]


@pytest.mark.parametrize(
    ("share", "bound"),
    [
        (0.001, 1.0),  # nothing is asked at this size
        pytest.param(
            0.01,
            0.5,
            marks=pytest.mark.xfail(
                strict=True, raises=AssertionError, reason="0.90 to 0.95x; 0.5x is asked"
            ),
        ),
        pytest.param(
            0.05,
            0.8,
            marks=pytest.mark.xfail(
                strict=True, raises=AssertionError, reason="1.15 to 1.18x; 0.8x is asked"
            ),
        ),
    ],
)
def test_latency(share, bound, tmp_path, capsys):
    _, exported, program = export(share, tmp_path / "out")

    def job(module):
        def run() -> None:
            with torch.no_grad():
                module(torch.randint(VOCAB, (BATCH, TOKENS)))

        return run

    def unembed() -> None:
        with torch.no_grad():
            exported.module.unembedding(torch.randn(BATCH, TOKENS, WIDTH))

    seconds = medians(
        {
            "plain Hugging Face": job(system()[0].module),
            "exported module": job(exported.module),
            "exported program": job(program),
            "unembedding alone": unembed,
        }
    )
    plain, module, loaded, _ = seconds.values()
    with capsys.disabled():
        print(f"\n{share:.1%} of the edges")
        for name, value in seconds.items():
            print(f"{name:45s} {value:7.3f} CPU s   {value / plain:6.2f}x")
    assert max(module, loaded) <= bound * plain
