"""What a referee found, and the list of findings that stand with a reason: the table in docs/referees.md."""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .paths import ROOT, DevError

ACCEPTED = ROOT / "docs" / "referees.md"
ROW = re.compile(r"^\| `([^`]+)` \| `([^`]+)` \| `([^`]+)` \| ([^|]+) \|$")


@dataclass(frozen=True)
class Finding:
    """One complaint: who makes it, what it says, and where ("nodes/a.py:3", "inpaint.json")."""

    referee: str
    message: str
    place: str

    def __str__(self) -> str:
        return f"{self.referee}: {self.place}: {self.message}"


@dataclass(frozen=True)
class Accepted:
    """A row of the table: `message` and `where` are shell patterns, `where` without line numbers."""

    referee: str
    message: str
    where: str
    reason: str

    def covers(self, finding: Finding) -> bool:
        """Whether this row speaks of that finding."""
        place = re.sub(r"(:\d+)+$", "", finding.place).replace("\\", "/")
        return (
            self.referee == finding.referee
            and fnmatch.fnmatchcase(finding.message, self.message)
            and fnmatch.fnmatchcase(place, self.where)
        )


@dataclass(frozen=True)
class Verdict:
    """What is left when the list is laid over the findings."""

    new: list[Finding]
    explained: list[Finding]
    outdated: list[Accepted]

    @property
    def passed(self) -> bool:
        """Nothing new, and nothing listed that is no longer found."""
        return not self.new and not self.outdated


def read_accepted(text: str) -> list[Accepted]:
    """The rows of the table; every line that begins like one must be one."""
    rows = []
    for line in text.splitlines():
        if not line.startswith("| `"):
            continue
        match = ROW.match(line)
        if not match:
            raise DevError(
                f"{ACCEPTED.relative_to(ROOT)}: expected | `referee` | `finding` | `where` | reason |, got:\n{line}"
            )
        rows.append(Accepted(*match.groups()))
    return rows


def judge(findings: Iterable[Finding], accepted: Sequence[Accepted], referees: Iterable[str]) -> Verdict:
    """Lays the list over what these referees found."""
    found, asked = list(findings), set(referees)
    rows = [row for row in accepted if row.referee in asked]
    explained = [f for f in found if any(row.covers(f) for row in rows)]
    return Verdict(
        new=[f for f in found if f not in explained],
        explained=explained,
        outdated=[row for row in rows if not any(row.covers(f) for f in found)],
    )
