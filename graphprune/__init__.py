"""graphprune: prune the edges of a model's computational graph, and find the circuit that works.

Methods give scores, scores make masks, evaluation and export read masks. Importing graphprune loads
nothing heavy: each name loads when first used, adapters when a model is wrapped. The names, and
where each lives, stand in ``__init__.pyi``.
"""

from lazy_loader import attach_stub

from graphprune.util.attributes import suggest_names

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
suggest_names(__name__)
