"""The outside referees one by one: how each is asked, and what its answer says."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import comfyui
from .findings import Finding
from .paths import CACHE, EXTENSION, ROOT, DevError
from .server import ComfyServer

SYNTAX, JAVASCRIPT, WARNINGS = "comfy-test syntax", "comfy-test javascript", "comfy-test warnings"
HAZARDS, REGISTRATION, VALIDATION = "comfy-test hazards", "comfy-test registration", "comfy-test validation"
VALIDATE, LINT, GUARD, RUFF = "comfy node validate", "comfy-lint", "comfy-import-guard", "ruff security"

DEVELOPERS = ("api_examples", "benchmarks", "devtools", "tests", "training")  # never run inside a user's ComfyUI
MADE = ("output", "results", "build", "dist", "__pycache__", "*.egg-info", "*.log", ".*")
LIMIT = 300.0


@dataclass(frozen=True)
class Stage:
    """A copy of an extension for the referees to read, and room for what they write."""

    whole: Path  # everything that is published
    pack: Path  # what runs inside ComfyUI, at the place where ComfyUI has it
    room: Path

    def run(self, *command: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """Python with these arguments; nothing outside the stage is written, and no one on the internet is asked."""
        homes = ("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
        rooms = dict.fromkeys((*homes, "TMPDIR", "TEMP", "TMP", "COMFY_TEST_LOGS_DIR"), str(self.room))
        ruff = {"RUFF_OUTPUT_FORMAT": "concise", "RUFF_NO_CACHE": "true", "NO_COLOR": "1", "COLUMNS": "999"}
        rest = {"COMFY_TEST_WORKSPACE_DIR": str(self.room / "work"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return subprocess.run(
            [sys.executable, *command],
            cwd=cwd or self.pack,
            env={**os.environ, **rooms, **ruff, **rest, "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=LIMIT,
        )


@contextlib.contextmanager
def staged(source: Path = ROOT) -> Iterator[Stage]:
    """Copies an extension to where referees may read and write."""
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="referee-", dir=CACHE, ignore_cleanup_errors=True) as folder:
        stage = Stage(Path(folder, "whole"), Path(folder, "custom_nodes", EXTENSION), Path(folder, "room"))
        stage.room.mkdir()
        shutil.copytree(source, stage.whole, ignore=shutil.ignore_patterns(*MADE))
        shutil.copytree(stage.whole, stage.pack, ignore=shutil.ignore_patterns(*DEVELOPERS))
        yield stage


def lint(stage: Stage) -> list[Finding]:
    """comfy-test's lint: its levels syntax and javascript."""
    done = stage.run("-m", "comfy_test", "lint", str(stage.pack))
    findings, errors, file, judged = [], 0, "", False
    for line in done.stdout.splitlines():  # remarks come before the verdict "[SYNTAX] ...", errors after it
        if re.match(r"\[SYNTAX\] (PASSED|FAILED)", line):
            judged = True
        elif match := re.match(r"\s*(\S.*\.py):$", line):
            file = match[1]
        elif match := re.match(r"\s*Line (\d+)(?:, col \d+)?: (.*)", line):
            findings.append(Finding(SYNTAX, match[2], f"{file}:{match[1]}"))
            errors += judged
        elif match := re.match(r"\s*\[(ERROR|WARN)\] (\S+) (\S+) -- (.*)", line):
            findings.append(Finding(JAVASCRIPT, f"{match[3]}: {match[4]}", match[2]))
            errors += match[1] == "ERROR"
    if not judged or (done.returncode and not errors):
        findings.append(Finding(SYNTAX, f"failed: {_end(done)}", "."))
    return findings


def reports(stage: Stage) -> list[Finding]:
    """comfy-test's levels warnings and hazards, which never fail: their report is all they give."""
    done = _levels(stage, "warnings", "hazards")
    if not re.search(r"^\[HAZARDS\] PASSED", done.stdout, re.MULTILINE):
        raise DevError(f"comfy-test gave no report:\n\n{_end(done)}")
    findings = [
        Finding(f"comfy-test {match[1]}", match[0], ".")
        for match in re.finditer(r"^\[(warnings|hazards)\] .*check itself failed.*", done.stdout, re.MULTILINE)
    ]
    for level, name, block in re.findall(
        r"^\[(warnings|hazards)\] ([\w-]+) -- .*\n((?:  .*\n)+)", done.stdout, re.MULTILINE
    ):
        for head, lines in re.findall(r"^  (\S.*)\n((?:    .*\n)*)", block, re.MULTILINE):
            places = [re.match(r"\s*(?:[\d.]+ MB  |x\d+  )?(\S+)", line)[1] for line in lines.splitlines()]  # type: ignore[index]
            findings += [Finding(f"comfy-test {level}", name, place) for place in places]
            count = re.match(r"(\d+) ", head)
            if not places or (count and int(count[1]) > len(places)):  # it names no more than five or ten
                findings.append(Finding(f"comfy-test {level}", f"{name}: {head}", "."))
    return findings


def attached(stage: Stage, server: ComfyServer) -> list[Finding]:
    """comfy-test's levels registration and validation, at a running server."""
    own = re.compile(r"IMPORT FAILED: \w+\.py$|/comfy_extras/")  # ComfyUI's own nodes whose libraries are left out
    log = server.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = (line for line in log if not own.search(line.replace("\\", "/")))
    (stage.room / "server.log").write_text("\n".join(kept), encoding="utf-8")
    done = _levels(stage, "install", "registration", "validation", server_url=server.url)
    if re.search(r"^\[VALIDATION\] PASSED", done.stdout, re.MULTILINE):
        return []
    if not (match := re.search(r"^\[REGISTRATION\] PASSED(?s:.*)^Details: ((?s:.*?))^Session log", done.stdout, re.M)):
        return [Finding(REGISTRATION, f"failed: {_end(done)}", ".")]
    findings = []
    for line in match[1].splitlines():
        name, _, errors = line.strip(" -").partition(": ")
        findings += [
            Finding(VALIDATION, re.sub(r"^\[(\w+)\]", r"\1:", e), f"workflows/{name}") for e in errors.split("; ")
        ]
    return findings or [Finding(VALIDATION, f"failed: {_end(done)}", ".")]


