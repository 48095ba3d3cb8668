"""Makes an example workflow: `python -m devtools.canvas NAME`.

What it computes is written down in workflows/NAME.api.json, how it looks on the canvas in layouts/NAME.json (places and
groups of the nodes, by title) and layouts/NAME.md (the note). The real frontend puts both together: this writes
workflows/NAME.json, rewrites NAME.api.json as the frontend exports it, runs the workflow and takes NAME.jpg.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from . import chromium
from .client import Graph
from .frontend import Frontend, open_frontend
from .paths import WORKFLOWS, DevError
from .server import ComfyServer

LAYOUTS = Path(__file__).parent / "layouts"
TITLE = 30  # px: the bar above a node's position
MARGIN, HEADING = 20, 44  # px: around a group's nodes; more above them for its name
COLOURS = ("#3f789e", "#8a8", "#b58b2a", "#a1309b", "#b06634")
WINDOW = (1600, 900)  # px
VIEW = (70, 90, 1500, 790)  # the part of the window that is free of menus: what an opened workflow should fit into
SCREENSHOT_WIDTH = 1600
PLAIN = """
    body > *:not(#vue-app), .graph-canvas-panel ~ *, .p-toast, .comfyui-body-top, .side-tool-bar-container,
    .workflow-tabs-container, .actionbar, .minimap-main-container, .comfy-menu-hamburger, [data-testid="subgraph-breadcrumb"] {
        visibility: hidden !important;
    }
"""
SIZES = "() => Object.fromEntries(app.graph._nodes.map(node => [node.id, Array.from(node.computeSize())]))"
KEEP_SEEDS = """() => {
    for (const node of app.graph._nodes)
        for (const widget of node.widgets ?? [])
            if (widget.name === "control_after_generate") widget.value = "fixed"
}"""
WIRES = """() => [...app.graph.links.values()].map(link => {
    const at = (id, isInput, slot) => Array.from(app.graph.getNodeById(id).getConnectionPos(isInput, slot))
    return [link.origin_id, link.target_id, at(link.origin_id, false, link.origin_slot),
            at(link.target_id, true, link.target_slot)]
})"""
SHOW = """([left, top, scale]) => {
    const view = app.canvas.ds
    view.scale = scale
    view.offset[0] = -left
    view.offset[1] = -top
    app.canvas.setDirty(true, true)
}"""

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
        return cls(**content, texts={heading: text.strip() for heading, _, text in (s.partition("\n") for s in sections)})


def arrange(workflow: dict[str, Any], titles: dict[int, str], least: dict[str, list[float]], layout: Layout) -> None:
    """Put nodes, groups and the note of a serialised workflow where the layout says."""
    if set(titles.values()) != set(layout.nodes):
        raise DevError(f"The layout places {sorted(layout.nodes)}, but the nodes are {sorted(titles.values())}.")
    for node in workflow["nodes"]:
        left, top, width, *height = layout.nodes[titles[node["id"]]]
        node["pos"], node["size"] = [left, top], [width, round(max(least[str(node["id"])][1], *height, 0))]
    boxes = {titles[node["id"]]: outline(node) for node in workflow["nodes"]}
    workflow["groups"] = [
        {"id": number, "title": title, "bounding": around([boxes[name] for name in names], layout.tops.get(title))}
        | {"color": colour, "font_size": 24, "flags": {}}
        for number, ((title, names), colour) in enumerate(zip(layout.groups.items(), cycle(COLOURS), strict=False), 1)
    ]
    for number, (heading, place) in enumerate(layout.notes.items(), max(titles) + 1):
        workflow["nodes"].append(note(number, heading, layout.texts[heading], place))
        workflow["last_node_id"] = number


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


def tidy(workflow: dict[str, Any]) -> dict[str, Any]:
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
    return workflow | {"last_link_id": len(numbers), "extra": {"ds": {"scale": scale, "offset": offset}}}


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


def write(name: str, frontend: Frontend) -> dict[str, Any]:
    """NAME.json and NAME.api.json, from NAME.api.json and the layout."""
    source = WORKFLOWS / f"{name}.api.json"
    frontend.load_api(json.loads(source.read_text(encoding="utf-8")), name)
    titles = frontend.page.evaluate("() => app.graph._nodes.map(node => [node.id, node.title])")
    frontend.page.evaluate(KEEP_SEEDS)
    workflow = frontend.serialize()
    arrange(workflow, dict(titles), frontend.page.evaluate(SIZES), Layout.read(name))
    frontend.load(workflow, name)
    workflow = tidy(frontend.serialize())
    for fault in faults(workflow, frontend.page.evaluate(WIRES)):
        print(f"{name}: {fault}")
    (WORKFLOWS / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")
    source.write_text(one_node_a_line(frontend.export()), encoding="utf-8")
    return workflow


def one_node_a_line(graph: Graph) -> str:
    """An API graph as JSON that a person can read and compare."""
    return "{\n" + ",\n".join(f"  {json.dumps(number)}: {json.dumps(node)}" for number, node in graph.items()) + "\n}\n"


def take_picture(workflow: dict[str, Any], target: Path, frontend: Frontend) -> None:
    """Run the open workflow and save what the canvas shows."""
    frontend.run()
    seen = frontend.wait_for_end()
    if seen["error"] or seen["ended"] != "execution_success":
        raise DevError(f"The workflow did not run: {seen['error'] or seen['ended']}")
    left, top, width, height = extent(workflow)
    scale = SCREENSHOT_WIDTH / width
    frontend.page.evaluate("() => { app.extensionManager.focusMode = true }")
    frontend.page.set_viewport_size({"width": SCREENSHOT_WIDTH, "height": round(height * scale)})
    frontend.page.add_style_tag(content=PLAIN)
    frontend.page.evaluate(SHOW, [left, top, scale])
    frontend.page.evaluate("() => new Promise(done => setTimeout(done, 500))")  # what is drawn settles
    frontend.page.screenshot(path=target, type="jpeg", quality=85)


def main(arguments: list[str]) -> int:
    """Make the workflows that were named."""
    parser = argparse.ArgumentParser(prog="python -m devtools.canvas", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", nargs="+", help="of a workflow, such as text_edit")
    names = parser.parse_args(arguments).name
    chromium.provide()
    browser = os.environ.get(chromium.VARIABLE)
    if browser is None:
        return 1
    quiet: dict[str, Any] = {"TextareaWidget_FontSize": 14, "Minimap_Visible": False, "Graph_CanvasInfo": False, "Graph_CanvasMenu": False}
    quiet |= {"NodeBadge_NodeSourceBadgeMode": "None", "NodeBadge_NodeIdBadgeMode": "None"}
    with (
        ComfyServer(env={"HF_HUB_OFFLINE": "1"}) as server,
        open_frontend(server, browser, *WINDOW, **quiet) as frontend,
    ):
        for name in names:
            take_picture(write(name, frontend), WORKFLOWS / f"{name}.jpg", frontend)
            print(f"workflows/{name}.json, {name}.api.json, {name}.jpg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
