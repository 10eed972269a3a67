"""Encoders, vision transformers and encoder-decoders, run through the user's own forward."""

from .model import ResidualModel

__all__ = ["ResidualModel"]
