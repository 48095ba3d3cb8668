"""Fetching published files from the Hugging Face hub: resumable, interruptible, never half a file under its name."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from huggingface_hub.file_download import HfFileMetadata

Report = Callable[[int, int], object]  # bytes that are here, bytes in all; may raise to interrupt


class _ReportingFile(io.BufferedWriter):
    """A file that tells after each write how long it is."""

    def __init__(self, path: Path, report: Callable[[int], object]) -> None:
        super().__init__(io.FileIO(path, "ab"))
        self._report = report

    def write(self, data: Any) -> int:
        written = super().write(data)
        self._report(self.tell())
        return written


@dataclass(frozen=True)
class Source:
    """Files of one repository of the Hugging Face hub; the weights last, so that they stand for all of them."""

    repository: str
    files: tuple[str, ...]

    @property
    def page(self) -> str:
        """Where a person finds them."""
        return f"https://huggingface.co/{self.repository}"

    def fetch(self, folder: Path, report: Report | None = None) -> Path:
        """All of the files in `folder`, downloaded if they are not there; returns the folder."""
        for name in self.files:
            fetch(self.repository, name, folder, report)
        return folder


class _Interrupted(BaseException):
    """Carries what `report` raised past everything that handles errors on the way."""


def fetch(repository: str, filename: str, folder: Path, report: Report | None = None) -> Path:
    """One file of a hub repository, in `folder`; what is there already is not fetched again.

    It grows under a temporary name, is renamed when it is whole, and goes on where it was when an earlier call was
    cut off. Raises FileNotFoundError, naming the page and the place, if it cannot be had, OSError on a full disk, and
    whatever `report` raises.
    """
    target = folder / filename
    if target.is_file():
        return target

    def guarded(here: int, total: int) -> None:
        try:
            (report or _silent)(here, total)
        except BaseException as error:
            raise _Interrupted from error

    try:
        return _fetch(repository, filename, target, guarded)
    except _Interrupted as interruption:
        raise interruption.__cause__ or interruption from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            full = f"the disk is full: {filename} of {repository} does not fit into {folder}"
            raise OSError(errno.ENOSPC, full) from error
        raise _unavailable(repository, filename, target, error) from error


def _silent(here: int, total: int) -> None:
    pass


def _unavailable(repository: str, filename: str, target: Path, error: Exception) -> FileNotFoundError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return FileNotFoundError(
        f"{filename} of {repository} could not be downloaded ({reason}). To do it by hand, get it from "
        f"https://huggingface.co/{repository}/tree/main and put it at {target}"
    )


def _fetch(repository: str, filename: str, target: Path, report: Report) -> Path:
    # imported when used: it is slow to import
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(repository, filename)
    metadata = get_hf_file_metadata(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{_version(metadata)}.part")  # of this version, never another's half
    total = metadata.size or 0
    here = part.stat().st_size if part.is_file() else 0
    if total and here > total:
        part.unlink()
        here = 0
    if shutil.disk_usage(target.parent).free < total - here:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    # the user's token is for the hub, not for the store that it may point to
    headers = build_hf_headers(token=None if urlsplit(metadata.location).netloc == urlsplit(url).netloc else False)

    def grown(size: int) -> None:
        if total and size > total:
            raise RuntimeError(f"more than the announced {total} bytes came")
        report(size, total)

    if not total or here < total:
        try:
            with _ReportingFile(part, grown) as file:
                http_get(metadata.location, file, resume_size=here, headers=headers, expected_size=total or None)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                part.unlink(missing_ok=True)  # give the space back
            raise
    if total and part.stat().st_size != total:
        raise RuntimeError(f"the connection ended after {part.stat().st_size} of {total} bytes")
    os.replace(part, target)
    return target


def _version(metadata: HfFileMetadata) -> str:
    name = metadata.etag or metadata.commit_hash or "unknown"
    return "".join(c for c in name if c.isalnum())[:16]
