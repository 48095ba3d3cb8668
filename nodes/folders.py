"""Where models lie on the disk, and how published ones get there."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from ..tokenopt_core.clip import PUBLISHED
from ..tokenopt_core.download import Source
from ..tokenopt_core.weights import SUFFIXES
from .inputs import is_text, shown

KINDS = ("titok", "open_clip")
LONGEST_NAME = 255  # of a file, anywhere
SECONDS_BETWEEN_REPORTS = 0.3


def register() -> None:
    """Tells ComfyUI of models/titok and models/open_clip; folders of the user's extra_model_paths.yaml come first."""
    import folder_paths

    for kind in KINDS:
        folder_paths.add_model_folder_path(kind, str(Path(folder_paths.models_dir) / kind))
        folder_paths.folder_names_and_paths[kind][1].update(SUFFIXES)


def installed(kind: str) -> dict[str, Path]:
    """What lies in the model folders of one kind, by name: folders with weights, and lone weight files."""
    import folder_paths

    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(kind)):
        for path in sorted(path for path in root.glob("*") if is_text(path.name)):
            folder = path.is_dir() and any(file.suffix in SUFFIXES for file in path.glob("*"))
            if folder or (path.is_file() and path.suffix in SUFFIXES and _complete_alone(kind, path.stem)):
                found.setdefault(path.name, path)
    return found


def _complete_alone(kind: str, stem: str) -> bool:
    """A tokenizer is recognised by its tensors; of a CLIP the name must say the architecture."""
    return kind == "titok" or bool(stem in PUBLISHED and PUBLISHED[stem].architecture)


def locate(kind: str, name: str) -> Path | None:
    """Where a model of this name lies; a published one may be a lone file of that name, too."""
    there = installed(kind)
    return next((there[found] for found in (name, *(name + suffix for suffix in SUFFIXES)) if found in there), None)


def find(kind: str, name: str, published: Mapping[str, Source], allow_download: bool) -> Path:
    """The file or folder of a model by its name in the loader's list; downloads it only if that is allowed."""
    import folder_paths

    if not isinstance(name, str):
        raise ValueError(f"a model is chosen by its name in the list, got {shown(name)}")
    target = Path(folder_paths.get_folder_paths(kind)[0]) / name
    source = published.get(name)
    path = locate(kind, name)
    if path is not None:
        return path
    if source is None:
        if name in ("", ".", "..") or set(name) & set("/\\:") or not name.isprintable() or len(name) > LONGEST_NAME:
            raise ValueError(f"there is no model of the name {name[:80]!r}: choose one of the list")
        raise FileNotFoundError(f"the model {name!r} is no longer there: it was looked for as {target}")
    if not allow_download:
        raise FileNotFoundError(
            f"{name} is not in {target}: switch on download, or put {' and '.join(source.files)} of {source.page} there"
        )
    logging.info("TokenOpt: downloading %s to %s", source.page, target)
    return source.fetch(target, DownloadProgress())


def fingerprint(kind: str, name: str) -> str:
    """Changes when a model's files do, so that ComfyUI loads them again."""
    path = locate(kind, name) if isinstance(name, str) else None  # a prompt may hold anything; `execute` complains
    files = [] if path is None else [path, *sorted(path.glob("*"))]
    stamps = [(file.name, file.stat()) for file in files if file.exists()]  # not a link to what is gone
    return f"{name!r} {[(file, stamp.st_mtime_ns, stamp.st_size) for file, stamp in stamps]}"


class DownloadProgress:
    """The bar on the node while a file comes in, and a way out when the user interrupts."""

    def __init__(self) -> None:
        import comfy.model_management as mm
        from comfy.utils import ProgressBar

        self._check_interrupted = mm.throw_exception_if_processing_interrupted
        self._bar = ProgressBar(100)
        self._shown = float("-inf")

    def __call__(self, here: int, total: int) -> None:
        self._check_interrupted()
        if time.monotonic() - self._shown > SECONDS_BETWEEN_REPORTS or here == total:
            self._shown = time.monotonic()
            self._bar.update_absolute(here, max(total, here, 1))
