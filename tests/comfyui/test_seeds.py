"""Seed Picker: pictures and folders in, the ones to start from out."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.comfyui

Table = list[dict[str, str]]


def rows(table: str) -> Table:
    return list(csv.DictReader(io.StringIO(table)))


@pytest.fixture
def samples(pack) -> dict[str, torch.Tensor]:
    """Every sample picture by its name, which is what it shows."""
    names = pack.part("nodes.samples").sample_names()
    return {name: pack.run("TokenOptSample", name=name)[0] for name in names}


@pytest.fixture
def folder(pack, samples) -> Iterator[Path]:
    """input/seeds with the samples in two folders, and no memory of it."""
    import folder_paths

    path = Path(folder_paths.get_input_directory()) / "seeds"
    for i, name in enumerate(samples):
        target = path / ("a" if i % 2 else "b c")
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(pack.part("nodes.samples").SAMPLES / f"{name}.png", target)
    yield path
    shutil.rmtree(path)
    shutil.rmtree(folder_paths.get_system_user_directory("tokenopt"), ignore_errors=True)


@pytest.fixture
def pick(pack, openclip) -> Callable[..., tuple[torch.Tensor, Table, str]]:
    """Runs the node."""

    def run(**inputs: Any) -> tuple[torch.Tensor, Table, str]:
        pictures, table, notes = pack.run("TokenOptSeedPicker", **{"openclip": openclip, **inputs})
        return pictures, rows(table), notes

    return run


def similarities(plain_clip, samples, prompt: str) -> dict[str, float]:
    with torch.no_grad():
        pictures = plain_clip.embed_image(torch.cat(list(samples.values())).permute(0, 3, 1, 2))
        values = (pictures @ plain_clip.embed_text([prompt])[0]).tolist()
    return dict(sorted(zip(samples, values, strict=True), key=lambda item: -item[1]))


def test_what_a_prompt_describes_is_the_most_similar(pick, samples, plain_clip) -> None:
    for i, prompt in enumerate(samples):
        picture, (row,), notes = pick(prompt=prompt, images=torch.cat(list(samples.values())))
        assert torch.equal(picture, samples[prompt])
        assert (row["rank"], row["picture"], notes) == ("1", f"image {i + 1}", "")
        assert float(row["similarity"]) == pytest.approx(similarities(plain_clip, samples, prompt)[prompt], abs=1e-3)


def test_a_folder_gives_what_its_pictures_give(pick, folder, samples, plain_clip) -> None:
    prompt = list(samples)[2]
    expected = list(similarities(plain_clip, samples, prompt))
    for _ in range(2):  # embedded, and remembered
        pictures, table, notes = pick(prompt=prompt, folder="seeds", count=len(samples))
        assert [Path(row["picture"]).stem for row in table] == expected and notes == ""
        torch.testing.assert_close(pictures, torch.cat([samples[name] for name in expected]), rtol=0, atol=0)
    pictures, table, _ = pick(prompt=prompt, folder="seeds/b c")
    assert table[0]["picture"].endswith(".png") and "/" not in table[0]["picture"]


def test_folder_and_pictures_together(pick, folder, samples) -> None:
    name = next(iter(samples))
    _, table, _ = pick(prompt=name, folder="seeds", images=samples[name], count=2)
    assert {Path(row["picture"]).stem for row in table} == {"image 1", name}


def test_what_was_seen_is_kept_until_the_model_changes(pick, pack, openclip, folder, samples, monkeypatch) -> None:
    seen: list[int] = []
    embed = openclip.model.embed_image
    monkeypatch.setattr(openclip.model, "embed_image", lambda images: seen.append(len(images)) or embed(images))
    _, before, _ = pick(prompt="a fox", folder="seeds")
    _, again, _ = pick(prompt="a fox", folder="seeds")
    assert seen == [len(samples)] and before == again
    projection = openclip.model.model.visual.proj
    projection.data = -projection.data
    _, changed, _ = pick(prompt="a fox", folder="seeds")
    assert seen == [len(samples)] * 2 and changed != before
    other = pack.run("TokenOptCLIPLoad", precision="bfloat16")[0]
    pick(prompt="a fox", folder="seeds", openclip=other)
    pick(prompt="a fox", folder="seeds")
    assert seen == [len(samples)] * 2  # each precision has its own


@pytest.mark.parametrize("mode", ["top percent", "random"])
def test_a_seed_says_what_is_drawn(pick, samples, mode: str) -> None:
    images = torch.cat(list(samples.values()))
    wish = {"prompt": "a fox", "images": images, "mode": mode, "percent": 100.0, "count": 2}
    drawn = [tuple(row["picture"] for row in pick(**wish, seed=seed)[1]) for seed in range(12)]
    assert drawn[0] == tuple(row["picture"] for row in pick(**wish, seed=0)[1])
    assert len(set(drawn)) > 2
    assert len(pick(**wish | {"count": len(images)})[0]) == len(images)


def test_pictures_of_different_sizes_become_squares_of_the_smallest(pick, folder, samples) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    for name, size in (("a.png", (90, 70)), ("b.jpg", (50, 200))):
        Image.new("RGB", size, (200, 30, 30)).save(folder / name)
    wish = {"prompt": "an apple", "folder": "seeds", "count": 2}
    pictures, _, notes = pick(**wish)
    assert pictures.shape == (2, 50, 50, 3) and "the mini CLIP knows only" in notes
    assert pick(**wish, size=96)[0].shape == (2, 96, 96, 3)
    assert pick(**wish | {"count": 1})[0].shape[1:3] in ((70, 90), (200, 50))


def test_broken_files_are_skipped_and_listed(pick, folder, samples, tmp_path) -> None:
    (folder / "text.png").write_text("no picture")
    (folder / "a" / "empty.jpg").touch()
    secret = tmp_path / "secret.png"
    shutil.copy(next(folder.rglob("*.png")), secret)
    (folder / "link.png").symlink_to(secret)
    pictures, table, notes = pick(prompt="a fox", folder="seeds", count=len(samples))
    assert len(pictures) == len(table) == len(samples)
    assert notes.splitlines() == [
        f"3 of {len(samples) + 3} files were skipped:",
        "a/empty.jpg: it is no picture of a known format",
        "link.png: it is a link that leads out of ComfyUI's input folder",
        "text.png: it is no picture of a known format",
    ]
    with pytest.raises(ValueError, match=f"{len(samples) + 1} pictures are to be picked out of {len(samples)}"):
        pick(prompt="a fox", folder="seeds", count=len(samples) + 1)


def only_text(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_text("no picture")


def only_links(folder: Path) -> None:
    paths = list(folder.rglob("*.png"))
    paths[0].rename(folder.parent.parent / "elsewhere.png")
    for path in paths:
        path.unlink(missing_ok=True)
    (folder / "a.png").symlink_to(folder.parent.parent / "elsewhere.png")


def nothing(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (only_text, r"\d of \d files were skipped:\n.*it is no picture of a known format"),
        (only_links, "no picture files in 'seeds' and its folders, only 1 links that lead out"),
        (nothing, "no picture files in 'seeds' and its folders$"),
    ],
)
def test_a_folder_without_a_single_picture(pick, folder, change: Callable[[Path], None], message: str) -> None:
    change(folder)
    with pytest.raises(ValueError, match=message):
        pick(prompt="a fox", folder="seeds")


@pytest.mark.parametrize("name", ["../seeds", "/etc", "C:\\Windows", "a/../../x", "linked", "linked/more"])
def test_no_folder_outside_is_looked_into(pick, folder, tmp_path, name: str) -> None:
    (tmp_path / "more").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "more" / "secret.png")
    link = folder.parent / "linked"
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ValueError, match=r"must be a path inside ComfyUI's input folder|leads out of ComfyUI's input"):
        pick(prompt="a fox", folder=name)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "there are no pictures: connect some to images, or name a folder"),
        ({"folder": "gone"}, "there is no folder 'gone' in ComfyUI's input folder"),
        ({"folder": "gone", "prompt": " "}, "the prompt is empty"),
        ({"folder": "gone", "prompt": "a zebra"}, "the mini CLIP knows nothing"),
    ],
)
def test_what_cannot_be_picked(pick, wish: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pick(**{"prompt": "a fox"} | wish)


def test_one_picture_is_picked_in_every_way(pick, picture) -> None:
    for mode in ("most similar", "top percent", "random"):
        assert torch.equal(pick(prompt="a fox", images=picture, mode=mode, percent=0.0)[0], picture)


def test_comfyui_looks_again_when_the_folder_changes(pack, folder) -> None:
    ask = pack.classes["TokenOptSeedPicker"].fingerprint_inputs
    seen = [ask(folder="seeds", prompt="a fox", images=None)]
    assert ask(folder="seeds") == seen[0]

    def changed() -> None:
        seen.append(ask(folder="seeds"))
        assert len(set(seen)) == len(seen)

    path = next(folder.rglob("*.png"))
    path.rename(path.with_name("renamed.png"))
    changed()
    os.utime(path.with_name("renamed.png"), (1e9, 1e9))
    changed()
    path.with_name("renamed.png").unlink()
    changed()
    assert ask(folder=None) != ask(folder=None)  # over a link: not known yet, so it is looked at each time
    for harmless in ("", "gone", "../..", "\0", "x" * 5000):
        assert ask(folder=harmless) == ask(folder=harmless)


def test_interruption_stops_and_keeps_what_was_seen(pick, pack, openclip, folder, samples, monkeypatch) -> None:
    import comfy.model_management as mm

    seen: list[int] = []
    embed = openclip.model.embed_image

    def interrupt(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        mm.interrupt_current_processing(len(seen) == 1)
        return embed(images)

    monkeypatch.setattr(openclip.model, "embed_image", interrupt)
    for i in range(40):
        Image.new("RGB", (16, 16), (i, 6 * i, 0)).save(folder / f"{i}.png")
    with pytest.raises(mm.InterruptProcessingException):
        pick(prompt="a fox", folder="seeds")
    pick(prompt="a fox", folder="seeds")
    assert seen == [32, len(samples) + 8]


def test_the_bar_runs_to_its_end(pick, folder, samples, monkeypatch) -> None:
    import comfy.utils

    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda now, total, *_, **__: shown.append((now, total)))
    for _ in range(2):  # embedded, and remembered
        shown.clear()
        pick(prompt="a fox", folder="seeds", images=torch.cat(list(samples.values())))
        assert shown == [(len(samples), 2 * len(samples)), (2 * len(samples), 2 * len(samples))]
