"""What the numbers of several seeds allow to be claimed: spreads, paired differences, tests, verdicts.

Two methods are compared on the seeds that both were run with, by their differences seed by seed: what a seed does to
both, its initial variables and its order of the images, cancels. The comparisons of a table are one family; Holm's
procedure holds the chance of any false claim among them at the level. Two tests are reported side by side:

- The exact one asks how many of the 2^n ways to flip the signs of n differences give a mean as far from zero. It
  assumes no more than that without an effect a difference is as likely as its negative, and cannot give less than
  2 / 2^n: 3 seeds (0.25) decide nothing at 5 %, 6 (0.031) are the least for a single claim, 10 for one of 20.
- Student's t can decide with 2 seeds. It pays for that by taking the differences for normal, which so few cannot show.
"""

import bisect
from collections.abc import Mapping, Sequence
import math
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

Test = Literal["exact", "t"]
Better = Literal["higher", "lower"]
Values = Mapping[int, float]  # of seeds
Sides = Mapping[str, tuple[Values, Values]]  # a claim's name -> ours and theirs

SINGLE_SEED = "One seed only: a difference between rows may be the seed's alone and decides nothing."
CONFIDENCE = 0.95  # of every interval
POWER = 0.8  # at which a number of seeds would likely decide a claim
LIMIT = 1000  # seeds; no claim is said to need more than "over 1000"
ALL_FLIPS, ALL_RESAMPLES, DRAWS = 20, 6, 9_999  # of more than 20 or 6 differences so many are drawn
ROUNDING = 1e-12  # of the largest value: differences closer than this are equal


class Summary(NamedTuple):
  """Values of n seeds: their mean (None of none) and sample standard deviation (None of fewer than two)."""

  n: int
  mean: float | None
  std: float | None

  def text(self, decimals: int = 2) -> str:
    """'70.12 ± 0.31'; of one seed '70.12', of none '-'."""
    if self.mean is None:
      return "-"
    return f"{self.mean:.{decimals}f}" + ("" if self.std is None else f" ± {self.std:.{decimals}f}")


class Interval(NamedTuple):
  """A confidence interval of a difference."""

  low: float
  high: float

  def text(self, decimals: int = 2) -> str:
    """'-0.10 to +0.35'."""
    return f"{self.low:+.{decimals}f} to {self.high:+.{decimals}f}"


class Paired(NamedTuple):
  """Our values less theirs over the n seeds that both have; intervals at 95 %, p-values two-sided."""

  n: int
  dropped: tuple[int, ...]  # seeds that only one side has
  mean: float | None  # None: no common seed
  std: float | None  # of the differences; None: fewer than two
  bootstrap: Interval | None = None  # None: fewer than two
  t_interval: Interval | None = None  # None: fewer than two, or no spread
  exact_p: float = 1.0  # 1 where a test can say nothing
  t_p: float = 1.0


class Verdict(NamedTuple):
  """What a test says of a claim, and how many seeds would likely let it decide."""

  decision: Literal["better", "worse", "undecided"]
  n: int
  needed: int | None  # LIMIT + 1: over LIMIT; None: decided, or not to be told

  def __str__(self) -> str:
    if self.decision != "undecided":
      return self.decision
    if not self.n:
      return "undecided: no common seed"
    needed = f"over {LIMIT}" if self.needed == LIMIT + 1 else f"about {self.needed}"
    return f"undecided at {self.n} seed{'s'[self.n == 1 :]}" + (f", {needed} needed" if self.needed else "")


class Claim(NamedTuple):
  """One comparison of a family; the summaries are over the seeds that both sides have."""

  name: str
  ours: Summary
  theirs: Summary
  paired: Paired
  exact_holm: float  # the p-values of `paired`, adjusted over the family
  t_holm: float
  verdict: Verdict


def summary(values: Sequence[float]) -> Summary:
  """The mean and spread of some values; ValueError where one is not finite."""
  if not all(map(math.isfinite, values)):
    raise ValueError(f"values are {list(values)}: they must be finite")
  n = len(values)
  return Summary(n, float(np.mean(values)) if n else None, float(np.std(values, ddof=1)) if n > 1 else None)


