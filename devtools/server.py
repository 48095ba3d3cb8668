"""A real ComfyUI with this checkout as its custom node, started and stopped. Standard library only."""

import functools
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from . import comfyui
from .environment import guarded
from .paths import CACHE, EXTENSION, LOGS, ROOT, DevError, tail

SERVERS = CACHE / "servers"
FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")
FLAGS = ("--disable-auto-launch", "--disable-api-nodes")  # the second one also keeps the frontend off the internet
DAY = 24 * 3600.0

_count = itertools.count()
# The client must reach its own machine even when the environment names a proxy.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ComfyServer:
    """`with ComfyServer() as server:` runs ComfyUI at `server.url` until the block ends.

    Each server has folders of its own (`server.base`: models, input, output, user ...), removed when it stops;
    with `base` given, they are the caller's and stay.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        base: Path | None = None,
        log: Path | None = None,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        timeout: float = 180.0,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.base = base or SERVERS / f"{os.getpid()}-{next(_count)}"
        self.log_path = log or LOGS / f"comfyui-{self.port}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._keeps_base = base is not None
        self._flags, self._env, self._timeout = tuple(flags), dict(env or {}), timeout

    def __enter__(self) -> "ComfyServer":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start ComfyUI and wait until it answers and has loaded the extension."""
        home = comfyui.find()
        try:
            self._lay_out()
            self._launch(home)
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop ComfyUI for certain, and remove what was made for it."""
        process, self.process = self.process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if not self._keeps_base:
            _remove(self.base)

    @property
    def alive(self) -> bool:
        """Whether the server's process is running."""
        return self.process is not None and self.process.poll() is None

    def tail(self, lines: int = 20) -> str:
        """The last lines of the server's log."""
        return tail(self.log_path, lines)

    def get(self, path: str, timeout: float = 10.0) -> Any:
        """One of the server's JSON answers, such as `get("/system_stats")`."""
        with _opener.open(self.url + path, timeout=timeout) as answer:
            return json.load(answer)

    def _lay_out(self) -> None:
        """The folders that ComfyUI would otherwise make beside its code, with the checkout linked in."""
        _sweep()
        for name in FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        link_folder(self.base / "custom_nodes" / EXTENSION, ROOT)

    def _launch(self, home: Path) -> None:
        """Start the process, in a group of its own so that Ctrl-C reaches only whoever stops it."""
        database = (self.base / "user" / "comfyui.db").as_posix()
        flags = [*FLAGS, "--port", str(self.port), "--base-directory", str(self.base)]
        flags += ["--database-url", f"sqlite:///{database}", *(() if _has_accelerator() else ("--cpu",)), *self._flags]
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*guarded(sys.executable), str(home / "main.py"), *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.base,
                env={**os.environ, **_server_environment(home), **self._env},
                start_new_session=os.name != "nt",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )

    def _wait(self) -> None:
        """Return when the server answers; a server that dies or comes without the extension is an error."""
        deadline = time.monotonic() + self._timeout
        while not self._answers():
            if not self.alive:
                raise DevError(f"ComfyUI ended while it started.\n\n{self.tail()}\n\nThe whole log: {self.log_path}")
            if time.monotonic() > deadline:
                raise DevError(f"ComfyUI did not answer within {self._timeout:.0f} s.\n\n{self.tail()}")
            time.sleep(0.2)
        log = self.tail(1000).splitlines()
        if any("IMPORT FAILED" in line and EXTENSION in line for line in log):
            why = "\n".join(line for line in log if EXTENSION in line)
            raise DevError(f"ComfyUI could not load this extension:\n\n{why}\n\nThe whole log: {self.log_path}")

    def _answers(self) -> bool:
        try:
            self.get("/system_stats", timeout=2.0)
        except (OSError, ValueError):
            return False
        return True


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether nothing listens on this port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def link_folder(link: Path, target: Path) -> None:
    """Make `link` lead to the folder `target`; on Windows a junction, which needs no special rights."""
    _unlink(link)
    if os.name == "nt":
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], check=True, capture_output=True)
    else:
        link.symlink_to(target, target_is_directory=True)


@functools.cache
def _has_accelerator() -> bool:
    """Whether torch finds a device that ComfyUI can use; asked in another process, since importing it takes seconds."""
    devices = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/dri")
    if sys.platform == "linux" and not any(map(os.path.exists, devices)):
        return False
    question = "import sys, torch; sys.exit(not torch.accelerator.is_available())"
    return subprocess.run([sys.executable, "-c", question], capture_output=True).returncode == 0


def _server_environment(home: Path) -> dict[str, str]:
    """Settings for the server's process."""
    env = {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    if not comfyui.is_packaged(home):
        # Not even compiled files go into the user's ComfyUI; kept elsewhere, they save half a minute a start.
        env |= {"PYTHONPYCACHEPREFIX": str(CACHE / "pycache"), "PYTHONDONTWRITEBYTECODE": ""}
    return env


def _unlink(link: Path) -> None:
    """Remove a link and never what it leads to."""
    if os.path.lexists(link):
        if os.name == "nt":
            os.rmdir(link)
        else:
            os.unlink(link)


def _remove(base: Path) -> None:
    """Remove a server's folders; the link first, so that no deletion can follow it into the checkout."""
    _unlink(base / "custom_nodes" / EXTENSION)
    shutil.rmtree(base, ignore_errors=True)


def _sweep() -> None:
    """Remove what servers left behind whose owner was killed."""
    old = time.time() - DAY
    for base in SERVERS.glob("*"):
        if base.stat().st_mtime < old:
            _remove(base)
    for log in LOGS.glob("comfyui-[0-9]*.log"):
        if log.stat().st_mtime < old:
            log.unlink(missing_ok=True)


def stop_on_termination() -> None:
    """Let a polite kill end this process like Ctrl-C does, so that `with` blocks still clean up."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
