"""The demo: a picture edited in a real ComfyUI, through the interface that any program would use."""

import json
import sys
import textwrap
import time
from io import BytesIO
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from api_examples.client import ComfyClient, ComfyError, Graph, find_node, title

from .paths import LOGS, OUTPUT, ROOT, WORKFLOWS, DevError
from .server import ComfyServer

WORKFLOW = WORKFLOWS / "text_edit.api.json"
# The nodes of the workflow whose pictures are shown, by their titles on the canvas.
BEFORE, AFTER = "Original", "Edited picture"
PICTURE_SIZE = 384  # px on the sheet; smaller pictures are enlarged to it
MARGIN, FONT_SIZE, LINE = 24, 20, 30


def run() -> int:
    """Start ComfyUI, queue the workflow, show its progress, save the pictures, stop ComfyUI."""
    started = time.monotonic()
    graph: Graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    print("Starting ComfyUI ...", flush=True)
    with ComfyServer(log=LOGS / "demo-comfyui.log", env={"HF_HUB_OFFLINE": "1"}) as server:
        print(f"  ready after {time.monotonic() - started:.0f} s: {server.url}", flush=True)
        try:
            before, after = _edit(server.url, graph)
        except ComfyError as error:
            raise DevError(f"ComfyUI could not run {WORKFLOW.name}:\n{error}\n\nIts log: {server.log_path}") from error
    OUTPUT.mkdir(exist_ok=True)
    picture, sheet = OUTPUT / "text_edit.png", OUTPUT / "text_edit_before_after.png"
    picture.write_bytes(after)
    draw_sheet(_open(before), _open(after), _prompt(graph)).save(sheet)
    print(f"The edited picture:  {picture.relative_to(ROOT)}")
    print(f"Before and after:    {sheet.relative_to(ROOT)}")
    print(f"{time.monotonic() - started:.0f} s in all. To try it by hand: python dev.py serve")
    return 0


def _edit(url: str, graph: Graph) -> tuple[bytes, bytes]:
    """Run the workflow; the first picture of the "before" and of the "after" node."""
    wanted = [find_node(graph, name) for name in (BEFORE, AFTER)]
    with ComfyClient(url) as client:
        prompt_id = client.queue(graph)
        progress = Progress(graph)
        for event in client.follow(prompt_id):
            if event.type == "progress":
                progress.show(event.data)
        progress.close()
        pictures = client.images(prompt_id)
    before, after = (pictures.get(node_id, [b""])[0] for node_id in wanted)
    if not before or not after:
        raise ComfyError(f"{BEFORE!r} and {AFTER!r} must both show a picture.")
    return before, after


class Progress:
    """A bar that is redrawn on a terminal; elsewhere a line about every tenth."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._terminal = graph, sys.stdout.isatty()
        self._node, self._tenth, self._started = "", -1, 0.0

    def show(self, data: dict[str, Any]) -> None:
        """Draw what a "progress" message says."""
        node, value, total = str(data["node"]), int(data["value"]), max(int(data["max"]), 1)
        if node != self._node:
            self.close()
            self._node, self._tenth, self._started = node, -1, time.monotonic()
        tenth = 10 * value // total
        text = f"  {title(self._graph, node)}: {value}/{total}, {time.monotonic() - self._started:.0f} s"
        if self._terminal:
            print(f"\r\x1b[K  [{'#' * (2 * tenth):<20}]{text}", end="", flush=True)
        elif tenth != self._tenth:
            print(text, flush=True)
        self._tenth = tenth

    def close(self) -> None:
        """End the line of the bar."""
        if self._terminal and self._node:
            print(flush=True)


def draw_sheet(before: Image.Image, after: Image.Image, caption: str) -> Image.Image:
    """Both pictures side by side on white, each with its name, and the prompt below."""
    font = ImageFont.load_default(FONT_SIZE)
    pictures = {"before": _enlarge(before), "after": _enlarge(after)}
    width = sum(p.width for p in pictures.values()) + 3 * MARGIN
    lines = textwrap.wrap(f"“{caption}”", 2 * width // FONT_SIZE)
    below = max(p.height for p in pictures.values()) + 2 * MARGIN
    sheet = Image.new("RGB", (width, below + (len(lines) + 1) * LINE + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    left = MARGIN
    for name, picture in pictures.items():
        sheet.paste(picture, (left, MARGIN))
        draw.text((left + picture.width / 2, below - MARGIN / 2), name, "gray", font, "ma")
        left += picture.width + MARGIN
    for number, line in enumerate(lines, start=1):
        draw.text((width / 2, below + number * LINE), line, "black", font, "ma")
    return sheet


def _enlarge(picture: Image.Image) -> Image.Image:
    """A small picture at a whole multiple of its size, so that a person sees something."""
    factor = max(1, PICTURE_SIZE // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.LANCZOS)


def _open(picture: bytes) -> Image.Image:
    return Image.open(BytesIO(picture)).convert("RGB")


def _prompt(graph: Graph) -> str:
    """The text that guided the edit: the first input of that name that holds a text."""
    texts = (node["inputs"].get("prompt") for node in graph.values())
    return next((text for text in texts if isinstance(text, str)), "")