def paired(ours: Values, theirs: Values) -> Paired:
  """Compares two mappings of seed to value; seeds that one side lacks are dropped, and named.

  - `bootstrap` is the percentile interval (Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of
    Statistics 1979, https://doi.org/10.1214/aos/1176344552): over all n^n resamples up to 6 seeds, over 9,999 drawn
    ones, the same each time, beyond. It is too narrow for few seeds: of normal differences the 95 % interval holds the
    true mean 75 times of 100 at 3 seeds, 86 at 6 and 93 at 20 (why: Hesterberg, "What Teachers Should Know about the
    Bootstrap", The American Statistician 2015, https://arxiv.org/abs/1411.5279).
  - `exact_p` is the sign-flip test (Fisher, "The Design of Experiments", 1935, section 21): over all flips up to 20
    seeds, beyond over 9,999 drawn ones and the observed (Phipson, Smyth, "Permutation P-values Should Never Be Zero",
    SAGMB 2010, https://arxiv.org/abs/1603.05766).
  - `t_interval` and `t_p` are Student's for pairs. Differences without any spread, which accuracies counted on few
    images do have by chance, would give p = 0: here they give no interval and p = 1.

  Raises ValueError where a value is NaN or infinite, dropped or not.
  """
  bad = {seed: value for side in (ours, theirs) for seed, value in side.items() if not math.isfinite(value)}
  if bad:
    raise ValueError(f"values of seeds are {bad}: they must be finite")
  seeds, dropped = sorted(ours.keys() & theirs.keys()), tuple(sorted(ours.keys() ^ theirs.keys()))
  differences = np.array([ours[seed] - theirs[seed] for seed in seeds], np.float64)
  n, mean, std = summary(differences.tolist())
  if mean is None or std is None:
    return Paired(n, dropped, mean, std)
  rounding = ROUNDING * max(abs(side[seed]) for side in (ours, theirs) for seed in seeds)
  mean, std = (0.0 if abs(value) <= rounding else value for value in (mean, std))
  t_interval, t_p = _student(n, mean, std) if std else (None, 1.0)
  exact_p = _sign_flip(differences, n * rounding)
  return Paired(n, dropped, mean, std, _bootstrap(differences), t_interval, exact_p, t_p)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
  """Adjusted p-values of a family, in its order: a claim is decided at a level where its own is not above it.

  Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 1979,
  https://www.jstor.org/stable/4615733. The chance of any false claim stays below the level, however the tests depend.
  Raises ValueError where a p-value is not in [0, 1].
  """
  adjusted, largest = {}, 0.0
  for i, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
    if not 0 <= p_values[name] <= 1:
      raise ValueError(f"the p-value of {name} is {p_values[name]}: it must be in [0, 1]")
    largest = adjusted[name] = max(largest, min(1.0, (len(p_values) - i) * p_values[name]))
  return {name: adjusted[name] for name in p_values}


def least_p(n: int) -> float:
  """The smallest p-value that the exact test of n differences can give, two-sided: 2 / 2^n."""
  return min(1.0, 2.0 ** (1 - n))


def power(effect: float, n: int, level: float = 0.05) -> float:
  """Chance that the two-sided t-test of n normal differences, of mean `effect` times their deviation, finds it."""
  return float(stats.nct.sf(stats.t.isf(level / 2, n - 1), n - 1, effect * math.sqrt(n)))


