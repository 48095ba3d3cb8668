"""Encode to Features and Decode."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io
from torch import Tensor

from ..tokenopt_core.canvas import fit
from ..tokenopt_core.masks import CHOICES, Fill, check_fill, fill_hole, soften
from . import widgets
from .batches import in_batches
from .convert import gradients, to_bchw, to_bhwc, to_mask
from .inputs import checked
from .progress import tell
from .sockets import CATEGORY, Features, TiTok

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

MOST_NUMBERS = 12  # of pictures that a note names


class Encode(io.ComfyNode):
    """Picture -> features."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptEncode",
            display_name="Encode to Features",
            category=CATEGORY,
            description="Turns pictures into the tokenizer's features, the starting point of an optimization. With a "
            "mask, what it marks is painted over first.",
            inputs=[
                TiTok.Input("titok", tooltip="From TiTok Load."),
                io.Image.Input(
                    "image",
                    tooltip="One or more pictures. A picture of another size than the tokenizer's is cropped to its "
                    "middle square and resized.",
                ),
                io.Combo.Input(
                    "fill",
                    options=list(CHOICES),
                    default="grey",
                    tooltip="With a mask: what stands in the hole. blur: the colours around it. noise: grey noise. "
                    "best: all three are tried, and the one from which the known part comes out best is taken.",
                ),
                widgets.feather(
                    "With a mask: softness of its edge in pixels of the tokenizer's picture. 0: as the mask is; a hard "
                    "edge makes a bad start."
                ),
                widgets.hole("For inpainting. White: to be invented. Black: known.", optional=True),
            ],
            outputs=[
                Features.Output("features", display_name="FEATURES", tooltip="Before vector quantization."),
                io.Image.Output("cropped", display_name="IMAGE", tooltip="The picture in the tokenizer's size."),
                io.Image.Output(
                    "filled", display_name="FILLED", tooltip="The same as it was encoded, its hole filled."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls, titok: ModelPatcher, image: Tensor, fill: Fill, feather: float, mask: Tensor | None = None
    ) -> io.NodeOutput:
        check_fill(fill)  # also without a mask: a misspelt one should not pass unseen
        node_id = str(cls.hidden.unique_id)
        tell(node_id, [])
        with gradients(), torch.no_grad():
            pictures, size = to_bchw(image), titok.model.image_size
            hole = None if mask is None else to_mask(mask, pictures)
            images, hole_there, _ = fit(pictures, hole, size)
            hidden = torch.zeros_like(images[:1, :1]) if hole is None else soften(hole_there, feather)
            filled = images if hole is None else fill_hole(images, hidden, fill, 0, partial(_reconstructed, titok))
            features = in_batches(titok, titok.model.encode, filled, "encoding")
            tell(node_id, _notes(titok, features, images, 1 - hidden))
            return io.NodeOutput(features, to_bhwc(images), to_bhwc(filled))


def _reconstructed(titok: ModelPatcher, pictures: Tensor) -> Tensor:
    """What the tokenizer makes of pictures; inside `gradients()` only."""
    features = in_batches(titok, titok.model.encode, pictures, "encoding", bar=False)
    return in_batches(titok, titok.model.decode, features, "comparing", bar=False).clamp(0, 1)


def _notes(titok: ModelPatcher, features: Tensor, images: Tensor, known: Tensor) -> list[str]:
    """What the user should know of pictures that the tokenizer cannot show; inside `gradients()` only."""
    world = titok.model.world
    if world is None:
        return []
    decoded = in_batches(titok, titok.model.decode, features, "comparing", bar=False)
    numbers = [int(i) + 1 for i in world.strangers(images, decoded, known).nonzero()]
    if not numbers:
        return []
    which = "the picture shows" if len(images) == 1 else _counted(numbers)
    return [
        f"{which} something that {titok.model.name} does not know: what comes out will be something else. It knows "
        f"only {world.what}. For photographs TiTok Load offers titok_l32."
    ]


def _counted(numbers: Sequence[int]) -> str:
    """The subject of a sentence on some pictures of a batch."""
    if len(numbers) == 1:
        return f"picture {numbers[0]} shows"
    if len(numbers) <= MOST_NUMBERS:
        return f"pictures {', '.join(map(str, numbers[:-1]))} and {numbers[-1]} show"
    named = ", ".join(map(str, numbers[:MOST_NUMBERS]))
    return f"pictures {named} and {len(numbers) - MOST_NUMBERS} more show"


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
                Features.Input("features", tooltip="From any node that gives features."),
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
    @checked
    def execute(cls, titok: ModelPatcher, features: Tensor, quantize: bool) -> io.NodeOutput:
        with gradients(), torch.no_grad():
            tokens = titok.model.check(features.clone())
            images = in_batches(titok, lambda part: titok.model.decode(part, quantize), tokens, "decoding")
            return io.NodeOutput(to_bhwc(images))


NODES = [Encode, Decode]
