"""The schema of ``circuit.json``, checked with pydantic at the file's edge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from graphprune.errors import FormatError
from graphprune.util.readers import read_json, validated

FORMAT = "graphprune-circuit"
VERSION = 2  # 1 knew neither `ablation` nor `found_on` nor `score_noise`

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class NodeRow(_Strict):
    """One node of the graph; its number is its place in the list."""

    name: str
    kind: str
    layer: int | None
    index: int | None
    attributes: dict[str, Any]


class GraphHead(_Strict):
    """The graph without its nodes and tensors."""

    fingerprint: Sha256
    num_nodes: Count
    num_edges: Count
    num_wires: Count
    edge_kinds: list[str]
    ports: list[str]
    groups: list[list[Count]]
    inputs: list[Count]
    outputs: list[Count]
    num_messages: Count | None = None  # of a graph whose edges may stand for both directions


class CircuitFile(_Strict):
    """The whole document."""

    format: Literal["graphprune-circuit"]
    version: Literal[1, 2]
    graph: GraphHead
    num_kept: Count
    score_method: str | None
    digest: Sha256
    provenance: dict[str, Any]
    report: dict[str, Any] | None
    found_on: Count | None = None
    ablation: str | None = None
    score_noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    nodes: list[NodeRow]

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        later = {"found_on", "ablation", "score_noise"}
        if self.version == 1 and self.model_fields_set & later:
            raise ValueError("version 1 of the format has no found_on, ablation or score_noise")
        if len(self.nodes) != self.graph.num_nodes:
            raise ValueError(f"num_nodes is {self.graph.num_nodes}, nodes are {len(self.nodes)}")
        named = [*self.graph.inputs, *self.graph.outputs]
        named += [number for group in self.graph.groups for number in group]
        if named and max(named) >= len(self.nodes):
            raise ValueError(f"node {max(named)} is named, the last is {len(self.nodes) - 1}")
        return self


Figure = int | float  # a text stands for what is not finite


class PerExample(BaseModel):
    """The values of each example, by metric, and the least and the largest that these can have."""

    circuit: dict[str, list[Figure]]
    full: dict[str, list[Figure]]
    ablated: dict[str, list[Figure]]
    bounds: dict[str, tuple[Figure, Figure]]

    @model_validator(mode="after")
    def _of_the_same_examples(self) -> Self:
        sides = (self.circuit, self.full, self.ablated)
        if len({len(values) for side in sides for values in side.values()}) > 1:
            raise ValueError("the lists have different lengths")
        return self


class ReportSettings(BaseModel):
    """Settings of an evaluation that are read again."""

    model_config = ConfigDict(extra="allow")
    metric: str = ""
    examples: int = 10**6  # enough for any interval


class ReportFile(BaseModel):
    """An evaluation with the values of each example; what has no name here is a measure."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Figure]  # pyright: ignore[reportIncompatibleVariableOverride]
    full: dict[str, Figure]
    ablated: dict[str, Figure]
    absent: dict[str, str]
    notes: dict[str, str]
    remarks: list[str] = []
    settings: ReportSettings
    per_example: PerExample

    @model_validator(mode="after")
    def _faithfulness_has_an_interval(self) -> Self:
        sides = (self.per_example.circuit, self.per_example.full, self.per_example.ablated)
        measures = self.__pydantic_extra__
        if "faithfulness" in measures and any(self.settings.metric not in s for s in sides):
            raise ValueError(f"faithfulness, and no values of its metric {self.settings.metric!r}")
        return self


def parse(path: Path) -> CircuitFile:
    """Reads and checks a ``circuit.json``, the format and its version first."""
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        kind = (
            repr(document.get("format")) if isinstance(document, dict) else type(document).__name__
        )
        raise FormatError(f'{path}: expected "format": "{FORMAT}", got {kind}')
    version = document.get("version")
    if type(version) is not int or version < 1:
        raise FormatError(f"{path}: expected a whole number as version, got {version!r}")
    if version > VERSION:
        raise FormatError(
            f"{path} has version {version} of the format, this graphprune reads up to version "
            f"{VERSION}; a newer graphprune wrote it"
        )
    return validated(CircuitFile, document, path)
