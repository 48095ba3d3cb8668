"""The API examples as a user runs them: scripts of their own process against the live server."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from api_examples.client import find_node
from devtools.paths import ROOT, WORKFLOWS

from .conftest import pixels

pytestmark = pytest.mark.server

WORKFLOW = WORKFLOWS / "text_edit.api.json"
FAST = ["--set", "Optimize Tokens.iterations=2"]
ENDLESS = ["--set", "Optimize Tokens.iterations=50000", "--set", "Optimize Tokens.seed=77"]


@pytest.fixture
def script(comfy_server, tmp_path: Path):
    """Starts a script of the folder with the live server and a results folder of its own."""

    def start(name: str, *arguments: object, endless: bool = False) -> subprocess.Popen[str]:
        command = [sys.executable, ROOT / "api_examples" / name, WORKFLOW, "--server", comfy_server.url]
        command += ["--out", tmp_path / "out", *(ENDLESS if endless else FAST), *arguments]
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUTF8": "1"},
            # A test run in the background ignores SIGINT, and so would its children.
            preexec_fn=None if os.name == "nt" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


@pytest.fixture
def finish(script):
    """Runs a script to its end; its exit status and what it wrote to stdout and to stderr."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        process = script(name, *arguments)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err

    return run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def lines_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def interrupt_at(process: subprocess.Popen[str], text: str) -> tuple[int, str]:
    """Send Ctrl-C when the script says the text; the exit status and stderr."""
    watchdog = threading.Timer(240, process.kill)
    watchdog.start()
    for line in process.stdout:
        if text in line:
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate()
    watchdog.cancel()
    return process.returncode, err


def test_changed_inputs_take_effect(client, graph, node, finish, out) -> None:
    by_id = f"{find_node(graph(), 'Optimize Tokens')}.seed=31"
    changes = ["CLIP Loss.prompt=a fox on snow by day", by_id, "Sample Picture.name=house on snow by day"]
    status, said, err = finish("run.py", *(word for change in changes for word in ("--set", change)))
    assert status == 0, err
    assert "Optimize Tokens: 2/2" in said and "\x1b" not in said
    (saved,) = out.iterdir()
    assert saved.name == "Edited picture.png" and str(saved) in said

    prompt = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    node(prompt, "TokenOptOptimize").update(seed=31, iterations=2)
    node(prompt, "TokenOptCLIPLoss")["prompt"] = "a fox on snow by day"
    node(prompt, "TokenOptSample")["name"] = "house on snow by day"
    (expected,) = client.run(prompt)[find_node(prompt, "Edited picture")]
    assert np.array_equal(pixels(saved.read_bytes()), pixels(expected))


def test_results_of_two_runs_and_their_previews_stand_side_by_side(finish, out) -> None:
    for seed in (41, 42):
        status, _, err = finish("run.py", "--set", f"seed={seed}", "--previews")
        assert status == 0, err
    names = sorted(path.name for path in out.glob("*.png"))
    assert names == ["Edited picture 2.png", "Edited picture.png"]
    previews = list(out.glob("previews */*"))
    assert previews
    for path in previews:
        with Image.open(path) as picture:
            assert picture.size == (256, 256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("Optimise.seed=1", "No node is titled 'Optimise'. There are: "),
        ("CLIP Loss.promt=a fox", "'CLIP Loss' has no input 'promt'. It has: prompt, negative, "),
        ("CLIP Loss.prompt=", "the prompt is empty"),
        ("Sample Picture.name=a zebra", "'a zebra'"),
        ("iterations=0", "Optimize Tokens: "),
    ],
)
def test_what_cannot_run_says_why(finish, out, change: str, message: str) -> None:
    status, said, err = finish("run.py", "--set", change)
    assert status == 1
    assert message in err and "Traceback" not in err
    assert not list(out.glob("*")) and "Done" not in said


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to consoles, not to processes")
def test_ctrl_c_takes_the_prompt_off_the_server(comfy_server, script, out) -> None:
    status, err = interrupt_at(script("run.py", endless=True), "/50000")
    assert (status, err) == (130, "Cancelled.\n")
    assert comfy_server.get("/queue") == {"queue_running": [], "queue_pending": []}
    assert not out.exists()


def test_a_batch_goes_on_after_a_bad_row_and_where_it_stopped(comfy_server, finish, tmp_path, out) -> None:
    rows = write_rows(
        tmp_path / "rows.csv",
        "prompt,seed,picture,CLIP Loss.crops",
        "a fox on sand by day,51,,",
        "a zebra on a bicycle,52,,",
        "a penguin on snow at night,,penguin on snow at night,2",
        "a fox on snow by day,many,,",
    )
    status, said, _ = finish("batch.py", rows)
    assert status == 1 and "2 done, 2 failed, 0 already there" in said
    first, zebra, penguin, many = lines_of(out)
    assert [first["status"], zebra["status"], penguin["status"], many["status"]] == ["done", "failed", "done", "failed"]
    assert "It knows: " in zebra["error"] and not zebra["file"]
    assert many["error"] == "Optimize Tokens.seed takes a number, not 'many'."
    assert (first["seed"], penguin["seed"]) == ("51", "0") and float(first["seconds"]) > 0
    pictures = [out / line["file"] for line in (first, penguin)]
    assert not np.array_equal(*(pixels(path.read_bytes()) for path in pictures))

    history, times = comfy_server.get("/history"), [path.stat().st_mtime_ns for path in pictures]
    write_rows(rows, *(row for row in rows.read_text().splitlines() if "zebra" not in row and "many" not in row))
    status, said, _ = finish("batch.py", rows)
    assert status == 0 and "0 done, 0 failed, 2 already there" in said
    assert comfy_server.get("/history").keys() == history.keys(), "something was queued"
    assert [path.stat().st_mtime_ns for path in pictures] == times

    pictures[0].unlink()
    write_rows(rows, *rows.read_text().splitlines(), "a fox on sand by day,53,,")
    status, said, _ = finish("batch.py", rows)
    assert status == 0 and "2 done, 0 failed, 1 already there" in said
    assert pictures[0].is_file() and len(lines_of(out)) == 5


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to consoles, not to processes")
def test_ctrl_c_stops_a_batch_and_keeps_what_is_done(comfy_server, script, tmp_path, out) -> None:
    rows = write_rows(tmp_path / "rows.csv", "prompt,Optimize Tokens.iterations", "a fox on sand by day,1", "a fox,")
    status, err = interrupt_at(script("batch.py", rows, endless=True), "/50000")
    assert (status, err) == (130, "Cancelled.\n")
    assert comfy_server.get("/queue") == {"queue_running": [], "queue_pending": []}
    (line,) = lines_of(out)
    assert line["status"] == "done" and (out / line["file"]).is_file()


def test_a_batch_whose_columns_do_not_fit_queues_nothing(comfy_server, finish, tmp_path, out) -> None:
    before = comfy_server.get("/history").keys()
    status, _, err = finish("batch.py", write_rows(tmp_path / "rows.csv", "prompt,CLIP Loss.promt", "a fox,1"))
    assert status == 1 and "'CLIP Loss' has no input 'promt'" in err
    assert comfy_server.get("/history").keys() == before and not out.exists()
