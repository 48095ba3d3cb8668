"""Where things are: everything the tools make lies inside the checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
CACHE = ROOT / ".cache"
LOGS = CACHE / "logs"
OUTPUT = ROOT / "output"
WORKFLOWS = ROOT / "workflows"
EXTENSION = "comfyui-tokenopt"


class DevError(Exception):
    """Something a person can put right; its text is all they need to see."""


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log, whatever its encoding."""
    if not path.is_file():
        return "(no log was written)"
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
