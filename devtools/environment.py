"""The environment: `.venv` with everything that ComfyUI and this extension need. Standard library only."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import comfyui
from .paths import CACHE, LOGS, ROOT, VENV, DevError, tail

# Left out of ComfyUI's own list: each is optional for the server, and large.
LEFT_OUT = {"torchaudio", "comfyui-workflow-templates"}
# Imported by ComfyUI 0.3.75 without being on its list.
EXTRA = ["requests", "websocket-client"]
UNFINISHED = VENV / "set-up-unfinished"
HEARTBEAT = 30.0


def python() -> Path:
    """The interpreter inside `.venv`."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def inside() -> bool:
    """Whether this process runs on `.venv`'s interpreter."""
    return Path(sys.prefix).resolve() == VENV.resolve()


def prepare(test_tools: bool) -> None:
    """Make the environment, or complete it; nothing is done when nothing is missing."""
    if inside() and UNFINISHED.exists():
        raise DevError("The last set-up was interrupted. Run this command with your system's Python to repair it.")
    with _one_at_a_time():
        if not inside() and not _healthy():
            _create()
        home = comfyui.find(_pip)
        _install("run", ["torch", "torchvision", *_own_requirements(), *_comfyui_requirements(home), *EXTRA])
        if test_tools:
            _install("test", _lines(ROOT / "devtools" / "requirements-test.txt"))


def continue_inside(arguments: Sequence[str]) -> None:
    """Start this command again on `.venv`'s interpreter; returns only if it already runs there."""
    if inside():
        return
    command = [str(python()), str(ROOT / "dev.py"), *arguments]
    sys.stdout.flush()
    if os.name != "nt":
        os.execv(command[0], command)  # the same process: signals reach the one who does the work
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(subprocess.call(command))
    sys.exit(130)


def guarded(interpreter: str | Path) -> list[str]:
    """The beginning of a command whose process ends when this one does, however that happens."""
    return [str(interpreter), str(Path(__file__).with_name("guard.py")), str(os.getpid())]


def run_logged(command: Sequence[str], log: Path, what: str) -> None:
    """Run a command with its output in a file; say what takes long, and why it failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{what} (log: {log.relative_to(ROOT)})", flush=True)
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(HEARTBEAT)
                    break
                print(f"  ... {time.monotonic() - started:.0f} s", flush=True)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        raise DevError(f"{what}: this failed.\n\n{tail(log)}\n\nThe whole log: {log}")
    print(f"  done in {time.monotonic() - started:.0f} s", flush=True)


def _create() -> None:
    """A fresh `.venv`; one that an interrupted set-up left behind is removed first."""
    shutil.rmtree(VENV, ignore_errors=True)
    hint = "" if os.name == "nt" else " On Debian and Ubuntu, `apt install python3-venv` provides what may be missing."
    try:
        run_logged([sys.executable, "-m", "venv", str(VENV)], LOGS / "venv.log", "Creating .venv")
    except DevError as error:
        raise DevError(f"{error}\n{hint}") from None


def _healthy() -> bool:
    """Whether `.venv` is whole: not cut off in the middle, its interpreter and pip still there."""
    if UNFINISHED.exists() or not python().exists():
        return False
    if _stamp("run").exists():  # pip was there, and nothing here removes it
        return True
    return subprocess.run([python(), "-c", "import pip"], capture_output=True).returncode == 0


def _install(group: str, requirements: list[str]) -> None:
    """Install a list of requirements unless exactly this list is installed already."""
    stamp, content = _stamp(group), "\n".join(requirements)
    wanted = hashlib.sha256(f"{python().resolve()}\n{content}".encode()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    listed = CACHE / f"requirements-{group}.txt"
    listed.write_text(content + "\n", encoding="utf-8")
    what = {
        "run": "Installing PyTorch and ComfyUI's packages: several minutes and about 3 GB the first time",
        "test": "Installing the test tools: about a minute",
    }[group]
    _pip(["install", "-r", str(listed)], LOGS / f"install-{group}.log", what)
    stamp.write_text(wanted, encoding="utf-8")


def _pip(arguments: Sequence[str], log: Path, what: str) -> None:
    """Run `.venv`'s pip; the mark it leaves when killed half-way makes the next run start afresh."""
    UNFINISHED.touch()
    os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    try:
        run_logged([*guarded(python()), "-m", "pip", "--no-input", *arguments], log, what)
    except DevError:
        UNFINISHED.unlink()  # pip itself gave up, and cleans up behind itself
        raise
    UNFINISHED.unlink()


def _stamp(group: str) -> Path:
    return VENV / f"installed-{group}.sha256"


def _own_requirements() -> list[str]:
    return _lines(ROOT / "requirements.txt")


def _comfyui_requirements(home: Path) -> list[str]:
    """ComfyUI's own list without what is left out; its torch and torchvision come first in ours."""
    names = LEFT_OUT | {"torch", "torchvision"}
    lines = _lines(home / "requirements.txt")
    return [line for line in lines if re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower() not in names]


def _lines(path: Path) -> list[str]:
    """The requirements in a file, without comments and blank lines."""
    stripped = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in stripped if line]


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Two commands started at once must not both set up; the system frees the lock of a process that dies."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "set-up.lock").open("a+b") as lock:
        if sys.platform == "win32":
            import msvcrt

            while True:
                with contextlib.suppress(OSError):  # gives up after ten seconds
                    lock.seek(0)
                    msvcrt.locking(lock.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
