"""Token Reset."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..tokenopt_core import TokenReset
from ..tokenopt_core.masks import soften
from .convert import to_bchw, to_mask
from .inputs import checked
from .sockets import CATEGORY, Reset


class ResetNode(io.ComfyNode):
    """The known pixels, put back now and then."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptReset",
            display_name="Token Reset",
            category=CATEGORY,
            description="For inpainting: now and then the known pixels are put back and the picture is encoded anew.",
            inputs=[
                io.Image.Input("image", tooltip="The original, of the tokenizer's size."),
                io.Mask.Input("mask", tooltip="White: to be invented. Black: known."),
                io.Int.Input("every", default=10, min=1, max=100_000, tooltip="Iterations from one reset to the next."),
                io.Float.Input(
                    "feather",
                    default=2.0,
                    min=0.0,
                    max=256.0,
                    step=0.5,
                    tooltip="Softness of the mask's edge in pixels. 0: as the mask is.",
                ),
            ],
            outputs=[Reset.Output("reset", display_name="RESET", tooltip="For Optimize Tokens.")],
        )

    @classmethod
    @checked
    def execute(cls, image: Tensor, mask: Tensor, every: int, feather: float) -> io.NodeOutput:
        images = to_bchw(image)
        return io.NodeOutput(TokenReset(images, soften(to_mask(mask, images), feather), every))


NODES = [ResetNode]
