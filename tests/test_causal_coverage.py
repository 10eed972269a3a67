"""Every causal architecture of transformers, tiny: exact by head or by block, or refused."""

import warnings
from pathlib import Path

import pytest
import torch
from support import causal_models
from support.read_models import prove

import graphprune as gp
from graphprune.errors import UnsupportedModelError

# One of each structure: what attention and the MLP are, where norms stand, how all is added.
QUICK = {
    "bloom": "ALiBi, fused head by head, modules that add the stream themselves",
    "codegen": "fused in another order, one norm for both branches",
    "falcon": "multi-query, parallel, no module of its own adds",
    "gpt_oss": "sinks, experts that give a pair",
    "granite": "multipliers of the stream, the embedding and the logits",
    "bitnet": "a norm between heads and output map",
    "flex_olmo": "norms behind, norms over all heads, experts",
    "opt": "an MLP without a module, learned positions",
    "xlnet": "a stream with its tokens first, read in both directions",
}
BY_HEAD = 93  # at least so many types, of which the installed transformers has more than 180
BY_BLOCK = 81  # and so many of which some layer's mixer is one node, or is taken in steps
REFUSED = 7  # at most


@pytest.mark.parametrize("kind", QUICK)
def test_a_model_read_off_is_exact(kind):
    module = causal_models.build(kind, dtype=torch.float64)
    gaps = prove(module, gradients=True)
    assert gaps.pop("gradients") < 2e-3
    assert max(gaps.values()) < 1e-5, gaps


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_causal_architecture_is_exact_or_refused_with_a_reason(tmp_path):
    rows = []
    for kind in causal_models.model_types():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = causal_models.build_small(kind)
        if isinstance(module, str):
            rows.append((kind, "not built", module))
            continue
        try:
            gaps = prove(module)
        except UnsupportedModelError as error:
            reason = str(error)
            assert "layer" in reason, reason
            rows.append((kind, "refused", reason))
            continue
        worst = max(gaps, key=gaps.__getitem__)
        assert gaps[worst] < 1e-4, (kind, gaps)
        how = "by block" if any(name[0] in "as" and "." not in name for name in gaps) else "by head"
        rows.append((kind, how, f"{gaps[worst]:.1e}"))
    table = Path(tmp_path / "coverage.md")
    table.write_text("\n".join(f"| {a} | {b} | {c} |" for a, b, c in rows))
    print(table.read_text())
    counts = {what: sum(row[1] == what for row in rows) for _, what, _ in rows}
    print(counts)
    assert counts["by head"] >= BY_HEAD
    assert counts["by block"] >= BY_BLOCK
    assert counts["refused"] <= REFUSED


@pytest.mark.parametrize(
    ("kind", "settings", "read"),
    [
        ("codegen", {"n_head": 8}, {"fused": 4, "fused_order": "qvk"}),
        ("falcon", {"new_decoder_architecture": True}, {"fused": "interleaved"}),
        (
            "falcon",
            {"multi_query": False, "num_kv_heads": 4, "parallel_attn": False, "alibi": True},
            {"fused": "interleaved", "parallel": False},
        ),
        ("gpt_bigcode", {"multi_query": False}, {"fused": "interleaved"}),
        ("stablelm", {"use_parallel_residual": True}, {"parallel": True}),
        ("granite", {}, {"residual_multiplier": 0.4}),
    ],
    ids=str,
)
def test_settings_that_change_the_structure_are_read(kind, settings, read):
    module = causal_models.build(kind, dtype=torch.float64, **settings)
    family = gp.describe(module)
    assert {name: getattr(family, name) for name in read} == read
    gaps = prove(module)
    assert max(gaps.values()) < 1e-5, gaps
