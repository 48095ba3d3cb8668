"""benchmarks/RESULTS.md: what was measured, on which machine, of which code."""

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from .paths import ROOT

RESULTS = ROOT / "benchmarks" / "RESULTS.md"


def add_row(heading: str, cells: Sequence[str]) -> None:
    """Adds a row to the end of the table below a heading, such as "## Soak"."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines()
    end = start = lines.index(heading)
    for i in range(start + 1, len(lines)):
        if lines[i].startswith("## "):
            break
        if lines[i].startswith("|"):
            end = i
    lines.insert(end + 1, f"| {' | '.join(cells)} |")
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"Recorded in {RESULTS.relative_to(ROOT).as_posix()}")


def commit() -> str:
    """Which code ran; marked if it is not exactly what was committed."""
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain", "nodes", "tokenopt_core"], capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.strip() + ("+" if changed else "")


def machine() -> str:
    """Processor, cores and memory."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text(encoding="utf-8").splitlines() if names.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
