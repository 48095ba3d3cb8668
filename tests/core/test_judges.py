"""The judges of the mini world: what they read, what they refuse, and what they say together."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tokenopt_core as to
from benchmarks import judges as table
from tokenopt_core.judging import load_judge
from tokenopt_core.mini_judge import FOLDER, MiniJudge, Reading, SceneReader, load_mini_judge
from training import judge_network, stock
from training.captions import Caption
from training.judge import CLEAN, DISTINCT, Judge, Verdict
from training.judge_network import JudgeTraining, Recipe, disturbed
from training.panel import Opinion, Panel
from training.world import ATTRIBUTES, SUBJECTS, Album, Scene, held_out, sample_scenes

FOX = Scene("fox", "snow", "night", "small", "left", "soft")


@pytest.fixture(scope="module")
def album() -> Album:
    return Album()


@pytest.fixture(scope="module")
def panel(album: Album) -> Panel:
    return Panel(album)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """64 scenes, a few of them of held-out combinations."""
    drawn = sample_scenes(64, random.Random(3), keep_held_out=True)
    assert any(map(held_out, drawn))
    return drawn


def share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


def pictures(album: Album, drawn: list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Theirs, others at random, and the same with another subject."""
    others = sample_scenes(len(drawn), random.Random(4))
    twins = [replace(s, subject=SUBJECTS[(SUBJECTS.index(s.subject) + 5) % len(SUBJECTS)]) for s in drawn]
    return album.pictures(drawn), album.pictures(others), album.pictures(twins)


# what they read


def test_renders_are_read_right_by_both(panel, album, scenes) -> None:
    opinions = panel(album.pictures(scenes))
    assert [o.nearest.scene for o in opinions] == scenes
    assert share([o.network.values == asdict(s) for o, s in zip(opinions, scenes, strict=True)]) >= 0.98
    assert share([o.agrees(**asdict(s)) for o, s in zip(opinions, scenes, strict=True)]) >= 0.98


def test_reconstructions_are_read_right_by_both(panel, album, scenes) -> None:
    """All but the focus, which is the one thing that the tokenizer's encoder takes for another now and then."""
    tokenizer = to.load_tokenizer("mini")
    with torch.no_grad():
        decoded = tokenizer.decode(tokenizer.encode(album.pictures(scenes)))
    wanted = [{k: v for k, v in asdict(scene).items() if k != "focus"} for scene in scenes]
    assert share([o.agrees(**w) for o, w in zip(panel(decoded), wanted, strict=True)]) >= 0.95


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a, b, twin: table.halves(a, b),
        lambda a, b, twin: table.squares(a, b, torch.Generator().manual_seed(0)),
        lambda a, b, twin: torch.lerp(a, b, 0.5),
        lambda a, b, twin: torch.lerp(a, twin, 0.5),
    ],
    ids=["halves", "squares", "cross-fades", "two subjects"],
)
def test_spoilt_renders_are_refused(panel, album, scenes, spoil: Callable[..., Tensor]) -> None:
    opinions = panel(spoil(*pictures(album, scenes)))
    assert share([o.clean for o in opinions]) <= 0.05
    assert share([o.network.real >= 0.5 for o in opinions]) <= 0.15  # the network by itself, too


def test_what_is_no_picture_of_the_world_is_refused(panel, album, scenes) -> None:
    wrong = {
        "noise": torch.rand(16, 3, 128, 128, generator=torch.Generator().manual_seed(0)),
        "flat": torch.linspace(0, 1, 16).view(-1, 1, 1, 1).expand(-1, 3, 128, 128),
        "wrong colours": album.pictures(scenes[:16])[:, [1, 2, 0]],
        "upside down": album.pictures(scenes[:16]).flip(2),
    }
    for name, images in wrong.items():
        assert not any(o.clean for o in panel(images)), name


