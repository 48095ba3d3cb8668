"""Token Importance and named attributes, as nodes: pictures from wires and folders, and what is wrong with them."""

from __future__ import annotations

import csv
import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import tokenopt_core as to
from tokenopt_core.importance import classify
from tokenopt_core.loading import MINI

pytestmark = pytest.mark.comfyui

LIGHT = "lighting: in daylight | at night"


@pytest.fixture
def run(pack, titok, openclip):
    """Runs Token Importance on the mini models."""

    def importance(partitions: str = LIGHT, **more):
        return pack.run("TokenOptImportance", titok=titok, openclip=openclip, partitions=partitions, **more)

    return importance


@pytest.fixture
def samples(pack) -> torch.Tensor:
    """All sample pictures, (B, H, W, 3)."""
    return pack.run("TokenOptSample", name="all")[0]


@pytest.fixture
def folder(pack) -> Path:
    """A folder in ComfyUI's input folder that holds the sample pictures, one of them in a folder of its own."""
    import folder_paths

    root = Path(folder_paths.get_input_directory()) / "importance"
    shutil.rmtree(root, ignore_errors=True)
    (root / "more").mkdir(parents=True)
    files = [path for path in sorted((MINI / "samples").glob("*.png")) if not path.stem.endswith(".mask")]
    for number, path in enumerate(files):
        shutil.copy(path, (root / "more" if number == 0 else root) / path.name)
    return root


def rows(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table)))


def test_all_samples_are_a_batch(pack, samples) -> None:
    pictures, masks = pack.run("TokenOptSample", name="all")
    options = pack.classes["TokenOptSample"].GET_SCHEMA().inputs[0].options
    assert len(pictures) == len(masks) == len(options) - 1 >= 6
    assert torch.equal(pictures[2:3], pack.run("TokenOptSample", name=options[2])[0])
    assert torch.equal(masks[2:3], pack.run("TokenOptSample", name=options[2])[1])


def test_it_is_the_cores_importance(run, samples, plain_tokenizer, plain_clip) -> None:
    heatmap, positions, table, notes = run(LIGHT + "\nin winter | on the beach", top=3, images=samples)
    pictures = samples.permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        tokens = plain_tokenizer.quantize(plain_tokenizer.encode(pictures))
        labels = classify(plain_clip.embed_image(pictures), plain_clip.embed_text(["in daylight", "at night"]))
    expected = to.token_importance(tokens, labels)
    first, second = rows(table)
    got = torch.tensor([float(first[str(i)]) for i in range(plain_tokenizer.num_tokens)])
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
    counts = labels.bincount(minlength=2).tolist()
    assert first["pictures"] == f"in daylight: {counts[0]} | at night: {counts[1]}"
    assert second["partition"] == "in winter / on the beach"
    assert positions == ", ".join(map(str, sorted(expected.argsort(descending=True)[:3].tolist())))
    assert heatmap.shape[0] == 1 and heatmap.shape[3] == 3 and heatmap.std() > 0.05
    assert ("only one picture" in notes) == (1 in counts)


def test_positions_are_those_of_the_partition_that_is_named(run, samples) -> None:
    text = LIGHT + "\nground: on snow | on grass"
    first, light = run(text, images=samples)[1], run(text, images=samples, positions_of="lighting")[1]
    ground = run(text, images=samples, positions_of=" ground ")[1]
    assert first == light == run(LIGHT, images=samples)[1]
    assert ground == run("on snow | on grass", images=samples)[1]
    with pytest.raises(ValueError, match="no partition 'x': expected one of lighting, ground"):
        run(text, images=samples, positions_of="x")


def test_a_folder_is_the_same_as_a_batch(run, folder, samples) -> None:
    expected, got = run(images=samples), run(folder="importance")
    assert got[1] == expected[1] and rows(got[2]) == rows(expected[2])
    both = rows(run(folder="importance/more", images=samples[1:])[2])
    assert both[0]["pictures"] == rows(expected[2])[0]["pictures"]


def test_broken_files_are_skipped_and_listed(pack, run, folder, monkeypatch) -> None:
    expected = run(folder="importance")
    whole = sorted(folder.glob("*.png"))[0].read_bytes()
    (folder / "a cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "b empty.jpg").write_bytes(b"")
    (folder / "c text.webp").write_text("this is no picture")
    (folder / "d readme.txt").write_text("nor is this")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "e pipe.png").symlink_to("/dev/zero") if os.name == "posix" else None
    monkeypatch.setattr(pack.part("nodes.importance"), "AT_ONCE", 2)  # some parts have no picture at all
    _, positions, table, notes = run(folder="importance")
    lines = notes.splitlines()
    start = next(i for i, line in enumerate(lines) if "files could not be read" in line)
    assert lines[start].startswith("3 of ")
    assert [line.split(":")[0] for line in lines[start + 1 :]] == ["a cut.png", "b empty.jpg", "c text.webp"]
    assert positions == expected[1] and rows(table)[0]["pictures"] == rows(expected[2])[0]["pictures"]


def test_nothing_but_broken_files(run, folder) -> None:
    bad = folder / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"1 of 1 files could not be read and were skipped:\na\.png"):
        run(folder="importance/bad")
    (bad / "a.png").unlink()
    with pytest.raises(ValueError, match="no picture files in 'importance/bad'"):
        run(folder="importance/bad")


