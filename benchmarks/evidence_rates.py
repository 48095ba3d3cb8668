"""What the evidence counts in: shares with their confidence intervals, and paired comparisons of two ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Z = 1.959964  # of 95 %
SIGNIFICANT = 0.05  # a p-value below decides a comparison


@dataclass(frozen=True)
class Rate:
    """So many of n; its interval is Wilson's, 95 %."""

    hits: int
    n: int

    @classmethod
    def of(cls, flags: Sequence[bool]) -> Rate:
        return cls(sum(map(bool, flags)), len(flags))

    @property
    def value(self) -> float:
        return self.hits / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval."""
        if not self.n:
            return 0.0, 1.0
        share, spread = self.hits / self.n, Z * Z / self.n
        middle = (share + spread / 2) / (1 + spread)
        half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {"value": _rounded(self.value), "low": _rounded(low), "high": _rounded(high), "n": self.n}


def mean(values: Sequence[float]) -> dict[str, Any]:
    """The mean with the 95 % interval of a normal distribution, as JSON."""
    n = len(values)
    if not n:
        return {"value": None, "low": None, "high": None, "n": 0}
    middle = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - middle) ** 2 for v in values) / max(1, n - 1) / n)
    parts = {"value": middle, "low": middle - Z * spread, "high": middle + Z * spread}
    return {name: _rounded(value) for name, value in parts.items()} | {"n": n}


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact p-value of McNemar's test, two-sided: whether one of two ways succeeds in more of the same cases."""
    only = [sum(a and not b for a, b in zip(x, y, strict=True)) for x, y in ((first, second), (second, first))]
    n, fewer = sum(only), min(only)
    tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    return min(1.0, 2 * tail)


def sign_test(differences: Sequence[float]) -> float:
    """The exact p-value of the sign test, two-sided: whether the differences are as often above 0 as below."""
    return mcnemar([d > 0 for d in differences], [d < 0 for d in differences])


def compare(claim: str, lower: Sequence[bool], higher: Sequence[bool]) -> dict[str, Any]:
    """Whether the second way succeeds in more of the same cases than the first, as it is claimed; as JSON."""
    difference = Rate.of(higher).value - Rate.of(lower).value
    return _verdict(claim, difference, mcnemar(lower, higher), len(lower))


def compare_numbers(claim: str, lower: Sequence[float], higher: Sequence[float]) -> dict[str, Any]:
    """The same of numbers, such as similarities."""
    differences = [b - a for a, b in zip(lower, higher, strict=True)]
    return _verdict(claim, math.fsum(differences) / len(differences), sign_test(differences), len(differences))


def _verdict(claim: str, difference: float, p: float, n: int) -> dict[str, Any]:
    """ "holds" and "reversed" only where chance is no explanation; otherwise these cases decide nothing."""
    decided = p < SIGNIFICANT
    verdict = ("holds" if difference > 0 else "reversed") if decided else "not decided"
    return {"claim": claim, "difference": round(difference, 4), "p": round(p, 4), "n": n, "verdict": verdict}


def shown(entry: dict[str, Any], digits: int = 2) -> str:
    """A rate or a mean of a report: "0.95 (0.86 to 0.98)"."""
    if entry["value"] is None:
        return "-"
    value, low, high = (f"{entry[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
