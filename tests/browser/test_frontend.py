"""The example workflows and help pages in ComfyUI's real frontend, in a headless Chromium."""

from __future__ import annotations

import io
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from devtools.canvas import WIRES
from devtools.chromium import VARIABLE
from devtools.frontend import Frontend, open_frontend
from devtools.layout import faults
from devtools.paths import EXTENSION, ROOT, WORKFLOWS

pytestmark = pytest.mark.browser

ITERATIONS = 150  # at most: whether the result is good is for other tests to say
ALL = sorted(path for path in WORKFLOWS.glob("*.json") if not path.name.endswith(".api.json"))
HELP = sorted((ROOT / "web" / "docs").glob("*.md"))

COMPLAINTS = """async () => {
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))
    const visible = selector => [...document.querySelectorAll(selector)].filter(e => e.offsetParent || e.offsetWidth)
    const red = app.graph._nodes.filter(n => n.has_errors || !LiteGraph.registered_node_types[n.type])
    return [
        ...visible(".p-dialog, .p-toast-message-error, .p-toast-message-warn").map(e => e.innerText),
        ...red.map(node => `red node: ${node.type}`),
        ...Object.entries(app.lastNodeErrors ?? {}).map(entry => JSON.stringify(entry)),
        ...(app.lastExecutionError ? [JSON.stringify(app.lastExecutionError)] : []),
    ]
}"""
SHORTEN = """limit => {
    for (const widget of app.graph._nodes.flatMap(node => node.widgets ?? []))
        if (widget.name === "iterations") widget.value = Math.min(widget.value, limit)
}"""
PRESS = """([id, name]) => {
    const node = app.graph.getNodeById(id)
    const button = node.widgets.find(widget => widget.name === name)
    button.callback(button.value, app.canvas, node)
}"""
NOTE = "([id, text]) => app.graph.getNodeById(id).widgets.some(widget => String(widget.value).includes(text))"
SHOWN = "() => Object.fromEntries(app.graph._nodes.map(n => [n.id, (n.imgs ?? []).map(i => i.naturalWidth)]))"


@pytest.fixture(scope="module")
def frontend(comfy_server) -> Iterator[Frontend]:
    """The frontend, opened once; workflows are loaded one after another."""
    browser = os.environ.get(VARIABLE)
    if not browser:
        pytest.skip(f"no Chromium: install one, or set {VARIABLE} to it (`python dev.py test` looks for it)")
    with open_frontend(comfy_server, browser, 1600, 900) as page:
        yield page


