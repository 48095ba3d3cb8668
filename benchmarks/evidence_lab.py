"""Where the evidence is made: models, the judges, and what was computed before."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

import tokenopt_core as to
from benchmarks.casebook import NAMED, REPORT_FROM, UNNAMED, Case, hole_masks
from benchmarks.evidence_rates import Rate, mean
from benchmarks.evidence_store import Result, Store, key, weights_hash
from benchmarks.recipe_run import Given, Models, Outcome, run, similarities
from benchmarks.recipe_steps import Drawn, Recipe
from training.world import Album, Scene

SHIPPED = "mini"  # what the shipped tokenizer is called
LOOKED_AT = 64  # pictures that the judges see at once


class Nearest(Protocol):
    """What the judge that compares with all renders found."""

    @property
    def psnr(self) -> float: ...


class Opinion(Protocol):
    """What the judges, together, make of a picture."""

    @property
    def clean(self) -> bool: ...

    @property
    def nearest(self) -> Nearest: ...

    def shows(self, name: str, /) -> str | None:
        """The value of an attribute on which they agree; None if they do not."""
        ...

    def agrees(self, **attributes: str) -> bool:
        """Whether the picture is clean and all of them see these attributes."""
        ...


Judges = Callable[[Tensor], Sequence[Opinion]]  # pictures (B, 3, S, S) in [0, 1]


def right(case: Case, opinion: Opinion) -> bool:
    """Whether a picture shows what was asked for; a background that was hidden may be any on which the judges agree."""
    if not opinion.agrees(**case.wanted):
        return False
    return case.kind != "background" or None not in (opinion.shows("ground"), opinion.shows("lighting"))


def kept(source: Scene, opinion: Opinion) -> dict[str, bool]:
    """Which of the attributes that no prompt names are as they were."""
    return {name: opinion.shows(name) == getattr(source, name) for name in UNNAMED}


def faults(case: Case, opinion: Opinion) -> list[str]:
    """What is wrong with a picture: "not clean", and the attributes that are not what was asked for."""
    wrong = [name for name, value in case.wanted.items() if opinion.shows(name) != value]
    if case.kind == "background":
        wrong += [name for name in ("ground", "lighting") if opinion.shows(name) is None]
    return (["not clean"] if not opinion.clean else []) + wrong


@dataclass(frozen=True)
class Judged:
    """A result and what the judges make of it."""

    case: Case
    picture: Tensor  # (3, S, S) in [0, 1], in 8 bits
    opinion: Opinion
    measures: dict[str, Any] = field(default_factory=dict)
    starts: tuple[bool, ...] = ()  # whether each of several starts came out right

    @property
    def right(self) -> bool:
        return right(self.case, self.opinion)

    @property
    def read(self) -> bool:
        """Whether both judges read what was asked for, clean or not."""
        return all(self.opinion.shows(name) == value for name, value in self.case.wanted.items())

    @property
    def kept(self) -> dict[str, bool]:
        return kept(self.case.source, self.opinion) if self.case.source else {}

    @property
    def faults(self) -> list[str]:
        return faults(self.case, self.opinion)


@dataclass(frozen=True)
class Plan:
    """Which cases: their seed, and how many a group."""

    seed: int = REPORT_FROM
    n: int = 60


def fewer(plan: Plan) -> Plan:
    """Half as many cases: for comparisons of many ways, which would take hours otherwise."""
    return replace(plan, n=max(1, plan.n // 2))


@dataclass
class Lab:
    """Everything that turns cases and recipes into judged pictures."""

    album: Album
    judges: Judges
    clip: to.Clip
    tokenizers: Mapping[str, Any]
    store: Store
    batch: int = 12  # pictures that are optimized at once
    commit: str = ""
    say: Callable[[str], object] = print
    commits: set[str] = field(default_factory=set)  # of the results that were taken or computed
    variants: Lab | None = None  # with the tokenizers of other shapes

    def run(self, what: str, cases: Sequence[Case], recipe: Recipe, tokenizer: str = SHIPPED) -> list[Judged]:
        """Follows a recipe on each case, or takes what it came to before."""
        models = Models(self.tokenizers[tokenizer], self.clip)
        parts = {"models": weights_hash(models.tokenizer, self.clip.model), "settings": recipe.settings()}
        names = [key(**parts, case=case.to_json()) for case in cases]
        known = [self.store.get(name) for name in names]
        missing = [(case, name) for case, name, there in zip(cases, names, known, strict=True) if there is None]
        starts = recipe.start.batch if isinstance(recipe.start, Drawn) else 1
        done = len(cases) - len(missing)
        for chunk in chunks(missing, max(1, self.batch // starts)):
            began = time.perf_counter()
            computed = self._compute([case for case, _ in chunk], recipe, models, starts)
            seconds = (time.perf_counter() - began) / len(chunk)
            for (case, name), result in zip(chunk, computed, strict=True):
                result.measures.update(seconds=round(seconds, 3), commit=self.commit)
                self.store.add(name, case.to_json(), result)
            done += len(chunk)
            self.say(f"{what}: {done} of {len(cases)}, {seconds:.1f} s each")
        results = [found for name in names if (found := self.store.get(name)) is not None]
        self.commits |= {result.measures["commit"] for result in results}
        return self._judge(cases, results)

    def _compute(self, cases: list[Case], recipe: Recipe, models: Models, starts: int) -> list[Result]:
        images = self.sources(cases) if cases[0].source and not isinstance(recipe.start, Drawn) else None
        masks = hole_masks(cases, self.album.masks) if cases[0].hole else None
        outcome = run(recipe, models, Given([case.prompt for case in cases], images, masks, cases[0].seed))
        prompts = [case.prompt for case in cases for _ in range(starts)]
        scores = similarities(self.clip, outcome.pictures, prompts).view(len(cases), starts)
        pictures = outcome.pictures.mul(255).round().byte().unflatten(0, (len(cases), starts))
        return [
            Result(pictures[i], {
                "similarities": [round(score, 4) for score in scores[i].tolist()],
                "iterations": outcome.iterations,
                "tries": outcome.tries // len(cases),
                **_known(outcome, images, i),
            })
            for i in range(len(cases))
        ]  # fmt: skip

    def _judge(self, cases: Sequence[Case], results: Sequence[Result]) -> list[Judged]:
        opinions = iter(self.look(torch.cat([result.pictures for result in results]))) if results else iter(())
        judged = []
        for case, result in zip(cases, results, strict=True):
            found = [next(opinions) for _ in result.pictures]
            scores = result.measures["similarities"]
            best = scores.index(max(scores))  # of several starts the one that the guiding CLIP likes best
            starts = tuple(right(case, opinion) for opinion in found)
            measures = result.measures | {"similarity": scores[best]}
            judged.append(Judged(case, result.pictures[best].float() / 255, found[best], measures, starts))
        return judged

    def look(self, pictures: Tensor) -> list[Opinion]:
        """What the judges say of pictures (B, 3, S, S), in 8 bits or in [0, 1]."""
        whole = pictures.float() / 255 if pictures.dtype is torch.uint8 else pictures
        return [opinion for part in whole.split(LOOKED_AT) for opinion in self.judges(part)]

    def as_they_are(self, cases: Sequence[Case]) -> list[Judged]:
        """The cases' sources, judged as if they were results."""
        return self.judged(cases, self.sources(cases))

    def judged(self, cases: Sequence[Case], pictures: Tensor) -> list[Judged]:
        """Pictures (B, 3, S, S) in [0, 1] judged as these cases' results; rounded to 8 bits first."""
        scores = similarities(self.clip, pictures, [case.prompt for case in cases]).tolist()
        rounded = pictures.mul(255).round().byte()
        results = [Result(p[None], {"similarities": [s]}) for p, s in zip(rounded, scores, strict=True)]
        return self._judge(cases, results)

    def sources(self, cases: Sequence[Case]) -> Tensor:
        """The pictures (B, 3, S, S) that the cases start from."""
        return self.album.pictures([case.source for case in cases if case.source])

    @torch.no_grad()
    def reconstructions(self, cases: Sequence[Case], tokenizer: str = SHIPPED) -> Tensor:
        """What the tokenizer makes of them, in [0, 1]."""
        model = self.tokenizers[tokenizer]
        return torch.cat([model.decode(model.encode(part)) for part in self.sources(cases).split(self.batch)]).clamp(
            0, 1
        )


