"""How an example workflow lies on the canvas: places, groups, notes; what is wrong with them. Standard library only."""

import json
import uuid
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from .paths import DevError

LAYOUTS = Path(__file__).parent / "layouts"
TITLE = 30  # px: the bar above a node's position
MARGIN, HEADING = 20, 44  # px: around a group's nodes; more above them for its name
COLOURS = ("#3f789e", "#8a8", "#b58b2a", "#a1309b", "#b06634")
WINDOW = (1600, 900)  # px
VIEW = (70, 90, 1180, 790)  # left, top, width, height: the part of WINDOW without menus, where a workflow opens

HUB = "https://huggingface.co"
# the loader -> file in the models folder, where it comes from, which folder
DOWNLOADS = {
    "TokenOptTiTokLoad": [
        (f"{name}.safetensors", f"{HUB}/yucornetto/tokenizer_{name}_imagenet/resolve/main/model.safetensors", "titok")
        for name in ("titok_l32", "titok_b64", "titok_s128", "titok_bl64_vq8k", "titok_bl128_vq8k", "titok_sl256_vq8k")
    ],
    "TokenOptCLIPLoad": [
        (
            f"{name} laion2b.safetensors",
            f"{HUB}/laion/{repository}/resolve/main/open_clip_model.safetensors",
            "open_clip",
        )
        for name, repository in (
            ("ViT-B-32", "CLIP-ViT-B-32-laion2B-s34B-b79K"),
            ("ViT-B-16", "CLIP-ViT-B-16-laion2B-s34B-b88K"),
        )
    ],
}

Box = tuple[float, float, float, float]  # left, top, width, height


@dataclass(frozen=True)
class Layout:
    """Where things are on the canvas; places are [left, top, width] or [left, top, width, height]."""

    nodes: dict[str, list[int]]  # title -> place
    groups: dict[str, list[str]]  # title -> titles of its nodes
    tops: dict[str, int]  # group's title -> its upper edge, if that is not where its nodes put it
    notes: dict[str, list[int]]  # heading -> place
    texts: dict[str, str]  # heading -> Markdown

    @classmethod
    def read(cls, name: str) -> "Layout":
        """The layout of an example workflow."""
        content = json.loads((LAYOUTS / f"{name}.json").read_text(encoding="utf-8"))
        sections = ("\n" + (LAYOUTS / f"{name}.md").read_text(encoding="utf-8")).split("\n# ")[1:]
        return cls(
            **content, texts={heading: text.strip() for heading, _, text in (s.partition("\n") for s in sections)}
        )


def arrange(workflow: dict[str, Any], titles: dict[int, str], least: dict[str, list[float]], layout: Layout) -> None:
    """Put nodes, groups and the note of a serialised workflow where the layout says."""
    if set(titles.values()) != set(layout.nodes):
        raise DevError(f"The layout places {sorted(layout.nodes)}, but the nodes are {sorted(titles.values())}.")
    for node in workflow["nodes"]:
        left, top, width, *height = layout.nodes[titles[node["id"]]]
        node["pos"], node["size"] = [left, top], [width, round(max(least[str(node["id"])][1], *height, 0))]
    offer_downloads(workflow)
    boxes = {titles[node["id"]]: outline(node) for node in workflow["nodes"]}
    workflow["groups"] = [
        {"id": number, "title": title, "bounding": around([boxes[name] for name in names], layout.tops.get(title))}
        | {"color": colour, "font_size": 24, "flags": {}}
        for number, ((title, names), colour) in enumerate(zip(layout.groups.items(), cycle(COLOURS), strict=False), 1)
    ]
    for number, (heading, place) in enumerate(layout.notes.items(), max(titles) + 1):
        workflow["nodes"].append(note(number, heading, layout.texts[heading], place))
        workflow["last_node_id"] = number


def offer_downloads(workflow: dict[str, Any]) -> None:
    """Tells the frontend where the files that the loaders can name come from, so that it offers what is missing."""
    for node in workflow["nodes"]:
        models = DOWNLOADS.get(node["type"])
        if models:
            node["properties"]["models"] = [{"name": n, "url": u, "directory": d} for n, u, d in models]


def note(number: int, title: str, text: str, place: list[int]) -> dict[str, Any]:
    """A node that only says something."""
    left, top, width, height = place
    node = {"id": number, "type": "MarkdownNote", "title": title, "pos": [left, top], "size": [width, height]}
    node |= {"flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": [], "properties": {}}
    return node | {"widgets_values": [text], "color": "#432", "bgcolor": "#653"}


