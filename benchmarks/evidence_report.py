"""The report in Markdown, made of the numbers in the JSON and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.casebook import REPORT_FROM
from benchmarks.evidence_rates import shown

Found = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines) + "\n"


def picture(name: str, what: str) -> str:
    return f"![{what}]({name}.jpg)\n"


def number(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def trends(entries: Sequence[Found]) -> str:
    """What the comparisons of a table come to."""
    rows = [(e["claim"], f"{e['difference']:+.3f}", f"{e['p']:.3g}", e["n"], f"**{e['verdict']}**") for e in entries]
    return table(("claim", "difference", "p", "n", "here"), rows)


def counted(entries: Sequence[Found]) -> str:
    """How many of a table's trends hold, in a sentence."""
    verdicts = [e["verdict"] for e in entries]
    names = {"holds": "hold here", "reversed": "are reversed", "not decided": "are not decided by these cases"}
    said = [f"{verdicts.count(verdict)} {words}" for verdict, words in names.items() if verdict in verdicts]
    return f"Of the paper's {len(verdicts)} trends {', '.join(said)}.\n"


def settings(found: Found) -> str:
    """The settings of a part, folded away."""
    text = json.dumps(found, indent=1)
    return f"<details><summary>Settings, as read from the workflows</summary>\n\n```json\n{text}\n```\n\n</details>\n"


def report(data: Found) -> str:
    """The whole page."""
    parts = data["parts"]
    sections = [head(data), *(SECTIONS[name](parts[name]) for name in SECTIONS if name in parts)]
    return "\n".join(sections)


def head(data: Found) -> str:
    about = data["about"]
    kind = "on which no setting was tuned" if about["seed"] >= REPORT_FROM else "on which settings MAY BE TUNED"
    rows = [(g["goal"], "-" if g["least"] is None else f"{g['least']:.2f}", shown(g), g["n"],
             "met" if g["met"] else "**not met**") for g in data["goals"]]  # fmt: skip
    return f"""# Evidence: what the method does on the mini world

Written by `{about["command"]}` on {about["date"]}; commit {about["commit"]}, results of commits
{", ".join(about["commits"]) or "-"}; {about["machine"]}, torch {about["torch"]}.
Seed {about["seed"]}, {about["n"]} cases a group, {kind}. All numbers are in [evidence.json](evidence.json).

Every edit runs with the settings of the example workflows as they ship. The picture that would be saved, in 8 bits, is
judged by two judges that know neither the tokenizer nor the CLIP that guides it; both must see what was asked for, and
the picture must be clean. Success of an edit means all three attributes that its prompt names: the changed ones and
those that were to stay. Intervals are 95 %, Wilson's for shares. Cases are drawn by a seed (`benchmarks/casebook.py`);
check on others with `python benchmarks/evidence.py --seed 4711 --n 20`.

## Goals

{table(("goal", "at least", "measured", "n", ""), rows)}"""


def edits(found: Found) -> str:
    rows = [
        (kind, shown(e["success"]), e["success"]["n"], shown(e["clean"]), shown(e["kept"]), number(e["seconds"]))
        for kind, e in found["kinds"].items()
    ]
    each = ", ".join(f"{name} {shown(entry)}" for name, entry in found["kept_each"].items())
    return f"""## Edits

{table(("changed", "success", "n", "clean", "unnamed attributes kept", "seconds a picture"), rows)}
Unnamed attributes (size, place and focus of the subject) over all edits: {shown(found["kept"])} kept; {each}. An
attribute on which the judges do not agree is not counted as kept. The interval takes attributes of one picture as
independent.

- Ceiling: of the sources' mere reconstructions {shown(found["ceiling_reconstruction"])} show all three named attributes
  and are clean, {shown(found["ceiling_kept"])} of the unnamed attributes are read as they are. Reconstruction
  {shown(found["reconstruction_psnr"], 1)} dB.
- Floor: of the unedited sources {shown(found["floor_unedited"])} count as a success.
- Combinations that training was shown: {shown(found["held_out"]["seen"])} (n = {found["held_out"]["seen"]["n"]}); held
  out of it: {shown(found["held_out"]["held out"])} (n = {found["held_out"]["held out"]["n"]}).

{picture("edits", "The first edits of each kind")}
*The first cases of each kind, whatever came of them. Green frame: right.*

{settings(found["settings"])}"""


def generate(found: Found) -> str:
    best = found["best"]
    return f"""## Generation without a seed picture

Of {found["starts"]} starts the one that the guiding CLIP likes best counts: {shown(best["success"])} right
(n = {best["success"]["n"]}), {shown(best["clean"])} clean. A single start: {shown(found["single"])}
(n = {found["single"]["n"]}). Combinations shown in training {shown(found["held_out"]["seen"])}, held out
{shown(found["held_out"]["held out"])}. {best["layouts"]} different layouts (2 to the entropy of size, place and focus);
{number(best["seconds"])} s a prompt.

{picture("generate", "Pictures from prompts alone")}
{settings(found["settings"])}"""


