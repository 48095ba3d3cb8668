"""The outside referees that only read: what they say of this checkout, and that what they say is heard."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from devtools import referee
from devtools.findings import ACCEPTED, Accepted, Finding, judge, read_accepted
from devtools.judges import GUARD, HAZARDS, JAVASCRIPT, RUFF, SYNTAX, VALIDATE, WARNINGS, staged
from devtools.paths import DevError

pytestmark = pytest.mark.slow

PYPROJECT = """
[project]
name = "bad"
version = "1.0.0"
[tool.comfy]
PublisherId = "somebody"
DisplayName = "Bad"
[tool.ruff.lint]
select = ["S"]
"""
CODE = """import subprocess

from comfy.model_management import no_such_name

subprocess.run(["pip", "install", "something"])


def node(x, text):
    x = no_such_name(x.cuda())
    return eval(text)
"""
SCRIPT = """import { app } from "../../scripts/app.js";
app.registerExtension({ name: "elsewhere.thing", setup() {} });
"""


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """An extension with one fault for each referee."""
    files = {"__init__.py": 'WEB_DIRECTORY = "./web"\n', "pyproject.toml": PYPROJECT, "nodes/bad.py": CODE}
    files |= {"web/bad.js": SCRIPT, "nodes/model.safetensors": "weights", "tests/test_bad.py": "x.cuda()\n"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


@pytest.fixture(autouse=True)
def tools() -> None:
    pytest.importorskip("comfy_test")
    if not shutil.which("git"):
        pytest.skip("comfy-import-guard reads from git")


def test_they_find_nothing_here_that_is_not_explained() -> None:
    with staged() as stage:
        verdict = referee.verdict_on(referee.offline(stage), referee.SILENT)
    assert verdict.passed, referee.report(verdict, referee.SILENT)
    assert verdict.explained


def test_every_one_of_them_is_heard(bad: Path) -> None:
    with staged(bad) as stage:
        found = {(f.referee, f.place): f.message for f in referee.offline(stage)}
    assert found[SYNTAX, "nodes/bad.py:9"].startswith(".cuda()")
    assert "namespace" in found[JAVASCRIPT, "bad.js:2"]
    assert found[WARNINGS, "nodes/model.safetensors"] == "weights"
    assert found[HAZARDS, "nodes/bad.py:5"] == "bare-pip"
    assert found[VALIDATE, "nodes/bad.py:10"].startswith("S307")
    assert found[GUARD, "nodes/bad.py:3"].startswith("comfy.model_management.no_such_name")
    assert found[RUFF, "nodes/bad.py:10"].startswith("S307")
    assert (SYNTAX, "tests/test_bad.py:1") not in found  # never runs inside ComfyUI


def test_an_extension_they_cannot_read_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("def broken(:\n", encoding="utf-8")
    with staged(tmp_path) as stage:
        found = {f.referee for f in referee.offline(stage)}
    assert {SYNTAX, VALIDATE, GUARD} <= found


ROW = Accepted("tool", "weights: *", "core/*.bin", "a reason")


def test_the_list_covers_what_it_names_and_nothing_else() -> None:
    findings = [
        Finding("tool", "weights: 3 MB", "core/deep/model.bin:12"),
        Finding("tool", "weights: 3 MB", "nodes/model.bin"),
        Finding("tool", "eval", "core/model.bin"),
        Finding("another", "weights: 3 MB", "core/model.bin"),
    ]
    verdict = judge(findings, [ROW], ["tool", "another"])
    assert verdict.explained == findings[:1]
    assert verdict.new == findings[1:]
    assert not verdict.passed


def test_a_row_that_nothing_needs_any_more_fails_only_if_its_referee_was_asked() -> None:
    assert judge([], [ROW], ["tool"]).outdated == [ROW]
    assert not judge([], [ROW], ["tool"]).passed
    assert judge([], [ROW], ["another"]).passed


def test_rows_are_read_from_the_document() -> None:
    rows = read_accepted(ACCEPTED.read_text(encoding="utf-8"))
    assert {row.referee for row in rows} <= {*referee.SILENT, *referee.ATTACHED}
    assert read_accepted("| Tool | It says |\n| `tool` | `weights: *` | `core/*.bin` | a reason |\n") == [ROW]
    with pytest.raises(DevError, match="reason"):
        read_accepted("| `tool` | `weights` | `core` |  |")