def test_other_sizes_are_resized(panel, album, scenes) -> None:
    large = F.interpolate(album.pictures(scenes[:16]), scale_factor=2.0)
    wide = F.pad(large, (40, 40, 0, 0))  # the middle square counts
    for images in (large, wide):
        assert share([o.agrees(**asdict(s)) for o, s in zip(panel(images), scenes, strict=False)]) >= 0.9


@pytest.mark.parametrize("shape", [(3, 128, 128), (1, 1, 128, 128), (0, 3, 128, 128)])
def test_what_are_no_pictures(panel, shape: tuple[int, ...]) -> None:
    for judge in (panel.judge, panel.network.read):
        with pytest.raises(ValueError, match=r"expected pictures of shape \(batch, 3, height, width\), got"):
            judge(torch.zeros(shape))


# the nearest of all renders


def tiny_album() -> SimpleNamespace:
    """Two pictures a subject, all of one colour: levels 0, 51, 102 and 255 of 255."""
    levels = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(-1, 1, 1, 1)
    kinds = [("fox", "day"), ("fox", "night"), ("tree", "day"), ("tree", "night")]
    return SimpleNamespace(
        scenes=[Scene(subject, "grass", light) for subject, light in kinds], bytes=levels.expand(-1, 3, 4, 4)
    )


def test_distance_and_margin_by_hand() -> None:
    judge = Judge(tiny_album())  # type: ignore[arg-type]
    near, between = judge(torch.tensor([0.21, 0.3]).view(-1, 1, 1, 1).expand(-1, 3, 4, 4))
    assert near.scene == Scene("fox", "grass", "night")  # 0.2 is nearest; 0.4 the nearest of another subject
    assert near.psnr == pytest.approx(40.0, abs=0.01)  # 0.01 away
    assert near.margin == pytest.approx(20 * math.log10(0.19 / 0.01), abs=0.01)
    assert (between.psnr, between.margin) == (pytest.approx(20.0, abs=0.01), pytest.approx(0.0, abs=0.01))
    assert near.clean and not between.clean


def test_it_is_the_nearest_of_all(panel, album, scenes) -> None:
    """Compared pixel by pixel with every render there is, also where none is near."""
    first, second, twin = pictures(album, scenes[:8])
    images = torch.cat([torch.lerp(first, second, 0.3), torch.lerp(first, twin, 0.4), table.halves(first, second)])
    flat = images.flatten(1)
    parts = [part.float().flatten(1) / 255 for part in album.bytes.split(512)]
    errors = torch.cat([torch.cdist(flat, part).square() / flat.shape[1] for part in parts], 1)
    by_subject = errors.unflatten(1, (len(SUBJECTS), -1)).amin(2).sort(1).values
    for i, verdict in enumerate(panel.judge(images)):
        assert verdict.scene == album.scenes[int(errors[i].argmin())]
        assert verdict.psnr == pytest.approx(-10 * math.log10(by_subject[i, 0]), abs=0.01)
        assert verdict.margin == pytest.approx(10 * math.log10(by_subject[i, 1] / by_subject[i, 0]), abs=0.01)


# both together


def opinion(psnr: float = CLEAN, margin: float = DISTINCT, real: float = 0.5, **read: str) -> Opinion:
    """Two judges that see the fox, of which the network may see something else."""
    values = asdict(FOX) | read
    return Opinion(Verdict(FOX, psnr, margin), Reading(values, dict.fromkeys(values, 0.9), real))


def test_an_opinion_is_what_both_say() -> None:
    assert opinion().clean and opinion().agrees(subject="fox", lighting="night", focus="soft")
    assert not opinion().agrees(subject="fox", lighting="day")
    assert opinion().agrees()


@pytest.mark.parametrize("flaw", [{"psnr": CLEAN - 0.1}, {"margin": DISTINCT - 0.1}, {"real": 0.49}])
def test_each_judge_can_refuse(flaw: dict[str, float]) -> None:
    assert not opinion(**flaw).clean
    assert not opinion(**flaw).agrees(subject="fox")
    assert opinion(**flaw).shows("subject") == "fox"


