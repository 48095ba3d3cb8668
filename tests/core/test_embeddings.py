"""Folders of pictures, and what is remembered of them: by what is in a file, and by the model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tokenopt_core import embeddings
from tokenopt_core.embeddings import Embedded, EmbeddingCache, embed_files
from tokenopt_core.pictures import find_pictures, read_picture

SIZE = 4


def paint(path: Path, red: int, size: tuple[int, int] = (SIZE, SIZE)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (red, 20, 30)).save(path)
    return path


def age(path: Path) -> None:
    """As if the file had been there for long."""
    os.utime(path, (1e9, 1e9))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures; all that was written a moment ago counts as settled."""
    monkeypatch.setattr(embeddings, "_FRESH", 0)
    for name, red in (("a.png", 10), ("b/c.jpg", 100), ("d.webp", 200)):
        age(paint(tmp_path / "pictures" / name, red))
    return tmp_path / "pictures"


class Model:
    """Counts what it embeds: as the mean colour, and its square."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[1:] == (3, SIZE, SIZE)
        self.seen += len(images)
        mean = images.mean((2, 3))
        return torch.cat([mean, mean**2], 1)


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Callable[..., tuple[Embedded, int]]:
    """Embeds the folder as a new process would; also how many pictures the model saw."""

    def embed(model: str = "model 1", cache: Path | None = tmp_path / "made" / "cache.safetensors", **more):
        seen = Model()
        return embed_files(find_pictures(folder).files, seen, SIZE, EmbeddingCache(cache, model), **more), seen.seen

    return embed


def names(result: Embedded) -> list[str]:
    return [path.name for path in result.files]


def test_embeddings_are_those_of_the_model_in_the_order_of_the_files(run) -> None:
    result, seen = run()
    assert (names(result), result.broken, result.computed, seen) == (["a.png", "c.jpg", "d.webp"], [], 3, 3)
    expected = Model()(torch.stack([read_picture(path) for path in result.files]))
    assert torch.equal(result.embeddings, expected)
    assert result.embeddings[:, 0].sort().values.tolist() == result.embeddings[:, 0].tolist()


def test_what_did_not_change_is_not_read_again(run, folder, monkeypatch) -> None:
    first, _ = run()
    monkeypatch.setattr(embeddings, "read_file", lambda path: pytest.fail(f"{path} was read"))
    second, seen = run()
    assert seen == second.computed == 0
    assert torch.equal(second.embeddings, first.embeddings) and second.files == first.files


def test_a_changed_picture_is_embedded_again_though_size_and_date_are_as_they_were(run, folder) -> None:
    before = (folder / "a.png").stat()
    first, _ = run()
    paint(folder / "a.png", 11)
    os.utime(folder / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (folder / "a.png").stat().st_size == before.st_size
    second, seen = run()
    assert seen == 1
    assert not torch.equal(second.embeddings[0], first.embeddings[0])
    assert torch.equal(second.embeddings[1:], first.embeddings[1:])


def test_a_file_that_was_just_written_is_not_known_by_its_date(run, folder, monkeypatch) -> None:
    """It may be written once more before the clock ticks: its content decides."""
    monkeypatch.setattr(embeddings, "_FRESH", 60e9)
    run()
    read: list[str] = []
    monkeypatch.setattr(embeddings, "read_file", lambda path: read.append(path.name) or path.read_bytes())
    result, seen = run()
    assert (seen, read, len(result.files)) == (0, ["a.png", "c.jpg", "d.webp"], 3)


def test_a_touched_or_renamed_or_doubled_file_is_known_by_its_content(run, folder) -> None:
    run()
    os.utime(folder / "a.png", (5e8, 5e8))
    (folder / "d.webp").rename(folder / "b" / "z.webp")
    (folder / "copy.jpg").write_bytes((folder / "b" / "c.jpg").read_bytes())
    result, seen = run()
    assert (names(result), seen) == (["a.png", "c.jpg", "z.webp", "copy.jpg"], 0)
    assert torch.equal(result.embeddings[1], result.embeddings[3])


def test_a_new_file_alone_is_embedded_and_a_removed_one_forgotten(run, folder, tmp_path) -> None:
    run()
    paint(folder / "e.png", 250)
    assert run()[1] == 1
    for name in ("a.png", "d.webp"):
        (folder / name).unlink()
    assert names(run()[0]) == ["c.jpg", "e.png"]
    assert len(load_file(tmp_path / "made" / "cache.safetensors")["embeddings"]) == 2


def test_another_model_starts_anew(run) -> None:
    run("model 1")
    assert run("model 2")[1] == 3
    assert run("model 2")[1] == 0


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def text(path: Path) -> None:
    path.write_bytes(b"not a cache at all")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def forged(path: Path) -> None:
    save_file({"embeddings": torch.zeros(3, 6)}, path, {"model": "model 1"})


@pytest.mark.parametrize("damage", [cut, flip, text, empty, forged])
def test_a_damaged_cache_is_made_anew(run, tmp_path, caplog, damage: Callable[[Path], None]) -> None:
    cache = tmp_path / "made" / "cache.safetensors"
    first, _ = run()
    damage(cache)
    with caplog.at_level(logging.WARNING):
        second, seen = run()
    assert seen == 3 and torch.equal(first.embeddings, second.embeddings)
    assert "cache.safetensors is made anew" in caplog.text
    assert run()[1] == 0


def test_a_cache_that_cannot_be_written_is_no_error(run, tmp_path, caplog) -> None:
    (tmp_path / "file").write_bytes(b"")
    result, _ = run(cache=tmp_path / "file" / "cache.safetensors")
    assert len(result.files) == 3 and "cannot be written" in caplog.text
    assert run(cache=None)[1] == 3


def test_an_interruption_keeps_what_was_done(run, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embeddings, "AT_ONCE", 1)

    class Stop(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        run(report=stop)
    assert run()[1] == 1
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["cache.safetensors"]


def test_a_long_run_is_saved_on_the_way(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embeddings, "AT_ONCE", 1)
    monkeypatch.setattr(embeddings, "SAVE_EVERY", 2)
    cache, rows = tmp_path / "made" / "cache.safetensors", []
    run(report=lambda done, total: rows.append(len(load_file(cache)["embeddings"]) if cache.exists() else 0))
    assert rows == [0, 2, 2]
    assert len(load_file(cache)["embeddings"]) == 3


def test_broken_files_are_listed_and_the_others_embedded(run, folder) -> None:
    paint(folder / "half.png", 1, (200, 200))
    (folder / "half.png").write_bytes((folder / "half.png").read_bytes()[:200])
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.webp").touch()
    (folder / "dead.png").symlink_to(folder / "gone.png")
    (folder / "dir.png").mkdir()
    for _ in range(2):
        result, _ = run()
        assert names(result) == ["a.png", "c.jpg", "d.webp"]
        reasons = {path.name: reason for path, reason in result.broken}
        assert list(reasons) == ["dead.png", "empty.webp", "half.png", "text.jpg"]
        assert reasons["text.jpg"] == reasons["empty.webp"] == "it is no picture of a known format"
        assert "cannot be read" in reasons["half.png"]
        assert not any("Errno" in reason or str(folder) in reason for reason in reasons.values())


def test_nothing_but_broken_files(run, folder) -> None:
    for path in find_pictures(folder).files:
        path.write_bytes(b"broken")
    result, seen = run()
    assert (result.files, len(result.broken), len(result.embeddings), seen) == ([], 3, 0, 0)


def test_a_picture_that_the_model_makes_no_numbers_of(folder) -> None:
    def model(images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((2, 3))
        return torch.where(mean[:, :1] > 0.6, torch.nan, mean)

    result = embed_files(find_pictures(folder).files, model, SIZE)
    assert names(result) == ["a.png", "c.jpg"] and torch.isfinite(result.embeddings).all()
    assert [(path.name, reason) for path, reason in result.broken] == [("d.webp", "the model makes no numbers of it")]


def test_the_middle_square_is_what_the_model_sees(tmp_path) -> None:
    array = np.zeros((SIZE, 3 * SIZE, 3), dtype=np.uint8)
    array[:, SIZE : 2 * SIZE] = 255
    Image.fromarray(array).save(tmp_path / "wide.png")
    result = embed_files(find_pictures(tmp_path).files, Model(), SIZE)
    assert result.embeddings.tolist() == [[1.0] * 6]


def test_which_files_count(folder, tmp_path) -> None:
    for name in (".hidden.png", ".thumbnails/x.png", "notes.txt", "E.PNG", "b/b/f.tiff"):
        paint(folder / f"{name}.png", 5).rename(folder / name)
    secret = paint(tmp_path / "elsewhere" / "secret.png", 7)
    (folder / "leads out.png").symlink_to(secret)
    (folder / "inside.png").symlink_to(folder / "a.png")
    (folder / "linked folder").symlink_to(secret.parent, target_is_directory=True)
    found = find_pictures(folder, folder)
    expected = ["E.PNG", "a.png", "b/b/f.tiff", "b/c.jpg", "d.webp", "inside.png"]
    assert [path.relative_to(folder).as_posix() for path in found.files] == expected
    assert [path.name for path in found.outside] == ["leads out.png"]
    assert "leads out.png" in [path.name for path in find_pictures(folder).files]


def test_pictures_of_every_kind(tmp_path) -> None:
    ramp = np.linspace(0, 255, 12, dtype=np.uint8).reshape(3, 4)
    plain = torch.from_numpy(ramp.astype(np.float32) / 255).expand(3, 3, 4)
    for mode in ("RGB", "L", "RGBA", "LA", "P"):
        Image.fromarray(ramp).convert(mode).save(tmp_path / "x.png")
        torch.testing.assert_close(read_picture(tmp_path / "x.png"), plain)
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    torch.testing.assert_close(read_picture(tmp_path / "deep.png"), plain)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown a quarter turn clockwise
    Image.fromarray(ramp).save(tmp_path / "turned.png", exif=turned)
    torch.testing.assert_close(read_picture(tmp_path / "turned.png"), plain.rot90(-1, (1, 2)))


def test_a_file_of_another_kind_under_a_pictures_name(tmp_path) -> None:
    """A PostScript file would be handed to another program."""
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(ValueError, match="no picture of a known format"):
        read_picture(tmp_path / "x.png")
    with pytest.raises(ValueError, match="it is gone"):
        read_picture(tmp_path / "none.png")
