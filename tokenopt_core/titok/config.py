"""The shape of a TiTok, as the published config.json files spell it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

# width, layers, heads of the published transformer sizes (TiTok, Table 1 of its supplement)
SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}

# A limit on what a config may ask for: far above any published model, far below what would exhaust a machine.
MAX_SIZE = 16_384
MAX_CODES = 1_048_576


@dataclass(frozen=True)
class Transformer:
    """Width, depth and heads of one vision transformer."""

    width: int
    layers: int
    heads: int

    @classmethod
    def parse(cls, size: str | dict[str, int]) -> Transformer:
        """A published size name, or the three numbers."""
        if isinstance(size, str):
            if size not in SIZES:
                raise ValueError(f"unknown transformer size {size!r}: expected one of {', '.join(SIZES)}")
            return cls(*SIZES[size])
        return cls(int(size["width"]), int(size["layers"]), int(size["heads"]))


@dataclass(frozen=True)
class TiTokConfig:
    """Everything that fixes the parameters' shapes and the arithmetic of a TiTok with an RGB decoder."""

    image_size: int
    num_tokens: int
    token_dim: int
    codebook_size: int
    encoder: Transformer
    decoder: Transformer
    patch_size: int = 16
    l2_normalize: bool = False

    def __post_init__(self) -> None:
        sizes = {k: v for k, v in asdict(self).items() if isinstance(v, int) and k != "l2_normalize"}
        for name, part in (("encoder", self.encoder), ("decoder", self.decoder)):
            sizes |= {f"{name} {k}": v for k, v in asdict(part).items()}
        for name, value in sizes.items():
            limit = MAX_CODES if name == "codebook_size" else MAX_SIZE
            if not 0 < value <= limit:
                raise ValueError(f"impossible tokenizer config: {name} is {value}, expected 1 to {limit}")
        if self.image_size % self.patch_size:
            raise ValueError(f"impossible tokenizer config: {self.image_size} px is no multiple of {self.patch_size}")
        for part in (self.encoder, self.decoder):
            if part.width % part.heads:
                raise ValueError(f"impossible tokenizer config: width {part.width} is no multiple of {part.heads}")

    @property
    def grid(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // self.patch_size

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> TiTokConfig:
        """Reads the layout of the published config.json: {"model": {"vq_model": ...}, "dataset": ...}."""
        try:
            model = config["model"]["vq_model"]
            found = cls(
                image_size=int(config["dataset"]["preprocessing"]["crop_size"]),
                num_tokens=int(model["num_latent_tokens"]),
                token_dim=int(model["token_size"]),
                codebook_size=int(model["codebook_size"]),
                encoder=Transformer.parse(model["vit_enc_model_size"]),
                decoder=Transformer.parse(model["vit_dec_model_size"]),
                patch_size=int(model["vit_enc_patch_size"]),
                l2_normalize=bool(model.get("use_l2_norm", False)),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a TiTok config.json: {error} is missing or of the wrong type") from error
        if int(model.get("vit_dec_patch_size", found.patch_size)) != found.patch_size:
            raise ValueError("encoder and decoder with different patch sizes are not supported")
        if model.get("is_legacy", True) or model.get("quantize_mode", "vq") != "vq":
            raise ValueError(
                "only vector-quantized TiTok models with an RGB decoder can be loaded (is_legacy false, "
                "quantize_mode vq), such as BL-64, BL-128 and SL-256"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """The same layout back, so that a saved model is read by `from_dict`."""
        model = {
            "token_size": self.token_dim,
            "vit_enc_model_size": asdict(self.encoder),
            "vit_dec_model_size": asdict(self.decoder),
            "vit_enc_patch_size": self.patch_size,
            "vit_dec_patch_size": self.patch_size,
            "num_latent_tokens": self.num_tokens,
            "codebook_size": self.codebook_size,
            "use_l2_norm": self.l2_normalize,
            "is_legacy": False,
        }
        return {"model": {"vq_model": model}, "dataset": {"preprocessing": {"crop_size": self.image_size}}}


_BL64 = TiTokConfig(256, 64, 64, 8192, Transformer.parse("base"), Transformer.parse("large"))

# Published variants whose state dict may come without a config.json.
VARIANTS = {
    "titok_bl64_vq8k": _BL64,
    "titok_bl128_vq8k": replace(_BL64, num_tokens=128),
    "titok_sl256_vq8k": replace(_BL64, num_tokens=256, encoder=Transformer.parse("small")),
}
