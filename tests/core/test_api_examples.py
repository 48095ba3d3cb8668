"""What the API examples do before they ask a server: find inputs, convert values, keep a batch's results."""

from __future__ import annotations

import copy
import csv
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from devtools.paths import ROOT, WORKFLOWS

FOLDER = ROOT / "api_examples"
WORKFLOW = WORKFLOWS / "text_edit.api.json"
GRAPH = {
    "1": {"class_type": "Loader", "inputs": {"name": "mini", "download": False}, "_meta": {"title": "Model v1.5"}},
    "2": {"class_type": "Loss", "inputs": {"prompt": "a fox", "weight": 1, "mode.strength": 0.5, "model": ["1", 0]}},
    "3": {"class_type": "Held", "inputs": {"weight": 0.05}, "_meta": {"title": "Twin"}},
    "4": {"class_type": "Held", "inputs": {"seed": 7}, "_meta": {"title": "Twin"}},
}


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    """The scripts as they see each other: by their bare names, from their own folder."""
    names = ("client", "run", "batch")
    sys.path.insert(0, str(FOLDER))
    try:
        return {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture
def run(scripts) -> ModuleType:
    return scripts["run"]


@pytest.fixture
def batch(scripts) -> ModuleType:
    return scripts["batch"]


@pytest.fixture
def error(scripts) -> type[Exception]:
    return scripts["client"].ComfyError


@pytest.fixture
def graph() -> dict:
    return copy.deepcopy(GRAPH)


def value(run: ModuleType, graph: dict, name: str) -> object:
    node_id, key = run.find_input(graph, name)
    return graph[node_id]["inputs"][key]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Model v1.5.name", ("1", "name")),
        ("model V1.5.name", ("1", "name")),
        ("1.name", ("1", "name")),
        ("Loss.mode.strength", ("2", "mode.strength")),
        ("prompt", ("2", "prompt")),
        ("4.seed", ("4", "seed")),
    ],
)
def test_an_input_is_found_by_title_class_id_or_alone(run, graph, name: str, found: tuple[str, str]) -> None:
    assert run.find_input(graph, name) == found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Lost.prompt", "No node is titled 'Lost'. There are: Model v1.5 (1), Loss (2), Twin (3), Twin (4)."),
        ("Loss.promt", "'Loss' has no input 'promt'. It has: prompt, weight, mode.strength."),
        ("Loss.model", "'model' of 'Loss' is a link to another node. It has: prompt, weight, mode.strength."),
        ("Twin.seed", "2 nodes are titled 'Twin'. Name one by its id: 3, 4."),
        ("weight", "2 nodes have an input 'weight'. Name one: Loss.weight, Twin.weight."),
        ("model", "No node has an input 'model'. There are: Model v1.5.name, Model v1.5.download, Loss.prompt, "),
    ],
)
def test_an_input_that_is_not_there(run, graph, error, name: str, message: str) -> None:
    with pytest.raises(error) as caught:
        run.find_input(graph, name)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("Loss.prompt", "12", "12"),
        ("4.seed", "3", 3),
        ("Loss.weight", "0.25", 0.25),
        ("3.weight", "1e-3", 0.001),
        ("1.download", "Yes", True),
        ("1.download", "false", False),
    ],
)
def test_a_value_is_of_the_kind_that_it_replaces(run, graph, name: str, text: str, expected: object) -> None:
    run.set_input(graph, name, text)
    new = value(run, graph, name)
    assert new == expected and type(new) is type(expected)


@pytest.mark.parametrize(("name", "kind"), [("4.seed", "a number"), ("1.download", "true or false")])
def test_a_value_of_another_kind(run, graph, error, name: str, kind: str) -> None:
    with pytest.raises(error, match=f"takes {kind}, not 'many'"):
        run.set_input(graph, name, "many")


