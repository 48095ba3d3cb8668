"""What a run costs against batch, crops and iterations: `python benchmarks/cost.py --record`.

The mini model on this processor, one thread. Each size is run in turn with the others, several times, and the least
time of a size counts. Time is what the process itself computed (`time.process_time`), so that other programs disturb
little; on an idle machine it is what the clock says. `--record` writes docs/cost.png and the table in docs/speed.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import tokenopt_core as to  # noqa: E402
from benchmarks import cases, panels  # noqa: E402
from devtools import results  # noqa: E402

BATCHES, CROPS, ITERATIONS = (1, 2, 4, 8), (1, 2, 4, 8, 16), (25, 50, 100, 200)
EACH = 5  # iterations of the runs that differ in batch or crops
PICTURE, PAGE = ROOT / "docs" / "cost.png", ROOT / "docs" / "speed.md"
START, END = "<!-- cost -->\n", "<!-- end of cost -->\n"


@dataclass
class Size:
    """One point: a case, and the least of the seconds it took so far."""

    panel: int
    x: int
    case: cases.Case
    seconds: float = float("inf")

    def run(self) -> None:
        started = time.process_time()
        self.case.run()
        self.seconds = min(self.seconds, time.process_time() - started)


def sizes(batches: Sequence[int], crops: Sequence[int], iterations: Sequence[int]) -> list[Size]:
    """All points; they share the models."""
    config = to.OptimizeConfig(iterations=EACH, precision="float32")
    largest = cases.make("mini", "cpu", max(batches), 4, config)
    one = replace(largest, features=largest.features[:1])
    return [
        *(Size(0, n, replace(largest, features=largest.features[:n])) for n in batches),
        *(Size(1, n, replace(one, crops=n)) for n in crops),
        *(Size(2, n, replace(one, crops=1, config=replace(config, iterations=n))) for n in iterations),
    ]


def measure(points: Sequence[Size], rounds: int) -> list[panels.Panel]:
    """The panels' points, each the least of so many rounds."""
    points[0].run()  # first-use costs
    points[0].seconds = float("inf")
    for number in range(rounds):
        for point in points:
            point.run()
        print(f"round {number + 1} of {rounds}", flush=True)

    def panel(i: int, title: str, across: str, upwards: str, scale: float) -> panels.Panel:
        return panels.Panel(title, across, upwards, [(p.x, scale * p.seconds) for p in points if p.panel == i])

    each = 1000 / EACH
    return [
        panel(0, "Batch (4 crops)", "pictures at once", "ms an iteration", each),
        panel(1, "Crops (one picture)", "crops a picture", "ms an iteration", each),
        panel(2, "Iterations (one picture, one crop)", "iterations", "seconds", 1.0),
    ]


def table(found: Sequence[panels.Panel]) -> str:
    """The panels in numbers."""
    lines = ["| | at | measured | the straight line there | measured / line |", "| --- | ---: | ---: | ---: | ---: |"]
    for panel in found:
        for x, y in panel.points:
            line = panel.line(x)
            lines.append(f"| {panel.title}, {panel.upwards} | {x:g} | {y:.3g} | {line:.3g} | {y / line:.2f} |")
    return "\n".join(lines) + "\n"


def record(found: Sequence[panels.Panel], threads: int) -> None:
    """Writes the plot, and the table between its two marks in docs/speed.md."""
    panels.draw(found).save(PICTURE, optimize=True)
    page = PAGE.read_text(encoding="utf-8")
    before, after = page[: page.index(START) + len(START)], page[page.index(END) :]
    what = f"{results.machine()}, {threads} thread, torch {torch.__version__}, commit `{results.commit()}`"
    PAGE.write_text(f"{before}\n{what}:\n\n{table(found)}\n{after}", encoding="utf-8")
    print(f"Wrote {PICTURE.relative_to(ROOT)} and the table in {PAGE.relative_to(ROOT)}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of which the least counts; default: 5")
    parser.add_argument("--record", action="store_true", help="write docs/cost.png and the table in docs/speed.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = measure(sizes(BATCHES, CROPS, ITERATIONS), max(1, options.rounds))
    print("\n" + table(found))
    for panel in found:
        print(
            f"{panel.title}: the last point is {panel.against_line:.2f} x the straight line (1: linear, less: better)"
        )
    if options.record:
        record(found, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
