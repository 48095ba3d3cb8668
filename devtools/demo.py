"""The demo: a picture edited in a real ComfyUI, through the interface that any program would use."""

import json
import textwrap
import time
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from api_examples.client import ComfyClient, ComfyError, Graph, Progress, find_node

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
        with Progress(graph) as progress:
            prompt_id = client.execute(graph, progress)
        pictures = client.images(prompt_id)
    before, after = (pictures.get(node_id, [b""])[0] for node_id in wanted)
    if not before or not after:
        raise ComfyError(f"{BEFORE!r} and {AFTER!r} must both show a picture.")
    return before, after


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
