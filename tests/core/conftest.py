"""A tokenizer and a CLIP small enough to compute with in float64."""

import pytest
import torch

import tokenopt_core as to
from tokenopt_core.clip import Clip
from tokenopt_core.titok import TiTokConfig, Transformer, build

from .hostile import little_memory, marker, network  # noqa: F401 - fixtures

TINY = TiTokConfig(
    image_size=8,
    num_tokens=3,
    token_dim=2,
    codebook_size=5,
    encoder=Transformer(8, 1, 2),
    decoder=Transformer(8, 1, 2),
    patch_size=4,
)


def tiny_tokenizer(config: TiTokConfig = TINY) -> to.Tokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(config)
        if config.codebook_size is not None:
            torch.nn.init.normal_(model.quantize.embedding.weight)
        torch.nn.init.normal_(model.decoder.decoder_embed.weight)
    return to.Tokenizer(model, "tiny")


@pytest.fixture
def tokenizer() -> to.Tokenizer:
    return tiny_tokenizer()


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(1))


class TinyTowers(torch.nn.Module):
    """Two towers of one linear layer each: a prompt's vector is made of its length and its first letter."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = torch.nn.Linear(3, 2, bias=False)
        self.picture.weight.data = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, -0.5]])

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.float()

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self.picture(images.mean((2, 3)))


@pytest.fixture
def clip() -> Clip:
    def tokenize(prompts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(p), ord(p[0]) - ord("a")] for p in prompts])

    return Clip(TinyTowers(), tokenize, (0.5,) * 3, (0.5,) * 3, 8, "tiny")
