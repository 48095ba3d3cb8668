"""Folders that a workflow names: those inside ComfyUI's input folder, and no others."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

LONGEST = 1000  # characters


def input_folder(text: str) -> Path:
    """A folder by its path inside ComfyUI's input folder, resolved; "." is the input folder itself.

    Workflows come from strangers: a path that leads out of it, over a link for instance, is refused. Raises ValueError
    for such a path, FileNotFoundError for a folder that is not there.
    """
    import folder_paths

    root = Path(folder_paths.get_input_directory()).resolve()
    path = PureWindowsPath(text.strip())  # knows both kinds of slashes, and drives
    shown = "".join(c if c.isprintable() else "?" for c in text.strip()[:80])
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
