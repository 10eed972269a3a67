"""Preferences of circuits: by hand, by likelihood, and how often equal ones are rejected."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.inside
