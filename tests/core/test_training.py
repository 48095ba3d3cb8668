"""The trainings learn, can be interrupted, and go on as if they had not been."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tokenopt_core as to
from tokenopt_core.titok import Transformer
from training import loop, roles, tokenizer
from training.clip import multi_positive_loss
from training.loop import fast_arithmetic
from training.roles import RolesTraining
from training.tokenizer import Codebook, TokenizerTraining, export, quantize, reconstruction_loss
from training.world import Album, Scene, sample_scenes

SMALL = {"image_size": 32, "encoder": Transformer(16, 1, 2), "decoder": Transformer(16, 1, 2)}
FREE = replace(tokenizer.CONFIG, **SMALL, codebook_size=16, num_tokens=4)
TOLD = replace(roles.CONFIG, **SMALL)
SHORT = {"steps": 8, "batch": 4, "warmup": 2, "average_from": 4}
FOX = Scene("fox", "snow", "night", "large", "middle", "soft")


@pytest.fixture(scope="module")
def album() -> Album:
    return Album(32)


@pytest.fixture(params=["told", "free"])
def start(request, monkeypatch, album) -> Callable[[], TokenizerTraining]:
    """Starts a small training, of the shipped kind or of the unsupervised one."""
    monkeypatch.setattr(tokenizer, "Album", lambda size: album)  # rendered once for all
    if request.param == "told":
        return lambda: RolesTraining(TOLD, roles.Recipe(**SHORT, named=4, paired_from=6))
    return lambda: TokenizerTraining(FREE, tokenizer.Recipe(**SHORT, quantize_from=3))


@pytest.mark.slow
def test_a_resumed_training_is_the_same_training(tmp_path, monkeypatch, start) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    whole = start()
    untrained = {key: value.clone() for key, value in whole.finished().state_dict().items()}
    loop.run(whole, tmp_path / "whole.pt", lambda: "")

    first = start()

    def interrupt() -> str:
        if first.step == 5:
            raise KeyboardInterrupt
        return ""

    with pytest.raises(KeyboardInterrupt):
        loop.run(first, tmp_path / "cut.pt", interrupt)
    second = start()
    loop.run(second, tmp_path / "cut.pt", lambda: "")
    assert second.step == 8
    trained = whole.finished().state_dict()
    for key, value in second.finished().state_dict().items():
        assert torch.equal(value, trained[key]), key
    assert not torch.equal(trained["decoder.conv_out.weight"], untrained["decoder.conv_out.weight"])


@pytest.mark.slow
def test_the_exported_tokenizer_loads(tmp_path: Path, start, album) -> None:
    training = start()
    for _ in range(6):
        training.advance()
    export(training, tmp_path)
    images = album.pictures([FOX])
    with torch.no_grad():
        trained = training.finished()
        features = trained.encode(images)
        expected = trained.decode(trained.quantize(features))
    loaded = to.load_tokenizer(tmp_path)
    torch.testing.assert_close(loaded.decode(loaded.encode(images)), expected, atol=0.05, rtol=0.05)
    assert json.loads((tmp_path / "config.json").read_text())["training"]["steps_done"] == 6
    torch.testing.assert_close(loaded.model.quantize.embedding.weight, training.codebook.codes, atol=1e-3, rtol=0)
    # the published learning rate is meant for features of about unit size, which the unit vectors are scaled to
    many = loaded.encode(album.pictures(sample_scenes(256, random.Random(1))))
    assert many.square().mean().sqrt().item() == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_losses_fall(start) -> None:
    training = start()
    training.steps = 40
    losses = [training.advance() for _ in range(40)]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


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


def test_the_subject_counts_three_times_by_hand() -> None:
    images, masks = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    decoded = torch.tensor([[[[0.2, 0.0], [0.0, 0.0]]]])
    squares, absolutes, edges = 0.04 / 4, 0.2 / 4, 0.2 / 2 + 0.2 / 2
    expected = 4 * squares + 0.5 * absolutes + 0.25 * edges
    assert reconstruction_loss(decoded, images, masks).item() == pytest.approx(expected)
    masks[..., 0, 0] = 1  # an edge counts by the pixel behind it, which is outside here
    expected = 3 * (4 * squares + 0.5 * absolutes) + 0.25 * edges
    assert reconstruction_loss(decoded, images, masks).item() == pytest.approx(expected)


def test_every_true_caption_counts_as_a_match() -> None:
    pictures, texts = torch.eye(3), torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]])
    matches = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    right = multi_positive_loss(pictures, texts, matches, torch.tensor(50.0))
    wrong = multi_positive_loss(pictures, texts, matches.roll(1, 0), torch.tensor(50.0))
    # two captions share a picture: log 2 for it, nothing for the other; each caption finds its picture
    assert right.item() == pytest.approx(0.5 * 0.6931, abs=1e-3)
    assert wrong > 10


@pytest.mark.parametrize("fast", [False, True])
def test_fast_arithmetic_is_bfloat16_where_the_processor_has_matrix_units(monkeypatch, fast: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: fast)
    before = torch.backends.cuda.flash_sdp_enabled()
    with fast_arithmetic():
        assert (torch.eye(2) @ torch.eye(2)).dtype == (torch.bfloat16 if fast else torch.float32)
        assert torch.backends.cuda.math_sdp_enabled() and not torch.backends.cuda.flash_sdp_enabled()
    assert (torch.eye(2) @ torch.eye(2)).dtype == torch.float32
    assert torch.backends.cuda.flash_sdp_enabled() == before