def outline(node: dict[str, Any]) -> Box:
    """The area that a node covers, with its title."""
    left, top = node["pos"]
    width, height = node["size"]
    return (left, top - TITLE, width, height + TITLE)


def around(boxes: list[Box], top: float | None = None) -> list[float]:
    """The group that holds these nodes."""
    left = min(b[0] for b in boxes) - MARGIN
    top = min(b[1] for b in boxes) - HEADING if top is None else top
    right, bottom = max(b[0] + b[2] for b in boxes), max(b[1] + b[3] for b in boxes)
    return [left, top, right - left + MARGIN, bottom - top + MARGIN]


def extent(workflow: dict[str, Any]) -> Box:
    """The area that a workflow covers, with a margin."""
    boxes = [outline(node) for node in workflow["nodes"]] + [tuple(g["bounding"]) for g in workflow["groups"]]
    left, top, width, height = around(boxes)
    return (left, top + HEADING - MARGIN, width, height - HEADING + MARGIN)


def tidy(workflow: dict[str, Any], name: str) -> dict[str, Any]:
    """The workflow without what differs from one machine or session to the next."""
    numbers = {link[0]: number for number, link in enumerate(workflow["links"], 1)}
    for link in workflow["links"]:
        link[0] = numbers[link[0]]
    for node in workflow["nodes"]:
        for slot in node.get("inputs", []):
            slot["link"] = numbers.get(slot["link"])
        for slot in node.get("outputs", []):
            slot["links"] = [numbers[link] for link in slot["links"] or []] or None
    left, top, width, height = extent(workflow)
    scale = round(min(VIEW[2] / width, VIEW[3] / height), 2)
    middle = ((VIEW[0] + VIEW[2] / 2) / scale, (VIEW[1] + VIEW[3] / 2) / scale)
    offset = [round(middle[0] - left - width / 2), round(middle[1] - top - height / 2)]
    own = {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)), "last_link_id": len(numbers)}
    return workflow | own | {"extra": {"ds": {"scale": scale, "offset": offset}}}


def faults(workflow: dict[str, Any], wires: list[Any]) -> list[str]:
    """Nodes on top of each other, and wires that run behind a node."""
    boxes = {node["id"]: outline(node) for node in workflow["nodes"]}
    found = [f"nodes {a} and {b} overlap" for a in boxes for b in boxes if a < b and overlap(boxes[a], boxes[b])]
    for origin, target, start, end in wires:
        others = {number: box for number, box in boxes.items() if number not in (origin, target)}
        points = spline(start, end)
        found += [f"the wire {origin} -> {target} runs behind {n}" for n, b in others.items() if crosses(points, b)]
    return found


def overlap(a: Box, b: Box) -> bool:
    """Whether two areas share a point."""
    return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in (0, 1))


def spline(start: list[float], end: list[float]) -> list[tuple[float, float]]:
    """Points of a wire, as the frontend draws it."""
    reach = 0.25 * ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5
    xs, ys = (start[0], start[0] + reach, end[0] - reach, end[0]), (start[1], start[1], end[1], end[1])
    steps = [i / 100 for i in range(101)]
    weights = [((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3) for t in steps]
    return [(sum(map(float.__mul__, w, map(float, xs))), sum(map(float.__mul__, w, map(float, ys)))) for w in weights]


def crosses(points: list[tuple[float, float]], box: Box) -> bool:
    """Whether a wire touches an area."""
    return any(overlap((x, y, 0.1, 0.1), box) for x, y in points)


def one_item_a_line(content: Any, depth: int = 2, indent: str = "") -> str:
    """JSON that a person can read and compare: entries of the first `depth` levels each on a line of their own."""
    if not depth or not content or not isinstance(content, (dict, list)):
        return json.dumps(content)
    inner = indent + "  "
    entries = content.items() if isinstance(content, dict) else (("", item) for item in content)
    lines = [f"{json.dumps(k) + ': ' if k else ''}{one_item_a_line(v, depth - 1, inner)}" for k, v in entries]
    opening, closing = "{}" if isinstance(content, dict) else "[]"
    body = f",\n{inner}".join(lines)
    return f"{opening}\n{inner}{body}\n{indent}{closing}" + ("" if indent else "\n")
