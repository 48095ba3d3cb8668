"""The shape of a TiTok, as the published config.json files spell it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# width, layers, heads of the published transformer sizes (TiTok, supplement)
SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}

# Limits on what a config may ask for: far above any published model, far below what would exhaust a machine.
LIMITS = {"codebook_size": 1_048_576, "layers": 256, "image_size": 4096}
LIMIT = 16_384

PIXEL_CODES = 1024  # of the MaskGIT-VQGAN, which the two-stage models decode through
PIXEL_PATCH = 16  # pixels along one side that one of its codes stands for


def _whole(entries: dict[str, Any], key: str) -> int:
    value = entries[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key} must be a whole number, got {str(value)[:40]!r}")
    return value


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
        return cls(_whole(size, "width"), _whole(size, "layers"), _whole(size, "heads"))


@dataclass(frozen=True)
class TiTokConfig:
    """Everything that fixes a TiTok's parameters and arithmetic.

    codebook_size: None for a VAE, whose tokens are continuous.
    two_stage: decodes through the MaskGIT-VQGAN's codes (the first published models) instead of RGB patches. These
        models also mix channels and tokens between the encoder and its last layer, see `TwoStageEncoder`.
    """

    image_size: int
    num_tokens: int
    token_dim: int
    codebook_size: int | None
    encoder: Transformer
    decoder: Transformer
    patch_size: int = 16
    l2_normalize: bool = False
    two_stage: bool = False

    def __post_init__(self) -> None:
        names = ("image_size", "num_tokens", "token_dim", "patch_size")
        sizes = {name: getattr(self, name) for name in names} | {"codebook_size": self.codebook_size or 1}
        for name, part in (("encoder", self.encoder), ("decoder", self.decoder)):
            sizes |= {f"{name} {key}": value for key, value in asdict(part).items()}
            if part.heads > 0 and part.width % part.heads:
                raise ValueError(
                    f"impossible tokenizer config: width {part.width} is no multiple of {part.heads} heads"
                )
        if self.codebook_size is not None:
            sizes["codebook_size"] = self.codebook_size
        for name, value in sizes.items():
            limit = LIMITS.get(name.split()[-1], LIMIT)
            if not 0 < value <= limit:
                raise ValueError(f"impossible tokenizer config: {name} is {value}, expected 1 to {limit}")
        if self.image_size % self.patch_size:
            raise ValueError(f"impossible tokenizer config: {self.image_size} px is no multiple of {self.patch_size}")
        if self.two_stage and (self.patch_size != PIXEL_PATCH or self.codebook_size is None):
            raise ValueError(
                f"impossible tokenizer config: a two-stage model has codes and patches of {PIXEL_PATCH} px"
            )

    @property
    def grid(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // self.patch_size

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> TiTokConfig:
        """Reads the layout of the published config.json: {"model": {"vq_model": ...}, "dataset": ...}."""
        try:
            model = config["model"]["vq_model"]
            mode = model.get("quantize_mode", "vq")
            if mode not in ("vq", "vae"):
                raise ValueError(f"unknown quantize_mode {mode!r}: expected vq or vae")
            if model.get("vit_dec_patch_size", model["vit_enc_patch_size"]) != model["vit_enc_patch_size"]:
                raise ValueError("encoder and decoder have different patch sizes")
            return cls(
                image_size=_whole(config["dataset"]["preprocessing"], "crop_size"),
                num_tokens=_whole(model, "num_latent_tokens"),
                token_dim=_whole(model, "token_size"),
                codebook_size=_whole(model, "codebook_size") if mode == "vq" else None,
                encoder=Transformer.parse(model["vit_enc_model_size"]),
                decoder=Transformer.parse(model["vit_dec_model_size"]),
                patch_size=_whole(model, "vit_enc_patch_size"),
                l2_normalize=bool(model.get("use_l2_norm", False)) and mode == "vq",
                two_stage=bool(model.get("is_legacy", True)),
            )
        except KeyError as error:
            raise ValueError(f"not a TiTok config.json: {error} is missing") from error
        except (TypeError, AttributeError) as error:
            raise ValueError("not a TiTok config.json: an entry is of the wrong type") from error

    def to_dict(self) -> dict[str, Any]:
        """The same layout back, so that a saved model is read by `from_dict`."""
        model: dict[str, Any] = {
            "token_size": self.token_dim,
            "vit_enc_model_size": asdict(self.encoder),
            "vit_dec_model_size": asdict(self.decoder),
            "vit_enc_patch_size": self.patch_size,
            "vit_dec_patch_size": self.patch_size,
            "num_latent_tokens": self.num_tokens,
            "is_legacy": self.two_stage,
        }
        if self.codebook_size is None:
            model |= {"quantize_mode": "vae"}
        else:
            model |= {"codebook_size": self.codebook_size, "use_l2_norm": self.l2_normalize}
        return {"model": {"vq_model": model}, "dataset": {"preprocessing": {"crop_size": self.image_size}}}