def chunks(missing: Sequence[tuple[Case, str]], most: int) -> Iterator[list[tuple[Case, str]]]:
    """At most so many cases with seeds that follow each other: then a batch draws what single runs draw."""
    chunk: list[tuple[Case, str]] = []
    for entry in missing:
        if chunk and (len(chunk) == most or entry[0].seed != chunk[-1][0].seed + 1):
            yield chunk
            chunk = []
        chunk.append(entry)
    if chunk:
        yield chunk


def _known(outcome: Outcome, images: Tensor | None, i: int) -> dict[str, Any]:
    """Of an inpainting: whether known pixels are the original's to the bit, and how far off they were before."""
    if outcome.masks is None or images is None:
        return {}
    known = (outcome.masks[i] == 0).expand(3, -1, -1)
    error = (outcome.squares[i] - images[i]).abs()[known].mean()
    return {"exact": torch.equal(outcome.pictures[i][known], images[i][known]), "known_error": round(float(error), 4)}


def summary(judged: Sequence[Judged]) -> dict[str, Any]:
    """What every table says of a group, as JSON."""
    found = {
        "success": Rate.of([j.right for j in judged]).to_json(),
        "read": Rate.of([j.read for j in judged]).to_json(),
        "clean": Rate.of([j.opinion.clean for j in judged]).to_json(),
        "nearest_psnr": mean([j.opinion.nearest.psnr for j in judged]),
        "similarity": mean([j.measures["similarity"] for j in judged]),
        "layouts": round(layouts(judged), 2),
    }
    for name in ("seconds", "iterations", "tries"):
        values = [j.measures[name] for j in judged if name in j.measures]
        found[name] = round(math.fsum(values) / len(values), 2) if values else None
    return found


def layouts(judged: Sequence[Judged]) -> float:
    """How many different layouts there are, by size, place and focus: 2 to the entropy of those that the judges see."""
    counts = Counter(tuple(j.opinion.shows(name) for name in UNNAMED) for j in judged)
    total = counts.total()
    return 2 ** -sum(n / total * math.log2(n / total) for n in counts.values()) if total else 0.0


def named(scene: Scene) -> dict[str, str]:
    """What a prompt can name of a scene."""
    return {name: getattr(scene, name) for name in NAMED}
