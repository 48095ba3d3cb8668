"""What a ComfyUI notices of the extension when it starts: next to nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from devtools import comfyui
from devtools.paths import EXTENSION, ROOT

pytestmark = [pytest.mark.comfyui, pytest.mark.server]

SLOW = ("huggingface_hub", "open_clip", "timm", "torchvision", "transformers")
SECONDS = 0.3  # of the processor, so that what else runs on the machine does not count
TRIES = 3  # the first one may have to compile

LOAD = """
import asyncio, contextlib, importlib, importlib.abc, json, logging, os, sys, tempfile, time
home, pack, base, *slow = sys.argv[1:]
sys.path.insert(0, home)
from comfy.cli_args import args
args.cpu, args.base_directory = True, base
import torch, nodes
from comfy_api.latest import ComfyExtension, io
with contextlib.suppress(ImportError):  # ComfyUI's own, for the first pack that it loads, whichever that is
    importlib.import_module("comfy_config.config_parser")

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in slow, f"{name} was imported"

for name in [name for name in sys.modules if name.partition(".")[0] in slow]:
    del sys.modules[name]  # ComfyUI may have imported it already, and so hide that the pack does
sys.meta_path.insert(0, Refuse())

said = []
recorder = logging.Handler()
recorder.emit = lambda record: said.append(record.getMessage())
logging.getLogger().addHandler(recorder)
logging.getLogger().setLevel(logging.INFO)
with tempfile.TemporaryFile() as file:
    kept = [os.dup(stream) for stream in (1, 2)]
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)
    started = time.process_time()
    loaded = asyncio.run(nodes.load_custom_node(pack))
    seconds = time.process_time() - started
    sys.stdout.flush()
    for stream, original in zip((1, 2), kept):
        os.dup2(original, stream)
    file.seek(0)
    said += file.read().decode().splitlines()
known = sum(name.startswith("TokenOpt") for name in nodes.NODE_CLASS_MAPPINGS)
cuda = torch.cuda.is_initialized()
print(json.dumps({"loaded": loaded, "nodes": known, "seconds": seconds, "said": said, "cuda": cuda}))
"""


@pytest.fixture(scope="module")
def loadings(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Reports of the pack being loaded into a fresh ComfyUI, again if that took long."""
    reports: list[dict[str, Any]] = []
    while len(reports) < TRIES and not any(report["seconds"] < SECONDS for report in reports):
        base = str(tmp_path_factory.mktemp("comfyui"))
        command = [sys.executable, "-c", LOAD, str(comfyui.find()), str(ROOT), base, *SLOW]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        reports.append(json.loads(run.stdout.splitlines()[-1]))
    return reports


def test_the_pack_loads_without_slow_libraries(loadings) -> None:
    report = loadings[0]
    assert report["loaded"] and report["nodes"] > 10, report["said"]


def test_loading_prints_nothing_and_touches_no_cuda(loadings) -> None:
    assert loadings[0]["said"] == []
    assert not loadings[0]["cuda"]


def test_loading_takes_less_than_a_third_of_a_second(loadings) -> None:
    assert min(report["seconds"] for report in loadings) < SECONDS


def test_a_server_names_the_extension_only_among_the_import_times(comfy_server) -> None:
    log = Path(comfy_server.log_path).read_text(encoding="utf-8", errors="replace")
    start = log[: re.search(r"^To see the GUI|^Starting server", log, re.MULTILINE).start()]
    lines = [line for line in start.splitlines() if re.search("tokenopt|titok|open_clip", line, re.IGNORECASE)]
    (times,) = [line for line in lines if line.rstrip().endswith(f"custom_nodes/{EXTENSION}")] or [""]
    assert re.match(r"\s*\d+\.\d seconds: ", times)
    # what else has the name in it is where ComfyUI says its folders are, before it loads anything
    after = start[start.find("Import times") :]
    assert [line for line in lines if line in after] == [times]