def test_what_they_read_differently_is_not_shown() -> None:
    found = opinion(ground="water")
    assert found.shows("ground") is None and found.shows("lighting") == "night"
    assert found.agrees(lighting="night")
    assert not found.agrees(ground="snow") and not found.agrees(ground="water")


# the shipped judge as people's own


def stub(logits: dict[str, list[float]], real: float) -> MiniJudge:
    """A judge that sees the same in every picture."""

    class Fixed(SceneReader):
        def forward(self, pictures: Tensor) -> dict[str, Tensor]:
            read = {name: torch.tensor([v]).log_softmax(1).expand(len(pictures), -1) for name, v in logits.items()}
            return read | {"real": torch.full((len(pictures),), real)}

    attributes = {name: list(ATTRIBUTES[name][: len(values)]) for name, values in logits.items()}
    return MiniJudge(Fixed(8, [1], attributes), judge_network.phrases())


def test_the_score_by_hand() -> None:
    judge = stub({"subject": [0.0, math.log(3)], "ground": [0.0, 0.0]}, real=0.0)  # apple 1/4, car 3/4; grass, sand
    images = torch.zeros(2, 3, 8, 8)
    log = math.log
    expected = {
        "a car": log(0.75) + log(0.5),
        "an apple on the beach": (log(0.25) + log(0.5)) / 2 + log(0.5),
        "a car:3 | an apple": 0.75 * log(0.75) + 0.25 * log(0.25) + log(0.5),
    }
    for prompt, score in expected.items():
        torch.testing.assert_close(judge(images, prompt), torch.full((2,), score), msg=prompt)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a fox", {"subject": "fox"}),
        ("A photo of a tiny Pine Tree, at night!", {"size": "small", "subject": "tree", "lighting": "night"}),
        ("a sunflower on a sunny day", {"subject": "sunflower", "lighting": "day"}),
        ("a panda bear in a green field", {"subject": "panda", "ground": "grass"}),
        ("fog, snow, left", {"lighting": "fog", "ground": "snow", "place": "left"}),
        ("a frog in front of a blurred background", {"subject": "frog", "focus": "background"}),
        (Caption(**asdict(FOX)).text(), asdict(FOX)),
    ],
)
def test_what_a_prompt_names(panel, prompt: str, expected: dict[str, str]) -> None:
    assert dict(panel.network.named(prompt)) == expected


def test_every_phrase_of_the_captions_is_known(panel) -> None:
    for phrase, (name, value) in judge_network.phrases().items():
        assert panel.network.named(phrase) == [(name, value)], phrase


@pytest.mark.parametrize("prompt", ["a zebra", "a fox | a zebra"])
def test_a_prompt_of_unknown_things(panel, prompt: str) -> None:
    with pytest.raises(ValueError, match="finds nothing it could look for in the prompt 'a zebra'"):
        panel.network(torch.rand(1, 3, 128, 128), prompt)


def test_judge_mini_prefers_what_is_asked_for(album, scenes) -> None:
    judge = load_judge("mini")
    images = album.pictures(scenes)
    for i, scene in enumerate(scenes[:16]):
        caption = Caption(**asdict(scene)).text()
        scores = judge(images, caption)
        assert scores.argmax() == scenes.index(scene), caption
        assert -0.7 < scores[i] <= 0
    faded = torch.lerp(images[:8], images[8:16], 0.5)
    mixed = torch.cat([judge(faded[[i]], Caption(**asdict(scenes[i])).text()) for i in range(8)])
    clean = torch.cat([judge(images[[i]], Caption(**asdict(scenes[i])).text()) for i in range(8)])
    assert (clean > mixed + 1).all()


def test_the_shipped_files() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert {name: tuple(values) for name, values in config["attributes"].items()} == ATTRIBUTES
    assert {phrase: tuple(meant) for phrase, meant in config["phrases"].items()} == judge_network.phrases()
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 3e6


