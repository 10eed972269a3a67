"""Encoders, vision transformers and encoder-decoders, run through the user's own forward."""

from .families import Attention, Mlp, ResidualFamily, Stack
from .model import ResidualModel

__all__ = ["Attention", "Mlp", "ResidualFamily", "ResidualModel", "Stack"]
