"""Probes on planted labels, and the arithmetic of the measured presets."""

import csv
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from benchmarks import probes
from benchmarks.presets import Effect, attributes, choose, effect
from benchmarks.probing import Labelled, ProbeConfig, iterative_masking, table_accuracy, transformer_features
from tests.core.conftest import TINY, tiny_tokenizer

POSITIONS, CODES = 5, 12


def planted(pictures: int, seed: int) -> Labelled:
    """Code numbers at random; of six classes, that at 2 tells which pair and that at 4 which of the pair."""
    tokens = torch.randint(CODES, (pictures, POSITIONS), generator=torch.Generator().manual_seed(seed))
    return Labelled(tokens, 2 * (tokens[:, 2] % 3) + tokens[:, 4] % 2)


def test_table_by_hand() -> None:
    train = Labelled(torch.tensor([[0, 5], [0, 5], [0, 6], [1, 6], [1, 5]]), torch.tensor([0, 0, 1, 1, 1]))
    # position 0: 0 -> 0, 1 -> 1; position 1: 5 -> 0, 6 -> 1; the most frequent class is 1
    test = Labelled(torch.tensor([[0, 6], [1, 5], [7, 6], [1, 9]]), torch.tensor([0, 1, 1, 1]))
    assert table_accuracy(train, test).tolist() == [1.0, 0.5]


def test_tables_find_planted_labels() -> None:
    accuracy = table_accuracy(planted(3000, 0), planted(1000, 1))
    assert accuracy[2] == pytest.approx(1 / 2, abs=0.05) and accuracy[4] == pytest.approx(1 / 3, abs=0.05)
    assert accuracy[[0, 1, 3]].max() < 0.22  # of six classes


@pytest.mark.parametrize("kind", ["codes", "features"])
def test_masking_leaves_the_planted_positions_for_last(kind: str) -> None:
    train, test = planted(1200, 0), planted(400, 1)
    if kind == "features":  # of different scales, far from zero
        codebook = torch.eye(CODES) * torch.logspace(-2, 3, CODES) + 7
        train, test = (Labelled(codebook[part.tokens], part.labels) for part in (train, test))
    rounds = iterative_masking(train, test, ProbeConfig(epochs=6))
    assert [len(r.remaining) for r in rounds] == list(range(POSITIONS, 0, -1))
    assert sorted(r.removed for r in rounds) == list(range(POSITIONS))
    assert [r.removed for r in rounds][-2:] == [4, 2]
    assert rounds[0].accuracy > 0.95 and rounds[-2].accuracy > 0.95  # two positions are enough
    assert rounds[-1].accuracy == pytest.approx(1 / 2, abs=0.07) and rounds[-1].accuracy_without < 0.25
    if kind == "features":  # once is enough
        assert rounds == iterative_masking(train, test, ProbeConfig(epochs=6))  # the seed is the config's


def test_the_callers_random_numbers_stay() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    iterative_masking(planted(40, 0), planted(20, 1), ProbeConfig(epochs=1))
    assert torch.equal(torch.rand(2), expected)


def test_transformer_features_are_what_the_encoder_narrows_down() -> None:
    tokenizer = tiny_tokenizer(TINY)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    features = transformer_features(tokenizer, images)
    assert features.shape == (2, 3, 8)
    narrowed = tokenizer.model.encoder.conv_out(features.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)
    torch.testing.assert_close(narrowed, tokenizer.encode(images))


def test_bad_input_is_explained() -> None:
    with pytest.raises(ValueError, match=r"a label for each, got \(3, 2\) and \(2,\)"):
        Labelled(torch.zeros(3, 2), torch.zeros(2))
    features = Labelled(torch.zeros(3, 2, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="a table needs code numbers"):
        table_accuracy(features, features)


@dataclass(frozen=True)
class Scene:
    """A scene of two attributes, and one that is no class."""

    colour: str
    size: int
    place: float


def test_attributes_are_those_with_few_values() -> None:
    scenes = [Scene("red" if i % 2 else "blue", 1, i / 100) for i in range(100)]
    found = attributes(scenes)
    assert list(found) == ["colour"] and found["colour"].tolist() == [0, 1] * 50


def test_effects_by_hand() -> None:
    names = ["colour", "size"]
    target, reference = Scene("red", 1, 0.0), Scene("blue", 2, 0.0)
    triples = [
        (target, reference, Scene("blue", 1, 0.0)),  # came along alone
        (target, reference, Scene("blue", 2, 0.0)),  # with the size
        (target, reference, target),
        (target, reference, Scene("red", 2, 0.0)),
        (target, target, target),  # nothing to bring along
    ]
    assert effect(triples, "colour", names) == Effect(reached=0.5, kept=0.25)


def test_a_preset_is_the_fewest_positions_that_work() -> None:
    importance = torch.tensor([0.1, 0.9, 0.0, 0.5])
    found = {(1,): Effect(0.8, 0.2), (1, 3): Effect(0.8, 0.6), (0, 1, 3): Effect(0.9, 0.9)}
    assert choose(importance, lambda positions: found[tuple(positions)]) == ([1, 3], Effect(0.8, 0.6))
    assert choose(importance, lambda positions: Effect(1.0, 0.4)) is None


def test_the_command_on_a_folder_of_class_folders(tmp_path, capsys) -> None:
    for number, name in enumerate(("dark", "light")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (40, 30), (100 * number + 5 * i,) * 3).save(tmp_path / "pictures" / name / f"{i}.png")
    (tmp_path / "pictures" / "light" / "broken.png").write_bytes(b"x")
    probes.main(["--folder", str(tmp_path / "pictures"), "--out", str(tmp_path / "out"), "--epochs", "1"])
    assert "broken.png: it is no picture" in capsys.readouterr().out
    with (tmp_path / "out" / "single.csv").open(encoding="utf-8") as file:
        single = list(csv.DictReader(file))
    with (tmp_path / "out" / "masking.csv").open(encoding="utf-8") as file:
        masking = list(csv.DictReader(file))
    positions = len(single)
    assert {row["attribute"] for row in single} == {"folder"} and max(float(row["accuracy"]) for row in single) > 0.7
    assert [int(row["remaining"]) for row in masking] == 2 * list(range(positions, 0, -1))
    for name in ("single.png", "masking.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 300
