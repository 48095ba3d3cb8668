"""What loading the pack costs a ComfyUI: no device is touched, and no slow library imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from devtools import comfyui
from devtools.paths import ROOT

pytestmark = pytest.mark.comfyui

LOADS_THE_PACK = """
import asyncio, sys
home, pack, base = sys.argv[1:]
sys.path.insert(0, home)
from comfy.cli_args import args
args.cpu, args.base_directory = True, base
import torch, nodes, comfy.model_management
from comfy_api.latest import ComfyExtension, io

def refuse(*args, **kwargs):
    raise AssertionError("the pack asked for a device while it was loaded")

for name in ("_lazy_init", "is_available", "current_device", "device_count", "get_device_properties"):
    setattr(torch.cuda, name, refuse)
comfy.model_management.get_torch_device = refuse
before = set(sys.modules)
assert asyncio.run(nodes.load_custom_node(pack))
print("LOADED:", *sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_loading_touches_no_device_and_imports_no_slow_library(tmp_path) -> None:
    command = [sys.executable, "-c", LOADS_THE_PACK, str(comfyui.find()), str(ROOT), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("LOADED:"))
    assert not set(line.split()) & {"open_clip", "huggingface_hub", "timm", "torchvision", "transformers", "requests"}


def test_the_root_imports_without_comfyui() -> None:
    """Other tools import a pack's root; pytest does, too."""
    question = "import importlib.util as u; s = u.spec_from_file_location('pack', '__init__.py'); "
    question += "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.WEB_DIRECTORY)"
    run = subprocess.run([sys.executable, "-c", question], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "./web"), run.stderr


@pytest.mark.parametrize("kind", ["titok", "open_clip"])
def test_model_folders_lie_under_models_and_take_weight_files(pack, kind: str) -> None:
    import folder_paths

    assert [Path(path) for path in folder_paths.get_folder_paths(kind)] == [Path(folder_paths.models_dir) / kind]
    assert {".safetensors", ".bin"} <= folder_paths.folder_names_and_paths[kind][1]
