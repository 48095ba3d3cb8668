"""Makes an example workflow: `python -m devtools.canvas NAME`.

What it computes is written down in workflows/NAME.api.json, how it looks on the canvas in layouts/NAME.json (places and
groups of the nodes, by title) and layouts/NAME.md (the notes). The real frontend puts both together: this writes
workflows/NAME.json, rewrites NAME.api.json as the frontend exports it, runs the workflow and takes NAME.jpg.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from . import chromium
from .frontend import Frontend, open_frontend
from .layout import WINDOW, Layout, arrange, extent, faults, one_item_a_line, tidy
from .paths import WORKFLOWS, DevError
from .server import ComfyServer

SCREENSHOT_WIDTH = 1600
PLAIN = """
    body > *:not(#vue-app), .graph-canvas-panel ~ *, .p-toast, .comfyui-body-top, .side-tool-bar-container,
    .workflow-tabs-container, .actionbar, .minimap-main-container, .comfy-menu-hamburger,
    [data-testid="subgraph-breadcrumb"] {
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

DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 100))))"
QUIET: dict[str, Any] = {
    "TextareaWidget_FontSize": 14,
    "Minimap_Visible": False,
    "Graph_CanvasInfo": False,
    "Graph_CanvasMenu": False,
    "NodeBadge_NodeSourceBadgeMode": "None",
    "NodeBadge_NodeIdBadgeMode": "None",
}


def write(name: str, frontend: Frontend) -> dict[str, Any]:
    """NAME.json and NAME.api.json, from NAME.api.json and the layout."""
    source = WORKFLOWS / f"{name}.api.json"
    frontend.load_api(json.loads(source.read_text(encoding="utf-8")), name)
    titles = frontend.page.evaluate("() => app.graph._nodes.map(node => [node.id, node.title])")
    frontend.page.evaluate(KEEP_SEEDS)
    workflow = frontend.serialize()
    arrange(workflow, dict(titles), frontend.page.evaluate(SIZES), Layout.read(name))
    frontend.load(workflow, name)
    workflow = tidy(frontend.serialize(), name)
    for fault in faults(workflow, frontend.page.evaluate(WIRES)):
        print(f"{name}: {fault}")
    (WORKFLOWS / f"{name}.json").write_text(one_item_a_line(workflow), encoding="utf-8")
    source.write_text(one_item_a_line(frontend.export(), depth=1), encoding="utf-8")
    return workflow


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
    frontend.page.evaluate(DRAWN)
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
    with ComfyServer(env={"HF_HUB_OFFLINE": "1"}) as server:
        for name in names:
            with open_frontend(server, browser, *WINDOW, **QUIET) as frontend:
                take_picture(write(name, frontend), WORKFLOWS / f"{name}.jpg", frontend)
            print(f"workflows/{name}.json, {name}.api.json, {name}.jpg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
