"""How often verdicts are false where nothing changed or found where something did, in simulation.

And how often intervals hold the truth. Draws problems, base and checkpoint with known success
rates, and calls the metrics whose rows decide what card and findings say. Nothing is trained or
stored; 1000 repetitions take minutes. Tables in per cent of repetitions; a "change" that is
"forgotten" or "better" is there to be decided, and so is the ledger of one that is "mixed".

    python benchmarks/verdicts.py [REPETITIONS [EFFECT...]]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlflow_scalpel.metrics.capabilities.benchmark import Benchmark
from mlflow_scalpel.metrics.capabilities.exact_tests import mcnemar, unchanged
from mlflow_scalpel.metrics.capabilities.gain_and_loss import (
    gain_loss_ratio_high,
    gain_loss_ratio_low,
    paired_change,
)
from mlflow_scalpel.metrics.capabilities.intervals import (
    clustered_ratio,
    share_interval,
    unpaired_interval,
)
from mlflow_scalpel.metrics.capabilities.rates import pass_at_k, reversal

ALPHA = 0.05
#: success rates of the base over problems: (a, b) of a beta distribution
BASES = {
    "even": (1.0, 1.0),
    "all or nothing": (0.2, 0.2),
    "near 0": (0.5, 20.0),
    "near 1": (20.0, 0.5),
}
SIZES = (20, 100)
SAMPLES = (1, 2, 6)
Rates = np.ndarray
#: What training does to the rates of problems.
Effect = Callable[[Rates, np.random.Generator], Rates]


def none(rates: Rates, _: np.random.Generator) -> Rates:
    """The checkpoint is the base."""
    return rates


def better(rates: Rates, _: np.random.Generator) -> Rates:
    """Every problem is easier by 1.5 in log odds."""
    odds = np.exp(1.5) * rates / np.maximum(1 - rates, 1e-12)
    return odds / (1 + odds)


def mixed(rates: Rates, rng: np.random.Generator) -> Rates:
    """One problem in five turns into its opposite."""
    return np.where(rng.random(len(rates)) < 0.2, 1 - rates, rates)


def forgotten(rates: Rates, rng: np.random.Generator) -> Rates:
    """One problem in ten is lost whole."""
    return np.where(rng.random(len(rates)) < 0.1, 0.0, rates)


EFFECTS: dict[str, Effect] = {
    "none": none, "better": better, "mixed": mixed, "forgotten": forgotten
}  # fmt: skip


@dataclass
class Found:
    """Shares of repetitions, each a list of yes and no, by what was asked."""

    asked: dict[str, list[bool]] = field(default_factory=dict)

    def add(self, name: str, yes: bool) -> None:
        """One more repetition."""
        self.asked.setdefault(name, []).append(bool(yes))

    def share(self, name: str) -> float:
        """Share of repetitions that said yes; NaN where it was not asked."""
        return float(np.mean(self.asked[name])) if name in self.asked else math.nan


def benchmark_of(base: np.ndarray, after: np.ndarray) -> Benchmark:
    """Of the right samples (P, k) of base and checkpoint."""
    unknown = np.full(len(base), np.nan)
    return Benchmark(
        "in", "x", "sampled", "", base[:, 0], base.sum(1), np.full(len(base), base.shape[1]),
        after[:, 0], after.sum(1), np.full(len(after), after.shape[1]), *[unknown] * 4,
    )  # fmt: skip


def drawn(rates: Rates, k: int, rng: np.random.Generator) -> np.ndarray:
    """Right samples, (P, k)."""
    return rng.random((len(rates), k)) < rates[:, None]


def simulate(base: str, effect: str, n: int, k: int, repetitions: int, seed: int = 0) -> Found:
    """Draw problems, base and checkpoint so many times, and ask every verdict and interval."""
    rng = np.random.default_rng(seed)
    a, b = BASES[base]
    every = rng.beta(a, b, 400_000)
    truth_after = EFFECTS[effect](every, rng)
    truth = float(np.mean(truth_after - every))
    at_k = float(np.mean(1 - (1 - truth_after) ** k))
    found = Found()
    for _ in range(repetitions):
        rates = rng.beta(a, b, n)
        later = EFFECTS[effect](rates, rng)
        one = benchmark_of(drawn(rates, k, rng), drawn(later, k, rng))
        change = paired_change([one])
        found.add("change decided", not change.low <= 0 <= change.high)
        found.add("change covered", change.low <= truth <= change.high)
        found.add("one verdict", (change.p <= ALPHA) != (change.low <= 0 <= change.high))
        found.add("McNemar decided", mcnemar(int(one.gained.sum()), int(one.lost.sum())) <= ALPHA)
        shares = []
        for right, samples in ((one.base_right, one.base_samples), (one.right, one.samples)):
            shares.append((*clustered_ratio(right.astype(float), samples.astype(float)), n))
        low, high = share_interval(*shares[1])
        found.add("score covered", low <= truth_after.mean() <= high)
        low, high = unpaired_interval(*shares)
        found.add("unpaired decided", not low <= 0 <= high)
        found.add("unpaired covered", low <= truth <= high)
        if k == 1:
            continue
        for side in ("gained", "lost"):
            null = unchanged([one], lost=side == "lost")
            count = int(getattr(one, side).sum())
            found.add(f"{side} decided", null.p <= ALPHA)
            found.add(f"{side} outside 2 errors", abs(count - null.expected) > 2 * null.scatter)
        chances = pass_at_k(one.right, one.samples, k)
        last = chances[:, -1]
        low, high = share_interval(last.mean(), last.std(ddof=1) / math.sqrt(n), n)
        found.add("pass@k covered", low <= at_k <= high)
        crossed = reversal(chances - pass_at_k(one.base_right, one.base_samples, k))
        found.add("crossing found", math.isfinite(crossed.k))
    return found


def crossing(n: int, k: int, repetitions: int, seed: int = 0) -> Found:
    """A checkpoint sure of 6 problems in 10 and lost on the rest, a base right by 3 in 10 on all.

    Its pass@k is 0.6 (1 - 0.05^k), and the base's 1 - 0.7^k: the base comes to be ahead at k = 3.
    """
    rng = np.random.default_rng(seed)
    ks = np.arange(1, k + 1)
    truth = 1 + int(np.argmax(1 - 0.7**ks > 0.6 * (1 - 0.05**ks)))
    found = Found()
    for _ in range(repetitions):
        rates = np.where(rng.random(n) < 0.6, 0.95, 0.0)
        samples = np.full(n, k)
        before, after = rng.binomial(k, 0.3, n), rng.binomial(k, rates)
        curves = pass_at_k(after, samples, k) - pass_at_k(before, samples, k)
        at = reversal(curves)
        found.add("found", math.isfinite(at.k))
        if math.isfinite(at.k):
            found.add("covered", at.low <= truth <= at.high)
    return found


def ratio(n: int, k: int, repetitions: int, seed: int = 0) -> Found:
    """A checkpoint better in-domain and forgetful elsewhere: loss for each point of gain."""
    rng = np.random.default_rng(seed)
    every = rng.beta(1, 1, 400_000)
    truth = float((every - forgotten(every, rng)).mean() / (better(every, rng) - every).mean())
    found = Found()
    for _ in range(repetitions):
        sides = []
        for domain, effect in (("in", better), ("out", forgotten)):
            rates = rng.beta(1, 1, n)
            one = benchmark_of(drawn(rates, k, rng), drawn(effect(rates, rng), k, rng))
            sides.append(Benchmark(**{**vars(one), "domain": domain}))
        (low,), (high,) = gain_loss_ratio_low(sides), gain_loss_ratio_high(sides)
        found.add("given", low.status == "ok")
        if low.status == "ok":
            found.add("covered", low.value <= truth <= high.value)
    return found


def table(repetitions: int, effects: Sequence[str]) -> Iterator[str]:
    """Lines of a Markdown table: every base, effect, number of problems and of samples."""
    columns = (
        "change decided", "change covered", "unpaired decided", "unpaired covered",
        "McNemar decided", "gained decided", "lost decided", "gained outside 2 errors",
        "lost outside 2 errors", "crossing found", "score covered", "pass@k covered",
    )  # fmt: skip
    yield "| base | effect | n | k | " + " | ".join(columns) + " |"
    yield "| --- | --- |" + " ---: |" * (2 + len(columns))
    for effect in effects:
        for base in BASES:
            for n in SIZES:
                for k in SAMPLES:
                    found = simulate(base, effect, n, k, repetitions)
                    cells = [
                        "" if math.isnan(share) else f"{100 * share:.1f}"
                        for share in map(found.share, columns)
                    ]
                    yield f"| {base} | {effect} | {n} | {k} | " + " | ".join(cells) + " |"


def main() -> None:
    """Print the tables, in per cent of repetitions."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    for line in table(repetitions, sys.argv[2:] or list(EFFECTS)):
        print(line, flush=True)
    print("\n| n | k | crossing found | its interval holds 3 |\n| ---: | ---: | ---: | ---: |")
    for n in SIZES:
        for k in (6, 16):
            found = crossing(n, k, repetitions)
            print(f"| {n} | {k} | {100 * found.share('found'):.1f} | "
                  f"{100 * found.share('covered'):.1f} |")  # fmt: skip
    print("\n| n | k | ratio given | covered |\n| ---: | ---: | ---: | ---: |")
    for n in SIZES:
        for k in SAMPLES:
            found = ratio(n, k, repetitions)
            print(f"| {n} | {k} | {100 * found.share('given'):.1f} | "
                  f"{100 * found.share('covered'):.1f} |")  # fmt: skip


if __name__ == "__main__":
    main()
