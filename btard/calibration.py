"""Tolerances from measured differences between honest gradients: rates of false alarms, and what to expect in a run.

Pure statistics of lists of numbers. What is measured, and how, is the business of an experiment (`resnet.calibrate`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

NORMAL = NormalDist()
UPPER_SHARE = 0.1
"""The tail is fitted to this share of the errors, the largest: most of a network's errors say nothing about them."""
FEWEST = 10
"""Minimum number of errors of the larger kind for a tail."""
JUMP = math.log(10)
"""Neighbouring errors farther apart than this, a factor, are of two kinds."""
BARE_MARGIN = 2.0
"""A tolerance without a tail to derive it from: this many times the largest observed error."""
MOST_MARGIN = 4.0
"""A tolerance is at most this many times the largest observed error; a tail that asks for more needs more samples."""
HIGHEST = 0.49
"""No tolerance is proposed above it, for it would let a gradient of zero pass."""
CONFIDENCE = 0.95
"""Of the bound of a rate."""
RISK = 0.01
"""Of a run in which a validation exceeds the tolerance."""
DIGITS = 2
"""Significant digits of a tolerance."""


def upper_bound(exceedances: int, trials: int) -> float:
    """Clopper and Pearson's one-sided upper bound of a rate of which `exceedances` of `trials` were observed.

    About 3 / trials for none at 95 %, the "rule of three". 1 where all exceeded, or nothing was tried.
    Clopper, Pearson, The use of confidence or fiducial limits, Biometrika 26 (1934).
    """
    if not 0 <= exceedances <= trials:
        raise ValueError(f"expected 0 <= exceedances <= trials, got {exceedances}, {trials}")
    if exceedances == trials:
        return 1.0
    low, high = exceedances / trials, 1.0
    for _ in range(100):  # the rate at which so few are as unlikely as 1 - CONFIDENCE
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(exceedances, trials, middle) > 1 - CONFIDENCE else (low, middle)
    return high


def _at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) for X binomial with n and p in (0, 1)."""
    if not 0 < p < 1:
        return 1.0 if p <= 0 else float(k >= n)
    log_choose = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)]
    return math.fsum(math.exp(c + i * math.log(p) + (n - i) * math.log1p(-p)) for i, c in enumerate(log_choose))


@dataclass(frozen=True)
class Tail:
    """A lognormal distribution that fits the largest errors: log error = mu + sigma * standard normal."""

    mu: float
    sigma: float
    share: float = 1.0
    """Share of the errors that are of this kind; the others are far smaller."""

    def exceeding(self, error: float) -> float:
        """P(an error exceeds `error`)."""
        if error <= 0:
            return 1.0
        if self.sigma == 0:
            return self.share * (math.log(error) < self.mu)
        return self.share * 0.5 * math.erfc((math.log(error) - self.mu) / (self.sigma * math.sqrt(2)))

    def quantile(self, rate: float) -> float:
        """The error that is exceeded at `rate`, at least the median of this kind; inf beyond floats."""
        exponent = self.mu - self.sigma * NORMAL.inv_cdf(min(0.5, rate / self.share))
        return math.exp(exponent) if exponent < 700 else math.inf


def fit_tail(errors: Sequence[float]) -> Tail | None:
    """The lognormal through the largest tenth of the larger kind of `errors`, by least squares on normal scores.

    Errors of networks come in two kinds, rounding and the rarer flipped ReLU, with a gap between; errors of 0 are
    gradients equal to the bit. None where fewer than `FEWEST` are of the larger kind.
    """
    logs = [math.log(x) for x in sorted(errors, reverse=True) if x > 0]
    jumps = [i for i in range(1, len(logs) // 2 + 1) if i < len(logs) and logs[i - 1] - logs[i] > JUMP]
    kind = logs[: jumps[-1]] if jumps else logs
    n = len(kind)
    if n < FEWEST:
        return None
    count = max(FEWEST, math.ceil(UPPER_SHARE * n))
    top = [(x, -NORMAL.inv_cdf((i + 0.5) / n)) for i, x in enumerate(kind[:count])]
    mean_log, mean_score = (math.fsum(pair[k] for pair in top) / len(top) for k in (0, 1))
    slope = math.fsum((x - mean_log) * (z - mean_score) for x, z in top)
    spread = math.fsum((z - mean_score) ** 2 for _, z in top)
    sigma = max(0.0, slope / spread)
    return Tail(mean_log - sigma * mean_score, sigma, n / len(errors))


@dataclass(frozen=True)
class Proposal:
    """A tolerance for one mix of machines, and what it costs honest peers."""

    tolerance: float
    """0: all gradients were equal to the bit, and exact validation is enough."""
    samples: int
    largest: float
    exceeding: int
    """Observed errors above twice the tolerance: an honest validator would have accused."""
    rate_bound: float
    """95 % upper bound of their rate, from the observations alone."""
    rate_estimate: float | None
    """Their rate by the fitted tail. None: there were too few large errors for a fit."""
    open_rate_estimate: float | None
    """Rate of errors above once the tolerance: a Byzantine accuser may wait for them, and some judges would convict."""
    validations: int
    """Number per run, by the configuration."""
    capped: bool
    """Whether the tail asked for more than was proposed: take more samples before trusting the estimate."""

    @property
    def false_accusations_bound(self) -> float:
        """Expected number per run, at the 95 % bound of the rate."""
        return self.validations * self.rate_bound

    @property
    def false_accusations_estimate(self) -> float | None:
        """Expected number per run, by the fitted tail."""
        return None if self.rate_estimate is None else self.validations * self.rate_estimate


def propose(errors: Sequence[float], validations: int, rounding: float = 0.0) -> Proposal:
    """A tolerance for honest `errors` >= 0 such that in a run of `validations` none exceeds it but for RISK.

    The larger of the largest error observed and of the fitted tail's quantile at RISK / validations (without a tail,
    twice the largest error), rounded up to DIGITS. Once the tolerance, not twice as an honest validator would need:
    a Byzantine one may recompute a target with all sorts of numerics and accuse only where many judges will be off.
    `rounding`: how much farther apart gradients are once they travel (`ProtocolConfig.rounding`); it comes on top, and
    the tolerance is at least twice as large.
    Errors: ValueError without errors, for one that is negative or not finite, or for less than one validation.
    """
    if not errors or validations < 1:
        raise ValueError(f"expected at least one error and one validation, got {len(errors)} and {validations}")
    if not all(math.isfinite(error) and error >= 0 for error in errors):
        raise ValueError("errors must be finite and >= 0: a gradient that is not finite has no distance to others")
    largest, tail = max(errors), fit_tail(errors)
    wanted = BARE_MARGIN * largest if tail is None else max(largest, tail.quantile(min(0.5, RISK / validations)))
    most = min(HIGHEST, MOST_MARGIN * largest)
    tolerance = min(HIGHEST, round_up(max(2 * rounding, min(wanted, most) + rounding))) if largest else 0.0
    exceeding = sum(error > 2 * tolerance for error in errors)
    return Proposal(
        tolerance=tolerance,
        samples=len(errors),
        largest=largest,
        exceeding=exceeding,
        rate_bound=upper_bound(exceeding, len(errors)),
        rate_estimate=None if tail is None else tail.exceeding(2 * tolerance),
        open_rate_estimate=None if tail is None else tail.exceeding(tolerance),
        validations=validations,
        capped=wanted > most,
    )


def round_up(value: float) -> float:
    """`value` >= 0 rounded up to `DIGITS` significant digits."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - DIGITS + 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.{DIGITS}g}")
