"""Results that were computed once: pictures as PNG files and a line of JSON for each case, so that a run can go on."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

FILE = "results.jsonl"


@dataclass(frozen=True)
class Result:
    """What a run made of a case.

    pictures: (K, 3, S, S) in 8 bits, as they would be saved. measures: what cannot be read off them.
    """

    pictures: Tensor
    measures: dict[str, Any]


def key(**parts: Any) -> str:
    """A name for models, settings and case together: another one if anything in them changes."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def weights_hash(*models: object) -> str:
    """Changes with any weight of any of the models; what has no weights counts by its name."""
    digest = hashlib.blake2b(digest_size=8)
    for model in models:
        digest.update(type(model).__name__.encode())
        for name, tensor in sorted(model.state_dict().items()) if isinstance(model, nn.Module) else ():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Store:
    """A folder of results; each is on the disk before the next is computed."""

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        """fresh: what is there is not taken; it is written anew."""
        self._folder, self._file = folder, folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        self._entries: dict[str, dict[str, Any]] = {}
        text = self._file.read_text(encoding="utf-8") if self._file.is_file() else ""
        if text and not text.endswith("\n"):
            self._append("")
        for line in () if fresh else text.splitlines():
            try:
                entry = json.loads(line)
                self._entries[entry["key"]] = entry
            except (ValueError, KeyError):  # the line at which an earlier run was ended
                continue

    def get(self, name: str) -> Result | None:
        """What is known under this key; None if it has to be computed."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        try:
            strip = np.asarray(Image.open(self._picture(name)).convert("RGB"))
        except OSError:
            return None
        pictures = torch.from_numpy(strip.copy()).permute(2, 0, 1)  # one below the other
        return Result(torch.stack(pictures.split(pictures.shape[2], 1)), entry["measures"])

    def add(self, name: str, case: dict[str, Any], result: Result) -> None:
        """Keeps a result; the picture first, so that a line never speaks of one that is not there."""
        strip = torch.cat(list(result.pictures), 1).permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(strip).save(buffer, "PNG")
        self._picture(name).write_bytes(buffer.getvalue())
        self._entries[name] = {"key": name, "case": case, "measures": result.measures}
        self._append(json.dumps(self._entries[name]))

    def _append(self, line: str) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _picture(self, name: str) -> Path:
        return self._folder / f"{name}.png"