def seeds_needed(of: Paired, *, test: Test = "exact", level: float = 0.05, claims: int = 1) -> int | None:
  """The smallest number of seeds, above that of now, which would likely decide a claim in a family of `claims`.

  With them the t-test has power 0.8 where mean and standard deviation are as observed and, for the exact test, a low
  enough p-value exists at all; both at level / claims, the strictest of Holm's steps. It plans further runs and says
  nothing more of those that there are (Hoenig, Heisey, "The Abuse of Power", The American Statistician 2001,
  https://doi.org/10.1198/000313001300339897): a few seeds measure their own spread badly. Fix the number in advance:
  a test repeated after every seed until it decides errs more often than its level.

  Returns LIMIT + 1 for any number over LIMIT; None of fewer than two seeds or of differences without mean or spread.
  """
  if not of.mean or not of.std:
    return None
  effect, strictest = abs(of.mean) / of.std, level / claims
  possible = lambda n: test == "t" or least_p(n) <= strictest
  enough = lambda n: possible(n) and not power(effect, n, strictest) < POWER  # not a number: beyond all doubt
  candidates = range(max(2, of.n + 1), LIMIT + 1)
  return min(LIMIT + 1, candidates.start + bisect.bisect_left(candidates, True, key=enough))


def verdict(
  of: Paired,
  adjusted_p: float,
  *,
  better: Better = "higher",
  test: Test = "exact",
  level: float = 0.05,
  claims: int = 1,
) -> Verdict:
  """Whether ours are better, by an adjusted p-value of `test` in a family of `claims`; ValueError of a bad option."""
  if better not in ("higher", "lower") or test not in ("exact", "t") or not 0 < level < 1:
    raise ValueError(f"better={better!r} (higher, lower), test={test!r} (exact, t), level={level} (0 to 1)")
  if not of.mean or adjusted_p > level:
    return Verdict("undecided", of.n, seeds_needed(of, test=test, level=level, claims=claims))
  return Verdict("better" if (of.mean > 0) == (better == "higher") else "worse", of.n, None)


def family(
  claims: Sides, *, better: Better = "higher", test: Test = "exact", level: float = 0.05
) -> tuple[Claim, ...]:
  """Compares our values with theirs in every claim, with Holm over all: claims without a common seed count too.

  `better` says which values are; `test` gives the verdicts, both are reported; `level` is the chance of a false claim.
  """
  found = {name: paired(*sides) for name, sides in claims.items()}
  exact = holm({name: of.exact_p for name, of in found.items()})
  t = holm({name: of.t_p for name, of in found.items()})
  records = []
  for name, (ours, theirs) in claims.items():
    of, adjusted_p = found[name], (t if test == "t" else exact)[name]
    decision = verdict(of, adjusted_p, better=better, test=test, level=level, claims=len(claims))
    seeds = ours.keys() & theirs.keys()
    mine, other = (summary([side[seed] for seed in sorted(seeds)]) for side in (ours, theirs))
    records.append(Claim(name, mine, other, of, exact[name], t[name], decision))
  return tuple(records)


def _student(n: int, mean: float, std: float) -> tuple[Interval, float]:
  """Student's interval and p-value of the mean of n differences."""
  error = std / math.sqrt(n)
  half = float(stats.t.isf((1 - CONFIDENCE) / 2, n - 1)) * error
  return Interval(mean - half, mean + half), float(2 * stats.t.sf(abs(mean) / error, n - 1))


def _sign_flip(differences: np.ndarray, rounding: float) -> float:
  """Share of the flips of differences [n] whose sum is as far from zero, but for rounding."""
  least = abs(differences.sum()) - rounding
  if len(differences) > ALL_FLIPS:
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (DRAWS, len(differences)))
    return float((1 + np.sum(np.abs(signs @ differences) >= least)) / (1 + DRAWS))
  sums = np.zeros(1)
  for difference in differences:
    sums = np.concatenate((sums + difference, sums - difference))
  return float(np.mean(np.abs(sums) >= least))


def _bootstrap(differences: np.ndarray) -> Interval:
  """The percentile interval of the mean of differences [n]."""
  n, random = len(differences), np.random.default_rng(0)
  chosen = np.indices((n,) * n).reshape(n, -1) if n <= ALL_RESAMPLES else random.integers(n, size=(n, DRAWS))
  means = differences[chosen].mean(axis=0)
  low, high = np.quantile(means, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2), method="inverted_cdf")
  return Interval(float(low), float(high))
