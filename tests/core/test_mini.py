"""The shipped models do what their card says: every gate of `python training/check.py`, on fewer pictures."""

import random

import pytest
import torch

import tokenopt_core as to
from tokenopt_core.loading import MINI
from training.captions import Caption, all_captions, full_caption, main_caption
from training.check import Gate, gates
from training.world import Album, Scene, all_scenes

COUNT = 64


@pytest.fixture(scope="module")
def found() -> list[Gate]:
    return gates(COUNT)


@pytest.mark.slow
def test_every_gate_is_passed(found) -> None:
    assert len([gate for gate in found if gate.least is not None]) >= 15
    assert not [str(gate) for gate in found if not gate.passed]


def test_a_gate_that_is_missed_is_said() -> None:
    assert not Gate("PSNR, dB", 29.9, 30.0).passed
    assert str(Gate("PSNR, dB", 29.9, 30.0)) == "| PSNR, dB | 29.900 | at least 30 | FAILED |"
    assert Gate("told only", 0.1, None).passed


def test_features_have_about_unit_size() -> None:
    """The published learning rate of 0.1 is meant for features of this size."""
    album, tokenizer = Album(), to.load_tokenizer("mini")
    features = tokenizer.encode(album.pictures(random.Random(11).sample(all_scenes(), COUNT)))
    assert 0.8 < features.square().mean().sqrt() < 1.25


def test_clip_says_which_words_it_does_not_know() -> None:
    clip = to.load_clip("mini")
    assert clip.check_prompt("A photo of a fox, at night") == []
    assert clip.check_prompt("a fox riding a bicycle at night") == ["riding", "bicycle"]
    with pytest.raises(ValueError, match=r"knows nothing of .*'a zebra'.*It knows: .*apple, .*penguin"):
        clip.check_prompt("a zebra")


def test_true_captions() -> None:
    scene = Scene("fox", "snow", "night", "small", "left", "soft")
    assert main_caption(scene).text() == "a fox on snow at night"
    assert full_caption(scene).text() == "a small fox on snow at night"
    assert Caption(lighting="night").true_of(scene)
    assert not Caption(subject="fox", ground="grass").true_of(scene)
    assert sum(c.true_of(scene) for c in all_captions()) == 2**3 - 1


def test_size_of_the_package() -> None:
    assert sum(path.stat().st_size for path in MINI.rglob("*") if path.is_file()) < 25e6


def test_loading_the_clip_leaves_the_callers_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    to.load_clip("mini")
    assert torch.equal(torch.get_rng_state(), before)
