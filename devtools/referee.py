"""`dev.py referee`: tools by other people judge the extension; a finding not listed in docs/referees.md fails."""

import itertools

from .findings import ACCEPTED, Finding, Verdict, judge, read_accepted
from .judges import LIVE, OFFLINE, Stage, staged
from .paths import ROOT
from .server import ComfyServer

SILENT = tuple(itertools.chain.from_iterable(OFFLINE))  # the names of the referees that only read
ATTACHED = tuple(itertools.chain.from_iterable(LIVE))


def run() -> int:
    """Asks all referees, with a ComfyUI of their own; 0 if they found nothing that is not listed."""
    with staged() as stage:
        print("Asking the referees that only read ...", flush=True)
        findings = offline(stage)
        print("Starting ComfyUI for the others ...", flush=True)
        with ComfyServer(env={"HF_HUB_OFFLINE": "1"}) as server:
            findings += live(stage, server)
    verdict = verdict_on(findings, SILENT + ATTACHED)
    print(report(verdict, SILENT + ATTACHED))
    return int(not verdict.passed)


def offline(stage: Stage) -> list[Finding]:
    """The findings of the referees that only read."""
    return [finding for ask in OFFLINE.values() for finding in ask(stage)]


def live(stage: Stage, server: ComfyServer) -> list[Finding]:
    """The findings of the referees that look at a running server."""
    return [finding for ask in LIVE.values() for finding in ask(stage, server)]


def verdict_on(findings: list[Finding], referees: tuple[str, ...]) -> Verdict:
    """What is new, and what is outdated in the list."""
    return judge(findings, read_accepted(ACCEPTED.read_text(encoding="utf-8")), referees)


def report(verdict: Verdict, referees: tuple[str, ...]) -> str:
    """The summary that a person reads."""
    lines = [""]
    for referee in referees:
        new, listed = (sum(f.referee == referee for f in group) for group in (verdict.new, verdict.explained))
        lines.append(f"{referee:<26}{f'{new} new' if new else 'passed':<10}{f'{listed} listed' if listed else ''}")
    lines += ["", *(f"New: {finding}" for finding in verdict.new)]
    lines += [f"Listed, but no longer found: {row.referee}: {row.where}: {row.message}" for row in verdict.outdated]
    where = ACCEPTED.relative_to(ROOT).as_posix()
    if verdict.passed:
        lines.append(f"The referees have nothing new to say. What is listed, and why: {where}")
    else:
        lines.append(f"Mend what is new, or list it with its reason in {where}. Remove there what is gone.")
    return "\n".join(lines)
