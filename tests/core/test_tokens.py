"""Positions, copy-paste and features drawn at random, against values worked out by hand."""

import pytest
import torch

import tokenopt_core as to
from tests.core.conftest import TINY, tiny_tokenizer
from tokenopt_core.tokens import parse_positions


def test_positions() -> None:
    assert parse_positions("31", 32) == [31]
    assert parse_positions(" 3, 7 ,12-15,\n3 ", 32) == [3, 7, 12, 13, 14, 15]
    assert parse_positions("0 - 2;5", 6) == [0, 1, 2, 5]
    assert parse_positions([2, 0, 2], 3) == [0, 2]


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ("", "no token positions given"),
        (" , ", "no token positions given"),
        ([], "no token positions given"),
        ("32", "no token position 32: this tokenizer has 0 to 31"),
        ([-1], "no token position -1"),
        ("7-3", "the range 7-3 runs backwards: write 3-7"),
        ("-3", "cannot read the token positions '-3'"),
        ("three", "cannot read the token positions 'three'"),
        ("1.5", "cannot read"),
        ("1-2-3", "cannot read"),
        ("0-99999999", "longer than any tokenizer"),
        ("9" * 5000, "cannot read"),
    ],
)
def test_bad_positions_are_explained(positions, message) -> None:
    with pytest.raises(ValueError, match=message):
        parse_positions(positions, 32)


def test_copy_paste_by_hand() -> None:
    target, reference = torch.zeros(1, 4, 2), torch.arange(8.0).view(1, 4, 2)
    pasted = to.copy_paste(target, reference, "1, 3")
    assert pasted[0].tolist() == [[0, 0], [2, 3], [0, 0], [6, 7]]
    assert to.copy_paste(target, reference, [1], 0.25)[0, 1].tolist() == [0.5, 0.75]
    assert torch.equal(to.copy_paste(target, reference, [1], 0.0), target)
    assert target.abs().sum() == 0  # the input is left alone


def test_copy_paste_of_batches() -> None:
    one, many = torch.zeros(1, 2, 1), torch.arange(6.0).view(3, 2, 1)
    assert to.copy_paste(one, many, [1]).flatten(1).tolist() == [[0, 1], [0, 3], [0, 5]]
    assert to.copy_paste(many, one, [1]).flatten(1).tolist() == [[0, 0], [2, 0], [4, 0]]
    assert to.copy_paste(many, many + 10, [0]).flatten(1).tolist() == [[10, 1], [12, 3], [14, 5]]


def test_copy_paste_that_does_not_fit_is_explained() -> None:
    target = torch.zeros(2, 4, 2)
    with pytest.raises(ValueError, match="come from different tokenizers"):
        to.copy_paste(target, torch.zeros(2, 4, 3), [0])
    with pytest.raises(ValueError, match="2 targets and 3 references do not pair up"):
        to.copy_paste(target, torch.zeros(3, 4, 2), [0])
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength must be a number from 0 to 1"):
            to.copy_paste(target, target, [0], strength)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_random_features(tokenizer) -> None:
    features = to.random_features(tokenizer, 2000, 0.5, generator())
    assert features.shape == (2000, 3, 2)
    assert features.std().item() == pytest.approx(0.5, rel=0.05) and abs(features.mean().item()) < 0.02
    assert torch.equal(features, to.random_features(tokenizer, 2000, 0.5, generator()))
    assert not torch.equal(features, to.random_features(tokenizer, 2000, 0.5, generator(1)))


def test_features_from_statistics(tokenizer) -> None:
    with pytest.raises(ValueError, match="without statistics"):
        to.random_features(tokenizer, 1, 1.0, generator(), "statistics")
    mean, std = torch.arange(6.0).view(3, 2), torch.tensor([[0.0, 1.0]] * 3)
    tokenizer.statistics = (mean, std)
    features = to.random_features(tokenizer, 4000, 2.0, generator(), "statistics")
    torch.testing.assert_close(features.mean(0), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(features.std(0), 2 * std, atol=0.1, rtol=0)


def test_random_codes_are_codes(tokenizer) -> None:
    features = to.random_features(tokenizer, 50, 1.0, generator(), "codes")
    torch.testing.assert_close(tokenizer.quantize(features), features)
    assert len(tokenizer.indices(features).unique()) == tokenizer.codebook_size
    vae = tiny_tokenizer(type(TINY)(**{**vars(TINY), "codebook_size": None}))
    with pytest.raises(ValueError, match="is a VAE: it has no codes"):
        to.random_features(vae, 1, 1.0, generator(), "codes")
    assert to.random_features(vae, 2, 1.0, generator()).shape == (2, 3, 4)


def test_bad_starts_are_explained(tokenizer) -> None:
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        to.random_features(tokenizer, 0)
    with pytest.raises(ValueError, match="std must be a finite number"):
        to.random_features(tokenizer, 1, float("nan"))
    with pytest.raises(ValueError, match="unknown start 'x'"):
        to.random_features(tokenizer, 1, start="x")
