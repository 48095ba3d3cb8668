"""Encode to Features says what a small tokenizer cannot show."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from training.outside import spectral

pytestmark = pytest.mark.comfyui

WHAT = "a small world of its own"
REST = (
    f" something that mini does not know: what comes out will be something else. It knows only {WHAT}. For photographs "
    "TiTok Load offers titok_l32."
)


@pytest.fixture
def told(pack, monkeypatch) -> list[str]:
    """What was written on nodes."""
    notes: list[str] = []
    monkeypatch.setattr(pack.part("nodes.tokenizer"), "tell", lambda _, lines: notes.append("\n".join(lines)))
    return notes


@pytest.fixture
def small_world(pack, titok, monkeypatch):
    """The mini tokenizer, with a limit that stands apart from its weights."""
    known = pack.part("tokenopt_core.outside").KnownWorld(WHAT, 22.0)
    monkeypatch.setattr(titok.model, "world", known)
    return titok


@pytest.fixture
def photograph(titok) -> torch.Tensor:
    """Something with the spectrum of one, (1, S, S, 3)."""
    torch.manual_seed(0)
    return spectral(1, titok.model.image_size, 1.5).permute(0, 2, 3, 1).contiguous()


@pytest.fixture
def encode(pack, small_world, told) -> Callable[..., str]:
    """Encodes pictures and returns the note."""

    def run(image: torch.Tensor, **more: torch.Tensor) -> str:
        pack.run("TokenOptEncode", titok=small_world, image=image, **more)
        return told[-1]

    return run


def test_pictures_of_the_world_pass_in_silence(pack, encode) -> None:
    samples, masks = pack.run("TokenOptSample", name="all")
    assert encode(samples) == ""
    assert encode(samples, mask=masks) == ""


def test_a_photograph_is_named(encode, picture, photograph) -> None:
    assert encode(photograph) == f"the picture shows{REST}"
    assert encode(torch.cat([picture, photograph, picture])) == f"picture 2 shows{REST}"
    assert encode(torch.cat([photograph, picture, photograph])) == f"pictures 1 and 3 show{REST}"
    assert encode(photograph.expand(14, -1, -1, -1)) == (
        f"pictures 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 2 more show{REST}"
    )


def test_a_photograph_of_any_size_is_named(encode) -> None:
    torch.manual_seed(1)
    wide = spectral(1, 300, 1.5)[:, :, 50:250].permute(0, 2, 3, 1)
    assert encode(wide) == f"the picture shows{REST}"


def test_the_note_goes_with_the_next_run(encode, told, picture, photograph) -> None:
    encode(photograph)
    encode(picture)
    assert told == ["", f"the picture shows{REST}", "", ""]


def test_what_is_hidden_is_not_compared(encode, picture, photograph) -> None:
    size = picture.shape[1]
    quarter = torch.zeros(1, size, size)
    quarter[:, : size // 2, : size // 2] = 1
    mixed = torch.lerp(picture, photograph, quarter[..., None])
    assert encode(mixed, mask=quarter) == ""
    assert encode(torch.lerp(photograph, picture, quarter[..., None]), mask=quarter) == f"the picture shows{REST}"
    most = torch.ones(1, size, size)
    most[:, :, : size // 3] = 0  # too little is known to say
    assert encode(photograph, mask=most) == ""


def test_other_tokenizers_decode_nothing(pack, titok, told, photograph, monkeypatch) -> None:
    decoded: list[torch.Tensor] = []
    monkeypatch.setattr(titok.model, "world", None)
    monkeypatch.setattr(titok.model, "decode", decoded.append)
    pack.run("TokenOptEncode", titok=titok, image=photograph)
    assert told == ["", ""] and decoded == []


def test_the_features_are_those_of_a_tokenizer_that_says_nothing(pack, small_world, picture, monkeypatch) -> None:
    many = torch.cat([picture * random.Random(i).uniform(0.5, 1) for i in range(3)])
    outputs = pack.run("TokenOptEncode", titok=small_world, image=many)
    monkeypatch.setattr(small_world.model, "world", None)
    for given, expected in zip(outputs, pack.run("TokenOptEncode", titok=small_world, image=many), strict=True):
        assert torch.equal(given, expected)
