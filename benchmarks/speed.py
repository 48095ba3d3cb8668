"""How fast an optimization is: `python benchmarks/speed.py --model mini --mode fast`.

Prints milliseconds an iteration, pictures a second (of a run of --iterations), the peak of memory, the operations that
an iteration needs, and what share that is of the matrix products that this device does in the same time. `--compare`
measures the published loop beside it, in turns, and prints the ratio of their times, below 1 where the product is
faster: it holds on a machine whose speed drifts. Weights other than mini's are derived from a formula and kept in
.cache: speed does not depend on them. What each column means is in docs/speed.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import tokenopt_core as to  # noqa: E402
from benchmarks import cases  # noqa: E402
from devtools import results  # noqa: E402

COLUMNS = (
    "Date", "Commit", "Machine", "torch", "Model", "Mode", "Precision", "Batch", "Crops", "CPU threads",
    "ms an iteration", "Pictures a second", "Peak memory, GB", "GFLOP an iteration",
    "Share of the ceiling", "Ratio to plain",
)  # fmt: skip


def measure(options: argparse.Namespace) -> dict[str, str]:
    """One row of the table."""
    device = torch.device(options.device)
    config = to.OptimizeConfig(iterations=options.iterations, precision=options.precision)
    modes = [options.mode, *({"fast", "plain"} - {options.mode} if options.compare else ())]
    chosen, peak = [], 0
    for mode in modes:  # each with models of its own: a run may leave on them what it prepared for the next
        choose = cases.as_plain if mode == "plain" else lambda case: case
        chosen.append(choose(cases.make(options.model, options.device, options.batch, options.crops, config)))
        # first-use costs; on a GPU those of a long run, too, which is prepared otherwise than a short one
        chosen[-1].run(options.iterations if device.type == "cuda" and mode == "fast" else 2)
        peak = peak or cases.peak_memory(device)  # before the other mode's models are there
    taken = cases.alternate(chosen, options.rounds)
    seconds, needed = median(taken[0]), cases.flops(chosen[0])
    share = needed / seconds / cases.ceiling(device, options.precision)
    by_mode = dict(zip(modes, taken, strict=True))
    ratio = f"{median(a / b for a, b in zip(by_mode['fast'], by_mode['plain'], strict=True)):.2f}" if taken[1:] else ""
    plural = "s" if options.iterations > 1 else ""
    rate = f"{options.batch / seconds / options.iterations:.3g} ({options.iterations} iteration{plural})"
    values = (
        date.today().isoformat(), f"`{results.commit()}`", cases.machine(device), torch.__version__, options.model,
        options.mode, options.precision, options.batch, options.crops, torch.get_num_threads(),
        f"{1000 * seconds:.1f}", rate, f"{peak / 1e9:.2f}", f"{needed / 1e9:.4g}", f"{100 * share:.0f} %", ratio,
    )  # fmt: skip
    return dict(zip(COLUMNS, map(str, values), strict=True))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"],
                        help="default: cuda where there is one")  # fmt: skip
    parser.add_argument("--model", default="mini", choices=cases.MODELS, metavar="NAME",
                        help=f"{', '.join(cases.MODELS)}; all but mini with a ViT-B-32. Default: mini")  # fmt: skip
    parser.add_argument("--batch", type=_count, default=1, help="pictures at once; default: 1")
    parser.add_argument("--crops", type=_count, default=8, help="of each picture, an iteration; default: 8")
    parser.add_argument("--iterations", type=_count, default=20, help="of each run; default: 20")
    parser.add_argument("--rounds", type=_count, default=3, help="runs, of which the median counts; default: 3")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"],
                        help="of the arithmetic; the weights stay float32. Default: float32")  # fmt: skip
    parser.add_argument("--mode", default="fast", choices=["fast", "plain"],
                        help="the product's loop or the published one; default: fast")  # fmt: skip
    parser.add_argument("--compare", action="store_true", help="run the other one, too, in turns, and give the ratio")
    parser.add_argument("--threads", type=_count, help="of the CPU; default: PyTorch's choice")
    parser.add_argument("--record", action="store_true", help="append the row to benchmarks/RESULTS.md")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA GPU here: leave out --device, or ask for --device cpu")
    return options


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
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
