"""Runs the command line inside the test's process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graphprune.cli import main
from support.tiny import tiny
from support.tokenizers import byte_bpe


def call(*arguments: object) -> int:
    """The exit code of ``graphprune arguments``."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    code = stopped.value.code
    return code if isinstance(code, int) else 0


def out_of(capsys: Any) -> dict[str, Any]:
    """What stdout holds, which must be one JSON document and nothing else."""
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def save_model(folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """A tiny Llama and a tokenizer that knows the tasks' words, in one folder."""
    tokenizer = byte_bpe()
    settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, **overrides}
    tiny("llama", seed, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_circuit(folder: Path, model_dir: Path) -> Path:
    """The folder of a circuit of that model."""
    arguments = ("--model", model_dir, "--task", "ioi", "--method", "eap", "-n", 4, "-q")
    assert call("discover", *arguments, "--size", "0.5", "--out", folder) == 0
    return folder
