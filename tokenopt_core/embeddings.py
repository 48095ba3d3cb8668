"""CLIP embeddings of files of pictures, remembered on the disk by what is in a file and by the model.

A cache is one safetensors file. It holds what the last call asked for, and no more: what is no longer there is
forgotten with the next. What cannot be read, does not add up or is of another model counts as empty.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .canvas import fit
from .pictures import in_words, read_file, read_picture

AT_ONCE = 32  # pictures
SAVE_EVERY = 4096  # new embeddings, so that little is lost should the machine stop
_FRESH = 2e9  # ns: a file may change once more within the tick of the clock that dates it
_KEY = 16  # bytes of a hash

Embed = Callable[[Tensor], Tensor]  # pictures (B, 3, S, S) -> (B, E)
Report = Callable[[int, int], object]  # files that are done, files in all; may raise to interrupt


@dataclass(frozen=True)
class Embedded:
    """Files with their embeddings, in the order they were given in, and those that have none."""

    files: list[Path]
    embeddings: Tensor  # (files, E), float32, on the CPU
    broken: list[tuple[Path, str]]  # and why
    computed: int  # how many were not remembered


def embed_files(
    files: Sequence[Path],
    embed: Embed,
    size: int,
    cache: EmbeddingCache | None = None,
    report: Report | None = None,
) -> Embedded:
    """Embeddings of the middle squares of picture files, seen at `size` px; files that cannot be read are listed.

    What was embedded stays in the cache when `report` or `embed` raises.
    """
    cache = EmbeddingCache(None, "") if cache is None else cache
    waiting: dict[bytes, Tensor] = {}
    keys: dict[Path, bytes] = {}
    broken: list[tuple[Path, str]] = []

    def flush() -> None:
        if waiting:
            cache.add(list(waiting), embed(torch.cat(list(waiting.values()))))
            waiting.clear()

    try:
        for done, path in enumerate(files, 1):
            try:
                keys[path], picture = _look(path, cache, waiting)
                if picture is not None:
                    waiting[keys[path]] = fit(picture[None], None, size)[0]
            except (OSError, ValueError) as error:
                keys.pop(path, None)
                broken.append((path, in_words(error)))
            if len(waiting) == AT_ONCE or done == len(files):
                flush()
            if report:
                report(done, len(files))
    finally:
        cache.save(keys.values())
    broken += [(path, "the model makes no numbers of it") for path, key in keys.items() if not cache.knows(key)]
    sound = [path for path, key in keys.items() if cache.knows(key)]
    return Embedded(sound, cache.rows([keys[path] for path in sound]), sorted(broken), cache.computed)


def _look(path: Path, cache: EmbeddingCache, waiting: dict[bytes, Tensor]) -> tuple[bytes, Tensor | None]:
    """A file's hash, and its picture if that is still to be embedded."""
    key = cache.hash_of(path)
    if key is not None and cache.knows(key):
        return key, None
    stamp, data = Stamp(path), read_file(path)
    key = hashlib.blake2b(data, digest_size=_KEY).digest()
    picture = None if key in waiting or cache.knows(key) else read_picture(data)
    cache.remember(stamp, key)
    return key, picture


class Stamp:
    """How a file was dated before it was read; from that alone an unchanged file is recognised."""

    def __init__(self, path: Path) -> None:
        info = path.stat()
        dates = (info.st_size, info.st_mtime_ns, info.st_ctime_ns)
        self.settled = max(dates[1:]) < time.time_ns() - _FRESH
        self.key = hashlib.blake2b(repr((os.fspath(path), dates)).encode("utf-8", "surrogateescape"),
                                   digest_size=_KEY).digest()  # fmt: skip


