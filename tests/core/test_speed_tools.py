"""The benchmarks' own code: that they run to their end on any machine, and say what they are to say."""

from __future__ import annotations

import importlib
import json
import math

import pytest
import torch

import tokenopt_core as to
from benchmarks import cases, gpu, gpu_checks, speed
from benchmarks.gpu_checks import Row, Setting
from devtools import commands, results
from devtools.paths import ROOT

QUICK = Setting("cpu", "mini", quick=True)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_every_benchmark_finds_what_it_imports_and_says_what_it_is(name: str) -> None:
    assert (importlib.import_module(f"benchmarks.{name}").__doc__ or "").strip()


def test_bench_gpu_runs_all_its_parts_on_a_cpu(tmp_path, capsys) -> None:
    file = tmp_path / "gpu.json"
    code = gpu.main(["--device", "cpu", "--model", "mini", "--quick", "--json", str(file)])
    report = json.loads(file.read_text())
    assert list(report["parts"]) == list(gpu.PARTS) and report["commit"] and report["machine"]
    rows = [Row(**row) for part in report["parts"].values() for row in part["rows"]]
    assert all(row.value is not None and math.isfinite(row.value) for row in rows), rows
    assert not [row for row in rows if row.verdict == "failed"] and code == 0
    assert [row.verdict for row in rows if row.correctness] == ["met"] * 3
    assert all(row.correctness or not row.verdict for row in rows), "the goals of speed are for another run"
    goals = {row.goal for row in rows}
    assert goals >= {"at most 0.0001", "at most 1 s", "at most 20 s", "at most 4 GB", "at least 1.6"}
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(table) == len(rows) + 2 and len({len(line) for line in table}) == 1
    assert all(row.what in printed and row.measured in printed for row in rows)


def test_bench_gpu_without_a_gpu_says_so_and_ends_well(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert "no CUDA GPU" in capsys.readouterr().out


def test_bench_gpu_passes_its_arguments_on() -> None:
    given = ["--device", "cpu", "--part", "half", "--json", "a b.json", "--help"]
    assert commands._parse(["bench-gpu", *given]).rest == given


def test_a_part_that_breaks_is_a_row_and_the_rest_goes_on(monkeypatch, capsys) -> None:
    def breaks(setting):
        yield Row("first", "1 s", value=1.0)
        raise torch.OutOfMemoryError("CUDA out of memory | tried\nmore")

    def works(setting):
        yield Row("second", "nan", "at most 1", "met", math.nan)
        yield Row("third", "2 s", value=2.0)

    monkeypatch.setattr(gpu, "PARTS", {"picture": breaks, "batch": works})
    assert gpu.main(["--device", "cpu", "--model", "mini", "--quick"]) == 0
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert cells[0] == ["first", "", "1 s", ""]
    assert cells[1] == ["part 'picture'", "", "failed: OutOfMemoryError: CUDA out of memory / tried", "failed"]
    assert cells[2] == ["second", "at most 1", "failed: nan", "failed"] and cells[3][0] == "third"


def test_what_is_not_correct_ends_with_1(monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_checks, "EXACT", 0.0)
    assert gpu.main(["--device", "cpu", "--model", "mini", "--quick", "--part", "exactness"]) == 1
    assert "NOT CORRECT: float32, mini, 10 iterations" in capsys.readouterr().err


def test_a_process_that_does_not_end_is_ended_and_counts_as_not_correct() -> None:
    (row,) = gpu.isolated("half", QUICK, minutes=0.001)
    assert row.verdict == "failed" and row.correctness and "took more than 0.001 minutes" in row.measured


def test_a_part_in_a_process_of_its_own_hands_its_rows_back(tmp_path, monkeypatch) -> None:
    row = Row("one", "1 s", "at most 2 s", "met", 1.0)
    monkeypatch.setattr(gpu, "PARTS", {"picture": lambda setting: iter([row])})
    file = tmp_path / "rows.json"
    assert gpu.main(["--device", "cpu", "--quick", "--part", "picture", "--rows", str(file)]) == 0
    assert [Row(**found) for found in json.loads(file.read_text())] == [row]


def test_goals_of_speed_are_judged_where_they_hold() -> None:
    assert Setting().verdict(True) == "met" and Setting().verdict(False) == "missed"
    assert {s.verdict(True) for s in (QUICK, Setting(model="mini"), Setting(quick=True))} == {""}


def test_a_row_of_speed_has_every_column(tmp_path, monkeypatch, capsys) -> None:
    table = tmp_path / "RESULTS.md"
    table.write_text("## Speed\n\n| a |\n| - |\n", encoding="utf-8")
    monkeypatch.setattr(results, "RESULTS", table)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    options = ["--crops", "2", "--iterations", "2", "--rounds", "1", "--precision", "bfloat16", "--compare"]
    assert speed.main([*options, "--device", "cpu", "--record"]) == 0
    written = [cell.strip() for cell in table.read_text().splitlines()[-1].strip("|").split("|")]
    assert len(written) == len(speed.COLUMNS) and all(written)
    row = dict(zip(speed.COLUMNS, written, strict=True))
    assert (row["Model"], row["Mode"], row["Precision"], row["Crops"]) == ("mini", "fast", "bfloat16", "2")
    assert float(row["ms an iteration"]) > 0 and float(row["GFLOP an iteration"]) > 0.5
    assert row["Pictures a second"].endswith("(2 iterations)") and float(row["Ratio to plain"]) > 0


@pytest.mark.parametrize("wrong", [["--model", "titok"], ["--batch", "0"], ["--rounds", "x"], ["--mode", "slow"]])
def test_speed_refuses_what_it_cannot_run(wrong, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        speed.parse(wrong)
    assert wrong[1] in capsys.readouterr().err


def test_gradients_of_weights_are_counted_with_the_plain_loop() -> None:
    fast = cases.make("mini", "cpu", 1, 2, to.OptimizeConfig(precision="float32"))
    # half as much again for them, and what the product leaves out besides
    assert 1.3 < cases.flops(cases.as_plain(fast)) / cases.flops(fast) < 3
