"""Draws the README's picture rows: `python -m devtools.showcase`.

One row an operation, by the example workflows as they ship, run in a real ComfyUI; only prompts and samples are
exchanged. The pictures are those of each workflow's own seed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from api_examples.client import ComfyClient, Graph, find_node

from .paths import ROOT, WORKFLOWS
from .server import ComfyServer

TARGET = ROOT / "docs" / "showcase.jpg"
SIDE, GAP, CAPTION, HEADING = 224, 10, 26, 34  # px
EDITS = ("a fox on grass at night", "a fox on snow by day", "a penguin on grass by day")
ASKED = "a house on sand at sunset"


@dataclass(frozen=True)
class Row:
    """One operation: pictures and what stands below each."""

    heading: str
    pictures: list[tuple[Image.Image, str]]


def run(client: ComfyClient, graph: Graph, *titles: str) -> list[list[Image.Image]]:
    """Runs a workflow: the pictures of the nodes of these titles."""
    shown = client.run(graph)
    return [[Image.open(BytesIO(png)).convert("RGB") for png in shown[find_node(graph, t)]] for t in titles]


def workflow(name: str, **inputs: object) -> Graph:
    """An example workflow; `inputs` replace those of the same name, wherever one stands as a value."""
    graph: Graph = json.loads((WORKFLOWS / f"{name}.api.json").read_text(encoding="utf-8"))
    for node in graph.values():
        node["inputs"].update({k: v for k, v in inputs.items() if k in node["inputs"] and node["inputs"][k] != v})
    return graph


def text(graph: Graph, key: str) -> str:
    """The first widget of that name."""
    return next(str(n["inputs"][key]) for n in graph.values() if isinstance(n["inputs"].get(key), str))


def edits(client: ComfyClient) -> Row:
    shown: list[tuple[Image.Image, str]] = []
    for prompt in EDITS:
        before, after = run(client, workflow("text_edit", prompt=prompt), "Original", "Edited picture")
        shown = shown or [(before[0], "the picture")]
        shown.append((after[0], f"“{prompt}”"))
    return Row("Text-guided edit (text_edit)", shown)


def inpaintings(client: ComfyClient) -> Row:
    half, asked = workflow("inpaint"), workflow("inpaint_with_prompt")
    shown = []
    for graph, caption in ((half, "invented from the rest"), (asked, f"“{text(asked, 'prompt')}”")):
        known, result = run(client, graph, "What is known", "Inpainted picture")
        shown += [(known[0], "what is known"), (result[0], caption)]
    return Row("Inpainting (inpaint, inpaint_with_prompt)", shown)


def generations(client: ComfyClient) -> Row:
    graph = workflow("generate", prompt=ASKED)
    (made,) = run(client, graph, "Generated pictures")
    return Row(f"Generation from noise (generate): “{ASKED}”", [(picture, "") for picture in made[:4]])


def pastes(client: ComfyClient) -> Row:
    titles = ("Target picture", "Reference picture", "Target with the pasted token")
    target, reference, result = run(client, workflow("copy_paste"), *titles)
    return Row(
        "Token copy-paste (copy_paste)",
        [(target[0], "target"), (reference[0], "reference"), (result[0], "its lighting, pasted")],
    )


def draw(rows: Sequence[Row]) -> Image.Image:
    """All rows, one below the other."""
    width = GAP + max(len(row.pictures) for row in rows) * (SIDE + GAP)
    height = HEADING + SIDE + CAPTION + GAP
    sheet = Image.new("RGB", (width, height * len(rows) + GAP), "white")
    pen, large, small = ImageDraw.Draw(sheet), ImageFont.load_default(18), ImageFont.load_default(14)
    for number, row in enumerate(rows):
        top = number * height
        pen.text((GAP, top + GAP), row.heading, "black", large)
        for place, (picture, caption) in enumerate(row.pictures):
            left = GAP + place * (SIDE + GAP)
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top + HEADING))
            pen.text((left + SIDE / 2, top + HEADING + SIDE + 4), caption, "gray", small, "ma")
    return sheet


def main() -> int:
    with ComfyServer(env={"HF_HUB_OFFLINE": "1"}) as server, ComfyClient(server.url) as client:
        rows = [make(client) for make in (edits, inpaintings, generations, pastes)]
    draw(rows).save(TARGET, quality=88)
    print(TARGET.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
