"""The mini world shows what its scenes say, and its captions say what they show."""

import random
from dataclasses import asdict, fields

import pytest
import torch

from training.captions import SPOKEN, Caption, all_captions, full_caption, main_caption, random_caption, vocabulary
from training.samples import SAMPLES, write
from training.world import (
    ATTRIBUTES,
    Album,
    Scene,
    World,
    all_scenes,
    blurred,
    held_out,
    sample_scenes,
    values_of,
)

FOX = Scene("fox", "snow", "day")
PENGUIN = Scene("penguin", "water", "fog", "small", "left", "background")


@pytest.fixture(scope="module")
def world() -> World:
    return World(32)


def test_one_in_sixteen_combinations_is_held_out() -> None:
    scenes = all_scenes()
    assert len(set(scenes)) == len(scenes) == 16 * 4 * 4 * 2 * 3 * 3
    assert sum(map(held_out, scenes)) * 16 == len(scenes)
    assert held_out(Scene("apple", "grass", "day")) and not held_out(FOX)
    for ground in ATTRIBUTES["ground"]:
        for lighting in ATTRIBUTES["lighting"]:  # one subject each is never seen there
            assert sum(held_out(Scene(subject, ground, lighting)) for subject in ATTRIBUTES["subject"]) == 1


def test_sampled_scenes_are_not_held_out_unless_asked_for() -> None:
    assert not any(map(held_out, sample_scenes(500, random.Random(0))))
    assert any(map(held_out, sample_scenes(500, random.Random(0), keep_held_out=True)))


def test_values_of_a_scene_by_hand() -> None:
    assert [field.name for field in fields(Scene)] == list(ATTRIBUTES)
    assert values_of(FOX) == [4, 2, 0, 1, 1, 0]
    assert values_of(PENGUIN) == [12, 3, 3, 0, 0, 1]


def test_scenes_render_to_what_they_say(world) -> None:
    lights = {light: world.render([Scene("fox", "snow", light)])[0] for light in ATTRIBUTES["lighting"]}
    assert lights["day"].mean() > lights["night"].mean() + 0.2
    assert lights["fog"].std() < 0.6 * lights["day"].std()
    images, masks = world.render([Scene("fox", "snow", "day", place=place) for place in ATTRIBUTES["place"]])
    assert images.shape == (3, 3, 32, 32) and masks.shape == (3, 1, 32, 32)
    centre = (masks[:, 0].sum(1) * torch.arange(32)).sum(1) / masks.sum((1, 2, 3))
    assert centre[0] + 6 < centre[1] < centre[2] - 6
    small, large = world.render([Scene("fox", "snow", "day", size) for size in ATTRIBUTES["size"]])[1]
    assert small.sum() < 0.6 * large.sum()
    assert torch.equal(world.render([FOX])[0], lights["day"])


def test_focus_blurs_the_background_or_everything(world) -> None:
    images, masks = world.render([Scene("fox", "grass", "day", focus=focus) for focus in ATTRIBUTES["focus"]])
    sharp, background, soft = images
    subject = (masks[0, 0] == 1).expand(3, -1, -1)
    assert torch.equal(background[subject], sharp[subject])
    far = (masks[0, 0] == 0).expand(3, -1, -1)
    assert (background - sharp)[far].abs().mean() > 0.01
    torch.testing.assert_close(soft, blurred(sharp[None], 0.018)[0])
    assert soft.diff(dim=-1).abs().mean() < 0.8 * sharp.diff(dim=-1).abs().mean()


def test_the_album_is_the_world_in_bytes(world) -> None:
    album = Album(32)
    assert album.bytes.shape == (4608, 3, 32, 32)
    images, masks = world.render([FOX, PENGUIN])
    assert torch.equal(album.pictures([FOX, PENGUIN]), (images * 255).round() / 255)
    assert torch.equal(album.masks([FOX, PENGUIN]), masks)


