"""The TiTok models; parameter names and shapes are those of the published checkpoints."""

from .config import VARIANTS, TiTokConfig, Transformer
from .model import TiTok

__all__ = ["VARIANTS", "TiTok", "TiTokConfig", "Transformer"]
