"""The tokenizers of the paper; parameter names and shapes are those of the published checkpoints."""

from .config import TiTokConfig, Transformer
from .maskgit import GridConfig
from .model import MaskgitVQGAN, TiTok, TwoStageTiTok, VaeTiTok, build
from .variants import VARIANTS, recognise, signature, variant_of

__all__ = [
    "VARIANTS",
    "GridConfig",
    "MaskgitVQGAN",
    "TiTok",
    "TiTokConfig",
    "Transformer",
    "TwoStageTiTok",
    "VaeTiTok",
    "build",
    "recognise",
    "signature",
    "variant_of",
]
