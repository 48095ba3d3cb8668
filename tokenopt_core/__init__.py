"""Edit, inpaint and generate pictures by optimising the tokens of a 1D image tokenizer at test time.

The method of "Highly Compressed Tokenizer Can Generate Without Training" (arXiv 2506.08257); imports nothing of
ComfyUI. Pictures are (B, 3, H, W) in [0, 1], features (B, N, D), a loss is any callable (B, 3, H, W) -> (B,).
"""

from .clip import Clip, load_clip
from .importance import Survey, parse_partitions, token_importance
from .judging import ClipJudge, best_of
from .loading import load_tokenizer
from .losses import ClipLoss, ImagePromptLoss, MaskedL1Loss, WeightedSum
from .optimize import OptimizeConfig, Result, Step, optimize
from .refine import Exchange, Refined, refine_tokens
from .regularizers import TokenRegularizer
from .reset import TokenReset
from .schedules import NoiseSchedule
from .search import L1Change, Wanted, search_token
from .seeds import pick_seeds
from .tokenizer import Tokenizer
from .tokens import copy_paste, random_features

__version__ = "0.1.0"

__all__ = [
    "Clip",
    "ClipJudge",
    "ClipLoss",
    "Exchange",
    "ImagePromptLoss",
    "L1Change",
    "MaskedL1Loss",
    "NoiseSchedule",
    "OptimizeConfig",
    "Refined",
    "Result",
    "Step",
    "Survey",
    "TokenRegularizer",
    "TokenReset",
    "Tokenizer",
    "Wanted",
    "WeightedSum",
    "best_of",
    "copy_paste",
    "load_clip",
    "load_tokenizer",
    "optimize",
    "parse_partitions",
    "pick_seeds",
    "random_features",
    "refine_tokens",
    "search_token",
    "token_importance",
]
