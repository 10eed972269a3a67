"""Decoder-only language models: from a Hugging Face module to a masked model."""

from .describe.family import FAMILIES, Carried, Family, LayerSteps
from .model import LanguageModel

__all__ = ["FAMILIES", "Carried", "Family", "LanguageModel", "LayerSteps"]
