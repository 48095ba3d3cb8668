"""Whether an optimization on a GPU is right, and how fast it is: `python dev.py bench-gpu`.

First the product is held against the published loop and half precision against float32, then its speed and memory
against the goals, then single switches against the default. Without a CUDA GPU it says so and ends. Each part is a
process of its own, so that one that fails leaves the others unharmed. Nothing is downloaded: L-32 gets derived weights
(2.6 GB, kept in .cache), ViT-B-32 fresh ones; speed does not depend on them. On a machine where `dev.py` cannot install
anything, `python benchmarks/gpu.py` is the same with whatever Python has torch, open_clip_torch, safetensors, pillow
and psutil. Ends with 1 if a check of correctness failed, with 0 otherwise, goals met or not.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import cases, gpu_checks, gpu_speed  # noqa: E402
from benchmarks.gpu_checks import Row, Setting  # noqa: E402
from devtools import results  # noqa: E402

PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "exactness": gpu_checks.exactness,
    "half": gpu_checks.half_precision,
    "picture": gpu_speed.one_picture,
    "batch": gpu_speed.batch,
    "plain": gpu_speed.against_plain,
    "switches": gpu_speed.switches,
    "compile": gpu_speed.compiled,
}
CORRECTNESS = ("exactness", "half")
HEADING = "## GPU"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA GPU that PyTorch can use here, so nothing was measured. "
              "`--device cpu --model mini --quick` runs the same parts on the processor.")  # fmt: skip
        return 0
    setting = Setting(options.device, options.model, options.quick)
    if options.rows:
        return worker(options.part[0], setting, options.rows)
    where, commit, today = cases.machine(torch.device(options.device)), results.commit(), date.today().isoformat()
    print(f"{where}, torch {torch.__version__}, commit {commit}", flush=True)
    rows, parts = list[Row](), dict[str, object]()
    for name in options.part or PARTS:
        print(f"\n{name}", flush=True)
        started = time.perf_counter()
        found = isolated(name, setting, options.minutes) if options.isolate else attempt(name, setting)
        rows += found
        parts[name] = {"seconds": time.perf_counter() - started, "rows": [asdict(row) for row in found]}
        if options.json:  # after each part: a run that is cut off leaves what it has
            report = {"date": today, "commit": commit, "machine": where, "torch": torch.__version__,
                      "python": platform.python_version(), "setting": asdict(setting), "parts": parts}  # fmt: skip
            options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    print("\n" + table(rows))
    if options.record:
        for row in rows:
            results.add_row(HEADING, [today, f"`{commit}`", where, torch.__version__, *cells(row)])
    wrong = [row.what for row in rows if row.correctness and row.verdict != "met"]
    if wrong:
        print(f"\nNOT CORRECT: {'; '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


def attempt(name: str, setting: Setting, keep: Callable[[list[Row]], object] = lambda rows: None) -> list[Row]:
    """A part's rows, in this process; what goes wrong in it becomes its last row. `keep` sees them as they come."""
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        print("  " + "  ".join(filter(None, cells(row))), flush=True)
        keep(rows)

    with remarks(lambda said: add(Row("the product said", said))):
        try:
            for row in PARTS[name](setting):
                add(checked(row))
        except Exception as error:
            add(broken(name, gpu_checks.reason(error)))
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.empty_cache()
    return rows


@contextlib.contextmanager
def remarks(tell: Callable[[str], object]) -> Iterator[None]:
    """What the product warns of, each remark once: graphs that could not be captured, memory that ran short."""
    said: set[str] = set()
    handler = logging.Handler(logging.WARNING)

    def emit(record: logging.LogRecord) -> None:
        message = record.getMessage().replace("|", "/")
        if message not in said:
            said.add(message)
            tell(message)

    handler.emit = emit  # type: ignore[method-assign]
    logger = logging.getLogger("tokenopt_core")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def isolated(name: str, setting: Setting, minutes: float) -> list[Row]:
    """A part's rows, from a process of its own: an error on a GPU can spoil everything after it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--device", setting.device, "--model", setting.model, "--part", name]
        command += ["--rows", str(file), *(["--quick"] if setting.quick else [])]
        problem = ""
        try:
            code = subprocess.run(command, timeout=60 * minutes, stdin=subprocess.DEVNULL).returncode
            if code:
                problem = f"the process ended with {code}"
        except subprocess.TimeoutExpired:
            problem = f"it took more than {minutes:g} minutes"
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    rows = [Row(**row) for row in found]
    return [*rows, broken(name, problem)] if problem else rows


def worker(name: str, setting: Setting, file: Path) -> int:
    """What the process of one part does."""

    def keep(rows: list[Row]) -> None:
        part = file.with_suffix(".part")
        part.write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
        os.replace(part, file)

    attempt(name, setting, keep)
    return 0


def broken(name: str, why: str) -> Row:
    """The row of a part that could not be finished."""
    return Row(f"part {name!r}", f"failed: {why}", verdict="failed", correctness=name in CORRECTNESS)


def checked(row: Row) -> Row:
    """The row; one whose number is none is a failure."""
    if row.value is not None and not math.isfinite(row.value):
        return Row(row.what, f"failed: {row.measured}", row.goal, "failed", correctness=row.correctness)
    return row


def cells(row: Row) -> list[str]:
    """What stands in the table's columns."""
    return [row.what, row.goal, row.measured, row.verdict]


def table(rows: Sequence[Row]) -> str:
    """All rows, the columns aligned."""
    lines = [["What", "Goal", "Measured", "Verdict"], *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dev.py bench-gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="default: cuda")
    parser.add_argument("--model", default="titok_l32", choices=cases.MODELS, metavar="NAME",
                        help=f"the goals are for titok_l32, the default; or {', '.join(cases.MODELS)}")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="few iterations: whether all parts run, not how fast")
    parser.add_argument("--part", action="append", choices=list(PARTS),
                        help=f"only this one; may be given several times. All: {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=10.0, help="that one part may take; default: 10")
    parser.add_argument("--record", action="store_true", help="add the table to benchmarks/RESULTS.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, after each part")
    parser.add_argument("--isolate", action=argparse.BooleanOptionalAction,
                        help="each part in a process of its own; default: on a GPU")  # fmt: skip
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.isolate is None:
        options.isolate = options.device == "cuda"
    return options


if __name__ == "__main__":
    sys.exit(main())
