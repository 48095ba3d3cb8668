"""Malformed prompts for ComfyUI's API, made from the example workflows: the same ones in every run."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from devtools.paths import WORKFLOWS

Graph = dict[str, Any]
Schemas = dict[str, Any]  # by class, what ComfyUI's /object_info says of it

OURS = "TokenOpt"
HUGE = 10**30

# fmt: off
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, HUGE, -HUGE, 1e308, math.nan, math.inf, -math.inf, "", "x", "nan", "-1e400", "0x10", [],
    [1, 2, 3], [[]], {}, {"a": 1}, {"__value__": [1, 2]}, {"__value__": {}}, {"__value__": None},
)
NAMES = (
    "", " ", ".", "..", "../../x", "..\\..\\x", "/etc/passwd", "C:\\Windows\\win.ini", "\\\\host\\share",
    "mini/../../x", "mini\0", "file:///etc/passwd", "~/x", "%2e%2e%2fx", "hf-hub:nobody/none", "local-dir:/etc",
    "nobody/none", "Mini", "\U0001f98a" * 40, "\ud800", "\x1b[31mred", "a" * 100_000, "titok_l32",
    "ViT-B-32 laion2b", "${HOME}", "con",
)
TEXTS = (
    "", " \n\t ", "|", "||||", ":2", "a fox:0", "a fox:0 | a dog:0", "a fox | ", "a fox:-1", "a fox:1e9", ":",
    "a fox:nan", "fox " * 25_000, "x" * 100_000, "\x00", "fox\x00", "\x01\x02\x1b[2J", "\U0001f98a", "\ud800",
    "../../x", "/etc/passwd", "<start_of_text>", "|".join(["a fox"] * 300), "{" * 5000, "%s%n",
    "a fox:" + "9" * 400, "\u202efox", "a\u0301" * 9000,
)
POSITIONS = (
    "", ",,,", "x", "-1", "3-", "-", "5-2", "0-99999999", "0-9", "99999", "1e3", "1.5", "0x1", "\x00", "0\x00",
    "\u0663", "\u00b2", "../../x", "9" * 5000, "0," * 50_000, "0;1;2 3", "*", "[0]", "0--1", "\U0001f98a", "0-0",
)
# fmt: on


@dataclass(frozen=True)
class Mutant:
    """A prompt, and the nodes that an error may name: those that were changed and what hangs on them."""

    name: str
    graph: Any
    blamed: frozenset[str]


def workflows() -> dict[str, Graph]:
    """The example workflows, made quick: two iterations, one picture, nothing written to the disk."""
    found = {}
    for path in sorted(WORKFLOWS.glob("*.api.json")):
        graph: Graph = json.loads(path.read_text(encoding="utf-8"))
        for key in [key for key, node in graph.items() if node["class_type"] == "PreviewImage"]:
            if graph[graph[key]["inputs"]["images"][0]]["class_type"] != f"{OURS}LossPlot":
                del graph[key]  # so that a refusal is one of the whole prompt
        for node in graph.values():
            inputs = node["inputs"]
            node.pop("_meta", None)
            if node["class_type"] == "SaveImage":
                node["class_type"], node["inputs"] = "PreviewImage", {"images": inputs["images"]}
            inputs.update({key: value for key, value in {"iterations": 2, "batch": 1}.items() if key in inputs})
            if node["class_type"] == f"{OURS}Refine":
                inputs.update(rounds=1, positions="0")
        found[path.name.removesuffix(".api.json")] = graph
    return found


Made = Iterator[tuple[str, Any, set[str]]]  # name, graph, the nodes that were changed
Family = Callable[[Schemas, random.Random], Made]


def mutants(schemas: Schemas, family: Family) -> Iterator[Mutant]:
    """All prompts of a family. A few are still valid."""
    for name, graph, changed in family(schemas, random.Random(family.__name__)):
        yield Mutant(f"{family.__name__}: {name}", graph, frozenset(downstream(graph, changed)))


def widgets(schemas: Schemas, draw: random.Random) -> Made:
    """Values of the wrong type or out of range, in every widget."""
    for class_type, name, places in spots(schemas, is_widget):
        for value in draw.sample(WRONG, 8):
            yield change(draw.choice(places), name, value, class_type)


def names_and_texts(schemas: Schemas, draw: random.Random) -> Made:
    """What a person, or somebody who means harm, writes into a text or a list of names."""
    for class_type, name, places in spots(schemas, is_widget):
        values: tuple[str, ...] = ()
        if kind(schemas, class_type, name) == "COMBO":
            values = NAMES if name == "name" else NAMES[:6]
        elif name == "positions":
            values = POSITIONS
        elif kind(schemas, class_type, name) == "STRING":
            values = TEXTS
        for value in values:
            yield change(draw.choice(places), name, value, class_type)


def over_links(schemas: Schemas, draw: random.Random) -> Made:
    """Numbers out of range that come over a link, where ComfyUI does not look."""
    sources = {
        "INT": "PrimitiveInt",
        "FLOAT": "PrimitiveFloat",
        "STRING": "PrimitiveString",
        "COMBO": "PrimitiveString",
    }
    beyond = {"INT": (-1, 10**9, -(2**63), 2**63 - 1), "FLOAT": (-1.0, 1e9, math.nan, -1e308), "STRING": ("\0", "../x")}
    for class_type, name, places in spots(schemas, is_widget):
        of = kind(schemas, class_type, name)
        if of not in sources or name == "seed":
            continue
        for value in draw.sample(beyond.get(of, ("../x", "")), 2):
            graph, key = draw.choice(places)
            graph = copy.deepcopy(graph)
            graph["source"] = {"class_type": sources[of], "inputs": {"value": value}}
            graph[key]["inputs"][name] = ["source", 0]
            yield f"{class_type}.{name} <- {value!r}", graph, {key, "source"}


def sockets(schemas: Schemas, draw: random.Random) -> Made:
    """Values where a link belongs."""
    for class_type, name, places in spots(schemas, lambda *of: not is_widget(*of), optional=True):
        for value in draw.sample(
            [None, 1, 0.5, "x", True, {}, {"a": 1}, {"__value__": [1, 2]}, "../../x", math.nan], 4
        ):
            yield change(draw.choice(places), name, value, class_type)


def missing(schemas: Schemas, draw: random.Random) -> Made:
    """Inputs that are left out, and such as no node has."""
    for class_type, name, places in spots(schemas, lambda *of: True):
        graph, key = draw.choice(places)
        graph = copy.deepcopy(graph)
        graph[key]["inputs"].pop(name)
        yield f"{class_type} without {name}", graph, {key}
        if draw.random() < 0.2:
            yield change((graph, key), f"{name}_", draw.choice(WRONG), class_type)


def links(schemas: Schemas, draw: random.Random) -> Made:
    """Links to nowhere, to the wrong output, to the node itself and round in a circle."""
    for class_type, name, places in spots(schemas, lambda *of: not is_widget(*of)):
        graph, key = draw.choice(places)
        source, slot = graph[key]["inputs"][name]
        others = sorted(set(graph) - {key})
        wrong = [
            ["nowhere", 0],
            [source, 99],
            [source, -99],
            [source, "0"],
            [source, None],
            [int(source), 0],
            [key, slot],
        ]
        wrong += [[source], [source, slot, 0], [None, None], [[source], slot], ["", ""], [draw.choice(others), slot]]
        wrong += [[max(graph, key=int), 0], [draw.choice(others), 0], [source, 2**70], [{}, 0]]
        for value in draw.sample(wrong, 5):
            yield change((graph, key), name, value, class_type)


def classes(schemas: Schemas, draw: random.Random) -> Made:
    """Nodes of another class, or of none."""
    ours = sorted(name for name in schemas if name.startswith(OURS))
    for name, graph in workflows().items():
        for key in draw.sample(sorted(graph), 4):
            was = graph[key]["class_type"]
            for value in draw.sample(["", "x", was.lower(), "../x", None, 3, {}, [was], *draw.sample(ours, 4)], 3):
                mutant = copy.deepcopy(graph)
                mutant[key]["class_type"] = value
                yield f"{name}: {key} {was} -> {value!r}", mutant, {key}


def pictures(schemas: Schemas, draw: random.Random) -> Made:
    """Pictures and masks of sizes and numbers that do not fit."""
    sizes = ((1, 1), (4096, 1), (1, 4096), (3, 5), (64, 64), (128, 128), (257, 255))
    for class_type, name, places in spots(schemas, lambda *of: kind(*of) in ("IMAGE", "MASK"), optional=True):
        for width, height in draw.sample(sizes, 5):
            graph, key = draw.choice(places)
            graph, batch = copy.deepcopy(graph), draw.choice((1, 2, 3))
            value = draw.choice((0.0, 0.5, 1.0))
            mask = {"class_type": "SolidMask", "inputs": {"value": value, "width": width, "height": height}}
            color = {"width": width, "height": height, "batch_size": batch, "color": int(value * 255)}
            if kind(schemas, class_type, name) == "MASK" and draw.random() < 0.5:
                graph["new"] = mask
            elif kind(schemas, class_type, name) == "MASK":  # as many as the batch
                graph["plain"] = {"class_type": "EmptyImage", "inputs": color}
                graph["new"] = {"class_type": "ImageToMask", "inputs": {"image": ["plain", 0], "channel": "blue"}}
            elif draw.random() < 0.3:  # with alpha
                graph["plain"], graph["alpha"] = {"class_type": "EmptyImage", "inputs": color}, mask
                graph["new"] = {
                    "class_type": "JoinImageWithAlpha",
                    "inputs": {"image": ["plain", 0], "alpha": ["alpha", 0]},
                }
            else:
                graph["new"] = {"class_type": "EmptyImage", "inputs": color}
            graph[key]["inputs"][name] = ["new", 0]
            made = f"{graph['new']['class_type']} {width} x {height} x {batch}, {value}"
            yield f"{class_type}.{name} <- {made}", graph, {key, "new"}


def whole(schemas: Schemas, draw: random.Random) -> Made:
    """Prompts that are no graph."""
    graph = workflows()["text_edit"]
    for value in (None, [], {}, "x", 3, [graph], {"1": None}, {"1": []}, {"1": "x"}, {"1": {}}, {"": graph["1"]}):
        yield f"{value!r:.60}", value, set()
    for name, one in workflows().items():
        yield f"{name} without inputs", {key: {"class_type": node["class_type"]} for key, node in one.items()}, set(one)
        for value in (None, [], "x", {"inputs": {}}):
            key = draw.choice(sorted(one))
            yield f"{name}: {key} -> {value!r}", {**one, key: value}, {key}


FAMILIES: tuple[Family, ...] = (
    widgets, names_and_texts, over_links, sockets, missing, links, classes, pictures, whole,
)  # fmt: skip


def change(place: tuple[Graph, str], name: str, value: Any, class_type: str) -> tuple[str, Graph, set[str]]:
    """One input of one node set to a value."""
    graph, key = copy.deepcopy(place[0]), place[1]
    graph[key]["inputs"][name] = value
    return f"{class_type}.{name} = {value!r:.60}", graph, {key}


def spots(
    schemas: Schemas, wanted: Callable[[Schemas, str, str], bool], optional: bool = False
) -> Iterator[tuple[str, str, list[tuple[Graph, str]]]]:
    """Each input of the pack's classes that the workflows set, and where; with `optional` those left open, too."""
    found: dict[tuple[str, str], list[tuple[Graph, str]]] = {}
    for graph in workflows().values():
        for key, node in graph.items():
            class_type = node["class_type"]
            if class_type.startswith(OURS):
                open_ones = schemas[class_type]["input"].get("optional", {}) if optional else {}
                for name in sorted({*node["inputs"], *open_ones}):
                    if wanted(schemas, class_type, name):
                        found.setdefault((class_type, name), []).append((graph, key))
    for (class_type, name), places in sorted(found.items(), key=lambda item: item[0]):
        yield class_type, name, places


def kind(schemas: Schemas, class_type: str, name: str) -> str:
    """The type of an input, as ComfyUI calls it."""
    inputs = schemas[class_type]["input"]
    of = {**inputs.get("required", {}), **inputs.get("optional", {})}[name][0]
    return of if isinstance(of, str) else "COMBO"


def is_widget(schemas: Schemas, class_type: str, name: str) -> bool:
    """Whether an input is filled in, not connected."""
    return kind(schemas, class_type, name) in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def downstream(graph: Any, changed: set[str]) -> set[str]:
    """Those nodes and all that use, directly or not, what they give."""
    reached = set(changed)
    while isinstance(graph, dict):
        uses = {
            key
            for key, node in graph.items()
            if isinstance(node, dict)
            for value in node.get("inputs", {}).values()
            if isinstance(value, list) and value and isinstance(value[0], str) and value[0] in reached
        }
        if uses <= reached:
            break
        reached |= uses
    return reached
