"""Run a ComfyUI workflow once for each row of a CSV file, and save the pictures and a results.csv.

    python batch.py workflow.api.json prompts.csv --out results

Columns: `prompt`, and as you like `seed`, `picture` (a name of Sample Picture) and any "Node title.input".
An empty cell leaves the workflow's own value. Run it again to go on: a row whose pictures are there is skipped.
Needs `client.py` and `run.py` beside it.
"""

import copy
import csv
import hashlib
import json
import sys
import time
import urllib.error
from pathlib import Path

from client import ComfyClient, ComfyError, Graph, NotAnswering, Progress
from run import arguments, file_name, find_input, load, report_errors, results, set_input, suffix

Row = dict[str, str]  # column -> cell

PICTURE = "TokenOptSample.name"  # what the column `picture` sets
SURPLUS = "surplus cells"
COLUMNS = ["prompt", "seed", "file", "seconds", "status", "error", "key"]
DONE, FAILED = "done", "failed"


def main() -> int:
    """Run all rows that are not done; returns the exit status."""
    parser = arguments(__doc__)
    parser.add_argument("prompts", type=Path, help="the CSV file")
    options = parser.parse_args()
    graph = load(options.workflow, options.set)
    rows = read_rows(options.prompts, graph)
    log = Results(options.out)
    statuses = []
    with ComfyClient(options.server) as client:
        for number, row in enumerate(rows, start=1):
            key = row_key(graph, row)
            skipped = log.is_done(key)
            print(f"[{number}/{len(rows)}] {row['prompt']}{': already there' if skipped else ''}", flush=True)
            if not skipped:
                line = attempt(client, graph, row, options.out, key)
                log.add(line)
                print(f"  {line['error'] or line['file']}", flush=True)
                statuses.append(line["status"])
    done, failed = statuses.count(DONE), statuses.count(FAILED)
    print(f"{done} done, {failed} failed, {len(rows) - len(statuses)} already there: {log.path}")
    return int(failed > 0)


def read_rows(path: Path, graph: Graph) -> list[Row]:
    """The rows of a CSV file whose columns all name an input of the workflow."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey=SURPLUS, restval="")
            columns, rows = list(reader.fieldnames or []), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ComfyError(f"{path} is not a CSV file in UTF-8: {error}") from error
    if "prompt" not in columns:
        raise ComfyError(f"{path} has no column 'prompt'. It has: {', '.join(columns) or 'none'}.")
    for column in columns:
        find_input(graph, input_name(column))
    return rows


def input_name(column: str) -> str:
    """The input that a column sets, as `set_input` takes it."""
    return PICTURE if column == "picture" else column


def row_key(graph: Graph, row: Row) -> str:
    """The same for the same workflow with the same cells."""
    cells = {column: cell for column, cell in row.items() if cell}
    return hashlib.sha256(json.dumps([graph, cells], sort_keys=True).encode()).hexdigest()[:12]


def attempt(client: ComfyClient, graph: Graph, row: Row, folder: Path, key: str) -> Row:
    """Run the workflow with a row's inputs; the row's line of the results, whether it succeeded or not."""
    line = dict.fromkeys(COLUMNS, "") | {"prompt": row["prompt"], "seed": row.get("seed", ""), "key": key}
    started = time.monotonic()
    try:
        filled = fill(graph, row)
        line["seed"] = seed_of(filled)
        with Progress(filled) as progress:
            pictures = results(client, client.execute(filled, progress))
        files = write_pictures(pictures, folder, f"{file_name(row['prompt'])} {key}")
        line |= {"file": "; ".join(files), "status": DONE}
    except NotAnswering:
        raise  # nor would it answer the other rows
    except (ComfyError, urllib.error.HTTPError) as error:
        line |= {"error": str(error), "status": FAILED}
    return line | {"seconds": f"{time.monotonic() - started:.1f}"}


def fill(graph: Graph, row: Row) -> Graph:
    """A copy of the workflow with a row's cells as its inputs."""
    if SURPLUS in row:
        raise ComfyError("The row has more cells than there are columns. A text with a comma needs quotation marks.")
    filled = copy.deepcopy(graph)
    for column, cell in row.items():
        if cell or column == "prompt":
            set_input(filled, input_name(column), cell)
    return filled


def seed_of(graph: Graph) -> str:
    """The seed of the only node that has one."""
    try:
        node_id, key = find_input(graph, "seed")
    except ComfyError:
        return ""
    return str(graph[node_id]["inputs"][key])


def write_pictures(pictures: dict[str, list[bytes]], folder: Path, name: str) -> list[str]:
    """Write a row's pictures; returns the names of the files."""
    encoded = [picture for group in pictures.values() for picture in group]
    if not encoded:
        raise ComfyError("The workflow saves and shows no picture.")
    names = [f"{name}{f' {n}' if n > 1 else ''}{suffix(picture)}" for n, picture in enumerate(encoded, start=1)]
    for target, picture in zip(names, encoded, strict=True):
        (folder / target).write_bytes(picture)
    return names


class Results:
    """results.csv: a line for each row that was tried, the last attempt counts.

    It is written after the row's pictures, and replaced as a whole, so that a kill at any time loses no line.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.csv"
        self.lines = self._read()

    def is_done(self, key: str) -> bool:
        """Whether a row succeeded and its pictures are still there."""
        line = self.lines.get(key)
        if line is None or line["status"] != DONE:
            return False
        return all((self.path.parent / name).is_file() for name in line["file"].split("; "))

    def add(self, line: Row) -> None:
        """Put in a row's line, in place of its earlier one."""
        self.lines[line["key"]] = line
        part = self.path.with_suffix(".part")
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.lines.values())
        part.replace(self.path)

    def _read(self) -> dict[str, Row]:
        if not self.path.exists():
            return {}
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != COLUMNS:
                raise ComfyError(f"{self.path} was not written by this script. Choose another folder with --out.")
            return {line["key"]: line for line in reader}


if __name__ == "__main__":
    sys.exit(report_errors(main))
