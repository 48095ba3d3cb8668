"""CLIP Loss, Image Prompt Loss, Masked-L1 Loss and Combine Losses."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..tokenopt_core import ClipLoss, ImagePromptLoss, MaskedL1Loss
from ..tokenopt_core.loss_protocols import Loss
from ..tokenopt_core.masks import soften
from ..tokenopt_core.memory import forward_bytes
from ..tokenopt_core.prompts import parse_prompts
from . import widgets
from .convert import gradients, to_bchw, to_mask
from .inputs import checked
from .models import load
from .sockets import CATEGORY, LossTerms, OpenClip, TokenLoss

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


def _crops() -> list[Any]:
    return [
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
    ]


def _weight() -> io.Float.Input:
    return io.Float.Input(
        "weight",
        default=1.0,
        min=0.0,
        max=100.0,
        step=0.05,
        tooltip="Of this loss beside others. 0 switches it off.",
    )


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
                widgets.prompt(
                    "What the result should show. Name what is to stay, too: what the prompt does not name may drift."
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
                *_crops(),
                _weight(),
            ],
            outputs=[TokenLoss.Output("loss", display_name="LOSS")],
        )

    @classmethod
    @checked
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
        for text, _ in parse_prompts(prompt):
            unknown = openclip.model.check_prompt(text)
            if unknown:
                logging.warning("TokenOpt: %s CLIP does not know: %s", openclip.model.name, ", ".join(unknown))
        with gradients():
            load([openclip])
            loss = ClipLoss(openclip.model, prompt, negative, guidance, crops, crop_scale, flip)
        return io.NodeOutput(LossTerms((("clip", weight, loss),), (openclip,)))


class ImagePromptLossNode(io.ComfyNode):
    """Picture -> loss."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptImagePromptLoss",
            display_name="Image Prompt Loss",
            category=CATEGORY,
            description="Pulls the picture toward what another picture shows: the negative CLIP similarity to it.",
            inputs=[
                OpenClip.Input("openclip", tooltip="From OpenCLIP Load."),
                io.Image.Input(
                    "image", tooltip="What the result should resemble; of several pictures the mean counts."
                ),
                *_crops(),
                _weight(),
            ],
            outputs=[TokenLoss.Output("loss", display_name="LOSS")],
        )

    @classmethod
    @checked
    def execute(
        cls, openclip: ModelPatcher, image: Tensor, crops: int, crop_scale: float, flip: float, weight: float
    ) -> io.NodeOutput:
        with gradients():
            pictures = to_bchw(image)
            device = load([openclip], forward_bytes(openclip.model, len(pictures)))
            loss = ImagePromptLoss(openclip.model, pictures.to(device), crops, crop_scale, flip)
        return io.NodeOutput(LossTerms((("image prompt", weight, loss),), (openclip,)))


class MaskedL1LossNode(io.ComfyNode):
    """Known pixels -> loss."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptMaskedL1Loss",
            display_name="Masked-L1 Loss",
            category=CATEGORY,
            description="Holds the known pixels where they are: the mean absolute difference outside the mask.",
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The original, of the tokenizer's size: from Fit to Tokenizer, or the "
                    "IMAGE of Encode to Features.",
                ),
                widgets.hole(),
                widgets.feather(),
                _weight(),
            ],
            outputs=[TokenLoss.Output("loss", display_name="LOSS")],
        )

    @classmethod
    @checked
    def execute(cls, image: Tensor, mask: Tensor, feather: float, weight: float) -> io.NodeOutput:
        with gradients(), torch.no_grad():
            images = to_bchw(image)
            loss = MaskedL1Loss(images, soften(to_mask(mask, images), feather))
        return io.NodeOutput(LossTerms((("known pixels", weight, loss),)))


class CombineLosses(io.ComfyNode):
    """Several losses as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptCombineLosses",
            display_name="Combine Losses",
            category=CATEGORY,
            description="Adds losses up, each with its own weight. For more than eight, combine what it gives.",
            inputs=[
                TokenLoss.Input(f"loss_{i}", optional=i > 2, tooltip="A loss, with the weight set where it is made.")
                for i in range(1, 9)
            ],
            outputs=[TokenLoss.Output("loss", display_name="LOSS")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        loss_1: LossTerms,
        loss_2: LossTerms,
        loss_3: LossTerms | None = None,
        loss_4: LossTerms | None = None,
        loss_5: LossTerms | None = None,
        loss_6: LossTerms | None = None,
        loss_7: LossTerms | None = None,
        loss_8: LossTerms | None = None,
    ) -> io.NodeOutput:
        given = [part for part in (loss_1, loss_2, loss_3, loss_4, loss_5, loss_6, loss_7, loss_8) if part]
        terms: list[tuple[str, float, Loss]] = []
        for name, weight, loss in (term for part in given for term in part.terms):
            taken = {known for known, _, _ in terms}
            names = (name, *(f"{name} {i}" for i in range(2, len(taken) + 2)))
            terms.append((next(n for n in names if n not in taken), weight, loss))
        models = {id(model): model for part in given for model in part.models}
        return io.NodeOutput(LossTerms(tuple(terms), tuple(models.values())))


NODES = [ClipLossNode, ImagePromptLossNode, MaskedL1LossNode, CombineLosses]
