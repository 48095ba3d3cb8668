"""What the node costs over the bare loop, and how long an edit takes: `python benchmarks/overhead.py`.

Starts a real ComfyUI. In it the node Optimize Tokens and `tokenopt_core.optimize` run in turns, with the same models,
features, loss, seed and settings (mini, 8 crops), while a client watches bar and previews; of each round the ratio
counts, and of the ratios the median. One more run of the node tells directly what its thread does beside the loop:
this hardly depends on what else the machine does. Before that, the workflow text_edit.json runs as it is shipped,
twice: with the models to be loaded, and with another seed. Times are given by the clock, and in seconds that the
server itself computed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

from api_examples.client import ComfyClient, Graph, find_node  # noqa: E402
from devtools import results  # noqa: E402
from devtools.paths import CACHE, WORKFLOWS  # noqa: E402
from devtools.server import ComfyServer  # noqa: E402

HEADING = "## Node and edit"
GOAL, EDIT_GOAL = 1.02, 15.0  # x the bare loop; s
PARTS = {"callback": "in the callback", "around": "around the loop"}
Rounds = list[dict[str, list[float]]]  # of each round, each way's seconds by the clock and computed


def text_edit() -> Graph:
    """The workflow as it is shipped."""
    graph: Graph = json.loads((WORKFLOWS / "text_edit.api.json").read_text(encoding="utf-8"))
    return graph


def in_turns(client: ComfyClient, iterations: int, rounds: int) -> tuple[Rounds, dict[str, float]]:
    """Runs the timing node in place of Optimize Tokens: the rounds, and the parts of the node's own time."""
    graph = text_edit()
    inputs = graph[find_node(graph, "TokenOptOptimize")]["inputs"]
    graph[find_node(graph, "TokenOptCLIPLoss")]["inputs"]["crops"] = 8
    sockets = {name: inputs[name] for name in ("titok", "features", "loss")}
    timing = {"class_type": "BenchmarkOverhead", "inputs": {**sockets, "iterations": iterations, "rounds": rounds}}
    prompt = client.execute({**graph, "timing": timing})
    found = json.loads(client.history(prompt)["outputs"]["timing"]["text"][0])
    return found["rounds"], found["parts"]


def ratios(found: Rounds) -> dict[str, tuple[float, float]]:
    """Each way's time over the bare loop's in the same round, the median: by the clock and computed."""
    names = [name for name in found[0] if name != "bare"]
    return {
        name: (
            median(one[name][0] / one["bare"][0] for one in found),
            median(one[name][1] / one["bare"][1] for one in found),
        )
        for name in sorted(names)
    }


def edit(client: ComfyClient, process: psutil.Process, seed: int) -> tuple[float, float]:
    """Seconds of the shipped edit from its queueing to its end: by the clock, and computed by the server."""
    graph = text_edit()
    graph[find_node(graph, "TokenOptOptimize")]["inputs"]["seed"] = seed
    started, before = time.perf_counter(), process.cpu_times()
    client.execute(graph)
    clock, after = time.perf_counter() - started, process.cpu_times()
    return clock, after.user + after.system - before.user - before.system


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=100, help="of each run; default: 100")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--threads", type=int, help="of the server; default: PyTorch's choice")
    parser.add_argument("--record", action="store_true", help="append a row to benchmarks/RESULTS.md")
    options = parser.parse_args(arguments)
    threads = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="overhead-", dir=CACHE) as folder:
        (Path(folder) / "custom_nodes").mkdir()
        shutil.copy(Path(__file__).with_name("overhead_node.py"), Path(folder) / "custom_nodes")
        with (
            ComfyServer(base=Path(folder), env={"HF_HUB_OFFLINE": "1", **threads}) as server,
            ComfyClient(server.url) as client,
        ):
            assert server.process
            process = psutil.Process(server.process.pid)
            busy = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
            versions = server.get("/system_stats")["system"]
            print(f"{results.machine()}, commit {results.commit()}; load of other programs: {busy}", flush=True)
            edits = [edit(client, process, seed) for seed in (0, 1)]
            found, parts = in_turns(client, options.iterations, options.rounds)
    for what, (clock, computed) in zip(("models to be loaded", "models loaded"), edits, strict=True):
        print(f"text_edit.json, {what}: {clock:.1f} s, {computed:.1f} s computed (goal: at most {EDIT_GOAL:g} s)")
    for name, (clock, computed) in ratios(found).items():
        goal = f" (goal: at most {GOAL:g})" if name == "as it comes" else ""
        print(f"the node {name}: {clock:.3f} x the bare loop by the clock, {computed:.3f} x computed{goal}")
    own = (parts["callback"] + parts["around"]) / parts["loop"]
    where = ", ".join(f"{1000 * parts[name]:.0f} ms {text}" for name, text in PARTS.items())
    print(f"the node's thread beside the loop: {100 * own:.2f} % of the loop's time ({where})")
    bare = median(one["bare"][1] for one in found)
    print(f"the bare loop: {1000 * bare / options.iterations:.1f} ms an iteration, computed; {len(found)} rounds")
    if options.record:
        cells = [date.today().isoformat(), f"`{results.commit()}`", results.machine(),
                 f"Python {platform.python_version()}, torch {versions['pytorch_version']}, "
                 f"ComfyUI {versions['comfyui_version']}", busy, str(options.threads or "default")]  # fmt: skip
        cells += [f"{clock:.1f} s ({computed:.1f} s)" for clock, computed in edits]
        cells += [f"{clock:.3f} ({computed:.3f})" for clock, computed in ratios(found).values()]
        cells.append(f"{100 * own:.2f} %")
        results.add_row(HEADING, cells)
    return 0


if __name__ == "__main__":
    sys.exit(main())
