"""Token Reset."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..tokenopt_core import TokenReset
from ..tokenopt_core.masks import soften
from . import widgets
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
                widgets.hole(),
                io.Int.Input("every", default=10, min=1, max=100_000, tooltip="Iterations from one reset to the next."),
                widgets.feather(),
            ],
            outputs=[Reset.Output("reset", display_name="RESET", tooltip="For Optimize Tokens.")],
        )

    @classmethod
    @checked
    def execute(cls, image: Tensor, mask: Tensor, every: int, feather: float) -> io.NodeOutput:
        images = to_bchw(image)
        return io.NodeOutput(TokenReset(images, soften(to_mask(mask, images), feather), every))


NODES = [ResetNode]
