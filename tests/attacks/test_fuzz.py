"""Files that were changed at random: each is read, or refused by the library's own error.

A hundred of each reader's are drawn here, the same in every run, and ten thousand by
``pytest -m fuzz`` (``GRAPHPRUNE_FUZZ`` says another number), other ones in each run. The limits
stand in ``fuzzing.py``: one second of CPU time and 200 MiB for each.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from attacks import fuzz_targets  # noqa: F401 - its readers
from attacks.fuzzing import TARGETS, require_sound
from hypothesis import HealthCheck, Phase, given, settings

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="measures memory by resource"),
    # networkx says what it takes for granted in a graph's file, torch which pickles it rarely sees.
    pytest.mark.filterwarnings("ignore::UserWarning:networkx|torch"),
]


def fuzz(name, count, repeatable):
    target = TARGETS[name]
    sound = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "f"

        @settings(
            max_examples=count,
            derandomize=repeatable,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(target.changed())
        def run(drawn):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            target.write(folder, drawn)
            sound.append(require_sound(target.read, folder))

        run()
    return sound


@pytest.mark.parametrize("name", TARGETS)
def test_valid_files_are_read(name, tmp_path):
    target = TARGETS[name]
    target.write(tmp_path, target.valid())
    assert require_sound(target.read, tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_read_or_refused(name):
    sound = fuzz(name, 100, repeatable=True)
    assert not all(sound)  # some change is seen


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_ten_thousand_changed_files(name):
    assert not all(fuzz(name, int(os.environ.get("GRAPHPRUNE_FUZZ", "10000")), repeatable=False))
