"""Which numbers a model's parts are computed in: policies from nodes to precisions, as data.

Kinds of nodes are an adapter's own words. Which of them a method in low precision takes where
nobody names any, the adapter says (:class:`PrecisionDefaults`).

A precision is a grid of values that weights and inputs are rounded to; products are accumulated
and kept in float32 (PAHQ and its baseline RTN-Q, arXiv 2510.23264, as the paper describes them).

========  =======================================================  ==================
name      values                                                   scale
========  =======================================================  ==================
``fp32``  the model's own, untouched
``bf16``  8 bits of significand                                    none
``fp8``   E4M3: 4 bits of significand, at most 448, subnormals      largest value = 448
``int8``  -127 to 127, round to nearest                            largest value = 127
``int4``  -7 to 7, round to nearest                                largest value = 7
========  =======================================================  ==================

Weights have one scale a tensor (or a row); inputs have one for each vector that is multiplied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

from graphprune.errors import InputError, unknown_name

__all__ = ["BITS", "Lowered", "Precision", "PrecisionDefaults", "PrecisionPolicy", "rtn"]

Precision = Literal["fp32", "bf16", "fp8", "int8", "int4"]

BITS: dict[Precision, int] = {"fp32": 32, "bf16": 16, "fp8": 8, "int8": 8, "int4": 4}


def _precision(value: object, where: str) -> Precision:
    if value not in get_args(Precision):
        raise unknown_name("precision", value, get_args(Precision), where=where)
    return cast(Precision, value)


@dataclass(frozen=True)
class PrecisionPolicy:
    """The precision of every node: by its name, else by its kind, else the default.

    Args:
        kinds: precisions of node kinds, as ``graph.nodes[i].kind`` has them.
        default: of kinds that are not named.
        nodes: precisions of single nodes, by name.
        weight_scale: one scale for a whole weight tensor, or one for each of its rows (output
            features).
        activations: whether a product's input is rounded too, not the weights alone.
        emulate: what to do where a device has no kernels for a precision. ``True`` rounds and
            multiplies in float32 everywhere, ``False`` refuses, ``"auto"`` emulates what is
            lacking. What was done is said by :class:`Lowered`.

    Example:
        >>> policy = PrecisionPolicy({"unit": "fp8"}, nodes={"u1": "fp32"})
        >>> policy.of("u0", "unit"), policy.of("u1", "unit"), policy.of("out", "output")
        ('fp8', 'fp32', 'fp32')
    """

    kinds: Mapping[str, Precision] = field(default_factory=dict)
    default: Precision = "fp32"
    nodes: Mapping[str, Precision] = field(default_factory=dict)
    weight_scale: Literal["tensor", "row"] = "tensor"
    activations: bool = True
    emulate: Literal["auto"] | bool = "auto"

    def __post_init__(self) -> None:
        for what, named in (("kind", self.kinds), ("node", self.nodes)):
            if not isinstance(named, Mapping):
                raise InputError(
                    f"a policy's {what}s are a mapping from names to precisions, got "
                    f"{type(named).__name__}"
                )
            for name, value in named.items():
                _precision(value, f"{what} {name!r}")
            object.__setattr__(self, f"{what}s", dict(named))
        _precision(self.default, "default")
        if self.weight_scale not in ("tensor", "row"):
            raise InputError(f"weight_scale is 'tensor' or 'row', got {self.weight_scale!r}")
        if self.emulate not in ("auto", True, False):
            raise InputError(f"emulate is 'auto', True or False, got {self.emulate!r}")

    def __hash__(self) -> int:
        return hash((*sorted(self.kinds.items()), *sorted(self.nodes.items()), self.default))

    def of(self, name: str, *kinds: str) -> Precision:
        """The precision of the node ``name``, whose kind is the first of ``kinds`` that is named.

        Adapters give more than one where a kind stands for part of another.
        """
        if name in self.nodes:
            return self.nodes[name]
        for kind in kinds:
            if kind in self.kinds:
                return self.kinds[kind]
        return self.default

    def with_nodes(self, nodes: Mapping[str, Precision]) -> PrecisionPolicy:
        """The same policy with more single nodes named."""
        return replace(self, nodes={**self.nodes, **nodes})

    def to_dict(self) -> dict[str, Any]:
        """Plain values: kinds, default, nodes, weight_scale, activations and emulate."""
        return {
            "kinds": dict(self.kinds),
            "default": self.default,
            "nodes": dict(self.nodes),
            "weight_scale": self.weight_scale,
            "activations": self.activations,
            "emulate": self.emulate,
        }


@dataclass(frozen=True)
class PrecisionDefaults:
    """An adapter's defaults for methods in low precision, where nobody names kinds of nodes.

    Attributes:
        policy: what PAHQ computes in.
        rounded: kinds of nodes whose weights RTN-Q rounds.
        raised: kinds of nodes that PAHQ computes in float32 while edges into them are tried.

    Example:
        >>> lm.precision_defaults.rounded, lm.precision_defaults.raised
        (('head', 'mlp'), ('head', 'kv'))
    """

    policy: PrecisionPolicy
    rounded: tuple[str, ...]
    raised: tuple[str, ...]


def rtn(bits: int, kinds: Iterable[str]) -> PrecisionPolicy:
    """RTN-Q: weights rounded to nearest, symmetric, one scale a tensor.

    The scale is ``max|w| / (2^(bits-1) - 1)``; inputs stay as they are.

    Args:
        bits: 8 or 4.
        kinds: of the nodes whose weights are rounded, such as
            ``model.precision_defaults.rounded``.

    Example:
        >>> policy = rtn(4, ["unit"])
        >>> policy.of("u0", "unit"), policy.activations
        ('int4', False)
    """
    by_bits: dict[int, Precision] = {8: "int8", 4: "int4"}
    if bits not in by_bits:
        raise InputError(f"round to nearest has 8 or 4 bits, got {bits!r}")
    return PrecisionPolicy(dict.fromkeys(kinds, by_bits[bits]), activations=False)


@dataclass(frozen=True)
class Lowered:
    """The outcome of a policy on a model and its device: what ran natively, what was emulated.

    Attributes:
        policy: as asked.
        native: for each precision that occurs, whether every product in it ran on the device's own
            kernels. An emulated precision (``False``) shows the values, never the time.
        emulated_because: why not, for each that is emulated.
        weight_bytes: of all weights if each is stored in its precision, scales included.
        full_weight_bytes: of the weights before.

    Example:
        >>> low = lm.at_precision(
        ...     gp.PrecisionPolicy({"head": "int8", "mlp": "bf16"}, emulate=True)
        ... )
        >>> low.lowered.weight_bytes < low.lowered.full_weight_bytes, low.lowered.native
        (True, {'bf16': False, 'int8': False})
    """

    policy: PrecisionPolicy
    native: Mapping[Precision, bool]
    emulated_because: Mapping[Precision, str]
    weight_bytes: int
    full_weight_bytes: int
