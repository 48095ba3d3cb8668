"""The trainings learn, can be interrupted, and go on as if they had not been."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tokenopt_core as to
from tokenopt_core.titok import Transformer
from training import loop
from training.clip import multi_positive_loss
from training.tokenizer import CONFIG, Codebook, Recipe, TokenizerTraining, export, quantize
from training.world import Scene, World, all_scenes, held_out, sample_scenes

SMALL = replace(CONFIG, encoder=Transformer(16, 1, 2), decoder=Transformer(16, 1, 2), codebook_size=16, num_tokens=4)
RECIPE = Recipe(steps=8, batch=4, quantize_from=3, warmup=2)


@pytest.mark.slow
def test_a_resumed_training_is_the_same_training(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    whole = TokenizerTraining(SMALL, RECIPE)
    loop.run(whole, tmp_path / "whole.pt", lambda: "")

    first = TokenizerTraining(SMALL, RECIPE)

    def interrupt() -> str:
        if first.step == 5:
            raise KeyboardInterrupt
        return ""

    with pytest.raises(KeyboardInterrupt):
        loop.run(first, tmp_path / "cut.pt", interrupt)
    second = TokenizerTraining(SMALL, RECIPE)
    loop.run(second, tmp_path / "cut.pt", lambda: "")
    assert second.step == 8
    for key, value in whole.finished().state_dict().items():
        assert torch.equal(value, second.finished().state_dict()[key]), key


@pytest.mark.slow
def test_the_exported_tokenizer_loads(tmp_path: Path) -> None:

    training = TokenizerTraining(SMALL, RECIPE)
    for _ in range(5):
        training.advance()
    export(training, tmp_path)
    images = World(64).render([Scene("fox", "snow", "night")])[0]
    with torch.no_grad():
        trained = training.finished()
        expected = trained.decode(trained.quantize(trained.encode(images)))
    loaded = to.load_tokenizer(tmp_path)
    torch.testing.assert_close(loaded.decode(loaded.encode(images)), expected, atol=0.05, rtol=0.05)


def test_codes_move_toward_their_features_by_hand() -> None:
    book = Codebook(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), decay=0.5)
    book.update(torch.tensor([[0.0, 1.0], [0.6, 0.8]]), torch.tensor([0, 1]), revive=False)
    # sums: half of the old code and half of its feature
    torch.testing.assert_close(book.codes[0], torch.tensor([0.5, 0.5]) / 0.5**0.5)
    moved = torch.tensor([0.3, 0.9])
    torch.testing.assert_close(book.codes[1], moved / moved.norm())


def test_quantize_without_noise_takes_the_nearest_code() -> None:
    book = Codebook(torch.eye(2), decay=0.9)
    z = torch.tensor([[[0.8, 0.6], [0.28, 0.96]]], requires_grad=True)
    codes, indices, commitment = quantize(z, book, noise=0.0)
    assert indices.tolist() == [[0, 1]]
    torch.testing.assert_close(codes, torch.eye(2)[None])
    assert commitment.item() == pytest.approx(((0.04 + 0.36) + (0.0784 + 0.0016)) / 2)
    codes.sum().backward()
    assert z.grad.tolist() == [[[1.0, 1.0], [1.0, 1.0]]]


def test_every_true_caption_counts_as_a_match() -> None:
    pictures, texts = torch.eye(3), torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]])
    matches = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    right = multi_positive_loss(pictures, texts, matches, torch.tensor(50.0))
    wrong = multi_positive_loss(pictures, texts, matches.roll(1, 0), torch.tensor(50.0))
    # two captions share a picture: log 2 for it, nothing for the other; each caption finds its picture
    assert right.item() == pytest.approx(0.5 * 0.6931, abs=1e-3)
    assert wrong > 10


def test_scenes_render_to_what_they_say() -> None:
    world = World(32)
    day, night = (world.render([Scene("fox", "snow", light)])[0] for light in ("day", "night"))
    assert day.mean() > night.mean() + 0.2
    images, masks = world.render([Scene("fox", "snow", "day"), Scene("fox", "snow", "day", x=0.34)])
    assert images.shape == (2, 3, 32, 32)
    assert masks.shape == (2, 1, 32, 32)
    centre = (masks[:, 0].sum(1) * torch.arange(32)).sum(1) / masks.sum((1, 2, 3))
    assert centre[1] < centre[0] - 3
    assert torch.equal(world.render([Scene("fox", "snow", "day")])[0], day)


def test_one_in_twelve_combinations_is_held_out() -> None:

    scenes = all_scenes()
    assert len(set(scenes)) == len(scenes) == 7776
    assert sum(map(held_out, scenes)) * 12 == len(scenes)
    assert not any(map(held_out, sample_scenes(500, random.Random(0))))
