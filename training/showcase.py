"""Draws the README's pictures with the shipped models: `python -m training.showcase`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.io import ImageReadMode, read_image
from torchvision.transforms.functional import to_pil_image

import tokenopt_core as to
from tokenopt_core.loading import MINI

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "fox on grass by day"
EDITS = ("a fox on grass at night", "a fox on sand by day", "a penguin on grass by day")
SIDE, GAP, CAPTION = 256, 12, 34  # px


def workflow_settings() -> tuple[dict, dict, dict, dict]:
    """What workflows/text_edit sets: of the loss, the loop, the noise and the regularizer."""
    graph = json.loads((ROOT / "workflows" / "text_edit.api.json").read_text(encoding="utf-8"))
    by_class = {node["class_type"]: node["inputs"] for node in graph.values()}
    kinds = ("TokenOptCLIPLoss", "TokenOptOptimize", "TokenOptNoise", "TokenOptRegularizer")
    loss, loop, noise, regularizer = (
        {key: value for key, value in by_class[kind].items() if not isinstance(value, list)} for kind in kinds
    )
    node_only = ("prompt", "weight", "trajectory_every")  # what the core has no setting for
    loss, loop = ({k: v for k, v in part.items() if k not in node_only} for part in (loss, loop))
    return loss, loop, noise, regularizer


def edit(tokenizer: to.Tokenizer, clip: to.Clip, images: Tensor, prompt: str, seed: int | None = None) -> Tensor:
    """The workflow's edit in plain Python: pictures (B, 3, S, S) -> (B, 3, S, S)."""
    loss, loop, noise, regularizer = workflow_settings()
    config = to.OptimizeConfig(**(loop if seed is None else loop | {"seed": seed}), noise=to.NoiseSchedule(**noise))
    with torch.no_grad():
        features = tokenizer.encode(images)
    judged = to.ClipLoss(clip, prompt, **loss)
    return to.optimize(tokenizer, features, judged, config, [to.TokenRegularizer(**regularizer)]).images


def row(pictures: list[Tensor], captions: list[str]) -> Image.Image:
    """Pictures (3, S, S) side by side, each above its caption."""
    width = len(pictures) * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, SIDE + 2 * GAP + CAPTION), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = GAP + number * (SIDE + GAP)
        big = to_pil_image(picture.clamp(0, 1)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(big, (left, GAP))
        draw.text((left + SIDE / 2, SIDE + 2 * GAP), caption, "black", font, "ma")
    return sheet


def main() -> None:
    tokenizer, clip = to.load_tokenizer("mini"), to.load_clip("mini")
    image = read_image(str(MINI / "samples" / f"{SOURCE}.png"), ImageReadMode.RGB)[None] / 255
    pictures = [image[0], *(edit(tokenizer, clip, image, prompt)[0] for prompt in EDITS)]
    target = ROOT / "docs" / "text_edit.png"
    target.parent.mkdir(exist_ok=True)
    row(pictures, ["the picture", *(f"“{prompt}”" for prompt in EDITS)]).save(target, optimize=True)
    print(target.relative_to(ROOT))


if __name__ == "__main__":
    main()
