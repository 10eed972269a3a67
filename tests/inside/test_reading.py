"""Known families test the reader: read off, each is its own description."""

import pytest
import torch
from support.tiny import random_pair
from support.variants import VARIANTS, build

import graphprune as gp
from graphprune.adapters.lm import LanguageModel
from graphprune.adapters.lm.describe.reading.reader import read_family


# A norm behind a bias is refused in either way.
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "olmo2_biases"])
def test_a_known_family_read_off_its_model_is_its_own_description(name):
    module = build(name)
    known, read = gp.wrap(module), LanguageModel(module, read_family(module))
    assert read.graph.fingerprint == known.graph.fingerprint
    clean, corrupt = random_pair(module)
    batch = gp.Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(known.graph.num_edges, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(read.run(batch, mask), known.run(batch, mask), atol=1e-9, rtol=0)
