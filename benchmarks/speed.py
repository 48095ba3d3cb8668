"""How fast an optimization is: `python benchmarks/speed.py --model mini --mode fast`.

Prints milliseconds an iteration, pictures a second (of a run of --iterations), the peak of memory, the operations that
an iteration needs, and what share that is of the matrix products that this device does in the same time. `--compare`
measures the published loop beside it, in turns, and prints the ratio: it holds on a machine whose speed drifts.
Weights other than mini's are derived from a formula: speed does not depend on them. `--record` appends to RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import tokenopt_core as to  # noqa: E402
from benchmarks import plain  # noqa: E402
from benchmarks.loading import peak_bytes, write_weights  # noqa: E402
from devtools import results  # noqa: E402

COLUMNS = (
    "Date", "Commit", "Machine", "torch", "Model", "Mode", "Precision", "Batch", "Crops", "CPU threads",
    "ms an iteration", "Pictures a second", "Peak memory, GB", "GFLOP an iteration",
    "Share of the ceiling", "Ratio to plain",
)  # fmt: skip
PROMPT = "a fox on grass at night"


@dataclass
class Case:
    """What is measured."""

    tokenizer: to.Tokenizer
    clip: to.Clip
    features: torch.Tensor
    config: to.OptimizeConfig
    crops: int
    mode: str

    def run(self, iterations: int) -> float:
        """Seconds of a run."""
        config = to.OptimizeConfig(iterations=iterations, precision=self.config.precision)
        synchronize(self.features.device)
        start = time.perf_counter()
        if self.mode == "plain":
            plain.optimize(self.tokenizer, self.features, self.clip, PROMPT, config, self.crops)
        else:
            loss = to.ClipLoss(self.clip, PROMPT, crops=self.crops)
            to.optimize(self.tokenizer, self.features, loss, config)
        synchronize(self.features.device)
        return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def load(model: str, device: str) -> tuple[to.Tokenizer, to.Clip]:
    """Tokenizer and CLIP; big ones with derived or fresh weights."""
    if model == "mini":
        return to.load_tokenizer("mini").to(device), to.load_clip("mini").to(device)
    import open_clip

    folder = ROOT / ".cache" / "benchmarks" / model
    if not (folder / "model.safetensors").is_file():
        print(f"writing {folder.relative_to(ROOT)} ...", flush=True)
        write_weights(model, folder)
    tower = open_clip.create_model("ViT-B-32")
    clip = to.Clip(
        tower, open_clip.get_tokenizer("ViT-B-32"), open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, 224,
        "ViT-B-32",
    )  # fmt: skip
    return to.load_tokenizer(folder).to(device), clip.to(device)


def ceiling(device: torch.device, precision: str) -> float:
    """Operations a second of large matrix products, the best of five."""
    dtype = torch.float32 if precision == "auto" else getattr(torch, precision)
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        _ = a @ b
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times[1:])


def flops(case: Case) -> float:
    """Operations of one iteration, counted; the plain loop's gradients of weights among them."""
    with FlopCounterMode(display=False) as once:
        case.run(1)
    with FlopCounterMode(display=False) as twice:
        case.run(2)  # the difference leaves out what a run does once
    return float(twice.get_total_flops() - once.get_total_flops())


def alternate(cases: list[Case], iterations: int, rounds: int) -> list[list[float]]:
    """Seconds of each case's runs, the cases in turn."""
    seconds: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds):
        for case, taken in zip(cases, seconds, strict=True):
            taken.append(case.run(iterations))
    return seconds


def measure(options: argparse.Namespace) -> dict[str, str]:
    """One row of the table."""
    device = torch.device(options.device)
    tokenizer, clip = load(options.model, options.device)
    start = to.random_features(tokenizer, options.batch, 0.3, torch.Generator().manual_seed(0)).to(device)
    config = to.OptimizeConfig(iterations=options.iterations, precision=options.precision)
    fast = Case(tokenizer, clip, start, config, options.crops, "fast")
    cases = [fast] if options.mode == "fast" else []
    if cases:
        fast.run(2)  # first-use costs
    peak = peak_memory(device)  # before the plain loop's copies of the models are there
    if options.compare or options.mode == "plain":
        models = plain.plain_model(tokenizer), plain.plain_model(clip)
        cases.append(Case(*models, start, config, options.crops, "plain"))  # type: ignore[arg-type]
        cases[-1].run(2)
    if options.mode == "plain":
        peak = peak_memory(device)
    taken = alternate(cases, options.iterations, options.rounds)
    seconds, needed = median(taken[0]), flops(cases[0])
    share = needed * options.iterations / seconds / ceiling(device, options.precision)
    ratio = median(a / b for a, b in zip(*taken, strict=True)) if len(taken) == 2 else None
    where = torch.cuda.get_device_name() if device.type == "cuda" else results.machine()
    values = (
        date.today().isoformat(), results.commit(), where, torch.__version__, options.model, options.mode,
        options.precision, options.batch, options.crops, torch.get_num_threads(),
        f"{1000 * seconds / options.iterations:.1f}",
        f"{options.batch / seconds:.3g} ({options.iterations} iterations)", f"{peak / 1e9:.2f}", f"{needed / 1e9:.0f}",
        f"{100 * share:.0f} %", "" if ratio is None else f"{ratio:.2f}",
    )  # fmt: skip
    return dict(zip(COLUMNS, map(str, values), strict=True))


def peak_memory(device: torch.device) -> int:
    """Of this process so far: on a GPU what PyTorch took there, on a CPU what was resident."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model", default="mini", help="mini, or a published variant such as titok_l32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=20, help="of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs, of which the median counts")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--mode", default="fast", choices=["fast", "plain"])
    parser.add_argument("--compare", action="store_true", help="the published loop beside it, in turns")
    parser.add_argument("--threads", type=int, help="of the CPU; default: PyTorch's choice")
    parser.add_argument("--record", action="store_true", help="append a row to RESULTS.md")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    row = measure(options)
    for name, value in row.items():
        print(f"{name}: {value}")
    if options.record:
        results.add_row("## Speed", list(row.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
