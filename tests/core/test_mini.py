"""The shipped models do what their card says, and the judge that says so can tell good from bad."""

import random

import pytest
import torch

import tokenopt_core as to
from tokenopt_core.loading import MINI
from training.captions import Caption, all_captions, full_caption
from training.judge import Judge
from training.world import World, all_scenes, held_out

COUNT = 96


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(64)


@pytest.fixture(scope="module")
def tokenizer() -> to.Tokenizer:
    return to.load_tokenizer("mini")


@pytest.fixture(scope="module")
def clip() -> to.Clip:
    return to.load_clip("mini")


@pytest.fixture(scope="module")
def pictures() -> dict[bool, tuple[list, torch.Tensor]]:
    """Scenes and their renders, of combinations seen in training (False) and held out of it (True)."""
    world, rng = World(64), random.Random(11)
    chosen = {unseen: rng.sample([s for s in all_scenes() if held_out(s) == unseen], COUNT) for unseen in (False, True)}
    return {unseen: (scenes, world.render(scenes)[0]) for unseen, scenes in chosen.items()}


def reconstruct(tokenizer: to.Tokenizer, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return tokenizer.decode(tokenizer.encode(images)).clamp(0, 1)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean((1, 2, 3)).log10().mean())


@pytest.mark.parametrize(("unseen", "least"), [(False, 27.5), (True, 26.5)])
def test_reconstructions_are_near_and_show_the_subject(tokenizer, judge, pictures, unseen, least) -> None:
    scenes, images = pictures[unseen]
    decoded = reconstruct(tokenizer, images)
    assert psnr(decoded, images) > least
    read = [
        v.agrees(subject=s.subject, ground=s.ground, lighting=s.lighting)
        for v, s in zip(judge(decoded), scenes, strict=True)
    ]
    assert sum(read) / COUNT >= 0.95


def test_the_judge_refuses_random_tokens(tokenizer, judge) -> None:
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(tokenizer.codebook_size, (COUNT, tokenizer.num_tokens), generator=generator)
    garbage = tokenizer.decode(tokenizer.lookup(indices), quantize=False)
    assert sum(v.clean for v in judge(garbage)) / COUNT <= 0.05


def test_features_have_about_unit_size(tokenizer, pictures) -> None:
    """The published learning rate of 0.1 is meant for features of this size."""
    rms = tokenizer.encode(pictures[False][1]).square().mean().sqrt()
    assert 0.8 < rms < 1.25


def test_codes_are_in_use_at_every_position(tokenizer, pictures) -> None:
    indices = torch.cat([tokenizer.indices(tokenizer.encode(images)) for _, images in pictures.values()])
    assert indices.unique().numel() > 64
    assert min(indices[:, n].unique().numel() for n in range(tokenizer.num_tokens)) > 1


@pytest.mark.parametrize(("reconstructed", "least"), [(False, 0.95), (True, 0.90)])
@pytest.mark.parametrize("unseen", [False, True])
def test_clip_finds_the_caption(tokenizer, clip, pictures, unseen, reconstructed, least) -> None:
    scenes, images = pictures[unseen]
    captions = [c for c in all_captions() if c.subject and c.ground and c.lighting]
    texts = clip.embed_text([c.text() for c in captions])
    shown = reconstruct(tokenizer, images) if reconstructed else images
    best = (clip.embed_image(shown) @ texts.T).argmax(1).tolist()
    assert sum(captions[i] == full_caption(s) for i, s in zip(best, scenes, strict=True)) / COUNT >= least


def test_clip_says_which_words_it_does_not_know(clip) -> None:
    assert clip.check_prompt("A photo of a fox, at night") == []
    assert clip.check_prompt("a fox riding a bicycle at night") == ["riding", "bicycle"]
    with pytest.raises(ValueError, match=r"knows nothing of .*'a zebra'.*It knows: apple, .*penguin"):
        clip.check_prompt("a zebra")


def test_true_captions() -> None:
    (scene,) = [s for s in all_scenes() if (s.subject, s.ground, s.lighting, s.size, s.x, s.sun) == SCENE]
    assert full_caption(scene).text() == "a fox on snow at night"
    assert Caption(lighting="night").true_of(scene)
    assert not Caption(subject="fox", ground="grass").true_of(scene)
    assert sum(c.true_of(scene) for c in all_captions()) == 2**3 - 1


SCENE = ("fox", "snow", "night", 0.58, 0.5, "left")


def test_size_of_the_package() -> None:
    assert sum(path.stat().st_size for path in MINI.rglob("*") if path.is_file()) < 25e6


def test_loading_the_clip_leaves_the_callers_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    to.load_clip("mini")
    assert torch.equal(torch.get_rng_state(), before)
