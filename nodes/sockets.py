"""The socket types of the pack, and what travels on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..tokenopt_core.loss_protocols import Loss

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

CATEGORY = "TokenOpt"

TiTok = io.Custom("TITOK")  # ModelPatcher around a tokenopt_core.Tokenizer
OpenClip = io.Custom("OPENCLIP")  # ModelPatcher around a tokenopt_core.Clip
Features = io.Custom("TITOK_FEATURES")  # Tensor (B, N, D), float32, on the CPU
TokenLoss = io.Custom("TOKEN_LOSS")  # LossTerms
Regularizers = io.Custom("TOKEN_REGULARIZER")  # tuple of tokenopt_core.TokenRegularizer
Noise = io.Custom("TOKEN_NOISE")  # tokenopt_core.NoiseSchedule
Placement = io.Custom("TITOK_PLACEMENT")  # tokenopt_core.canvas.Placement
Reset = io.Custom("TOKEN_RESET")  # tokenopt_core.optimize.Reset
History = io.Custom("TOKEN_HISTORY")  # dict of name -> Tensor (iterations, B)


@dataclass(frozen=True)
class LossTerms:
    """Weighted losses and the models that must be loaded while they run."""

    terms: tuple[tuple[str, float, Loss], ...]
    models: tuple[ModelPatcher, ...] = ()
