"""A small study, and what of a job's record does not depend on the machine."""

from .cli import save_model


def small_plan(folder):
    """Two methods on a tiny model saved under ``folder``, two seeds."""
    model = save_model(folder / "tiny")
    return {
        "name": "two <b>methods</b>",
        "systems": {"small": {"model": str(model), "tasks": ["ioi"], "batch_size": 8}},
        "methods": {"EAP": {"method": "eap"}, "chance": {"method": "random"}},
        "densities": [0.1, 0.5],
        "seeds": [0, 1],
        "train": 6,
        "test": 5,
    }


def figures(record):
    """All but time and memory."""
    return {
        k: v for k, v in record.items() if "seconds" not in k and k not in ("mib", "time_in_passes")
    }