class EmbeddingCache:
    """Embeddings by the hash of a file's content, and hashes by the stamp of a file.

    path: the file to keep it in; None: it is forgotten. model: what `identity.fingerprint` says.
    """

    def __init__(self, path: Path | None, model: str) -> None:
        self._path, self._model = path, model
        self._stamps: dict[bytes, bytes] = {}  # of a file -> hash of its content
        self._places: dict[bytes, int] = {}  # hash -> row of all parts put together
        self._parts: list[Tensor] = []
        self._unsaved = 0
        self.computed = 0
        if path is not None and path.is_file():
            try:
                self._read(path)
            except Exception as error:  # whatever a damaged file leads to
                self._stamps, self._places, self._parts = {}, {}, []
                logging.getLogger(__name__).warning("TokenOpt: %s is made anew (%s)", path, error)
        self._saved = (dict(self._stamps), set(self._places))

    def knows(self, key: bytes) -> bool:
        """Whether there is an embedding of this content."""
        return key in self._places

    def hash_of(self, path: Path) -> bytes | None:
        """The hash of a file's content, if the file has not been touched since that was taken."""
        return self._stamps.get(Stamp(path).key)

    def remember(self, stamp: Stamp, key: bytes) -> None:
        """That a file with this stamp has this content."""
        if stamp.settled:
            self._stamps[stamp.key] = key

    def add(self, keys: Sequence[bytes], embeddings: Tensor) -> None:
        """Embeddings (len(keys), E); those that hold what is no number are left out."""
        embeddings = embeddings.detach().float().cpu()
        sound = torch.isfinite(embeddings).all(1)
        start = len(self._places)
        for offset, row in enumerate(sound.nonzero().flatten().tolist()):
            self._places[keys[row]] = start + offset
        self._parts.append(embeddings[sound])
        self.computed += len(keys)
        self._unsaved += len(keys)
        if self._unsaved >= SAVE_EVERY:
            self.save(list(self._places))

    def rows(self, keys: Sequence[bytes]) -> Tensor:
        """The embeddings of these contents, (len(keys), E)."""
        if not self._parts:
            return torch.zeros(len(keys), 0)
        self._parts = [torch.cat(self._parts)]
        return self._parts[0][torch.tensor([self._places[key] for key in keys], dtype=torch.int64)]

    def save(self, used: Iterable[bytes]) -> None:
        """Writes what is used, if that is not what stands there; a disk that is full or locked is no error."""
        keys = [key for key in dict.fromkeys(used) if self.knows(key)]
        kept = set(keys)
        stamps = {stamp: key for stamp, key in self._stamps.items() if key in kept}
        if self._path is None or (stamps, kept) == self._saved:
            return
        try:
            self._write(self._path, keys, stamps)
            self._unsaved, self._saved = 0, (stamps, kept)
        except OSError as error:
            logging.getLogger(__name__).warning("TokenOpt: %s cannot be written: %s", self._path, error)

    def _write(self, path: Path, keys: Sequence[bytes], stamps: Mapping[bytes, bytes]) -> None:
        tensors = {
            "hashes": _table(keys),
            "embeddings": self.rows(keys),
            "stamps": _table(stamps.keys()),
            "stamped": _table(stamps.values()),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(suffix=".part", dir=path.parent)
        os.close(handle)
        try:
            save_file(tensors, part, {"model": self._model, "checksum": _checksum(tensors)})
            os.replace(part, path)
        except SafetensorError as error:  # of a full disk
            raise OSError(str(error)) from error
        finally:
            Path(part).unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            described = file.metadata() or {}
            if described.get("model") != self._model:
                return
            tensors = {name: file.get_tensor(name).clone() for name in _TENSORS}  # the file itself may be replaced
        if described.get("checksum") != _checksum(tensors):
            raise ValueError("its checksum is wrong")
        hashes, embeddings, stamps, stamped = tensors.values()
        self._stamps = dict(zip(_keys(stamps), _keys(stamped), strict=True))
        self._places = {key: row for row, key in enumerate(_keys(hashes))}
        self._parts = [embeddings]


_TENSORS = ("hashes", "embeddings", "stamps", "stamped")


def _table(keys: Iterable[bytes]) -> Tensor:
    """(len(keys), 16) of uint8."""
    return torch.from_numpy(np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _KEY).copy())


def _keys(table: Tensor) -> list[bytes]:
    return [row.tobytes() for row in table.numpy()]


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=_KEY)
    for name in _TENSORS:
        digest.update(repr((name, tensors[name].dtype, tuple(tensors[name].shape))).encode())
        digest.update(np.ascontiguousarray(tensors[name].numpy()).data)
    return digest.hexdigest()