def test_a_value_may_contain_points_and_equals_signs(run) -> None:
    graph = run.load(WORKFLOW, ["CLIP Loss.prompt=a fox. x=y"])
    assert value(run, graph, "CLIP Loss.prompt") == "a fox. x=y"


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is not a JSON file"), ('{"nodes": [], "links": []}', "Export"), ("[]", "Export")]
)
def test_a_file_that_is_no_api_workflow(run, error, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "workflow.json"
    path.write_text(content)
    with pytest.raises(error, match=message):
        run.load(path, [])


def test_nothing_is_overwritten(run, tmp_path: Path) -> None:
    saved = [run.save(content, tmp_path, "../An: edit") for content in (b"one", b"two", b"\xff\xd8")]
    assert saved == [tmp_path / "An edit.png", tmp_path / "An edit 2.png", tmp_path / "An edit.jpg"]
    assert saved[0].read_bytes() == b"one"


def test_the_example_rows_fit_the_workflow(run, batch) -> None:
    graph = run.load(WORKFLOW, [])
    rows = batch.read_rows(FOLDER / "prompts.csv", graph)
    filled = [batch.fill(graph, row) for row in rows]
    samples = ROOT / "tokenopt_core" / "mini" / "samples"
    assert len(rows) == 4 and len({batch.row_key(graph, row) for row in rows}) == 4
    for row, one in zip(rows, filled, strict=True):
        assert (samples / f"{row['picture']}.png").is_file()
        assert value(run, one, "Sample Picture.name") == row["picture"]
        assert value(run, one, "CLIP Loss.prompt") == row["prompt"]
        assert value(run, one, "Optimize Tokens.seed") == int(row["seed"])


def test_an_empty_cell_leaves_the_value_except_for_the_prompt(run, batch) -> None:
    graph = run.load(WORKFLOW, [])
    filled = batch.fill(graph, {"prompt": "", "seed": "", "CLIP Loss.weight": "2"})
    assert value(run, filled, "CLIP Loss.prompt") == ""
    assert value(run, filled, "Optimize Tokens.seed") == value(run, graph, "Optimize Tokens.seed")
    assert value(run, filled, "CLIP Loss.weight") == 2 and value(run, graph, "CLIP Loss.weight") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\na fox\n", "no column 'prompt'. It has: text"),
        ("", "no column 'prompt'. It has: none"),
        ("prompt,CLIP Loss.wait\na fox,1\n", "'CLIP Loss' has no input 'wait'"),
    ],
)
def test_columns_that_fit_no_input(run, batch, error, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(content)
    with pytest.raises(error, match=message):
        batch.read_rows(path, run.load(WORKFLOW, []))


def test_a_comma_without_quotation_marks(run, batch, error, tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text('prompt\na fox, by day\n"a fox, at night"\n')
    graph = run.load(WORKFLOW, [])
    first, second = batch.read_rows(path, graph)
    with pytest.raises(error, match="quotation marks"):
        batch.fill(graph, first)
    assert value(run, batch.fill(graph, second), "CLIP Loss.prompt") == "a fox, at night"


def line(batch: ModuleType, key: str, **cells: str) -> dict[str, str]:
    return dict.fromkeys(batch.COLUMNS, "") | {"key": key} | cells


def test_results_are_on_disk_after_each_row_and_the_last_attempt_counts(batch, tmp_path: Path) -> None:
    results = batch.Results(tmp_path / "new")
    (tmp_path / "new" / "a.png").touch()
    results.add(line(batch, "a", status="failed", error="two\nlines, and a comma"))
    assert batch.Results(tmp_path / "new").lines["a"]["error"] == "two\nlines, and a comma"
    assert not results.is_done("a")
    results.add(line(batch, "b", status="done", file="gone.png"))
    results.add(line(batch, "a", status="done", file="a.png"))
    again = batch.Results(tmp_path / "new")
    assert list(again.lines) == ["a", "b"]
    assert again.is_done("a") and not again.is_done("b") and not again.is_done("c")
    assert [path.name for path in sorted((tmp_path / "new").iterdir())] == ["a.png", "results.csv"]


def test_a_foreign_results_file_is_left_alone(batch, error, tmp_path: Path) -> None:
    with (tmp_path / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerow(["name", "score"])
    with pytest.raises(error, match="Choose another folder"):
        batch.Results(tmp_path)


def test_a_preview_comes_with_or_without_metadata(scripts) -> None:
    plain = scripts["client"]._preview((1).to_bytes(4, "big") + (1).to_bytes(4, "big") + b"\xff\xd8jpeg")
    meta = b'{"node_id": "8"}'
    named = scripts["client"]._preview((4).to_bytes(4, "big") + len(meta).to_bytes(4, "big") + meta + b"png")
    assert (plain.type, plain.image) == ("preview", b"\xff\xd8jpeg")
    assert (named.data, named.image) == ({"node_id": "8"}, b"png")


@pytest.mark.parametrize("script", ["run.py", "batch.py"])
def test_the_scripts_need_the_standard_library_and_websocket_only(script: str) -> None:
    question = f"""
import runpy, sys
sys.path.insert(0, {str(FOLDER)!r})
known = set(sys.modules)
runpy.run_path({str(FOLDER / script)!r}, run_name="imported")
outside = {{name.split(".")[0] for name in set(sys.modules) - known}} - set(sys.stdlib_module_names)
print(*sorted(outside - {{"client", "run", "websocket", "wsaccel", "python_socks", "socks"}}))
"""
    done = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


def test_no_server_is_an_error_of_one_line(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "run.py", WORKFLOW, "--server", "http://127.0.0.1:9", "--out", tmp_path]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: No ComfyUI answers at http://127.0.0.1:9") and done.stderr.count("\n") == 1
