"""How much memory and time loading a tokenizer costs: `python benchmarks/loading.py`.

Writes L-32 with derived weights once (2.6 GB, in .cache), then loads it in fresh processes. The peak is the resident
memory above what the imports alone take, against the weights in the loaded dtype; the time is against reading the
same file into memory (`Path.read_bytes`). The file is in the system's cache both times.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PEAK_LIMIT, TIME_LIMIT = 1.25, 2.0


def write_weights(name: str, folder: Path) -> None:
    """A published variant's checkpoint with weights from the tests' formula."""
    from safetensors.torch import save_file

    from tests import formula
    from tokenopt_core.titok import signature

    folder.mkdir(parents=True)
    config = json.loads((ROOT / "tests" / "fixtures" / "titok" / f"{name}.json").read_text())["config"]
    (folder / "config.json").write_text(json.dumps(config))
    shapes = signature(name)
    with ThreadPoolExecutor() as pool:  # numpy computes without holding the others up
        state = dict(zip(shapes, pool.map(formula.weights, shapes, shapes.values()), strict=True))
    save_file(state, folder / "part")
    (folder / "part").rename(folder / "model.safetensors")


def peak_bytes() -> int:
    """The most resident memory this process ever had."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss of a process counts its parent's, too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(folder: Path, precision: str) -> None:
    """In a process of its own: loads once, prints what it cost."""
    import torch

    import tokenopt_core as to

    to.load_tokenizer("mini")  # imports and first-use costs
    before = peak_bytes()
    started = time.perf_counter()
    tokenizer = to.load_tokenizer(folder, dtype=getattr(torch, precision))
    seconds = time.perf_counter() - started
    weights = sum(p.nbytes for p in tokenizer.parameters())
    print(json.dumps({"seconds": seconds, "peak": peak_bytes() - before, "weights": weights}))


def read_seconds(file: Path) -> float:
    """Reading the file into memory, the plain way."""
    started = time.perf_counter()
    content = file.read_bytes()
    seconds = time.perf_counter() - started
    del content
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="titok_l32")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = ROOT / ".cache" / "benchmarks" / options.name
    if options.measure:
        measure(folder, options.measure)
        return 0
    if not (folder / "model.safetensors").is_file():
        print(f"writing {folder.relative_to(ROOT)} ...", flush=True)
        write_weights(options.name, folder)
    failed = False
    for precision in ("float32", "bfloat16"):
        reading = min(read_seconds(folder / "model.safetensors") for _ in range(3))
        command = [sys.executable, __file__, "--name", options.name, "--measure", precision]
        runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)]
        best = min(runs, key=lambda run: run["seconds"])
        peak, ratio = max(run["peak"] for run in runs) / best["weights"], best["seconds"] / reading
        print(
            f"{options.name} as {precision}: peak {peak:.2f} x the {best['weights'] / 1e9:.2f} GB of weights, "
            f"{best['seconds']:.2f} s = {ratio:.2f} x reading the file ({reading:.2f} s)"
        )
        failed |= peak > PEAK_LIMIT or ratio > TIME_LIMIT
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
