"""What the method does on the mini world, measured: `python benchmarks/evidence.py`.

Writes docs/evidence/evidence.json, README.md and sheets of pictures: edits, generation and inpainting with the example
workflows' settings, the same models with the published settings and each of our changes left out, the paper's tables in
small, what single tokens carry, and what the failures have in common. Results are kept in .cache/evidence: a run that
was ended goes on where it was, and what is known is not computed again.

The tokenizers of other shapes are left out until `python -m training.variants` has trained them. The
tables take half as many cases as the rest.

`--quick` takes minutes. `--seed S --n N` checks edits, generation and inpainting on cases of your own. Reports other
than the whole one go to results/evidence, or where `--out` says. The last line that is printed is a JSON object of the
rates.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import tokenopt_core as to  # noqa: E402
from benchmarks.casebook import REPORT_FROM  # noqa: E402
from benchmarks.evidence_failures import failures, sheet  # noqa: E402
from benchmarks.evidence_goals import reached  # noqa: E402
from benchmarks.evidence_lab import SHIPPED, Judged, Lab, Plan  # noqa: E402
from benchmarks.evidence_parts import Part, edits, generate, inpaint, rates  # noqa: E402
from benchmarks.evidence_pasting import copy_paste  # noqa: E402
from benchmarks.evidence_published import against_published  # noqa: E402
from benchmarks.evidence_report import report  # noqa: E402
from benchmarks.evidence_sheets import Tile, save  # noqa: E402
from benchmarks.evidence_store import Store, weights_hash  # noqa: E402
from benchmarks.evidence_tables import PIXELS, Pixels, tables  # noqa: E402
from benchmarks.evidence_variants import found_in, laboratory, variants  # noqa: E402
from devtools import results  # noqa: E402
from training.variants import FOLDER  # noqa: E402
from training.world import Album  # noqa: E402

PARTS: dict[str, Callable[[Lab, Plan], Part]] = {
    "edits": edits,
    "generate": generate,
    "inpaint": inpaint,
    "published": against_published,
    "tables": tables,
    "variants": variants,
    "copy_paste": copy_paste,
}
CHECKED = ("edits", "generate", "inpaint")  # what a seed of one's own is for
FULL, QUICK = 60, 8
MOST_BYTES = 1_500_000  # of the report with its sheets


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} cases a group")
    parser.add_argument("--n", type=int, help=f"cases a group; default {FULL}")
    parser.add_argument("--seed", type=int, help=f"of the cases; default {REPORT_FROM}; below it: tuned on")
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"some of {','.join(PARTS)}")
    parser.add_argument(
        "--tokenizer", action="append", default=[], metavar="NAME=FOLDER", help="beside the shipped one"
    )
    parser.add_argument("--variants", type=Path, default=ROOT / FOLDER, help="where training.variants has left them")
    parser.add_argument("--shipped", default=SHIPPED, help="another name or folder for the shipped tokenizer")
    parser.add_argument("--batch", type=int, default=12, help="pictures that are optimized at once")
    parser.add_argument("--fresh", action="store_true", help="compute again what is known")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "evidence")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    whole = not (options.quick or options.only or options.seed is not None)
    options.out = options.out or ROOT / ("docs" if whole else "results") / "evidence"
    there = [name for name in PARTS if name != "variants" or found_in(options.variants)]
    options.only = options.only or (there if options.seed is None else list(CHECKED))
    options.n = (QUICK if options.quick else FULL) if options.n is None else options.n
    options.seed = REPORT_FROM if options.seed is None else options.seed
    if not {*options.only} <= {*PARTS}:
        parser.error(f"--only takes some of {','.join(PARTS)}, got {','.join(options.only)}")
    if options.n < 1 or options.seed < 0 or options.batch < 1:
        parser.error("--n and --batch must be at least 1, --seed at least 0")
    if not all(0 < text.find("=") < len(text) - 1 for text in options.tokenizer):
        parser.error("--tokenizer takes NAME=FOLDER")
    return options


def prepare(options: argparse.Namespace) -> Lab:
    """Models, judges, and what was computed before."""
    from training.panel import Panel

    tokenizers: dict[str, Any] = {SHIPPED: to.load_tokenizer(options.shipped)}
    for text in options.tokenizer:
        name, _, folder = text.partition("=")
        tokenizers[name] = to.load_tokenizer(folder)
    size = tokenizers[SHIPPED].image_size
    for name, tokenizer in tokenizers.items():
        if tokenizer.image_size != size:
            raise SystemExit(f"the tokenizer {name} reads {tokenizer.image_size} px, the shipped one {size} px: "
                             "expected the same")  # fmt: skip
    tokenizers[PIXELS] = Pixels(size)
    album = Album(size)
    store = Store(options.cache, options.fresh)
    lab = Lab(album, Panel(album), to.load_clip("mini"), tokenizers, store, options.batch, results.commit(), say)
    if "variants" in options.only and found_in(options.variants):
        lab.variants = laboratory(lab, options.variants)
    return lab


def say(text: str) -> None:
    print(text, flush=True)


def command(arguments: Sequence[str]) -> str:
    """The command as anyone could type it: without this machine's folders."""
    absolute = re.compile(r"(^|=)([A-Za-z]:)?[/\\].*[/\\]")
    return " ".join(["python benchmarks/evidence.py", *(absolute.sub(r"\1", word) for word in arguments)])


