"""The outside referees that look at a running server."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from devtools import referee
from devtools.judges import LINT, REGISTRATION, VALIDATION, staged

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(autouse=True)
def tools() -> None:
    pytest.importorskip("comfy_test")


def test_they_find_nothing_here_that_is_not_explained(comfy_server) -> None:
    with staged() as stage:
        verdict = referee.verdict_on(referee.live(stage, comfy_server), referee.ATTACHED)
    assert verdict.passed, referee.report(verdict, referee.ATTACHED)


def test_they_are_heard(comfy_server, tmp_path: Path) -> None:
    (tmp_path / "workflows").mkdir()
    node = {"class_type": "TokenOptCopyPaste", "inputs": {"positions": "0", "strength": 1.0}}
    (tmp_path / "workflows" / "bad.api.json").write_text(json.dumps({"1": node}))
    canvas = {"nodes": [{"id": 7, "type": "NoSuchNode"}], "links": []}
    (tmp_path / "workflows" / "bad.json").write_text(json.dumps(canvas))
    with staged(tmp_path) as stage:
        found = {(f.referee, f.place): f.message for f in referee.live(stage, comfy_server)}
        assert found[VALIDATION, "workflows/bad.json"].endswith("Unknown node type: NoSuchNode")
        assert "missing required input" in found[LINT, "workflows/bad.api.json"]
        assert not any(name == REGISTRATION for name, _ in found)

        log = tmp_path / "log"
        log.write_text("   0.0 seconds (IMPORT FAILED): /comfyui/custom_nodes/comfyui-tokenopt\n")
        failed = SimpleNamespace(url=comfy_server.url, log_path=log)
        (finding,) = referee.LIVE[REGISTRATION, VALIDATION](stage, failed)
        assert finding.referee == REGISTRATION and "IMPORT FAILED" in finding.message