def validate(stage: Stage) -> list[Finding]:
    """comfy-cli's node validate: what the registry asks before it publishes an extension."""
    done = stage.run("-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node", "validate", cwd=stage.whole)
    text = done.stdout + done.stderr
    findings = _ruff_lines(VALIDATE, text)
    if not findings and (done.returncode or "All validation checks passed" not in text):
        findings.append(Finding(VALIDATE, f"failed: {_end(done)}", "."))
    return findings


def ruff(stage: Stage) -> list[Finding]:
    """ruff's security rules, as pyproject.toml sets them."""
    done = stage.run("-m", "ruff", "check", ".", cwd=stage.whole)
    findings = [finding for finding in _ruff_lines(RUFF, done.stdout) if re.match(r"S\d", finding.message)]
    if done.returncode not in (0, 1):  # 1: it has found something, if only matters of style
        findings.append(Finding(RUFF, f"failed: {_end(done)}", "."))
    return findings


def import_guard(stage: Stage) -> list[Finding]:
    """comfy-import-guard: every name of ComfyUI that is used exists there and takes these arguments."""
    home = comfyui.find()
    clone = stage.room / "guard" / "ComfyUI"  # it reads ComfyUI from a git repository
    if not shutil.which("git"):
        raise DevError("comfy-import-guard needs git. Install it, and run this again.")
    git = [
        "git",
        "-c",
        "user.name=referee",
        "-c",
        "user.email=",
        "-c",
        "commit.gpgsign=false",
        "-c",
        f"core.hooksPath={os.devnull}",
        "-C",
        str(clone),
    ]
    clone.mkdir(parents=True, exist_ok=True)
    files = [f"--git-dir={clone / '.git'}", f"--work-tree={home}"]
    for command in (["init", "-q"], [*files, "add", "-f", "--", "comfy/*.py"], ["commit", "-q", "-m", "ComfyUI"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    main = "import sys; from comfy_import_guard.cli import main; sys.exit(main())"
    where = ("--comfy-dir", str(stage.pack.parents[1]), "--cache-dir", str(clone.parent), "--target", "HEAD")
    done = stage.run("-c", main, "check", *where, "--offline", "--json", "--quiet")
    if done.returncode not in (0, 1):
        raise DevError(f"comfy-import-guard did not answer:\n\n{_end(done)}")
    (pack,) = json.loads(done.stdout)["packs"]
    rows = [row for kind in ("breaking", "soft", "unresolvable", "signature_drift") for row in pack[kind]]
    findings = [Finding(GUARD, f"{row['dotted']}: {row['detail']}", f"{row['file']}:{row['line']}") for row in rows]
    findings += [Finding(GUARD, row["error"], row["file"]) for row in pack["unparseable"]]
    if not findings and (pack["verdict"] != "SAFE" or not pack["references"]):
        findings.append(Finding(GUARD, f"{pack['verdict']}: {pack['references']} references", "."))
    return findings


def comfy_lint(stage: Stage, server: ComfyServer) -> list[Finding]:
    """comfy-lint: the workflows in API format against what a running server says of its nodes."""
    paths = sorted(stage.pack.glob("workflows/*.api.json"))
    main = "import sys; from comfy_lint.cli import main; sys.exit(main())"
    done = stage.run("-c", main, *map(str, paths), "--server", server.url, "--strict", "--json")
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise DevError(f"comfy-lint did not answer:\n\n{_end(done)}") from None
    findings = [
        Finding(LINT, f"{d['rule']}: node {d['node_id']}, {d['field']}: {d['message']}", _relative(file["path"], stage))
        for file in answer["files"]
        for d in file["diagnostics"]
    ]
    findings += [Finding(LINT, file["error"], _relative(file["path"], stage)) for file in answer["unreadable"]]
    if answer["summary"]["files"] != len(paths) and not findings:
        findings.append(Finding(LINT, f"read {answer['summary']['files']} of {len(paths)} workflows", "workflows"))
    return findings


def _levels(stage: Stage, *levels: str, server_url: str = "") -> "subprocess.CompletedProcess[str]":
    """Some of comfy-test's levels; which ones must stand in a file beside the extension."""
    (stage.pack / "comfy-test.toml").write_text(f"[test]\nlevels = {json.dumps(levels)}\n", encoding="utf-8")
    shutil.rmtree(stage.room / "work", ignore_errors=True)
    return stage.run("-m", "comfy_test", "run", *(("--server-url", server_url) if server_url else ()))


def _ruff_lines(referee: str, text: str) -> list[Finding]:
    lines = re.findall(r"^(\S.*?:\d+):\d+: (.*)", text, re.MULTILINE)
    return [Finding(referee, message, place) for place, message in lines]


def _relative(path: str, stage: Stage) -> str:
    return os.path.relpath(os.path.join(stage.pack, path), stage.pack).replace("\\", "/")


def _end(done: "subprocess.CompletedProcess[str]") -> str:
    return (done.stdout + done.stderr).strip()[-1500:]


OFFLINE = {
    (SYNTAX, JAVASCRIPT): lint,
    (WARNINGS, HAZARDS): reports,
    (VALIDATE,): validate,
    (GUARD,): import_guard,
    (RUFF,): ruff,
}
LIVE = {(REGISTRATION, VALIDATION): attached, (LINT,): comfy_lint}
