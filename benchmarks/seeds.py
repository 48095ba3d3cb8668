"""How long Seed Picker searches: `python benchmarks/seeds.py`.

Makes up embeddings of 100,000 pictures, as wide as ViT-B-32's, and measures what a run does that finds all of them
remembered: whether the files are as they were (with `--files`, which writes as many), the cache read from the disk and
checked, and the search itself: the product with the prompt, and the picking. What is picked is compared with numpy's
answer. Fails if the search takes a second or more. `--record` appends to RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from devtools import results  # noqa: E402
from tokenopt_core.embeddings import EmbeddingCache, Stamp, embed_files  # noqa: E402
from tokenopt_core.pictures import find_pictures  # noqa: E402
from tokenopt_core.seeds import pick_seeds  # noqa: E402

LIMIT = 1.0  # seconds
COUNT = 64  # pictures that are picked
T = TypeVar("T")


def timed(function: Callable[[], T], rounds: int) -> tuple[float, T]:
    """The median of the seconds, and what came out last."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        outcome = function()
        seconds.append(time.perf_counter() - start)
    return median(seconds), outcome


def made_up(pictures: int, width: int) -> torch.Tensor:
    rows = torch.randn(pictures, width, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(rows, dim=-1)


def search(embeddings: torch.Tensor, query: torch.Tensor) -> list[int]:
    return pick_seeds(embeddings @ query, COUNT).tolist()


def fill(cache: EmbeddingCache, embeddings: torch.Tensor, folder: Path | None) -> list[bytes]:
    """Puts all of them in, and on the disk; with a folder also as many files, which hold a number each."""
    keys = [i.to_bytes(16, "little") for i in range(len(embeddings))]
    cache.add(keys, embeddings)
    if folder:
        paths = [Path(folder, f"{i // 1000:03}", f"{i:06}.png") for i in range(len(keys))]
        for path, key in zip(paths, keys, strict=True):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(key)
        time.sleep(3)  # what was written a moment ago would be read again
        for path, key in zip(paths, keys, strict=True):
            cache.remember(Stamp(path), key)
    cache.save(keys)
    return keys


def revisit(cache: Path, folder: Path) -> int:
    """A run that finds nothing new; how many files it found."""

    def nothing(images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a file was taken for a new one")

    return len(embed_files(find_pictures(folder).files, nothing, 224, EmbeddingCache(cache, "model")).files)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512, help="of an embedding")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts")
    parser.add_argument("--threads", type=int, help="of the CPU; default: PyTorch's choice")
    parser.add_argument("--files", action="store_true", help="write as many files, and look whether they changed")
    parser.add_argument("--record", action="store_true", help="append a row to RESULTS.md")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    embeddings = made_up(options.pictures, options.width)
    query = made_up(1, options.width)[0]
    seconds, picked = timed(lambda: search(embeddings, query), options.rounds)
    expected = np.argsort(-(embeddings.numpy() @ query.numpy()), kind="stable")[:COUNT].tolist()
    with tempfile.TemporaryDirectory() as scratch:
        path, folder = Path(scratch, "cache.safetensors"), Path(scratch, "files") if options.files else None
        if folder:
            folder.mkdir()
        keys = fill(EmbeddingCache(path, "model"), embeddings, folder)
        reading, again = timed(lambda: EmbeddingCache(path, "model").rows(keys), options.rounds)
        looking, found = timed(lambda: revisit(path, folder), 1) if folder else (0.0, options.pictures)
        size = path.stat().st_size
    right = picked == expected and torch.equal(again, embeddings) and found == options.pictures
    row = (
        date.today().isoformat(), results.commit(), results.machine(), f"{options.pictures:,}", str(options.width),
        str(torch.get_num_threads()), f"{1000 * seconds:.0f} ms", f"{size / 1e6:.0f} MB, {1000 * reading:.0f} ms",
        f"{looking:.1f} s" if folder else "",
    )  # fmt: skip
    print(f"{options.pictures:,} pictures: search {row[6]}, cache {row[7]}{', whole run ' + row[8] if folder else ''}")
    print("the same as numpy" if right else "NOT THE SAME AS NUMPY")
    if options.record:
        results.add_row("## Seeds", row)
    return int(not right or seconds >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
