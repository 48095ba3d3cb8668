"""What several nodes say in the same way: tables, notes, names of files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from ..tokenopt_core import Clip
from ..tokenopt_core.prompts import parse_prompts
from .progress import tell

MOST_NOTES = 12  # on the node; the output has all
LONGEST = 120  # characters of a name or a reason


def csv_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV, four digits behind the point of what is not whole."""
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(head)
    table.writerows([f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return written.getvalue()


def printable(text: str) -> str:
    """A name that comes from outside, on one line and not too long."""
    shown = "".join(c if c.isprintable() else "?" for c in text[: LONGEST + 1])
    return shown if len(text) <= LONGEST else f"{shown[:LONGEST]} ..."


def tell_few(node_id: str, notes: list[str]) -> None:
    """Writes the first notes on a node."""
    more = len(notes) - MOST_NOTES
    tell(node_id, notes[:MOST_NOTES] + [f"and {more} more: see NOTES"] * (more > 0))


def unknown_words(clip: Clip, texts: Iterable[str]) -> list[str]:
    """A note on what a CLIP never saw of some texts; ValueError if it knows nothing of one."""
    unknown = {word for text in texts for word in clip.check_prompt(text)}
    return [f"the {clip.name} CLIP does not know: {printable(', '.join(sorted(unknown)))}"] if unknown else []


def unknown_in_prompt(clip: Clip, prompt: str) -> list[str]:
    """The same of a prompt's parts; ValueError also if nothing stands there."""
    return unknown_words(clip, [text for text, _ in parse_prompts(prompt)])
