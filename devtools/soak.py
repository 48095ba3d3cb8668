"""`dev.py soak`: prompts in a row, after which the server is as it was: no memory, thread or file is left over."""

import datetime
import json
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from api_examples.client import ComfyClient, ExecutionFailed, Interrupted, PromptRefused

from . import results, scenes
from .paths import CACHE, DevError
from .server import ComfyServer

GROWTH = 0.03  # of resident memory, from the first reading to the last
PROMPTS = 200
REST = 3.0  # seconds for ComfyUI to free memory and close connections
# Freed memory goes back to the system at once, so that what is resident is what is held. (glibc; elsewhere no effect.)
FRUGAL = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_TOP_PAD_": "0"}


@dataclass(frozen=True)
class Reading:
    """What the server's process holds while it has nothing to do, ComfyUI's models and caches freed."""

    prompts: int
    minutes: float
    memory: int  # resident, in bytes
    threads: int
    handles: int
    files: int  # in ComfyUI's folder for temporary files, and in the one that is the system's for the server


def run(minutes: float | None, prompts: int | None, record: bool) -> int:
    """Rounds of twenty prompts until there were enough, a reading after each; 0 if the last is like the first."""
    with tempfile.TemporaryDirectory(prefix="soak-", dir=CACHE) as spare:
        env = {"HF_HUB_OFFLINE": "1", **FRUGAL, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), spare)}
        print("Starting ComfyUI ...", flush=True)
        with ComfyServer(env=env) as server, ComfyClient(server.url) as client:
            scenes.write_models(server.base / "models")
            versions = server.get("/system_stats")["system"]
            readings = _soak(server, client, Path(spare), minutes, prompts or PROMPTS)
    problems = judge(readings)
    print("\n" + ("\n".join(problems) or "Nothing was left over."))
    if record:
        add_row(readings, versions)
    return int(bool(problems))


def judge(readings: list[Reading]) -> list[str]:
    """What the last reading has more than the first, beyond what is allowed."""
    first, last = readings[0], readings[-1]
    growth = last.memory / first.memory - 1
    problems = [f"Resident memory grew by {growth:.1%}, {GROWTH:.0%} is allowed."] if growth > GROWTH else []
    for name in ("threads", "handles", "files"):
        more = getattr(last, name) - getattr(first, name)
        if more > 0:
            problems.append(f"{more} {name} were left over.")
    return problems


def _soak(server: ComfyServer, client: ComfyClient, spare: Path, minutes: float | None, prompts: int) -> list[Reading]:
    readings: list[Reading] = []
    assert server.process
    process = psutil.Process(server.process.pid)
    _fill_pool(server, process)
    started = time.monotonic()
    print(f"\n{'prompts':>8}{'minutes':>9}{'MiB':>9}{'threads':>9}{'handles':>9}{'files':>7}", flush=True)
    while True:
        for scene in scenes.deck(len(readings)):
            ended = play(client, scene)
            if ended != scene.ending:
                raise DevError(f"The prompt {scene} ended otherwise: {ended}")
            if scene.free:
                _free(server)
        _free(server)
        time.sleep(REST)
        passed = (time.monotonic() - started) / 60
        reading = _read(process, scenes.ROUND * (len(readings) + 1), passed, [spare, server.base / "temp"])
        readings.append(reading)
        memory = reading.memory / 2**20
        print(f"{reading.prompts:>8}{passed:>9.1f}{memory:>9.1f}{reading.threads:>9}{reading.handles:>9}"
              f"{reading.files:>7}", flush=True)  # fmt: skip
        enough = passed >= minutes if minutes else reading.prompts >= prompts
        if enough and len(readings) > 1:
            return readings


def _fill_pool(server: ComfyServer, process: psutil.Process) -> None:
    """Lets the web server start all the threads that it may use to send files: it starts them when it needs them."""
    with ThreadPoolExecutor(64) as pool:
        counts = [process.num_threads()]
        while len(counts) < 20 and (len(counts) < 4 or len(set(counts[-4:])) > 1):
            list(pool.map(_ask, [server.url] * 64))
            counts.append(process.num_threads())


def play(client: ComfyClient, scene: scenes.Scene) -> str:
    """Runs one prompt; how it ended: one of the endings of scenes, or what went wrong."""
    finished: list[str] = []
    try:
        prompt_id = client.queue(scenes.graph(scene))
        for event in client.follow(prompt_id):
            if event.type != "progress" or event.data.get("node") != "optimize":
                continue
            if scene.ending == "interrupt":
                client.interrupt()
            elif scene.ending == "finish":
                finished += client.finish()
    except PromptRefused:
        return "refused"
    except Interrupted:
        return "interrupt"
    except ExecutionFailed as error:
        return "damaged" if "is damaged" in str(error) else "misfit" if "77" in str(error) else str(error)
    if len(client.images(prompt_id)["save"]) != scene.batch:
        return "pictures are missing"
    return "finish" if finished else "success"


def _free(server: ComfyServer) -> None:
    """What "Free model and node cache" in ComfyUI's menu does."""
    _ask(server.url + "/free", {"unload_models": True, "free_memory": True})


def _ask(url: str, content: dict[str, Any] | None = None) -> None:
    """A request to the server, whatever the environment says of proxies: GET, or POST if there is content."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    data = None if content is None else json.dumps(content).encode()
    with opener.open(urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=30) as answer:
        answer.read()


def _read(process: psutil.Process, prompts: int, minutes: float, folders: list[Path]) -> Reading:
    count: Callable[[], int] = getattr(process, "num_fds" if os.name != "nt" else "num_handles")
    files = sum(path.is_file() for folder in folders for path in folder.rglob("*"))
    return Reading(prompts, minutes, process.memory_info().rss, process.num_threads(), count(), files)


def add_row(readings: list[Reading], versions: dict[str, Any]) -> None:
    """Adds a row to the soak's table."""
    first, last = readings[0], readings[-1]
    cells = [
        datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        f"`{results.commit()}`",
        results.machine(),
        f"Python {versions['python_version'].split()[0]}, torch {versions['pytorch_version']}, "
        f"ComfyUI {versions['comfyui_version']}",
        str(last.prompts),
        f"{last.minutes:.1f}",
        f"{first.memory / 2**20:.0f} -> {last.memory / 2**20:.0f} MiB ({last.memory / first.memory - 1:+.1%})",
        *(f"{getattr(first, name)} -> {getattr(last, name)}" for name in ("threads", "handles", "files")),
    ]
    results.add_row("## Soak", cells)