# training


@pytest.fixture
def small(monkeypatch, album) -> None:
    """Stocks of few pictures, and the album that is there."""
    monkeypatch.setattr(stock, "COUNTS", {"reconstructed": 4, "optimized": 24, "faded": 12, "noise": 4, "degraded": 8})
    monkeypatch.setattr(judge_network, "Album", lambda: album)


def training() -> JudgeTraining:
    recipe = Recipe(chapters=2, steps_a_chapter=2, batch=8)
    return JudgeTraining(recipe, to.load_tokenizer("mini"), to.load_clip("mini"))


def test_an_interrupted_training_ends_the_same(small, tmp_path) -> None:
    whole = training()
    for _ in range(4):
        whole.advance()
    first = training()
    for _ in range(3):  # into the second chapter
        first.advance()
    torch.save(first.state(), tmp_path / "state.pt")
    second = training()
    torch.manual_seed(9)
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    second.advance()
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], value, rtol=0, atol=0)


def test_what_is_trained_can_be_loaded(small, tmp_path) -> None:
    trained = training()
    trained.advance()
    judge_network.export(trained, tmp_path)
    judge = load_mini_judge(tmp_path)
    trained.model.eval()
    images = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    for name, value in judge.model(images).items():
        torch.testing.assert_close(value, trained.model(images)[name], rtol=0.02, atol=0.02)  # weights in float16


@pytest.mark.parametrize("name", list(stock.COUNTS))
def test_each_kind_of_picture_is_made(panel, album, name: str) -> None:
    maker = stock.Maker(album, panel.judge, to.load_tokenizer("mini"), to.load_clip("mini"))
    maker.rng, maker.generator = random.Random(0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        made = maker.kind(name)(5)
    assert made.shape == (5, 3, 128, 128) and made.isfinite().all()
    assert len({image.numpy().tobytes() for image in made}) == 5  # no two alike


def test_a_stock_is_labelled_by_the_nearest_render(small, panel, album) -> None:
    maker = stock.Maker(album, panel.judge, to.load_tokenizer("mini"), to.load_clip("mini"))
    made, again, other = maker.make(5), maker.make(5), maker.make(6)
    assert torch.equal(made.pictures, again.pictures) and not torch.equal(made.pictures[0], other.pictures[0])
    verdicts = panel.judge(made.pictures.float() / 255)
    for verdict, values, real in zip(verdicts, made.values.tolist(), made.real.tolist(), strict=True):
        if real:
            assert verdict.psnr >= stock.REAL and verdict.margin >= stock.SURE
        else:
            assert verdict.psnr <= stock.FAKE + stock.STRICTER or verdict.margin <= stock.UNSURE
        assert values == [kinds.index(getattr(verdict.scene, name)) for name, kinds in ATTRIBUTES.items()]
        assert not (real and held_out(verdict.scene))


def test_disturbed_pictures_stay_what_they_are(panel, album, scenes) -> None:
    torch.manual_seed(0)
    images = disturbed(album.pictures(scenes), random.Random(0))
    assert images.min() >= 0 and images.max() <= 1 and torch.equal((images * 255).round() / 255, images)
    read = panel.network.read(images)
    assert share([r.values == asdict(s) for r, s in zip(read, scenes, strict=True)]) >= 0.95


# the table


def test_the_table_of_known_pictures(panel, album) -> None:
    kinds = table.sorts(album, to.load_tokenizer("mini"), count=24, seed=1)
    rows = {row["pictures"]: row for row in table.report(panel, kinds)}
    assert rows["renders"]["both: as asked"] >= 0.95 and rows["renders"]["n"] == 24
    assert rows["unedited inputs (floor)"]["both: as asked"] == 0
    assert rows["noise"]["both: clean"] == 0
    text = table.markdown(list(rows.values()))
    assert text.splitlines()[0].startswith("| pictures | n | nearest: clean |")
    assert len(text.splitlines()) == len(rows) + 2
