"""The core stands alone, and importing it costs little."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUESTION = """
import sys
for name in ("comfy", "comfy_api", "folder_paths", "nodes"):
    sys.modules[name] = None  # as if ComfyUI were not there
import tokenopt_core
print(sorted(m for m in ("open_clip", "torchvision", "huggingface_hub", "timm") if m in sys.modules))
"""


def test_the_core_imports_without_comfyui_and_without_slow_libraries() -> None:
    run = subprocess.run([sys.executable, "-c", QUESTION], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_no_module_of_the_core_mentions_comfyui() -> None:
    offenders = [
        f"{path.name}:{number}"
        for path in (ROOT / "tokenopt_core").rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.strip().startswith(("import comfy", "from comfy", "import folder_paths", "from nodes"))
    ]
    assert not offenders
