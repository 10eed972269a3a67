"""The table of selectors is the one list of them."""

from typing import get_args

import pytest

from graphprune.cli.selecting import Ways
from graphprune.selection.selectors import SELECTORS

pytestmark = pytest.mark.inside


def test_the_command_line_offers_the_table_of_selectors():
    """The names stand there a second time, so that its help need not import torch."""
    assert get_args(Ways) == tuple(SELECTORS)


def test_every_selector_says_what_it_does_and_which_settings_it_has():
    assert all(selector.summary.endswith(".") for selector in SELECTORS.values())
    assert {name: list(s.settings) for name, s in SELECTORS.items() if s.settings} == {
        "ilp": ["positives", "time_limit"],
        "pnr": ["positives", "connected"],
        "bootstrap": ["resamples", "blocks", "level", "kind", "connected", "seed"],
        "influence": ["share", "connected"],
        "polish": ["pool", "metric", "halvings"],
    }
