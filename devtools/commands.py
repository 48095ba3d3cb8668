"""The commands of `dev.py`. Imported before the environment exists: anything from outside is imported later."""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import chromium, environment, server
from .paths import CACHE, LOGS, ROOT, DevError

HELP = {
    "setup": "make the environment: .venv, ComfyUI, the test tools",
    "demo": "edit a picture in a real ComfyUI and save it under output/",
    "test": "run all tests; what follows is passed on to pytest",
    "serve": "run ComfyUI with this extension for your browser, until Ctrl-C",
    "lint": "check style and types",
    "referee": "ask outside tools for ComfyUI extensions what they find (docs/referees.md)",
    "soak": "run prompts for minutes and see that memory, threads and files stay as they are",
    "bench-gpu": "check and time an optimization on a CUDA GPU; what follows is passed on (bench-gpu --help)",
}
DEFAULT_PORT = 8188
CHECKED = ("tokenopt_core", "nodes", "devtools")


def main(arguments: Sequence[str]) -> int:
    """Run one command in the right environment; returns the exit code."""
    options = _parse(arguments)
    server.stop_on_termination()
    try:
        environment.prepare(test_tools=options.command in {"setup", "test", "lint", "referee", "soak"})
        environment.continue_inside(arguments)
        return _run(options)
    except DevError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py", description="Set-up, demo, tests and server of TokenOpt.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {
        name: commands.add_parser(name, help=text, description=text, add_help=name != "bench-gpu")
        for name, text in HELP.items()
    }
    parsers["serve"].add_argument("--port", type=int, help=f"default: {DEFAULT_PORT}, or a free one if that is taken")
    length = parsers["soak"].add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="for how long, but for 40 prompts at least")
    length.add_argument("--prompts", type=int, help="how many, in rounds of 20; default: 200")
    parsers["soak"].add_argument("--record", action="store_true", help="add the numbers to benchmarks/RESULTS.md")
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("test", "bench-gpu"):
        parsers[options.command].error(f"unknown: {' '.join(rest)}")
    options.rest = rest
    return options


def _run(options: argparse.Namespace) -> int:
    if options.command == "demo":
        from . import demo

        return demo.run()
    if options.command == "test":
        chromium.provide()
        from . import testing

        return testing.run(options.rest)
    if options.command == "serve":
        return serve(options.port)
    if options.command == "lint":
        return lint()
    if options.command == "referee":
        from . import referee

        return referee.run()
    if options.command == "soak":
        from . import soak

        return soak.run(options.minutes, options.prompts, options.record)
    if options.command == "bench-gpu":
        from benchmarks import gpu

        return gpu.main(options.rest)
    print(f"Everything is set up. Next: {Path(sys.argv[0]).name} demo")
    return 0


def serve(wanted: int | None) -> int:
    """Run ComfyUI until Ctrl-C and show its log; its folders stay, so that settings and models persist."""
    if wanted and not server.is_free(wanted):
        raise DevError(f"Port {wanted} is taken. Choose another one with --port.")
    port = wanted or (DEFAULT_PORT if server.is_free(DEFAULT_PORT) else server.free_port())
    print("Starting ComfyUI ...", flush=True)
    with server.ComfyServer(port=port, base=CACHE / "comfyui-home", log=LOGS / f"serve-{port}.log") as comfy:
        print(f"ComfyUI with TokenOpt: {comfy.url}\nStop it with Ctrl-C. Its log: {comfy.log_path}\n", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            _show_log(comfy)
            raise DevError(f"ComfyUI ended.\n\n{comfy.tail()}")
    print("\nStopped.")
    return 0


def _show_log(comfy: server.ComfyServer) -> None:
    """Copy what the server logs to the screen, for as long as it runs."""
    with comfy.log_path.open(encoding="utf-8", errors="replace") as log:
        log.seek(0, os.SEEK_END)
        while comfy.alive:
            sys.stdout.write(log.read())
            sys.stdout.flush()
            time.sleep(0.5)


def lint() -> int:
    """Run the linters; 0 if none complains."""
    # The nodes import the core from the package above them, whose folder may have any name: a link gives it one.
    package = CACHE / "lint" / "tokenopt_pack"
    package.parent.mkdir(exist_ok=True)
    server.link_folder(package, ROOT)
    checked = [f"--package={package.name}.{name}" for name in CHECKED if (ROOT / name).is_dir()]
    mypy = ["mypy", f"--config-file={ROOT / 'pyproject.toml'}"]
    commands = {
        ROOT: (
            ["ruff", "check", "--output-format=concise", "."],
            ["ruff", "format", "--check", "."],
            [*mypy, "--package=benchmarks", "--package=training"],
        ),
        package.parent: ([*mypy, *checked],),
        ROOT / "api_examples": ([*mypy, "--module=run", "--module=batch"],),  # they import each other as scripts do
    }
    codes = []
    for folder, group in commands.items():
        for command in group:
            print(f"$ {' '.join(command[:2])}", flush=True)
            codes.append(subprocess.run([sys.executable, "-m", *command], cwd=folder).returncode)
    return int(any(codes))
