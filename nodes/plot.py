"""Loss Plot."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..tokenopt_core.plot import plot_history
from .convert import from_pil
from .inputs import checked
from .sockets import CATEGORY, History


class LossPlot(io.ComfyNode):
    """Loss history -> picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptLossPlot",
            display_name="Loss Plot",
            category=CATEGORY,
            description="Draws the losses over the iterations, each named term a curve with a scale of its own.",
            inputs=[
                History.Input("history", tooltip="From Optimize Tokens."),
                io.Int.Input("width", default=768, min=200, max=4096, tooltip="Of the picture, in pixels."),
                io.Int.Input("height", default=200, min=100, max=2048, tooltip="Of each curve's panel, in pixels."),
            ],
            outputs=[io.Image.Output("plot", display_name="IMAGE")],
        )

    @classmethod
    @checked
    def execute(cls, history: dict[str, Tensor], width: int, height: int) -> io.NodeOutput:
        picture = plot_history({name: curve.clone() for name, curve in history.items()}, width, height)
        return io.NodeOutput(from_pil(picture))


NODES = [LossPlot]