def measure(
    lab: Lab, options: argparse.Namespace, typed: Sequence[str]
) -> tuple[dict[str, Any], dict[str, list[list[Tile]]]]:
    """All numbers of the report, and its sheets."""
    plan, parts, sheets, judged = Plan(options.seed, options.n), dict[str, Any](), dict[str, Any](), list[Judged]()
    for name in options.only:
        part = PARTS[name](lab, plan)
        parts[name] = part.found
        sheets |= part.sheets
        judged += part.judged
    if judged:
        parts["failures"] = failures(judged)
        sheets["failures"] = sheet(lab, judged)
    about = {
        "command": command(typed),
        "date": date.today().isoformat(),
        "commit": lab.commit,
        "commits": sorted(lab.commits),
        "machine": results.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seed": plan.seed,
        "n": plan.n,
        "models": {name: weights_hash(model) for name, model in lab.tokenizers.items() if name != PIXELS}
        | {"clip": weights_hash(lab.clip.model)},
    }
    return {"about": about, "rates": rates(parts), "goals": reached(parts), "parts": parts}, sheets


def write(out: Path, data: dict[str, Any], sheets: dict[str, list[list[Tile]]]) -> int:
    """The report's files; how many bytes they take."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "evidence.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(report(data), encoding="utf-8")
    for name, rows in sheets.items():
        if any(rows):
            save([row for row in rows if row], out / f"{name}.jpg")
    return sum(file.stat().st_size for file in out.iterdir() if file.is_file())


def main(arguments: Sequence[str] | None = None, prepared: Callable[[argparse.Namespace], Lab] = prepare) -> int:
    options = parse(arguments)
    if options.seed < REPORT_FROM:
        say(f"seed {options.seed}: settings may be tuned on these cases; those from {REPORT_FROM} on are for checks")
    data, sheets = measure(prepared(options), options, sys.argv[1:] if arguments is None else arguments)
    size = write(options.out, data, sheets)
    for goal in data["goals"]:
        least = "" if goal["least"] is None else f" of {goal['least']:.2f}"
        say(f"{'met    ' if goal['met'] else 'NOT MET'} {goal['goal']}: {goal['value']:.2f}{least} (n = {goal['n']})")
    say(f"report of {size / 1e6:.2f} MB" + (", more than it may be" if size > MOST_BYTES else ""))
    say(json.dumps(data["rates"]))
    return int(size > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
