"""Fit to Tokenizer and Stitch Back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io
from torch import Tensor

from ..tokenopt_core import canvas
from .convert import as_bchw, to_bchw, to_bhwc, to_mask
from .inputs import checked
from .sockets import CATEGORY, Placement, TiTok

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class Fit(io.ComfyNode):
    """Any picture -> the tokenizer's square."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptFit",
            display_name="Fit to Tokenizer",
            category=CATEGORY,
            description="Takes the tokenizer's square out of pictures of any size, and remembers where it was.",
            inputs=[
                TiTok.Input("titok", tooltip="Says how large the square must be."),
                io.Image.Input("image", tooltip="One or more pictures of any size."),
                io.Combo.Input(
                    "mode",
                    options=list(canvas.MODES),
                    default="crop",
                    tooltip="crop: the middle square. pad: the whole picture, its edges repeated. mask: the square "
                    "around the white of the mask.",
                ),
                io.Float.Input(
                    "context",
                    default=0.5,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="With the mode mask: how much larger than the masked area the square is, as a share of its "
                    "side. 0: it just encloses it.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="White: to be changed. Needed by the mode mask."),
            ],
            outputs=[
                io.Image.Output("square", display_name="IMAGE", tooltip="In the tokenizer's size."),
                io.Mask.Output("square_mask", display_name="MASK", tooltip="Of the same size; white without a mask."),
                Placement.Output("placement", display_name="PLACEMENT", tooltip="For Stitch Back."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, titok: ModelPatcher, image: Tensor, mode: canvas.Mode, context: float, mask: Tensor | None = None
    ) -> io.NodeOutput:
        images = as_bchw(image)
        marks = None if mask is None else to_mask(mask, images)
        squares, marks, placement = canvas.fit(images, marks, titok.model.image_size, mode, context)
        return io.NodeOutput(to_bhwc(squares), marks[:, 0].cpu(), placement)


class Stitch(io.ComfyNode):
    """The edited square -> the picture it came from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptStitch",
            display_name="Stitch Back",
            category=CATEGORY,
            description="Puts edited squares back into the pictures they came from. What is not masked stays as it "
            "was, to the bit.",
            inputs=[
                io.Image.Input("original", tooltip="The pictures that went into Fit to Tokenizer."),
                io.Image.Input("edited", tooltip="One square for each of them, or several for a single one."),
                Placement.Input("placement", tooltip="From Fit to Tokenizer."),
                io.Int.Input(
                    "feather",
                    default=4,
                    min=0,
                    max=256,
                    tooltip="Over how many pixels of the original the edit fades in, from the border inwards. 0: a "
                    "hard border.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Of the original. White: from the edited picture. Black: untouched. If left open, the "
                    "whole square is replaced.",
                ),
            ],
            outputs=[io.Image.Output("stitched", display_name="IMAGE", tooltip="As large as the original.")],
        )

    @classmethod
    @checked
    def execute(
        cls, original: Tensor, edited: Tensor, placement: canvas.Placement, feather: int, mask: Tensor | None = None
    ) -> io.NodeOutput:
        images = as_bchw(original)
        marks = None if mask is None else to_mask(mask, images)
        stitched = canvas.stitch(images, to_bchw(edited), placement, marks, feather)
        return io.NodeOutput(stitched.permute(0, 2, 3, 1).cpu().contiguous())  # not clamped: the rest keeps its bits


NODES = [Fit, Stitch]
