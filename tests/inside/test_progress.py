"""Progress on the command line."""

import io
import sys

import pytest

from graphprune.util.progress import command_line_progress, track

pytestmark = pytest.mark.inside


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with command_line_progress(False):
        for _ in track(range(3), "passes"):
            pass
    assert "\r" in screen.getvalue()
    assert "3/3" in screen.getvalue() or "0/3" in screen.getvalue()