def inpaint(found: Found) -> str:
    names = {"half": "half of the subject", "background": "everything but the subject", "box": "a random hole",
             "hidden": "the whole subject, another one asked for"}  # fmt: skip
    rows = [
        (names.get(kind, kind), shown(e["success"]), e["success"]["n"], shown(e["exact"]),
         number(e["known_error"]["value"]), number(e["seconds"])) for kind, e in found["kinds"].items()
    ]  # fmt: skip
    head = ("hidden", "judged right", "n", "known pixels exact", "their error before stitching", "seconds")
    return f"""## Inpainting

{table(head, rows)}
Right means: subject, ground and lighting as in the original; of a hidden background that the subject is kept and the
judges agree on what is around it; of a hidden subject that the asked one stands there, ground and lighting kept. All
kinds together, right and exact: {shown(found["all"])} (n = {found["all"]["n"]}).

{picture("inpaint", "What was hidden, and what came out")}
{settings(found["settings"])}"""


def ways(entries: Found) -> str:
    """A table of ways to do the same edits."""
    head = ("settings", "success", "n", "kept", "CLIP", "iterations", "tries", "seconds")
    rows = [
        (name, shown(e["success"]), e["success"]["n"], shown(e["kept"]), shown(e["similarity"], 3),
         number(e["iterations"]), number(e["tries"]), number(e["seconds"])) for name, e in entries.items()
    ]  # fmt: skip
    return table(head, rows)


def left_out(name: str, found: Found) -> str:
    """What the changes are worth, one left out at a time."""
    worth = found["worth"]
    decisive, harmful = ([w["claim"] for w in worth if w["verdict"] == v] for v in ("holds", "reversed"))
    said = f"Left out of {name}, these cost success: {', '.join(decisive)}." if decisive else (
        f"No single change, left out of {name}, costs so much that these cases could show it.")  # fmt: skip
    said += f" These cost success by being there: {', '.join(harmful)}." if harmful else ""
    costs = [(w["claim"], f"{0.0 - w['difference']:+.3f}", f"{w['p']:.3g}", w["n"]) for w in worth]
    return f"{ways(found['rows'])}\n{table(('left out', 'success', 'p', 'n'), costs)}\n{said}\n\n"


def published(found: Found) -> str:
    verdict = found["verdict"]
    changes = "".join(left_out(name, entry) for name, entry in found["left_out"].items())
    return f"""## Against the published settings

The same models and cases, edits of all kinds; the published loop with its own settings (rate 0.1, EMA 0.98, 8 crops,
little noise, regularizer toward the seed), for as many iterations as ours and for more. Tries are pictures that Refine
Tokens decodes, without a gradient.

{ways(found["rows"])}
{trends(found["comparisons"])}
Ours against as many iterations ({verdict["iterations"]}): {100 * verdict["ahead"]:+.0f} points.
As good as the published settings in at most half the iterations: {"yes" if verdict["as_good_in_half"] else "no"}.
The goal, either of the two, is {"met" if verdict["met"] else "**not met**"}.

{picture("published", "The same cases with both settings")}
### Which change did it

Each of our changes taken back to the published setting, the others kept; then the same of the descent alone, without
Refine Tokens, which makes up for much that a descent leaves undone.

{changes}
{settings(found["settings"])}"""


TITLES = {
    "table 1": "Table 1: how seeds are picked",
    "table 2": "Table 2: number of tokens and codes",
    "table 3": "Table 3: without the quantizer, continuous tokens, tokens on a grid",
    "table 4": "Table 4: the tweaks, one after the other",
    "table 5": "Table 5: with and without a seed",
}


def one_table(name: str, found: Found) -> str:
    """A table of the paper's, and which of its trends hold."""
    rows = [
        (row, shown(e["success"]), shown(e["read"]), e["success"]["n"], shown(e["clean"]), shown(e["similarity"], 3),
         shown(e["nearest_psnr"], 1), e["layouts"]) for row, e in found["rows"].items()
    ]  # fmt: skip
    head = ("", "success", "read right", "n", "clean", "CLIP", "dB to the nearest render", "layouts")
    return f"### {TITLES[name]}\n\n{table(head, rows)}\n{counted(found['trends'])}\n{trends(found['trends'])}\n"


def tables(found: Found) -> str:
    text = f"""## The paper's tables in small

Prompts name subject, ground and lighting; each is paired with one of {found["seeds"]} seed pictures, unless it says
otherwise one of the {found["percent"]:g} % that CLIP finds most similar. Success by the judges stands where the paper
has FID, IS and SigLIP; "read right" is what both judges read, whether the picture is clean or not. "Holds" and
"reversed" need a paired test's p below 0.05; everything else is not decided by these cases. Rate 0.1 and 300
iterations, as published; noise and regularizer are the example workflow's, the noise in proportion to the rate.
"Adversarial" optimizes the pixels themselves, without a tokenizer.

"""
    text += "".join(one_table(name, entry) for name, entry in sorted(found["tables"].items()))
    return text + settings(found["settings"]) + "".join(beside(*entry) for entry in found["beside"].items())


