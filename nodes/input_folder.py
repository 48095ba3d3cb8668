"""Folders that a workflow names: those inside ComfyUI's input folder, and no others."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

from ..tokenopt_core.pictures import Found, find_pictures
from .tables import printable

LONGEST = 1000  # characters


def input_folder(text: str) -> Path:
    """A folder by its path inside ComfyUI's input folder, resolved; "." is the input folder itself.

    Workflows come from strangers: a path that leads out of it, over a link for instance, is refused. Raises ValueError
    for such a path, FileNotFoundError for a folder that is not there.
    """
    import folder_paths

    root = Path(folder_paths.get_input_directory()).resolve()
    path = PureWindowsPath(text.strip())  # knows both kinds of slashes, and drives
    shown = printable(text.strip())
    if path.anchor or ".." in path.parts or "\0" in text or len(text) > LONGEST:
        raise ValueError(f"the folder {shown!r} must be a path inside ComfyUI's input folder, such as photos/beach")
    try:
        folder = root.joinpath(*path.parts).resolve()
        there = folder.is_dir()
    except (OSError, RuntimeError):  # a name too long for the disk, links in a circle
        there = False
    if not there:
        raise FileNotFoundError(f"there is no folder {shown!r} in ComfyUI's input folder, {root}")
    if not folder.is_relative_to(root):
        raise ValueError(f"the folder {shown!r} leads out of ComfyUI's input folder: refused. Copy the pictures there")
    return folder


def pictures_in(name: str) -> Found:
    """The picture files in such a folder and its folders; ValueError if there are none."""
    found = find_pictures(input_folder(name), inside=input_folder("."))
    if not found.files:
        links = f", only {len(found.outside)} links that lead out of the input folder" if found.outside else ""
        raise ValueError(f"there are no picture files in {printable(name.strip())!r} and its folders{links}")
    return found


def stamp(name: str | None) -> str | float:
    """Changes when the files in such a folder do, so that ComfyUI looks again: `fingerprint_inputs`."""
    if not isinstance(name, str):  # it comes over a link, and is not known yet: what is no number equals nothing
        return float("nan")
    try:
        files = find_pictures(input_folder(name)).files if name.strip() else []
        stamps = [(str(file), file.lstat().st_mtime_ns, file.lstat().st_size) for file in files]
    except (ValueError, OSError):  # `execute` says what is wrong
        return name
    return f"{name} {hash(tuple(stamps))}"
