"""Folders of a study whose prompts and weights are files of its own, and ways to change them."""

import json
import shutil

import yaml

from graphprune.study import Study

from .cli import save_model

PEOPLE = ("Aaron", "Abigail", "Adam", "Albert", "Alexander", "Alice", "Amanda", "Amber")


def pairs(swapped=False):
    """56 prompts; ``swapped``: answer and distractor change places, nothing else."""
    rows = []
    for first in PEOPLE:
        for second in PEOPLE:
            if first != second:
                names = (f" {second}", f" {first}")
                rows.append(
                    {
                        "clean": f"When {first} and {second} went out, {first} gave it to",
                        "corrupt": f"When {first} and {second} went out, {second} gave it to",
                        "answer": names[swapped],
                        "distractor": names[not swapped],
                    }
                )
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def two_models(base):
    """Two sets of weights of one architecture."""
    return [save_model(base / name, seed) for seed, name in enumerate(("first", "second"))]


def fill(place, model):
    """Makes ``place`` a folder with a YAML, its prompts and its model, all named from there."""
    shutil.copytree(model, place / "tiny")
    write(place / "pairs.jsonl", pairs())
    write_plan(place)
    return place


def write_plan(place, **changes):
    plan = {
        "systems": {"small": {"model": "tiny", "tasks": ["pairs.jsonl"]}},
        "methods": {"EAP": {"method": "eap"}},
        "densities": [0.3],
        "seeds": [0, 1],
        "train": 8,
        "test": 6,
    }
    path = place / "plan.yaml"
    path.write_text(yaml.safe_dump({**plan, **changes}))
    return path


def study_of(place, **changes):
    return Study.from_yaml(write_plan(place, **changes))


def swap_answers(place, models):
    write(place / "pairs.jsonl", pairs(swapped=True))


def replace_weights(place, models):
    shutil.copy(models[1] / "model.safetensors", place / "tiny" / "model.safetensors")