@pytest.mark.parametrize(
    "name", ["..", "../x", "/etc", "importance/../..", "..\\x", "C:\\x", "C:x", "\\\\host\\share", "a\0b", "x" * 2000]
)
def test_a_folder_outside_is_refused(run, folder, name: str) -> None:
    with pytest.raises(ValueError, match="must be a path inside ComfyUI's input folder"):
        run(folder=name)


@pytest.mark.skipif(os.name != "posix", reason="Windows asks for a right to make links")
def test_a_link_that_leads_outside_is_refused(run, folder, tmp_path) -> None:
    shutil.copy(next(folder.glob("*.png")), tmp_path / "secret.png")
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out of ComfyUI's input folder"):
        run(folder="importance/out")
    (folder / "loop").symlink_to(folder / "loop")
    with pytest.raises(FileNotFoundError, match="there is no folder 'importance/loop'"):
        run(folder="importance/loop")
    (folder / "links").mkdir()
    (folder / "links" / "one.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match=r"no picture files in .*, only 1 links that lead out of the input folder$"):
        run(folder="importance/links")
    (folder / "out").unlink()
    assert "1 links that lead out of the input folder were left out" in run(folder="importance")[3]


def test_a_folder_that_changes_is_read_again(pack, folder) -> None:
    fingerprint = pack.classes["TokenOptImportance"].fingerprint_inputs
    first = fingerprint(folder="importance", partitions=LIGHT, top=1)
    assert first == fingerprint(folder="importance", partitions=LIGHT, top=1)
    Image.new("RGB", (8, 8)).save(folder / "new.png")
    assert fingerprint(folder="importance") != first
    for odd in ("", "../x", "nowhere", "\0"):
        assert isinstance(fingerprint(folder=odd), str)
    assert isinstance(fingerprint(partitions=LIGHT), str)  # left out
    assert fingerprint(folder=None) != fingerprint(folder=None)  # over a link: not known yet, so it is looked at


def test_no_pictures(run) -> None:
    with pytest.raises(ValueError, match="there are no pictures: connect some to images, or name a folder"):
        run()
    with pytest.raises(FileNotFoundError, match="there is no folder 'nowhere'"):
        run(folder="nowhere")


def test_one_picture_or_one_class(run, samples) -> None:
    with pytest.raises(ValueError, match=r"the only picture is of the class '.*': there is nothing to compare"):
        run(images=samples[:1])
    with pytest.raises(ValueError, match="all 3 pictures are of the class"):
        run(images=samples[:1].expand(3, -1, -1, -1))


def test_an_empty_class_is_said_and_a_useless_partition_stays_empty(pack, run) -> None:
    fox = pack.run("TokenOptSample", name="fox on grass by day")[0]
    text = "light: in daylight | at night | a car\nsubject: a fox | a house"
    _, positions, table, notes = run(text, images=torch.cat([fox, fox, fox * 0.15]))
    assert notes.splitlines() == [
        "light: the class 'at night' has only one picture",
        "light: the class 'a car' has no picture and is left out",
        "subject: all 3 pictures are of the class 'a fox': there is nothing to compare",
    ]
    light, subject = rows(table)
    assert light["pictures"] == "in daylight: 2 | at night: 1 | a car: 0" and positions
    assert subject["0"] == "" and "nothing to compare" in subject["notes"]


def test_words_that_clip_does_not_know(run, samples) -> None:
    assert "the mini CLIP does not know: gloomy" in run("gloomy night | in daylight", images=samples)[3]
    with pytest.raises(ValueError, match="knows nothing of what the prompt 'zebra' speaks of"):
        run("zebra | at night", images=samples)


def test_an_interruption_ends_it_between_two_parts(pack, run, samples, monkeypatch) -> None:
    import comfy.model_management as mm
    import comfy.utils

    seen: list[int] = []

    def interrupt(value: int, *_, **__) -> None:
        seen.append(value)
        mm.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", interrupt)
    monkeypatch.setattr(pack.part("nodes.importance"), "AT_ONCE", 2)
    with pytest.raises(mm.InterruptProcessingException):
        run(images=samples)
    assert seen == [2] and not mm.processing_interrupted()


def test_copy_paste_takes_the_positions_and_names(pack, run, titok, samples) -> None:
    features = pack.run("TokenOptEncode", titok=titok, image=samples[:2])[0]
    target, reference = features[:1], features[1:]

    def paste(positions: str, **more) -> torch.Tensor:
        return pack.run("TokenOptCopyPaste", target=target, reference=reference, positions=positions, **more)[0]

    found = run(images=samples, top=2)[1]
    assert torch.equal(paste(found), to.copy_paste(target, reference, found))
    name, positions = next(iter(titok.model.presets.items()))
    last = titok.model.num_tokens - 1
    expected = to.copy_paste(target, reference, [*positions, last])
    assert torch.equal(paste(f"{name.upper()}, {last}", titok=titok), expected)
    with pytest.raises(ValueError, match=f"knows no attribute 'mood': it has {name}"):
        paste("mood", titok=titok)
    with pytest.raises(ValueError, match="only where the tokenizer is given, too: connect it"):
        paste(name)
    with pytest.raises(ValueError, match="they come from another tokenizer"):
        pack.run("TokenOptCopyPaste", target=target[:, 1:], reference=reference[:, 1:], titok=titok)
