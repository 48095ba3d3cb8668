"""CLIP Loss."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..tokenopt_core import ClipLoss
from .convert import gradients
from .models import load
from .sockets import CATEGORY, LossTerms, OpenClip, TokenLoss

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class ClipLossNode(io.ComfyNode):
    """Prompt -> loss."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptCLIPLoss",
            display_name="CLIP Loss",
            category=CATEGORY,
            description="Pulls the picture toward a text: the negative CLIP similarity.",
            inputs=[
                OpenClip.Input("openclip", tooltip="From OpenCLIP Load."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What the result should show. Name what is to stay, too: what the prompt does not name "
                    "may drift.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    tooltip="What the result should not show; works with a guidance above 1.",
                ),
                io.Float.Input(
                    "guidance",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How strongly the negative prompt pushes away: 1 ignores it, 1.2 to 1.5 are usual, 0 "
                    "pulls toward it.",
                ),
                io.Int.Input(
                    "crops",
                    default=8,
                    min=0,
                    max=64,
                    tooltip="How many random crops are compared each iteration; more are smoother and slower. 0 looks "
                    "at the whole picture once.",
                ),
                io.Float.Input(
                    "crop_scale",
                    default=0.875,
                    min=0.05,
                    max=1.0,
                    step=0.005,
                    tooltip="A crop's side as a share of the picture's. 1 is the whole picture; the least, 0.05, is "
                    "a twentieth of it.",
                ),
                io.Float.Input(
                    "flip",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How often a crop is mirrored. 0: never; needed where left and right matter.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Of this loss beside others. 0 switches it off.",
                ),
            ],
            outputs=[TokenLoss.Output("loss", display_name="LOSS")],
        )

    @classmethod
    def execute(
        cls,
        openclip: ModelPatcher,
        prompt: str,
        negative: str,
        guidance: float,
        crops: int,
        crop_scale: float,
        flip: float,
        weight: float,
    ) -> io.NodeOutput:
        unknown = openclip.model.check_prompt(prompt) if prompt.strip() else []
        if unknown:
            logging.warning("TokenOpt: %s CLIP does not know: %s", openclip.model.name, ", ".join(unknown))
        with gradients():
            load([openclip])
            loss = ClipLoss(openclip.model, prompt, negative, guidance, crops, crop_scale, flip)
        return io.NodeOutput(LossTerms((("clip", weight, loss),), (openclip,)))


NODES = [ClipLossNode]
