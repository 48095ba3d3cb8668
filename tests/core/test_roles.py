"""The supervised training: what it shows the decoder, and what it asks of the encoder."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tokenopt_core.titok import Transformer
from training import roles, tokenizer
from training.roles import CODES, RolesTraining, hide, meanings, orthogonal_codes
from training.world import ATTRIBUTES, Album, Scene, held_out, values_of

SMALL = replace(roles.CONFIG, image_size=32, encoder=Transformer(16, 1, 2), decoder=Transformer(16, 1, 2))
FOX = Scene("fox", "snow", "night", "large", "middle", "soft")


@pytest.fixture(scope="module")
def album() -> Album:
    return Album(32)


@pytest.fixture
def told(monkeypatch, album) -> Callable[..., RolesTraining]:
    """A small training with settings of its own."""
    monkeypatch.setattr(tokenizer, "Album", lambda size: album)  # rendered once for all
    return lambda **settings: RolesTraining(SMALL, roles.Recipe(**settings))


def test_codes_are_orthogonal_and_in_no_direction_in_particular() -> None:
    codes = orthogonal_codes(16, seed=0)
    torch.testing.assert_close(codes @ codes.T, torch.eye(16))
    assert codes.abs().max() < 0.95 and codes.is_contiguous()
    assert torch.equal(codes, orthogonal_codes(16, seed=0))
    assert not torch.equal(codes, orthogonal_codes(16, seed=1))


def test_meanings_by_hand() -> None:
    expected = [[0, 1, 2, 3, 4], [0, 1, 2, 3, 0], [0, 1, 2, 3, 0], [0, 1, 0, 1, 0], [0, 1, 2, 0, 1], [0, 1, 2, 0, 1]]
    assert meanings(5).tolist() == expected  # subject, ground, lighting, size, place, focus
    assert [len(row.unique()) for row in meanings(CODES)] == [len(kinds) for kinds in ATTRIBUTES.values()]


def test_a_value_is_any_of_the_codes_that_mean_it(told) -> None:
    training = told()
    tokens = training.codes_of(torch.tensor([values_of(FOX)]).repeat(400, 1))
    numbers = (tokens @ training.codebook.codes.T).argmax(-1)
    torch.testing.assert_close(training.codebook.codes[numbers], tokens)
    used = [set(column.tolist()) for column in numbers.T]
    expected = [{4}, {2, 6, 10, 14}, {2, 6, 10, 14}, {*range(1, 16, 2)}, {*range(1, 16, 3)}, {*range(2, 16, 3)}]
    assert used == expected


@pytest.fixture
def compared(monkeypatch) -> list[tuple[torch.Tensor, ...]]:
    """What the decoder's training compares: decoded pictures, pictures and masks."""
    calls: list[tuple[torch.Tensor, ...]] = []
    monkeypatch.setattr(roles, "reconstruction_loss", lambda *parts: (calls.append(parts), torch.zeros(()))[1])
    return calls


@pytest.mark.parametrize("faded", [0.0, 0.5, 1.0])
def test_the_decoder_learns_scenes_and_the_way_between_two(told, compared, album, faded: float) -> None:
    training = told(batch=64, faded=faded, feature_noise=0.0)
    training.decode = lambda tokens: tokens
    training.decoding()
    ((tokens, images, masks),) = compared
    shares = tokens @ training.codebook.codes.T  # (B, attributes, codes)
    ways = 0
    for share, image, mask in zip(shares, images, masks, strict=True):
        (scene, weight), *others = read(share, training.meanings)
        expected, shown = weight * album.pictures([scene])[0], album.masks([scene])[0]
        for other, weight in others:
            expected = expected + weight * album.pictures([other])[0]
            shown = torch.maximum(shown, album.masks([other])[0])
            assert not held_out(other)
        torch.testing.assert_close(image, expected, atol=1e-4, rtol=0)
        assert torch.equal(mask, shown) and not held_out(scene)
        ways += len(others)
    # a way to a held-out combination is not gone: one in sixteen of those that change one
    assert {0.0: ways == 0, 0.5: 24 <= ways <= 32, 1.0: 50 <= ways <= 64}[faded]


def test_pairs_ask_for_both_pictures_and_the_change(told, album) -> None:
    training = told(batch=32)

    def perfect(tokens: torch.Tensor) -> torch.Tensor:
        """The picture that tokens of known codes mean."""
        found = [read(share, training.meanings) for share in tokens @ training.codebook.codes.T]
        return torch.stack([sum(weight * album.pictures([scene])[0] for scene, weight in ways) for ways in found])

    training.decode = perfect
    assert training.pairs().item() == pytest.approx(0, abs=1e-4)
    training.decode = lambda tokens: perfect(tokens) + 0.1  # too bright by the same: the change is right
    assert 4 * 0.01 + 0.5 * 0.1 < training.pairs().item() < 3 * (4 * 0.01 + 0.5 * 0.1)


