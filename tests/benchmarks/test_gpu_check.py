"""The check for a GPU (``gpu_check.py``): all of it at a tiny size here, and whole where one is."""

import json

import pytest
import torch

from . import gpu_check

PARTS = {
    "exactness": [
        "masked forward",
        "gradient of a mask",
        "EAP",
        "EAP-IG, 5 steps",
        "ACDC, two layers",
    ],
    "8B": ["plain forward and backward", "EAP"],
    "13B": ["a mask optimiser's step"],
    "GPT-2": [
        "plain forward and backward",
        "EAP",
        "EAP-IG, 5 steps",
        "an edge pruning step",
        "masked forward",
        "compiled circuit",
        "ACDC, tau 0.01",
        "ACDC, tau 0.001",
        "PAHQ, MLPs in bf16",
        "PAHQ, MLPs in fp8",
    ],
}


def check(arguments, tmp_path):
    found = gpu_check.main([*arguments, "--out", str(tmp_path / "gpu.json")])
    assert json.loads((tmp_path / "gpu.json").read_text()) == found
    names = {part: [r["name"] for r in found["rows"] if r["part"] == part] for part in PARTS}
    for part, wanted in PARTS.items():
        assert [
            n.split(", ", 1)[0] if n.startswith("compiled") else n for n in names[part]
        ] == wanted
    gaps = {row["name"]: row["gap"] for row in found["rows"] if row["part"] == "exactness"}
    assert max(gaps.values()) <= gpu_check.LIMIT
    for row in found["rows"]:
        if row["part"] != "exactness" and "left_out" not in row:
            assert row["seconds"] > 0
    return found


def test_the_script_runs_at_a_tiny_size(tmp_path, capsys):
    found = check(["--tiny", "--device", "cpu"], tmp_path)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(found["rows"]) + 1
    assert shown[-1].startswith("CPU, torch ")


def test_without_a_gpu_it_says_what_to_do(capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--device", "cpu"])
    assert "--tiny tries the script on the CPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_the_whole_on_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert check([], tmp_path)["seconds"] < 60 * gpu_check.MINUTES
