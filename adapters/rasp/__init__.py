"""Tracr-compiled RASP programs: models whose true circuit is known."""

from .convert import convert, tracr_outputs
from .inputs import every_input, program_task
from .metrics import cross_entropy, decode, output_kl, squared_error
from .programs import RaspProgram, rasp_programs
from .transformer import TRACR, TracrConfig, TracrTransformer
from .truth import tracr_truth, tracr_wiring

__all__ = [
    "TRACR",
    "RaspProgram",
    "TracrConfig",
    "TracrTransformer",
    "convert",
    "cross_entropy",
    "decode",
    "every_input",
    "output_kl",
    "program_task",
    "rasp_programs",
    "squared_error",
    "tracr_outputs",
    "tracr_truth",
    "tracr_wiring",
]
