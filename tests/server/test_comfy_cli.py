"""The example workflows by comfy-cli, the command line that ComfyUI's own documentation names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.paths import WORKFLOWS

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.mark.parametrize("name", ["copy_paste.json", "text_edit.api.json"])
def test_comfy_cli_runs_a_workflow(comfy_server, tmp_path: Path, name: str) -> None:
    pytest.importorskip("comfy_cli")
    content = json.loads((WORKFLOWS / name).read_text(encoding="utf-8"))
    for node in content.values() if name.endswith(".api.json") else ():
        if "iterations" in node["inputs"]:
            node["inputs"]["iterations"] = 5
    path = tmp_path / name
    path.write_text(json.dumps(content), encoding="utf-8")
    home = tmp_path / "home"  # nothing outside is touched
    home.mkdir()
    folders = {key: str(home) for key in ("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "XDG_CONFIG_HOME")}
    proxies = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    comfy = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry"]
    where = ["--host", "127.0.0.1", "--port", str(comfy_server.port), "--wait", "--timeout", "240"]
    done = subprocess.run(
        [*comfy, "run", "--workflow", str(path), *where],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, **folders, **proxies},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert name.split(".")[0] in "".join(p.name for p in (comfy_server.base / "output").glob("*"))