def beside(name: str, found: Found) -> str:
    """The tables of a tokenizer that is measured beside the shipped one."""
    rows = [
        (f"edits by {kind}", shown(e["success"]), shown(e["read"]), e["success"]["n"], shown(e["clean"]))
        for kind, e in found["edits"].items()
    ]
    e = found["ceiling"]
    rows.insert(0, (f"reconstructions by {name}", shown(e["success"]), shown(e["read"]), e["success"]["n"],
                    shown(e["clean"])))  # fmt: skip
    text = f"""## The same tables with the tokenizer {name}

{found["tokens"]} tokens of {found["codes"] or "no"} codes; reconstructed: {shown(found["reconstruction_psnr"], 1)} dB.
Edits of all kinds, with the settings of text_edit, beside the shipped tokenizer's:

{table(("", "success", "read right", "n", "clean"), rows)}
{trends([found["trend"]])}
"""
    return text + "".join(one_table(title, entry) for title, entry in sorted(found["tables"].items()))


def variants(found: Found) -> str:
    size = found["size"]
    facts = [
        (name, f["tokens"], f["codes"] or "-", shown(f["reconstruction_psnr"], 1), shown(f["ceiling"]["read"]),
         shown(f["ceiling"]["clean"])) for name, f in found["tables"]["table 2"]["tokenizers"].items()
    ]  # fmt: skip
    head = ("tokenizer", "tokens", "codes", "reconstruction, dB", "of reconstructions read right", "clean")
    text = f"""## Tokenizers of other shapes, told nothing of what a token should mean

{size} px, trained alike by `python -m training.variants` for minutes each: their pictures are soft, few are clean. So
the trends are those of what both judges read right, and the most that can be expected is what they read of mere
reconstructions. Seeds, prompts and settings as in the tables above; with the settings of text_edit, edits of all kinds.

{table(head, facts)}
"""
    text += "".join(one_table(name, entry) for name, entry in sorted(found["tables"].items()))
    return text + carried(found["carries"]) + settings(found["settings"])


def carried(found: Found) -> str:
    """What tokens mean that nobody told what to mean."""
    names = list(next(iter(found.values())))
    rows = list[tuple[str, ...]]()
    for name, e in found.items():
        best = (f"{e[n]['reached']['value']:.2f} ({e[n]['kept']['value']:.2f}) by {e[n]['position']}" for n in names)
        rows += [(name, *best), ("without a paste", *(f"{e[n]['without']['value']:.2f}" for n in names))]
    return f"""### What a single token carries though nobody told it

Single tokens pasted from one picture into another: of the pairs that differ in an attribute, how many took over the
reference's value from the position that does so most often, in brackets how many that and kept all else, and which
position that is. The row below is how many are read so without any paste, for what is soft is sometimes read wrong;
the shipped tokenizer, which was told, is below.

{table(("tokenizer", *names), rows)}
"""


def copy_paste(found: Found) -> str:
    text = f"""## Copy-paste

Every single token pasted from one picture into another, {found["pairs"]} pairs: of those that differ in an attribute,
how many took over the reference's value, and in brackets how many that and nothing else. How presets are chosen:
[token_importance.md](../token_importance.md).

"""
    for name, positions in found["tokenizers"].items():
        names = list(positions[0])
        rows = [
            (i, *(f"{e[n]['reached']['value']:.2f} ({e[n]['kept']['value']:.2f})" for n in names))
            for i, e in enumerate(positions)
        ]
        pairs = ", ".join(f"{n} {positions[0][n]['reached']['n']}" for n in names)
        best = ", ".join(
            f"{n} {shown(max((e[n]['kept'] for e in positions), key=lambda r: r['value']))}" for n in names
        )
        text += (
            f"### {name}\n\n{table(('position', *names), rows)}\nThe best single position, transferring the attribute "
        )
        text += f"alone: {best}. Pairs that differ: {pairs}.\n\n"
    return text


def failures(found: Found) -> str:
    rows = [(fault, count) for fault, count in found["faults"].items()]
    groups = [(trait, shown(rate), rate["n"]) for trait, rate in list(found["groups"].items())[:20]]
    stand = found["stand_out"]
    said = f"More frequent than among all cases, beyond chance: {', '.join(stand)}." if stand else (
        "Nothing they have in common is more frequent than chance explains.")  # fmt: skip
    lines = f"""## Failures

Of the edits, generations and inpaintings {shown(found["failed"])} failed (n = {found["failed"]["n"]}). {said}

"""
    if rows:
        lines += f"{table(('what is wrong', 'cases'), rows)}\n{table(('cases with', 'failed', 'n'), groups)}\n"
        lines += picture("failures", "The worst failures")
    return lines


SECTIONS: dict[str, Callable[[Found], str]] = {
    "edits": edits,
    "generate": generate,
    "inpaint": inpaint,
    "published": published,
    "tables": tables,
    "variants": variants,
    "copy_paste": copy_paste,
    "failures": failures,
}
