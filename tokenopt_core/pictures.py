"""Folders of pictures: which files are in them, and what stands in a file."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .canvas import fit

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # others can start programs (EPS), or are no pictures


class Found(NamedTuple):
    """What is in a folder."""

    files: list[Path]
    outside: list[Path]  # links that lead out of where pictures may come from


def find_pictures(folder: Path, inside: Path | None = None) -> Found:
    """The picture files in a folder and the folders in it, sorted; not hidden ones, and none in linked folders.

    inside: links to files that are not in this folder are told apart.
    """
    found = Found([], [])
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and path.suffix.lower() in SUFFIXES:
                (found.files if _is_inside(path, inside) else found.outside).append(path)
    found.files.sort()
    found.outside.sort()
    return found


def _is_inside(path: Path, folder: Path | None) -> bool:
    if folder is None or not path.is_symlink():
        return True
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def read_picture(source: Path | bytes) -> Tensor:
    """A picture file, or its content, as (3, H, W) in [0, 1], turned as its EXIF data say; alpha is dropped.

    Raises ValueError, in words for a user, for whatever cannot be read.
    """
    try:
        data = source if isinstance(source, bytes) else read_file(source)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):  # whole numbers of 16 bits, which Pillow would cut off at 255
                array = np.asarray(picture, dtype=np.float32)[..., None].repeat(3, 2) / 65535
            else:
                array = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    except UnidentifiedImageError as error:
        raise ValueError("it is no picture of a known format") from error
    except Exception as error:  # whatever a damaged or forged file leads to
        raise ValueError(f"it cannot be read ({in_words(error)})") from error
    return torch.from_numpy(array).permute(2, 0, 1).clamp(0, 1)


def read_file(path: Path) -> bytes:
    """The content of an ordinary file."""
    if not path.is_file():  # a pipe would keep us waiting
        raise ValueError("it is no ordinary file" if path.exists() else "it is gone")
    return path.read_bytes()


def one_size(pictures: Sequence[Tensor], size: int = 0) -> Tensor:
    """Pictures (3, H, W) as one batch: their middle squares at `size` px.

    size: 0 leaves pictures of one size as they are, and makes others as large as the smallest of their squares.
    """
    if not size and len({picture.shape for picture in pictures}) == 1:
        return torch.stack(list(pictures))
    size = size or min(min(picture.shape[1:]) for picture in pictures)
    return torch.cat([fit(picture[None], None, size)[0] for picture in pictures])


def in_words(error: Exception) -> str:
    """What an error says, without the program's part of it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip() or "for an unknown reason").splitlines()[0][:120]
