"""Sample Picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..tokenopt_core.loading import MINI
from .inputs import checked
from .sockets import CATEGORY

ALL = "all"
SAMPLES = MINI / "samples"  # NAME.png, and NAME.mask.png with the subject in white


def sample_names() -> list[str]:
    """The pictures shipped with the pack."""
    return sorted(path.stem for path in SAMPLES.glob("*.png") if not path.stem.endswith(".mask"))


def read(path: Path, mode: str) -> torch.Tensor:
    """A picture file as (1, H, W) or (1, H, W, 3) in [0, 1]."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture.convert(mode), dtype=np.float32) / 255)[None]


class SamplePicture(io.ComfyNode):
    """Something to start with, so that every example runs right after installation."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptSample",
            display_name="Sample Picture",
            category=CATEGORY,
            description="A picture of the mini tokenizer's world, with the mask of its subject.",
            inputs=[
                io.Combo.Input(
                    "name", options=[*sample_names(), ALL], tooltip="Which picture. all: every one, as a batch."
                )
            ],
            outputs=[
                io.Image.Output("image", display_name="IMAGE"),
                io.Mask.Output("mask", display_name="MASK", tooltip="The subject in white."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, name: str) -> io.NodeOutput:
        if name == ALL:
            pictures = [read(SAMPLES / f"{each}.png", "RGB") for each in sample_names()]
            masks = [read(SAMPLES / f"{each}.mask.png", "L") for each in sample_names()]
            return io.NodeOutput(torch.cat(pictures), torch.cat(masks))
        if name not in sample_names():  # also what keeps a name from leading out of the folder
            raise ValueError(f"there is no sample picture {name!r}: expected one of {', '.join(sample_names())}")
        return io.NodeOutput(read(SAMPLES / f"{name}.png", "RGB"), read(SAMPLES / f"{name}.mask.png", "L"))


NODES = [SamplePicture]