def test_a_blur_by_hand() -> None:
    point = torch.zeros(1, 2, 9, 9)
    point[0, 0, 4, 4] = 1
    out = blurred(point, 1 / 9)  # one px
    total = 1 + 2 * (0.606531 + 0.135335 + 0.011109)  # of exp(-k * k / 2) up to three px
    assert out[0, 0, 4, 4].item() == pytest.approx(1 / total**2, rel=1e-4)
    assert out[0, 0, 4, 5].item() == pytest.approx(0.606531 / total**2, rel=1e-4)
    assert out[0, 0, 5, 2].item() == pytest.approx(0.606531 * 0.135335 / total**2, rel=1e-4)
    assert out[0, 0].sum().item() == pytest.approx(1, rel=1e-5) and not out[0, 1].any()
    flat = torch.full((1, 1, 9, 9), 0.3)
    torch.testing.assert_close(blurred(flat, 0.5), flat)  # also at the edges


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        (main_caption(Scene("fox", "grass", "night")), "a fox on grass at night"),
        (Caption("elephant", lighting="fog"), "an elephant in fog"),
        (Caption("elephant", size="large"), "a large elephant"),
        (Caption(size="small", place="left"), "a small thing on the left"),
        (Caption(ground="sand", focus="soft"), "on sand out of focus"),
        (full_caption(PENGUIN), "a small penguin on water in fog"),
        (Caption(**asdict(PENGUIN)), "a small penguin on water in fog on the left with a blurred background"),
    ],
)
def test_the_plainest_text_of_a_caption(caption: Caption, text: str) -> None:
    assert caption.text() == text


def test_a_caption_is_true_of_what_it_names() -> None:
    assert full_caption(PENGUIN).true_of(PENGUIN) and not full_caption(PENGUIN).true_of(FOX)
    assert Caption(**asdict(FOX)).true_of(FOX)
    assert Caption(size="large", place="middle").true_of(FOX)
    for name in ATTRIBUTES:
        assert Caption(**{name: getattr(FOX, name)}).true_of(FOX)
        assert not Caption(**{name: getattr(PENGUIN, name)}).true_of(FOX), name
    assert main_caption(FOX) == Caption("fox", "snow", "day")
    assert list(full_caption(FOX).named()) == list(SPOKEN) == ["subject", "ground", "lighting", "size"]
    assert len(set(all_captions())) == len(all_captions()) == 17 * 5 * 5 - 1


def test_random_captions_are_true_and_name_something() -> None:
    rng = random.Random(0)
    scenes = sample_scenes(200, rng)
    captions = [random_caption(scene, rng) for scene in scenes]
    assert all(caption.true_of(scene) for caption, scene in zip(captions, scenes, strict=True))
    assert {len(caption.named()) for caption in captions} == {1, 2, 3, 4}
    assert all(random_caption(scene, rng, share=1.0) == full_caption(scene) for scene in scenes)
    names = [list(random_caption(scene, rng, share=0.0).named()) for scene in scenes]
    assert {len(name) for name in names} == {1} and {name[0] for name in names} == {*SPOKEN}


def test_texts_vary_and_keep_to_the_vocabulary() -> None:
    rng, words = random.Random(0), set(vocabulary())
    texts = [random_caption(scene, rng).text(rng) for scene in sample_scenes(500, rng)]
    assert {word for text in texts for word in text.split()} <= words
    assert not any("  " in text or text != text.strip() or "{" in text for text in texts)
    assert len({full_caption(PENGUIN).text(rng) for _ in range(200)}) > 100
    assert full_caption(FOX).text(random.Random(3)) == full_caption(FOX).text(random.Random(3))


def test_samples_lie_in_their_folder_alone(tmp_path, world) -> None:
    for stale in ("sun.png", "sun.mask.png"):
        (tmp_path / stale).write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    write(tmp_path, world)
    expected = {f"{name}{kind}" for name in SAMPLES for kind in (".png", ".mask.png")}
    assert {path.name for path in tmp_path.iterdir()} == expected | {"notes.txt"}
    for name, scene in SAMPLES.items():
        words = main_caption(scene).text().removeprefix("an ").removeprefix("a ")
        assert name == words
