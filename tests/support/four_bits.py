"""4-bit maps of bitsandbytes that multiply alike on every processor."""

import importlib.util

import pytest


@pytest.fixture(autouse=True)
def products_as_made(monkeypatch):
    """No bfloat16 products in evaluation mode, which processors with AVX512-BF16 have else."""
    if importlib.util.find_spec("bitsandbytes") is not None:
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
