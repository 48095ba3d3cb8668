"""Encode to Features and Decode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io
from torch import Tensor

from .convert import fit_square, gradients, to_bchw, to_bhwc
from .models import load
from .sockets import CATEGORY, Features, TiTok

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class Encode(io.ComfyNode):
    """Picture -> features."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptEncode",
            display_name="Encode to Features",
            category=CATEGORY,
            description="Turns pictures into the tokenizer's features, the starting point of an optimization.",
            inputs=[
                TiTok.Input("titok", tooltip="From TiTok Load."),
                io.Image.Input(
                    "image",
                    tooltip="One or more pictures. A picture of another size than the tokenizer's is cropped to its "
                    "middle square and resized.",
                ),
            ],
            outputs=[
                Features.Output("features", display_name="FEATURES", tooltip="Before vector quantization."),
                io.Image.Output("cropped", display_name="IMAGE", tooltip="The picture as the tokenizer saw it."),
            ],
        )

    @classmethod
    def execute(cls, titok: ModelPatcher, image: Tensor) -> io.NodeOutput:
        with gradients(), torch.no_grad():
            images = fit_square(to_bchw(image), titok.model.image_size)
            device = load([titok])
            return io.NodeOutput(titok.model.encode(images.to(device)).cpu(), to_bhwc(images))


class Decode(io.ComfyNode):
    """Features -> picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptDecode",
            display_name="Decode",
            category=CATEGORY,
            description="Turns features into pictures.",
            inputs=[
                TiTok.Input("titok", tooltip="The tokenizer that the features come from."),
                Features.Input("features", tooltip="From Encode to Features or Optimize Tokens."),
                io.Boolean.Input(
                    "quantize",
                    default=True,
                    tooltip="On: the nearest codes are decoded, as the tokenizer was trained. Off: the features as "
                    "they are.",
                ),
            ],
            outputs=[io.Image.Output("image", display_name="IMAGE")],
        )

    @classmethod
    def execute(cls, titok: ModelPatcher, features: Tensor, quantize: bool) -> io.NodeOutput:
        with gradients(), torch.no_grad():
            device = load([titok])
            return io.NodeOutput(to_bhwc(titok.model.decode(features.clone().to(device), quantize)))


NODES = [Encode, Decode]
