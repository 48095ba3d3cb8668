"""Optimize Tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io
from torch import Tensor

from ..tokenopt_core import NoiseSchedule, OptimizeConfig, TokenRegularizer, WeightedSum, optimize
from ..tokenopt_core.clip import Clip
from ..tokenopt_core.optimize import PRECISIONS, Precision, Result
from ..tokenopt_core.optimize import Reset as ResetRule
from ..tokenopt_core.schedules import DECAYS, Decay
from . import widgets
from .convert import gradients, to_bhwc
from .finish import finishable
from .inputs import checked
from .models import activation_bytes, check_fit, load, make_room, settle
from .progress import Progress, strip, tell
from .sockets import CATEGORY, Features, History, LossTerms, Noise, Regularizers, Reset, TiTok, TokenLoss

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class Optimize(io.ComfyNode):
    """The executor: tokenizer, features and loss in, optimised features and pictures out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        default = OptimizeConfig()
        return io.Schema(
            node_id="TokenOptOptimize",
            display_name="Optimize Tokens",
            category=CATEGORY,
            description="Changes the tokens step by step until the decoded picture minimises the loss.",
            inputs=[
                TiTok.Input("titok", tooltip="The tokenizer that the features come from."),
                Features.Input("features", tooltip="Where to start; each picture of a batch is optimised on its own."),
                TokenLoss.Input("loss", tooltip="What to minimise."),
                io.Int.Input(
                    "iterations",
                    default=default.iterations,
                    min=1,
                    max=100_000,
                    tooltip="Steps of the optimization. More change the picture further.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=default.learning_rate,
                    min=0.0001,
                    max=10.0,
                    step=0.001,
                    tooltip="Size of Adam's steps in units of the features. Near 0 nothing changes.",
                ),
                io.Combo.Input(
                    "decay",
                    options=list(DECAYS),
                    default=default.decay,
                    tooltip="Of the learning rate. constant: as published. cosine: falls to 0 along the run, for "
                    "cleaner pictures.",
                ),
                io.Float.Input(
                    "ema_decay",
                    default=default.ema_decay,
                    min=0.0,
                    max=0.9999,
                    step=0.001,
                    round=0.0001,
                    tooltip="The result is an average over the last tokens; nearer to 1 averages longer. 0: the last "
                    "tokens alone.",
                ),
                widgets.seed("Of crops and noise. The same seed gives the same picture.", default.seed),
                io.Boolean.Input(
                    "quantize",
                    default=default.quantize,
                    tooltip="On: the nearest codes are decoded. Off: the tokens are optimised and decoded as they are "
                    "(without VQ); switch it off in Decode, too. For comparison: results are worse.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default=default.precision,
                    tooltip="Of the arithmetic. auto: half precision on a GPU, float32 on a CPU.",
                ),
                io.Int.Input(
                    "patience",
                    default=default.patience,
                    min=0,
                    max=100_000,
                    tooltip="Early stopping: a picture is done when its loss has not fallen for so many iterations. "
                    "0: never.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=default.tolerance,
                    min=0.0,
                    max=10.0,
                    step=0.0001,
                    tooltip="Of early stopping: a loss that falls by no more than this has not fallen. 0: any fall "
                    "counts.",
                ),
                io.Boolean.Input(
                    "keep_best",
                    default=default.keep_best,
                    tooltip="On: the result is where the loss was lowest. Off: where the run ended, as published.",
                ),
                io.Int.Input(
                    "trajectory_every",
                    default=10,
                    min=0,
                    max=100_000,
                    tooltip="Every so many iterations a picture is kept for TRAJECTORY. 0: the result alone.",
                ),
                Regularizers.Input("regularizer", optional=True, tooltip="Holds the tokens near where they started."),
                Noise.Input("noise", optional=True, tooltip="Noise on the tokens; none if left open."),
                Reset.Input("reset", optional=True, tooltip="Re-encodes the picture now and then; for inpainting."),
            ],
            outputs=[
                Features.Output("optimized", display_name="FEATURES", tooltip="The averaged features."),
                io.Image.Output("images", display_name="IMAGE", tooltip="Decoded from the averaged features."),
                History.Output("history", display_name="HISTORY", tooltip="Each loss over the iterations."),
                io.Image.Output(
                    "trajectory",
                    display_name="TRAJECTORY",
                    tooltip="How the picture came to be, as frames for a video; pictures of a batch lie side by side.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls,
        titok: ModelPatcher,
        features: Tensor,
        loss: LossTerms,
        iterations: int,
        learning_rate: float,
        decay: Decay,
        ema_decay: float,
        seed: int,
        quantize: bool,
        precision: Precision,
        patience: int,
        tolerance: float,
        keep_best: bool,
        trajectory_every: int,
        regularizer: tuple[TokenRegularizer, ...] = (),
        noise: NoiseSchedule | None = None,
        reset: ResetRule | None = None,
    ) -> io.NodeOutput:
        config = OptimizeConfig(
            iterations, learning_rate, decay, ema_decay, seed, precision, noise or NoiseSchedule(), quantize,
            patience, tolerance, keep_best,
        )  # fmt: skip
        tokenizer, clips = titok.model, [m.model for m in loss.models if isinstance(m.model, Clip)]
        check_fit(tokenizer, clips)
        needed = activation_bytes(tokenizer, [term for _, _, term in loss.terms], len(features), precision)
        node_id = str(cls.hidden.unique_id)
        tell(node_id, [])
        with gradients(), finishable(node_id) as asked_to_finish:
            device = load([titok, *loss.models], needed)
            progress = Progress(iterations, asked_to_finish, trajectory_every)
            result = optimize(
                tokenizer, features.clone().to(device), WeightedSum(loss.terms), config, regularizer, reset, progress,
                make_room=lambda: make_room([titok, *loss.models], needed),
            )  # fmt: skip
            settle(device)
            tell(node_id, _notes(result, progress.done, iterations))
            trajectory = torch.stack([*progress.frames, strip(result.images)])
            return io.NodeOutput(result.features.cpu(), to_bhwc(result.images), result.history, trajectory)


def _notes(result: Result, done: int, iterations: int) -> list[str]:
    """What the user should know of a run."""
    notes = list(result.notes)
    if result.stopped == "callback":
        notes.insert(0, f"finished early, after {done} of {iterations} iterations")
    return notes


NODES = [Optimize]