@pytest.fixture(params=ALL, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    """Each example workflow."""
    return request.param


@pytest.fixture
def workflow(path: Path, frontend: Frontend) -> dict[str, Any]:
    """An example workflow, open on the canvas."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    frontend.load(content, path.stem)
    return content


def complaints(frontend: Frontend) -> list[str]:
    """What the frontend is unhappy about: dialogs, warnings, red nodes, errors that name this pack."""
    network = ("api.comfy.org", "Failed to load resource")  # the frontend looks for things that need not be there
    ours = [line for line in frontend.console if "tokenopt" in line.lower() and not any(n in line for n in network)]
    return frontend.page.evaluate(COMPLAINTS) + ours


def nodes_of(workflow: dict[str, Any], *types: str) -> list[str]:
    """The ids of the nodes of these types, as text."""
    return [str(node["id"]) for node in workflow["nodes"] if node["type"] in types]


def download(frontend: Frontend, address: str) -> tuple[bytes, str]:
    """What the server gives under an address, and its type."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(frontend.server.url + address, timeout=30) as answer:
        return answer.read(), answer.headers.get_content_type()


def test_there_are_workflows_and_help_pages() -> None:
    assert WORKFLOWS / "text_edit.json" in ALL and len(HELP) >= 9


def test_workflow_opens_without_complaint(workflow, frontend) -> None:
    assert complaints(frontend) == []
    assert len(frontend.serialize()["nodes"]) == len(workflow["nodes"])


def test_export_is_the_committed_api_workflow(path, workflow, frontend) -> None:
    assert frontend.export() == json.loads(path.with_suffix(".api.json").read_text(encoding="utf-8"))


def test_nodes_do_not_overlap_and_wires_do_not_hide(workflow, frontend) -> None:
    assert faults(workflow, frontend.page.evaluate(WIRES)) == []


def test_seeds_stay_as_they_are(workflow) -> None:
    """Whoever opens an example twice gets the same picture twice."""
    assert not [node["title"] for node in workflow["nodes"] if "randomize" in node.get("widgets_values", [])]


def test_run_button_gives_a_picture_and_shows_the_way_there(workflow, frontend) -> None:
    frontend.page.evaluate(SHORTEN, ITERATIONS)
    frontend.run()
    seen = frontend.wait_for_end()
    assert (seen["ended"], seen["error"], complaints(frontend)) == ("execution_success", None, [])
    for node in nodes_of(workflow, "TokenOptOptimize"):
        counted = seen["progress"][node]
        assert counted == sorted(set(counted)) and len(counted) >= 2 and counted[-1] <= ITERATIONS
        assert len(seen["previews"][node]) >= 2
    shown = frontend.page.evaluate(SHOWN)
    outputs = nodes_of(workflow, "SaveImage", "PreviewImage")
    assert outputs and all(shown[node] and min(shown[node]) > 0 for node in outputs)


def test_template_browser_offers_the_workflow_with_its_picture(path, workflow, frontend) -> None:
    listed, _ = download(frontend, "/workflow_templates")
    assert path.stem in json.loads(listed)[EXTENSION]
    content, _ = download(frontend, f"/api/workflow_templates/{EXTENSION}/{path.name}")
    assert json.loads(content) == workflow
    picture, kind = download(frontend, f"/api/workflow_templates/{EXTENSION}/{path.stem}.jpg")
    assert kind == "image/jpeg" and len(picture) < 300_000
    with Image.open(io.BytesIO(picture)) as image:
        assert image.width >= 1200


@pytest.mark.parametrize("page", HELP, ids=lambda page: page.stem)
def test_help_page_is_where_the_frontend_looks(page: Path, frontend) -> None:
    content, _ = download(frontend, f"/extensions/{EXTENSION}/docs/{page.name}")
    assert content.decode() == page.read_text(encoding="utf-8")


def test_help_opens_from_the_node(frontend) -> None:
    frontend.load(json.loads((WORKFLOWS / "text_edit.json").read_text(encoding="utf-8")))
    frontend.page.evaluate("() => app.canvas.selectNode(app.graph.findNodesByType('TokenOptOptimize')[0])")
    frontend.page.get_by_test_id("info-button").click()
    text = (ROOT / "web" / "docs" / "TokenOptOptimize.md").read_text(encoding="utf-8")
    sentence = next(line for line in text.splitlines() if len(line.split()) > 5 and line[0].isalpha()).split("*")[0]
    shown = frontend.page.get_by_text(sentence.split("`")[0].strip()[:40]).first
    shown.wait_for()
    assert shown.is_visible()
    frontend.page.get_by_test_id("info-button").click()


def test_finish_now_ends_the_run_and_gives_the_picture(frontend) -> None:
    content = json.loads((WORKFLOWS / "text_edit.json").read_text(encoding="utf-8"))
    frontend.load(content)
    (node,) = nodes_of(content, "TokenOptOptimize")
    frontend.page.evaluate(SHORTEN.replace("Math.min(widget.value, limit)", "limit"), 50_000)
    frontend.run()
    frontend.page.wait_for_function("node => tokenopt.progress[node]?.length > 2", arg=node)
    frontend.page.evaluate(PRESS, [node, "Finish now"])
    seen = frontend.wait_for_end()
    assert (seen["ended"], seen["error"], complaints(frontend)) == ("execution_success", None, [])
    assert 2 < seen["progress"][node][-1] < 5000
    note = f"finished early, after {seen['progress'][node][-1]} of 50000 iterations"
    frontend.page.wait_for_function(NOTE, arg=[node, note])
    (saved,) = (one for one in frontend.serialize()["nodes"] if str(one["id"]) == node)
    (opened,) = (one for one in content["nodes"] if str(one["id"]) == node)
    assert len(saved["widgets_values"]) == len(opened["widgets_values"])
    assert note not in json.dumps(saved) and note not in json.dumps(frontend.export())


def test_an_unknown_node_would_be_noticed(frontend) -> None:
    """The checks above can fail."""
    content = json.loads((WORKFLOWS / "text_edit.json").read_text(encoding="utf-8"))
    content["nodes"][0]["type"] = "NoSuchNode"
    frontend.load(content)
    frontend.page.locator(".p-dialog").wait_for()
    assert "red node: NoSuchNode" in complaints(frontend)
    frontend.page.keyboard.press("Escape")
    frontend.page.locator(".p-dialog").wait_for(state="detached")
