"""Frozen CLIP and SigLIP through open_clip: text and pictures to unit vectors, differentiable in the pictures."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import clip_config, graphs
from .attention import fuse
from .convolutions import embed_patches_by_products
from .download import Source
from .titok.quantizer import at_least_float32
from .weights import load_strictly, read_shapes

if TYPE_CHECKING:
    from open_clip import SimpleTokenizer

MINI = Path(__file__).parent / "mini" / "clip"
DEFAULT = ("ViT-B-32", "laion2b_s34b_b79k")  # the paper's

_FILES = (clip_config.NAME, "open_clip_model.safetensors")
_PREFERRED = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)  # as open_clip orders them
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Published:
    """A model that is offered by name; any other of open_clip's loads in the same way.

    architecture: open_clip's name for it, if the weights alone make it (usual normalisation, open_clip's own words).
    """

    source: Source
    architecture: str | None = None


PUBLISHED = {
    "ViT-B-32 laion2b": Published(Source("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", _FILES), "ViT-B-32"),
    "ViT-B-16 laion2b": Published(Source("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", _FILES), "ViT-B-16"),
    "ViT-L-14 laion2b": Published(Source("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", _FILES)),
    "ViT-B-16-SigLIP webli": Published(Source("timm/ViT-B-16-SigLIP", _TOKENIZER + _FILES)),
}


class Clip(nn.Module):
    """A frozen two-tower model. Text and pictures become L2-normalised vectors (., E) in float32."""

    model: Any  # an nn.Module with encode_text and encode_image
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        tokenize: Callable[[list[str]], Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        name: str,
        words: Sequence[str] = (),
    ) -> None:
        super().__init__()
        tower = getattr(model, "visual", model)
        fuse(tower)
        embed_patches_by_products(tower)
        self.model = model.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.image_size, self.name = image_size, name
        self.words = frozenset(words)  # what a prompt may speak of, where that is known; empty: anything
        self._tokenize = tokenize

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.model.parameters()).dtype

    def check_prompt(self, prompt: str) -> list[str]:
        """The words of a prompt this model never saw; ValueError if it knows none of them."""
        if not self.words:
            return []
        asked = "".join(c if c.isalnum() else " " for c in prompt.lower()).split()
        unknown = [word for word in asked if word not in self.words]
        if not set(asked) & (self.words - _SMALL_WORDS):
            raise ValueError(
                f"the {self.name} CLIP knows nothing of what the prompt {prompt[:80]!r} speaks of. It knows: "
                f"{', '.join(sorted(self.words - _SMALL_WORDS))}. Load a published CLIP for anything else"
            )
        return unknown

    @torch.no_grad()
    def embed_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> (P, E), L2-normalised."""
        tokens = self._tokenize(list(prompts)).to(self.mean.device)
        return F.normalize(at_least_float32(self.model.encode_text(tokens)), dim=-1)

    def embed_image(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] -> (B, E), L2-normalised; other sizes than the model's are resized."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        images = ((images - self.mean) / self.std).to(self.dtype)
        return graphs.through(self, self._embed, images)

    def _embed(self, images: Tensor) -> Tensor:
        return F.normalize(at_least_float32(self.model.encode_image(images)), dim=-1)


# words that say nothing of a picture's content
_SMALL_WORDS = {"a", "an", "the", "is", "of", "on", "in", "at", "by", "with", "and", "under", "during"} | {
    "photo",
    "picture",
    "image",
    "scene",
    "landscape",
}


