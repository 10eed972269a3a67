"""Prompts as numbers: rows of any length in one array, and words without the prompt before them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizers import sentence_piece

from graphprune.tasks.encoding import Encoder
from graphprune.tasks.tables import Ragged

pytestmark = pytest.mark.inside


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-1, 99), max_size=5), min_size=1, max_size=9))
def test_ragged_rows_round_trip(rows: list[list[int]]) -> None:
    packed = Ragged.from_rows([*rows, [7]])
    assert [packed.row(i).tolist() for i in range(len(rows))] == rows
    table = packed.padded(np.arange(len(rows)), 5, fill=-5)
    assert table.tolist() == [row + [-5] * (5 - len(row)) for row in rows]


def test_a_word_alone_has_no_space_of_its_own() -> None:
    tokenizer = sentence_piece()
    assert "▁" not in tokenizer.convert_ids_to_tokens(Encoder(tokenizer).alone("Mary"))[0]
