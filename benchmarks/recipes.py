"""What an example workflow does, as settings that plain Python can run: `read("text_edit")`.

The settings are read off the workflow's file each time, so that what is measured is what ships. `benchmarks.recipe_run`
runs them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import tokenopt_core as to
from benchmarks.recipe_steps import (
    ClipTerm,
    Drawn,
    Encoded,
    Fitting,
    Growing,
    KnownTerm,
    Optimize,
    Recipe,
    Refine,
    ResetTerm,
    Stage,
    Term,
)

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
SILENT = ("trajectory_every", "control_after_generate")  # settings that change no result
T = TypeVar("T")


def read(workflow: str | Path) -> Recipe:
    """The recipe of an example workflow by its name, or of any workflow's file in API format.

    Raises ValueError for one that no recipe stands for.
    """
    path = workflow if isinstance(workflow, Path) else WORKFLOWS / f"{workflow}.api.json"
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


Node = Mapping[str, Any]


class Graph:
    """A workflow's nodes and the wires between them."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes = nodes

    def of_class(self, *kinds: str) -> list[Node]:
        return [node for node in self.nodes.values() if node["class_type"] in kinds]

    def single(self, kind: str) -> Node | None:
        """The only node of a class, or None."""
        found = self.of_class(kind)
        if len(found) > 1:
            raise ValueError(f"expected one {kind} at most, got {len(found)}")
        return found[0] if found else None

    def wired(self, node: Node, name: str) -> Node | None:
        """What an input's wire comes from."""
        wire = node["inputs"].get(name)
        return self.nodes[wire[0]] if isinstance(wire, list) else None

    def make(self, node: Node | None, kind: type[T], without: Sequence[str] = (), **more: Any) -> T:
        """A dataclass from a node's widgets of the same names, those in `without` left out, and from `more`.

        Raises ValueError for a widget that nothing here stands for: a measurement would silently do without it.
        """
        known, given = {f.name for f in fields(kind)}, dict[str, Any]()  # type: ignore[arg-type]
        for name, value in node["inputs"].items() if node else ():
            source = self.wired(node, name) if node else None
            if name in (*SILENT, *without, *more) or (source is not None and "value" not in source["inputs"]):
                continue
            if name not in known:
                raise ValueError(f"{kind.__name__} knows nothing of the setting {name} of a node: add it there")
            given[name] = source["inputs"]["value"] if source else value  # a primitive node's, or its own
        return kind(**given, **more)


def parse(nodes: Mapping[str, Node]) -> Recipe:
    """The recipe of a workflow in API format."""
    graph = Graph(nodes)
    last = _last_stage(graph)
    stages: list[Stage] = []
    node: Node | None = last
    while node is not None and node["class_type"] in STAGES:
        stages.insert(0, STAGES[node["class_type"]](graph, node))
        node = graph.wired(node, "features")
    if not any(isinstance(stage, Optimize) for stage in stages):
        raise ValueError("expected a TokenOptOptimize that is wired to what comes out, got none")
    decoder, fit, stitch = (graph.single(f"TokenOpt{name}") for name in ("Decode", "Fit", "Stitch"))
    quantize = decoder["inputs"].get("quantize", True) if decoder else True
    fitting = graph.make(fit, Fitting)
    if stitch:
        fitting = replace(fitting, feather=stitch["inputs"].get("feather", 4))
    return Recipe(_start(graph, node), tuple(stages), fitting, graph.make(graph.single("GrowMask"), Growing), quantize)


def _last_stage(graph: Graph) -> Node:
    """The stage whose features no other stage goes on from."""
    stages = graph.of_class(*STAGES)
    taken = [graph.wired(node, "features") for node in stages]
    last = [node for node in stages if not any(node is other for other in taken)]
    if len(last) != 1:
        raise ValueError(f"expected one chain of {' and '.join(STAGES)}, got {len(last)}")
    return last[0]


def _start(graph: Graph, node: Node | None) -> Encoded | Drawn:
    if node is None or node["class_type"] not in STARTS:
        kind = node["class_type"] if node else "nothing"
        raise ValueError(f"expected features from {' or '.join(STARTS)}, got them from {kind}")
    if node["class_type"] == "TokenOptEncode":
        return graph.make(node, Encoded, masked="mask" in node["inputs"])
    return graph.make(node, Drawn, ["seed"])


def _terms(graph: Graph, node: Node | None) -> Iterator[Term]:
    """The losses behind a wire."""
    kind = node["class_type"] if node else "nothing"
    if node and kind == "TokenOptCLIPLoss":
        yield graph.make(node, ClipTerm, ["prompt"])
    elif node and kind == "TokenOptMaskedL1Loss":
        yield graph.make(node, KnownTerm)
    elif node and kind == "TokenOptCombineLosses":
        for name in node["inputs"]:
            yield from _terms(graph, graph.wired(node, name))
    else:
        raise ValueError(f"expected a loss of TokenOptCLIPLoss or TokenOptMaskedL1Loss, got one of {kind}")


def _regularizers(graph: Graph, node: Node | None) -> tuple[to.TokenRegularizer, ...]:
    if node is None:
        return ()
    return (*_regularizers(graph, graph.wired(node, "chain")), graph.make(node, to.TokenRegularizer))


def _common(graph: Graph, node: Node) -> dict[str, Any]:
    terms = tuple(_terms(graph, graph.wired(node, "loss")))
    return {"terms": terms, "regularizers": _regularizers(graph, graph.wired(node, "regularizer"))}


def _optimize(graph: Graph, node: Node) -> Optimize:
    noise, reset = graph.wired(node, "noise"), graph.wired(node, "reset")
    config = graph.make(node, to.OptimizeConfig, noise=graph.make(noise, to.NoiseSchedule))
    return Optimize(config, **_common(graph, node), reset=graph.make(reset, ResetTerm) if reset else None)


def _refine(graph: Graph, node: Node) -> Refine:
    seed = graph.wired(node, "seed_features")
    if seed and seed["class_type"] not in STARTS:
        raise ValueError(f"expected seed_features from {' or '.join(STARTS)}, got them from {seed['class_type']}")
    return graph.make(node, Refine, anchored=seed is not None, **_common(graph, node))


STARTS = ("TokenOptEncode", "TokenOptRandom")
STAGES: dict[str, Callable[[Graph, Node], Stage]] = {"TokenOptOptimize": _optimize, "TokenOptRefine": _refine}
