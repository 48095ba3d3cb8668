"""ComfyUI's real frontend in a headless Chromium: for the browser tests, and for making the example workflows."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Locator, Page, sync_playwright

from api_examples.client import Graph

from .server import ComfyServer

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SETTINGS = {"Comfy.TutorialCompleted": True}  # or a dialog of templates covers the canvas on the first visit
READY = "window.app?.vueAppReady && window.app.graph && window.app.extensionManager?.workflow?.activeWorkflow"
RECORD = """() => {
    const nothing = () => ({progress: {}, previews: {}, pictures: {}, ended: null, error: null})
    const record = window.tokenopt = nothing()
    const on = (type, act) => app.api.addEventListener(type, event => act(event.detail))
    on("execution_start", () => Object.assign(record, nothing()))
    on("progress", data => (record.progress[data.node] ??= []).push(data.value))
    on("b_preview_with_metadata", data => (record.previews[data.displayNodeId] ??= []).push(data.blob.size))
    on("executed", data => data.output?.images && (record.pictures[data.node] = data.output.images.length))
    on("execution_error", data => record.error = data.exception_message)
    for (const type of ["execution_success", "execution_error", "execution_interrupted"])
        on(type, () => record.ended = type)
}"""

ALL_IN_VIEW = """() => {
    const view = app.canvas.ds, boxes = app.graph._nodes.map(node => node.getBounding())
    const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]))
    const right = Math.max(...boxes.map(b => b[0] + b[2])), bottom = Math.max(...boxes.map(b => b[1] + b[3]))
    view.scale = 0.8 * Math.min(innerWidth / (right - left), innerHeight / (bottom - top))
    view.offset[0] = 0.1 * innerWidth / view.scale - left
    view.offset[1] = 0.1 * innerHeight / view.scale - top
    app.canvas.setDirty(true, true)
}"""
PICTURES_ARE_SHOWN = """() => Object.entries(tokenopt.pictures).every(([id, count]) => {
    const images = app.graph.getNodeById(id)?.imgs ?? []
    return images.length === count && images.every(image => image.complete && image.naturalWidth > 0)
})"""


class Frontend:
    """One page of the frontend, with its default workflow open."""

    def __init__(self, page: Page, server: ComfyServer) -> None:
        self.page, self.server = page, server
        self.console: list[str] = []  # errors, each with the address it came from
        page.on("console", lambda m: self._note(m.type, f"{m.location.get('url')}: {m.text}"))
        page.on("pageerror", lambda error: self._note("error", str(error)))

    def open(self) -> None:
        """Go to the frontend and wait until it can be used."""
        self.page.goto(self.server.url)
        self.page.wait_for_function(READY, timeout=90_000)
        self.page.evaluate(RECORD)

    def load(self, workflow: dict[str, Any], name: str = "") -> None:
        """Open a workflow, as the Open command does."""
        self.page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [workflow, name or None])

    def load_api(self, graph: Graph, name: str = "") -> None:
        """Open a workflow in API format; the frontend arranges it as it can."""
        self.page.evaluate("([graph, name]) => app.loadApiJson(graph, name)", [graph, name])

    def export(self) -> Graph:
        """What File > Export (API) saves."""
        graph: Graph = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        return graph

    def serialize(self) -> dict[str, Any]:
        """What File > Save saves."""
        workflow: dict[str, Any] = json.loads(self.page.evaluate("() => JSON.stringify(app.graph.serialize())"))
        return workflow

    def run(self) -> None:
        """Press the Run button."""
        self.page.evaluate("() => { tokenopt.ended = null; tokenopt.progress = {} }")
        self.run_button().click()

    def run_button(self) -> Locator:
        """The button itself."""
        return self.page.get_by_role("button", name="Run", exact=True)

    def wait_for_end(self, timeout: float = 300.0) -> dict[str, Any]:
        """Wait until the run is over; what was seen of it: progress and previews by node id, ended, error."""
        self.page.wait_for_function("() => tokenopt.ended", timeout=timeout * 1000)
        seen: dict[str, Any] = self.page.evaluate("() => tokenopt")
        if seen["ended"] == "execution_success":
            self.page.evaluate(ALL_IN_VIEW)  # a node out of sight loads no pictures
            self.page.wait_for_function(PICTURES_ARE_SHOWN, timeout=30_000)
        return seen

    def _note(self, kind: str, text: str) -> None:
        if kind == "error":
            self.console.append(text)


@contextmanager
def open_frontend(server: ComfyServer, browser: str, width: int, height: int, **settings: Any) -> Iterator[Frontend]:
    """The frontend of a running server in the browser at that path; `settings` are the frontend's own."""
    _save_settings(server, SETTINGS | {f"Comfy.{name.replace('_', '.')}": value for name, value in settings.items()})
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=list(FLAGS))
        try:
            frontend = Frontend(chromium.new_page(viewport={"width": width, "height": height}), server)
            frontend.open()
            yield frontend
        finally:
            chromium.close()


def _save_settings(server: ComfyServer, settings: dict[str, Any]) -> None:
    body = json.dumps(settings).encode()
    request = urllib.request.Request(f"{server.url}/settings", body, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30):
        pass