def test_pairs_weigh_the_change_by_hand(told, compared) -> None:
    training, seen = told(batch=32, slope=0.5, nearest=0.2), []
    training.decode = lambda tokens: (seen.append(tokens), torch.zeros(len(tokens), 3, 32, 32))[1]
    loss = training.pairs()
    ((_, both, masks),) = compared
    shares = seen[0] @ training.codebook.codes.T
    starts, ends = shares[:16], shares[16:]
    ways = [read(share, training.meanings) for share in ends]
    assert len(both) == len(masks) == 32 and all(len(way) == 2 and not held_out(way[1][0]) for way in ways)
    gone = (1 - (starts * ends).sum(-1).amin(-1)).view(-1, 1, 1, 1)  # of the way, at the position that moves
    assert gone.min() >= 0.2 and gone.max() <= 1
    change = (both[16:] - both[:16]) / gone
    assert loss.item() == pytest.approx(0.5 * change.square().mean().item(), rel=1e-3)  # that of the decoder is none


def test_the_learning_rate_starts_again_with_the_pairs(told) -> None:
    training, found = told(steps=20, paired_from=10, warmup=2, paired_rate=0.5, final_rate=0.03), []
    for training.step in (0, 1, 6, 10, 11, 16):
        found.append(training.rate())
    half = 0.03 + 0.97 / 2  # in the middle of a cosine
    assert found == pytest.approx([0.5, 1, half, 0.25, 0.5, 0.5 * half])


def test_the_noise_on_tokens_has_the_size_it_says(told, compared) -> None:
    training = told(batch=64, faded=0.0, feature_noise=0.4)
    training.decode = lambda tokens: tokens
    training.decoding()
    noisy = compared[0][0] @ training.codebook.codes.T
    noise = noisy - torch.nn.functional.one_hot(noisy.argmax(-1), CODES)
    assert noise.std().item() == pytest.approx(0.4 / 4, rel=0.05)  # in each of the 16 directions


def test_the_encoder_learns_the_codes_by_hand(told, monkeypatch) -> None:
    training = told(named=2, hidden=0.0)
    monkeypatch.setattr(roles, "sample_scenes", lambda count, rng: [FOX] * count)
    codes, values = training.codebook.codes, values_of(FOX)
    training.encode = lambda images: codes[torch.tensor(values)].expand(len(images), -1, -1)
    assert training.naming().item() == pytest.approx(0, abs=1e-4)
    training.encode = lambda images: codes[torch.tensor([5, 3, 3, 0, 0, 0])].expand(len(images), -1, -1)
    # at sharpness 16 the wrong code has the score 16, the others 0; 1, 4, 4, 8, 5 and 5 of those would be right. Their
    # nearest is at right angles: a distance of 2 when squared
    named = 16 - torch.tensor([1.0, 4, 4, 8, 5, 5]).log().mean().item()
    assert training.naming().item() == pytest.approx(0.1 * named + 0.25 * 2, abs=1e-4)


def test_a_share_of_the_encoders_pictures_is_partly_hidden(told, monkeypatch, album) -> None:
    training, hidden, seen = told(named=10, hidden=0.4), [], []
    monkeypatch.setattr(roles, "hide", lambda images: (hidden.append(len(images)), images.zero_()))
    monkeypatch.setattr(roles, "sample_scenes", lambda count, rng: [FOX] * count)
    training.encode = lambda images: (seen.append(images), training.codebook.codes[:6].expand(len(images), -1, -1))[1]
    training.naming()
    assert hidden == [4] and seen[0][:4].abs().max() < 0.15
    noise = seen[0][4:] - album.pictures([FOX])
    assert noise.std().item() == pytest.approx(0.02, rel=0.05)


def test_what_is_hidden_is_a_box_of_one_colour_or_of_those_around() -> None:
    torch.manual_seed(0)
    before = torch.rand(200, 3, 32, 32)
    images = before.clone()
    hide(images)
    kinds = dict.fromkeys(("grey", "mean", "blurred"), 0)
    for image, old in zip(images, before, strict=True):
        changed = (image != old).any(0)
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        box = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert changed.sum() == box[0].numel() and all(4 <= side < 20 for side in box.shape[1:])
        if (box == box[:, :1, :1]).all():
            colour = box[:, 0, 0]
            grey = torch.equal(colour, torch.full((3,), 0.5))
            assert grey or torch.allclose(colour, old.mean((1, 2)))
            kinds["grey" if grey else "mean"] += 1
        else:
            assert box.std() < 0.5 * old.std()
            kinds["blurred"] += 1
    # 0.3 of the colours are grey, and 0.4 of the boxes blurred instead
    assert kinds["blurred"] == pytest.approx(80, abs=20)
    assert kinds["grey"] == pytest.approx(36, abs=15) and sum(kinds.values()) == 200


def read(shares: torch.Tensor, meant: torch.Tensor) -> list[tuple[Scene, float]]:
    """The one or two scenes that tokens of known codes, (attributes, codes), mean, and their weights."""
    found = [[(int(c), float(row[c])) for c in (row.abs() > 1e-5).nonzero().flatten()] for row in shares]
    assert sorted(len(codes) for codes in found)[:-1] == [1] * 5  # one attribute is on its way at most
    position = max(range(6), key=lambda k: len(found[k]))
    assert sum(weight for _, weight in found[position]) == pytest.approx(1, abs=1e-4)
    scenes = []
    for code, weight in found[position]:
        chosen = [codes[0][0] for codes in found]
        chosen[position] = code
        kinds = zip(ATTRIBUTES.items(), meant.tolist(), chosen, strict=True)
        scenes.append((Scene(**{name: values[row[c]] for (name, values), row, c in kinds}), weight))
    return scenes
