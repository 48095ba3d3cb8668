"""Token Copy-Paste and Random Features."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io
from torch import Tensor

from ..tokenopt_core import copy_paste, random_features
from ..tokenopt_core.loading import mini_presets
from ..tokenopt_core.titok import VARIANTS
from ..tokenopt_core.tokens import STARTS, Start
from . import widgets
from .convert import gradients
from .inputs import checked
from .models import load
from .sockets import CATEGORY, Features, TiTok

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class CopyPaste(io.ComfyNode):
    """Tokens of one picture in another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptCopyPaste",
            display_name="Token Copy-Paste",
            category=CATEGORY,
            description="Puts some tokens of a reference picture into a target picture: what they carry comes along.",
            inputs=[
                Features.Input("target", tooltip="The picture to change."),
                Features.Input("reference", tooltip="Where the tokens come from. One goes with many targets."),
                io.String.Input(
                    "positions",
                    default="0",
                    tooltip="Which tokens, counted from 0: numbers and ranges, such as 3, 7, 12-15. With the tokenizer "
                    "connected also attributes by name.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="1: the reference's tokens. 0: the target's. Between: a mixture.",
                ),
                TiTok.Input(
                    "titok",
                    optional=True,
                    tooltip="The tokenizer that the features come from: then positions may name attributes that it is "
                    f"known for. {_attributes()}.",
                ),
            ],
            outputs=[Features.Output("features", display_name="FEATURES", tooltip="For Decode or Optimize Tokens.")],
        )

    @classmethod
    @checked
    def execute(
        cls, target: Tensor, reference: Tensor, positions: str, strength: float, titok: ModelPatcher | None = None
    ) -> io.NodeOutput:
        presets = None if titok is None else titok.model.presets
        if titok is not None:
            for features in (target, reference):
                titok.model.check(features)
        return io.NodeOutput(copy_paste(target, reference, positions, strength, presets))


@cache
def _attributes() -> str:
    """The names that the tokenizers known here have, in words."""
    try:
        mini = mini_presets()
    except (ValueError, OSError):  # TiTok Load says what is wrong with the file; the pack loads all the same
        mini = {}
    known = {"mini": mini} | {name: variant.presets for name, variant in VARIANTS.items()}
    return ". ".join(f"{name}: {', '.join(presets)}" for name, presets in known.items() if presets)


class Random(io.ComfyNode):
    """A start without a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TokenOptRandom",
            display_name="Random Features",
            category=CATEGORY,
            description="Features drawn at random, to generate a picture from nothing but a loss.",
            inputs=[
                TiTok.Input("titok", tooltip="The tokenizer that is to decode them."),
                io.Int.Input("batch", default=1, min=1, max=64, tooltip="How many pictures to start."),
                io.Combo.Input(
                    "start",
                    options=list(STARTS),
                    default="normal",
                    tooltip="normal: normal noise. statistics: noise around the average picture's features, for "
                    "tokenizers that come with them (mini does). codes: random codes; usually worse.",
                ),
                io.Float.Input(
                    "std",
                    default=0.3,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    tooltip="Standard deviation of the noise; with statistics in units of the usual spread. 0: none, "
                    "every picture starts the same.",
                ),
                widgets.seed("Of the noise. Picture i of the batch uses seed + i."),
            ],
            outputs=[Features.Output("features", display_name="FEATURES", tooltip="For Optimize Tokens.")],
        )

    @classmethod
    @checked
    def execute(cls, titok: ModelPatcher, batch: int, start: Start, std: float, seed: int) -> io.NodeOutput:
        with gradients(), torch.no_grad():
            if start == "codes":
                load([titok])
            drawn = [
                random_features(titok.model, 1, std, torch.Generator().manual_seed(seed + i), start)
                for i in range(batch)
            ]
            return io.NodeOutput(torch.cat(drawn))


NODES = [CopyPaste, Random]
