"""Tasks from streams: the same batches as in memory, in constant memory, and what goes wrong."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.streams import made, same
from support.tokenizers import byte_bpe

from graphprune import Task
from graphprune.errors import InputError


def test_a_source_that_fails_leaves_no_files(tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield from made(2000)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Task.from_stream(broken, byte_bpe(), on_mismatch="drop", spool=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        InputError, match=r"cannot keep examples in .*; spool= names another folder"
    ):
        Task.from_stream(made(3), byte_bpe(), on_mismatch="drop", spool=tmp_path / "file")


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain_open = Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode == "ab" and path.name.startswith("corrupt"):
            raise OSError(28, "No space left on device")
        return plain_open(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=r"cannot write examples to .*corrupt.*: No space left"):
        Task.from_stream(made(3), byte_bpe(), on_mismatch="drop", spool=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_live_as_long_as_any_part_of_the_task(tmp_path: Path) -> None:
    task = Task.from_stream(made(50), byte_bpe(), on_mismatch="drop", spool=tmp_path / "new")
    [folder] = (tmp_path / "new").iterdir()
    assert list(folder.iterdir())
    part = task.take(5)
    copied = copy.deepcopy(part)
    expected = Task.from_pairs(made(50), byte_bpe(), on_mismatch="drop", name="stream").take(5)
    del task
    gc.collect()
    same(part, expected)
    if hasattr(os, "fork"):
        child = os.fork()
        if not child:
            del part
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        assert folder.is_dir()
    del part
    gc.collect()
    assert not folder.exists()
    same(copied, expected)


def test_files_are_removed_when_the_interpreter_ends(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from graphprune import Task
from support.tokenizers import byte_bpe
kept = Task.from_stream([{{"clean": "so the"}}], byte_bpe(), metric="kl", spool={str(tmp_path)!r})
assert len(list(Path({str(tmp_path)!r}).iterdir())) == 1
"""
    run_python(code)
    assert list(tmp_path.iterdir()) == []


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_default_folder_is_the_system_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    task = Task.from_stream(made(3), byte_bpe(), on_mismatch="drop")
    assert len(list(tmp_path.iterdir())) == 1
    assert task.name == "stream"


# ---------------------------------------------------------------- memory

MEASURE = """
import random, resource, sys
from support.tokenizers import byte_bpe
from graphprune import Task
from support.streams import NAMES, OBJECTS, PLACES
tokenizer = byte_bpe()

def records(n, seed=0):
    source = random.Random(seed)
    for _ in range(n):
        one, other = source.sample(NAMES, 2)
        text = f"When {one} and {other} went to the {source.choice(PLACES)}, {other} gave a "
        text += source.choice(OBJECTS) + " to"
        yield {"clean": text, "corrupt": text.replace(one, "John"), "answer": " " + one,
               "distractor": " " + other}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def use(task):
    seen = sum(b.size for b in task.batches(32)) + sum(b.size for b in task.batches(32, shuffle=0))
    assert seen == 2 * len(task)

kind, n = KIND, COUNT
given = dict(on_mismatch="drop", metric="logit_diff")
use(Task.from_stream(records(2000), tokenizer, **given))
start = peak()
if kind == "stream":
    task = Task.from_stream(lambda: records(n), tokenizer, length=n, **given)
else:
    task = Task.from_pairs(list(records(n)), tokenizer, **given)
assert task.notes["dropped"] < n / 2
use(task)
print(peak() - start)
"""


def growth(kind: str, n: int) -> float:
    """MiB by which a process's peak grows over n examples that are built and read four times."""
    return float(run_python(MEASURE.replace("KIND", repr(kind)).replace("COUNT", str(n))))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_a_hundred_thousand_examples_take_the_memory_of_five_thousand() -> None:
    few, many, whole = growth("stream", 5_000), growth("stream", 100_000), growth("pairs", 100_000)
    print(f"\npeak grows by {few:.1f} MiB (5,000), {many:.1f} MiB (100,000), {whole:.1f} in memory")
    assert many - few < 8
    assert whole > 10 * (many - few)
