"""Pictures that a small tokenizer does not know are told from its own by what comes back of them."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tokenopt_core as to
from tokenopt_core.masks import fill_hole
from tokenopt_core.outside import FILE, KnownWorld, likeness, read_world
from tokenopt_core.pictures import read_picture
from training.outside import COUNT, TOLERATED, box, cropped, disturbed, measure, spectral, strangers, write
from training.samples import SAMPLES

from .conftest import TINY, tiny_tokenizer

WORLD = KnownWorld("a small world", 23.0)
SAMPLE_FOLDER = Path(to.__file__).parent / "mini" / "samples"


def chequered() -> torch.Tensor:
    """Fields of 0.2 and 0.8, (1, 3, 4, 4)."""
    fields = torch.arange(4)[:, None] + torch.arange(4)
    return (0.2 + 0.6 * (fields % 2)).expand(1, 3, 4, 4).clone()


@pytest.mark.parametrize(
    ("decoded", "expected"),
    [
        (chequered(), 60 + 10),  # the least error that counts is 1e-6
        (chequered() + 0.1, 20 + 10),  # an error of 0.01 on average, and the correlation is 1
        (torch.full((1, 3, 4, 4), 0.5), 10.4576),  # an error of 0.09, and no correlation
        (1 - chequered(), 4.4370 - 10),  # an error of 0.36, and the opposite
        (5 * chequered() - 2, 13.9793 + 10),  # clamped to 0 and 1, which are 0.2 off
    ],
)
def test_likeness_by_hand(decoded: torch.Tensor, expected: float) -> None:
    assert likeness(chequered(), decoded).item() == pytest.approx(expected, abs=0.01)


def test_only_known_pixels_are_compared() -> None:
    pictures, known = chequered().expand(2, -1, -1, -1), torch.ones(2, 1, 4, 4)
    known[:, :, :, 2:] = 0
    decoded = pictures + 0.1
    decoded[..., 2:] = torch.rand(2, 3, 4, 2)
    assert likeness(pictures, decoded, known).tolist() == pytest.approx([30, 30], abs=0.01)


def test_a_soft_edge_counts_by_its_share() -> None:
    pictures, known = torch.full((1, 3, 4, 4), 0.5), torch.ones(1, 1, 4, 4)
    known[..., 2:] = 0.5
    decoded = pictures + 0.1
    decoded[..., 2:] = 0.7
    error = (0.1**2 + 0.5 * 0.2**2) / 1.5
    assert likeness(pictures, decoded, known).item() == pytest.approx(-10 * math.log10(error), abs=0.01)


def test_a_flat_picture_is_less_like_at_the_same_error() -> None:
    pattern = (chequered() - 0.5) / 0.3  # -1 and 1
    flat, faint = torch.full_like(pattern, 0.1), 0.1 + 0.02 * pattern
    decoded = 0.1 + 0.01 * pattern  # an error of 0.0001 from both
    assert likeness(flat, decoded).item() == pytest.approx(40, abs=0.1)
    assert likeness(faint, decoded).item() == pytest.approx(40 + 10, abs=0.2)


def test_a_picture_that_is_mostly_hidden_is_no_stranger() -> None:
    pictures, known = chequered().expand(3, -1, -1, -1), torch.ones(3, 1, 4, 4)
    known[1, :, :2] = 0  # half of it
    known[2, :, :2] = known[2, :, 2, 0] = 0  # more than that
    assert WORLD.strangers(pictures, 1 - pictures, known).tolist() == [True, True, False]
    assert WORLD.strangers(pictures, pictures, known).tolist() == [False] * 3
    assert WORLD.strangers(pictures, 1 - pictures, known[:1]).tolist() == [True] * 3


def test_the_file_is_read_and_written(tmp_path) -> None:
    path = tmp_path / FILE
    assert read_world(path) is None
    write(path, WORLD, {"rendered": 0.0}, {"noise": 1.0})
    assert read_world(path) == WORLD
    assert json.loads(path.read_text())["taken_for_strangers"] == {"rendered": 0.0, "noise": 1.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "world.json"),
        ('{"what": "", "least_likeness": 20}', 'expected "what", a text of up to 200 characters'),
        ('{"what": "a\\nb", "least_likeness": 20}', 'expected "what"'),
        ('{"least_likeness": 20}', 'expected "what", a text of up to 200 characters, got None'),
        ('{"what": "a world"}', 'expected "least_likeness", a number of dB of up to 100, got None'),
        ('{"what": "a world", "least_likeness": true}', "got True"),
        ('{"what": "a world", "least_likeness": NaN}', "NaN is no finite number"),
        ('{"what": "a world", "least_likeness": "20"}', "got '20'"),
        ('{"what": "a world", "least_likeness": 1' + "0" * 400 + "}", "of up to 100, got 1000"),
    ],
)
def test_a_broken_file_is_explained(tmp_path, content: str, message: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_world(tmp_path / FILE)


def test_a_tokenizer_comes_with_its_world(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_dict()))
    save_file(tiny_tokenizer().model.state_dict(), tmp_path / "model.safetensors")
    assert to.load_tokenizer(tmp_path).world is None
    write(tmp_path / FILE, WORLD, {}, {})
    assert to.load_tokenizer(tmp_path).world == WORLD


def test_disturbances_are_what_they_say() -> None:
    rng = random.Random(0)
    assert box(100, 0.25, rng).sum() == 50 * 50
    images = spectral(4, 64, 2.0)
    assert torch.equal(cropped(images[:1], 1.0, rng), images[:1])
    kinds = disturbed(images, rng)
    for name, (pictures, shown, known) in kinds.items():
        assert pictures.shape == shown.shape == images.shape and 0 <= shown.min() <= shown.max() <= 1, name
        assert "hidden" in name or (torch.equal(pictures, shown) and known.all()), name
    assert kinds["25% hidden, grey"][2].mean().item() == pytest.approx(0.75, abs=0.02)
    assert kinds["48% hidden, blur"][2].mean().item() == pytest.approx(0.52, abs=0.03)
    compressed = kinds["JPEG, quality 40"][0]
    assert 0 < (compressed - images).abs().mean() < 0.05


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_noise_falls_with_the_frequency(power: float) -> None:
    torch.manual_seed(0)
    amplitude = torch.fft.fft2(spectral(64, 64, power) - 0.5).abs().mean((0, 1))
    assert (amplitude[0, 2] / amplitude[0, 8]).log2().item() == pytest.approx(2 * power, abs=0.25)


@pytest.mark.slow
def test_the_shipped_tokenizer_tells_its_world_from_others() -> None:
    tokenizer = to.load_tokenizer("mini")
    world, own, others = measure(tokenizer, count=16)
    assert tokenizer.world is not None, f"{FILE} is missing: python -m training.outside"
    # measured again on fewer pictures: the limit belongs to these weights
    assert world.what == tokenizer.world.what
    assert world.least_likeness == pytest.approx(tokenizer.world.least_likeness, abs=4)
    assert own["rendered"] == 0 and sum(own.values()) / len(own) <= 2 * TOLERATED
    assert min(others.values()) == 1


@pytest.mark.slow
def test_samples_are_known_also_when_their_subject_is_hidden_and_other_pictures_are_not() -> None:
    tokenizer = to.load_tokenizer("mini")
    assert tokenizer.world is not None, f"{FILE} is missing: python -m training.outside"
    images = torch.stack([read_picture(SAMPLE_FOLDER / f"{name}.png") for name in SAMPLES])
    masks = torch.stack([read_picture(SAMPLE_FOLDER / f"{name}.mask.png")[:1] for name in SAMPLES])

    def taken(pictures: torch.Tensor, shown: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return tokenizer.world.strangers(pictures, tokenizer.decode(tokenizer.encode(shown)), known)

    everything = torch.ones(1, 1, *images.shape[2:])
    assert not taken(images, images, everything).any()
    assert not taken(images, fill_hole(images, masks, "blur"), 1 - masks).any()
    torch.manual_seed(1)
    for name, pictures in strangers(8, tokenizer.image_size, random.Random(1)).items():
        assert taken(pictures, pictures, everything).all(), name
        hole = box(tokenizer.image_size, 0.4, random.Random(1))
        assert taken(pictures, fill_hole(pictures, hole), 1 - hole).float().mean() >= 0.85, name
    assert COUNT > 16  # what is shipped is measured on more
