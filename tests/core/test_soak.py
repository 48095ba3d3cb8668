"""The soak's arithmetic: its rounds, what it calls left over, and the row it writes."""

from __future__ import annotations

from dataclasses import replace

from devtools import results, scenes, soak
from devtools.soak import Reading

BEFORE = Reading(prompts=20, minutes=1.0, memory=1000 * 2**20, threads=6, handles=9, files=0)


def test_what_is_left_over_is_named() -> None:
    assert soak.judge([BEFORE, replace(BEFORE, prompts=200, memory=1029 * 2**20)]) == []
    assert soak.judge([BEFORE, replace(BEFORE, memory=900 * 2**20, threads=5, handles=8)]) == []
    assert "3.1%" in soak.judge([BEFORE, replace(BEFORE, memory=1031 * 2**20)])[0]
    left = soak.judge([BEFORE, replace(BEFORE, threads=7), replace(BEFORE, threads=8, handles=12, files=1)])
    assert left == ["2 threads were left over.", "3 handles were left over.", "1 files were left over."]


def test_every_round_plays_the_same_scenes_with_new_seeds_in_another_order() -> None:
    rounds = [list(scenes.deck(number)) for number in range(3)]
    scripts = [[replace(scene, seed=0) for scene in scenes_of_round] for scenes_of_round in rounds]
    assert scripts[0] != scripts[1] != scripts[2]
    assert all(sorted(map(repr, script)) == sorted(map(repr, scripts[0])) for script in scripts)
    assert len({scene.seed for scenes_of_round in rounds for scene in scenes_of_round}) == 3 * scenes.ROUND
    everything = scripts[0]
    assert {scene.tokenizer for scene in everything} == {"mini", *scenes.TOKENIZERS}
    assert {scene.loss for scene in everything} == {"clip", "image", "known", "both"}
    assert len({scene.size for scene in everything}) >= 5
    assert {"interrupt", "finish", "refused", "damaged", "misfit"} < {scene.ending for scene in everything}


def test_a_row_goes_to_the_end_of_its_table(tmp_path, monkeypatch) -> None:
    table = tmp_path / "RESULTS.md"
    table.write_text("# Results\n\n## Soak\n\n| a |\n| - |\n| old |\n\n## Speed\n\n| b |\n| - |\n", encoding="utf-8")
    monkeypatch.setattr(results, "RESULTS", table)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    versions = {"python_version": "3.11.7 (main)", "pytorch_version": "2.9.0", "comfyui_version": "0.3.75"}
    soak.add_row([BEFORE, replace(BEFORE, prompts=200, minutes=9.876, memory=1010 * 2**20)], versions)
    lines = table.read_text(encoding="utf-8").splitlines()
    assert lines[6] == "| old |" and lines[8:10] == ["", "## Speed"]
    assert "| Python 3.11.7, torch 2.9.0, ComfyUI 0.3.75 | 200 | 9.9 | 1000 -> 1010 MiB (+1.0%) |" in lines[7]
    assert lines[7].endswith("| 6 -> 6 | 9 -> 9 | 0 -> 0 |")