def load_clip(
    name: str | os.PathLike[str],
    pretrained: str | os.PathLike[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Clip:
    """A frozen CLIP on the CPU.

    name: "mini", an architecture of open_clip ("ViT-B-32", SigLIP ones included), or a folder in the layout of
        open_clip's repositories (open_clip_config.json beside the weights).
    pretrained: a tag of open_clip ("laion2b_s34b_b79k", downloaded on first use) or a local weight file; for "mini"
        a weight file of the same architecture, the shipped one if it is left out; nothing for a folder.
    Raises FileNotFoundError for what is not there, ValueError for what cannot be used.
    """
    name = os.fspath(name)
    # open_clip fills a new model with random numbers, which the weights replace: not the caller's
    with torch.random.fork_rng(devices=[]):
        if name == "mini":
            return _load_mini(Path(pretrained) if pretrained else MINI / "model.safetensors", dtype)
        if Path(name).is_dir():
            return _load_folder(Path(name), dtype)
        return _load_named(name, os.fspath(pretrained or ""), dtype)


def _load_mini(weights: Path, dtype: torch.dtype) -> Clip:
    from open_clip import CLIP  # imported when used: it is slow to import

    config: dict[str, Any] = json.loads((MINI / "config.json").read_text(encoding="utf-8"))
    model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    load_strictly(model, weights, dtype)
    tokenize = mini_tokenizer(config["text_cfg"]["context_length"])
    size = config["vision_cfg"]["image_size"]
    return Clip(model, tokenize, config["mean"], config["std"], size, "mini", config["words"])


def mini_tokenizer(context_length: int, merges: Path = MINI / "merges.txt.gz") -> SimpleTokenizer:
    """open_clip's own tokenizer with the few merges that the mini world's words need."""
    from open_clip import SimpleTokenizer

    return SimpleTokenizer(bpe_path=str(merges), context_length=context_length)


def _load_folder(folder: Path, dtype: torch.dtype) -> Clip:
    if not (folder / clip_config.NAME).is_file():
        raise FileNotFoundError(f"the CLIP folder {folder} has no {clip_config.NAME}")
    config, what = clip_config.read(folder), f"the CLIP in {folder}"
    weights = _weights_in(folder)
    shapes = read_shapes(weights)
    # the words come from the folder, too, and nothing that lies there is run
    offline = {"trust_remote_code": False, "local_files_only": True}
    words = offline if config["model_cfg"].get("text_cfg", {}).get("hf_tokenizer_name") else {}
    with _explained(what):
        clip_config.check_size(config, shapes, str(folder))
        return _create(f"local-dir:{folder}", None, folder.name, dtype, words)


def _weights_in(folder: Path) -> Path:
    """The file that open_clip would take: it knows these names and endings, and goes on with random weights without."""
    there = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".pth"))
    if not there:
        raise FileNotFoundError(f"the CLIP folder {folder} has no weight file, such as {_FILES[1]}")
    preferred = [folder / name for name in _PREFERRED if folder / name in there]
    return (preferred + sorted(there, key=lambda file: file.suffix != ".safetensors"))[0]


def _load_named(name: str, pretrained: str, dtype: torch.dtype) -> Clip:
    import open_clip

    if name not in open_clip.list_models():
        close = difflib.get_close_matches(name, ["mini", *open_clip.list_models()], 3)
        raise ValueError(f"unknown CLIP {name!r}: did you mean {' or '.join(close) or 'mini or ' + DEFAULT[0]}?")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not pretrained:
        raise ValueError(f"{name} needs weights: a tag ({', '.join(tags)}) or a weight file")
    if not Path(pretrained).is_file() and pretrained not in tags:
        raise FileNotFoundError(f"{pretrained!r} is neither a weight file nor one of {name}'s tags: {', '.join(tags)}")
    with _explained(f"the weights {pretrained!r} of {name}"):
        if Path(pretrained).is_file():
            read_shapes(Path(pretrained))  # refuses what is more than plain tensors
        return _create(name, pretrained, name, dtype)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns whatever open_clip, timm or transformers raise into a ValueError about the model."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{what} could not be loaded ({reason}): the file is damaged or of another model, or there is no network"
        ) from error


def _create(
    identifier: str, pretrained: str | None, name: str, dtype: torch.dtype, words: Mapping[str, bool] | None = None
) -> Clip:
    """open_clip's model, tokenizer and normalisation, in one object."""
    import open_clip

    model = open_clip.create_model(
        identifier, pretrained=pretrained, weights_only=True, pretrained_text=False, require_pretrained=True
    )
    tokenize = open_clip.get_tokenizer(identifier, **(words or {}))
    wanted = open_clip.get_model_preprocess_cfg(model)
    size = wanted["size"] if isinstance(wanted["size"], int) else wanted["size"][0]
    return Clip(model.to(dtype), tokenize, wanted["mean"], wanted["std"], size, name)
