"""Paired comparisons over seeds: intervals, tests, Holm's correction and verdicts.

Two methods are compared on the seeds that both were run with, by their differences seed by seed. The effect of a seed
on both methods (initial variables, order of the images) cancels. The comparisons of a table are one family; Holm's
procedure bounds the chance of any false claim in the family by the level. Two tests are reported side by side:

- The exact test computes the fraction of the 2^n sign flips of n differences whose mean is as far from zero. The only
  assumption is that without an effect a difference is as likely as its negative. The smallest p-value is 2 / 2^n:
  3 seeds (0.25) decide nothing at 5 %, a single claim needs 6 (0.031), one claim of 20 needs 10.
- Student's t-test can decide with 2 seeds, but assumes normal differences, which few seeds cannot verify.
"""

import bisect
from collections.abc import Mapping, Sequence
import functools
import math
from typing import Literal, NamedTuple

import numpy as np

Test = Literal["exact", "t"]
Better = Literal["higher", "lower"]
SeedValues = Mapping[int, float]  # by seed
ClaimValues = Mapping[str, tuple[SeedValues, SeedValues]]  # by the claim's name: values of ours and of theirs

SINGLE_SEED = "One seed only: a difference between rows may come from the seed alone and decides nothing."
CONFIDENCE = 0.95  # of every interval
POWER = 0.8  # chance to detect an effect, in the estimate of the seeds needed
MAX_SEEDS = 1000  # estimates above are reported as "over 1000"
MAX_EXACT_FLIPS, MAX_EXACT_RESAMPLES = (
  20,
  6,
)  # numbers of differences up to which all flips or resamples are enumerated
NUM_RESAMPLES = 9_999  # random flips or resamples of more differences
ROUNDING = 1e-12  # differences closer than this, relative to the largest value, are ties


class Summary(NamedTuple):
  """Mean and sample standard deviation of n values.

  The mean is None without values, the deviation None below two values.
  """

  n: int
  mean: float | None
  std: float | None

  def text(self, decimals: int = 2) -> str:
    """'70.12 ± 0.31'; '70.12' for one value, '-' for none."""
    if self.mean is None:
      return "-"
    return f"{self.mean:.{decimals}f}" + ("" if self.std is None else f" ± {self.std:.{decimals}f}")


class Interval(NamedTuple):
  """Confidence interval of a difference."""

  low: float
  high: float

  def text(self, decimals: int = 2) -> str:
    """'-0.10 to +0.35'."""
    return f"{self.low:+.{decimals}f} to {self.high:+.{decimals}f}"


class PairedComparison(NamedTuple):
  """Our values minus theirs over the n shared seeds; 95 % intervals and two-sided p-values."""

  n: int
  dropped: tuple[int, ...]  # seeds that only one side has
  mean: float | None  # None: no shared seed
  std: float | None  # of the differences; None: fewer than two
  bootstrap: Interval | None = None  # None: fewer than two
  t_interval: Interval | None = None  # None: fewer than two, or no spread
  exact_p: float = 1.0  # 1 where the test is undefined
  t_p: float = 1.0


class Verdict(NamedTuple):
  """Decision of a test on a claim, and an estimate of the seeds needed to decide."""

  decision: Literal["better", "worse", "undecided"]
  n: int
  needed: int | None  # MAX_SEEDS + 1: over MAX_SEEDS; None: decided, or no estimate

  def __str__(self) -> str:
    if self.decision != "undecided":
      return self.decision
    if not self.n:
      return "undecided: no common seed"
    needed = f"over {MAX_SEEDS}" if self.needed == MAX_SEEDS + 1 else f"about {self.needed}"
    return f"undecided at {self.n} seed{'s'[self.n == 1 :]}" + (f", {needed} needed" if self.needed else "")


class Claim(NamedTuple):
  """One comparison of a family; the summaries are over the shared seeds."""

  name: str
  ours: Summary
  theirs: Summary
  paired: PairedComparison
  exact_holm: float  # p-values of `paired`, adjusted over the family
  t_holm: float
  exact_verdict: Verdict
  t_verdict: Verdict


def summary(values: Sequence[float]) -> Summary:
  """Returns mean and standard deviation; raises ValueError for values that are not finite."""
  if not all(map(math.isfinite, values)):
    raise ValueError(f"values are {list(values)}: they must be finite")
  n = len(values)
  return Summary(n, float(np.mean(values)) if n else None, float(np.std(values, ddof=1)) if n > 1 else None)


def paired_comparison(ours: SeedValues, theirs: SeedValues) -> PairedComparison:
  """Compares two mappings from seed to value; seeds of one side only are dropped and listed.

  - `bootstrap` is the percentile interval (Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of
    Statistics 1979, https://doi.org/10.1214/aos/1176344552): over all n^n resamples up to 6 seeds, beyond over 9,999
    random resamples with a fixed seed. The interval is too narrow for few seeds: for normal differences the 95 %
    interval contains the true mean in 75 % of cases at 3 seeds, 86 % at 6 and 93 % at 20 (Hesterberg, "What Teachers
    Should Know about the Bootstrap", The American Statistician 2015, https://arxiv.org/abs/1411.5279).
  - `exact_p` is the sign-flip test (Fisher, "The Design of Experiments", 1935, section 21): over all flips up to 20
    seeds, beyond over 9,999 random flips and the observed one (Phipson, Smyth, "Permutation P-values Should Never Be
    Zero", SAGMB 2010, https://arxiv.org/abs/1603.05766). Sums that tie up to rounding count as equal.
  - `t_interval` and `t_p` are those of Student's paired t-test. Differences without spread, which accuracies counted on
    few images can have by chance, would give p = 0; here they give no interval and p = 1.

  Raises:
    ValueError: a value is NaN or infinite.
  """
  bad = {seed: value for side in (ours, theirs) for seed, value in side.items() if not math.isfinite(value)}
  if bad:
    raise ValueError(f"values of seeds are {bad}: they must be finite")
  seeds, dropped = sorted(ours.keys() & theirs.keys()), tuple(sorted(ours.keys() ^ theirs.keys()))
  a, b = (np.array([side[seed] for seed in seeds], np.float64) for side in (ours, theirs))
  n, mean, std = summary((a - b).tolist())
  if mean is None or std is None:
    return PairedComparison(n, dropped, mean, std)
  rounding = ROUNDING * max(np.abs(a).max(), np.abs(b).max())
  mean, std = (0.0 if abs(value) <= rounding else value for value in (mean, std))
  t_interval, t_p = _t_test(a, b) if std else (None, 1.0)
  if not mean:
    t_p = 1.0
  exact_p = _sign_flip_p(a - b, n * rounding)
  return PairedComparison(n, dropped, mean, std, _bootstrap_interval(a - b), t_interval, exact_p, t_p)


def holm_adjust(p_values: Mapping[str, float]) -> dict[str, float]:
  """Returns p-values adjusted over a family, in its order.

  A claim is decided where its value is at most the level.

  Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 1979,
  https://www.jstor.org/stable/4615733. The bound on the chance of any false claim holds for dependent tests too.

  Raises:
    ValueError: a p-value is not in [0, 1].
  """
  adjusted, largest = {}, 0.0
  for i, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
    if not 0 <= p_values[name] <= 1:
      raise ValueError(f"the p-value of {name} is {p_values[name]}: it must be in [0, 1]")
    largest = adjusted[name] = max(largest, min(1.0, (len(p_values) - i) * p_values[name]))
  return {name: adjusted[name] for name in p_values}


def min_exact_p(n: int) -> float:
  """Smallest two-sided p-value of the exact test for n differences: 2 / 2^n."""
  return min(1.0, 2.0 ** (1 - n))


def power(effect: float, n: int, level: float = 0.05) -> float:
  """Power of the two-sided t-test.

  The n differences are normal, with a mean of `effect` standard deviations.
  """
  from scipy import stats

  return float(stats.nct.sf(stats.t.isf(level / 2, n - 1), n - 1, effect * math.sqrt(n)))


def seeds_needed(
  comparison: PairedComparison, *, test: Test = "exact", level: float = 0.05, num_claims: int = 1
) -> int | None:
  """Estimates the number of seeds that would decide a claim with power 0.8.

  The smallest number above the present one.

  At that number the t-test has power 0.8 for the observed mean and standard deviation and, for the exact test, a low
  enough p-value exists; both at level / num_claims, the strictest step of Holm's procedure. The estimate is for
  planning further runs and adds no evidence on the present ones (Hoenig, Heisey, "The Abuse of Power", The American
  Statistician 2001, https://doi.org/10.1198/000313001300339897): few seeds estimate their own spread badly. Fix the
  number in advance: a test repeated after every seed until it decides exceeds its level.

  Returns:
    MAX_SEEDS + 1 for estimates above MAX_SEEDS; None below two seeds, or without a mean or spread.
  """
  if not comparison.mean or not comparison.std:
    return None
  effect, strictest = abs(comparison.mean) / comparison.std, level / num_claims

  def is_enough(n: int) -> bool:
    possible = test == "t" or min_exact_p(n) <= strictest
    return possible and not power(effect, n, strictest) < POWER  # NaN: the effect is huge, power is 1

  candidates = range(max(2, comparison.n + 1), MAX_SEEDS + 1)
  return min(MAX_SEEDS + 1, candidates.start + bisect.bisect_left(candidates, True, key=is_enough))


def decide(
  comparison: PairedComparison,
  adjusted_p: float,
  *,
  better: Better = "higher",
  test: Test = "exact",
  level: float = 0.05,
  num_claims: int = 1,
) -> Verdict:
  """Decides a claim by an adjusted p-value of `test` in a family of `num_claims`.

  Raises:
    ValueError: an option is invalid.
  """
  if better not in ("higher", "lower") or test not in ("exact", "t") or not 0 < level < 1:
    raise ValueError(f"better={better!r} (higher, lower), test={test!r} (exact, t), level={level} (0 to 1)")
  if not comparison.mean or adjusted_p > level:
    needed = seeds_needed(comparison, test=test, level=level, num_claims=num_claims)
    return Verdict("undecided", comparison.n, needed)
  return Verdict("better" if (comparison.mean > 0) == (better == "higher") else "worse", comparison.n, None)


def compare_all(claims: ClaimValues, *, better: Better = "higher", level: float = 0.05) -> tuple[Claim, ...]:
  """Compares ours with theirs in every claim by both tests.

  Holm's correction covers all claims.

  Args:
    claims: values of both sides; claims without a shared seed count towards the size of the family.
    better: the side of better values.
    level: bound on the chance of any false claim.
  """
  comparisons = {name: paired_comparison(*sides) for name, sides in claims.items()}
  exact = holm_adjust({name: comparison.exact_p for name, comparison in comparisons.items()})
  t = holm_adjust({name: comparison.t_p for name, comparison in comparisons.items()})
  results = []
  for name, (ours, theirs) in claims.items():
    seeds = sorted(ours.keys() & theirs.keys())
    comparison = comparisons[name]
    decide_claim = functools.partial(decide, comparison, better=better, level=level, num_claims=len(claims))
    results.append(
      Claim(
        name,
        summary([ours[seed] for seed in seeds]),
        summary([theirs[seed] for seed in seeds]),
        comparison,
        exact[name],
        t[name],
        decide_claim(exact[name], test="exact"),
        decide_claim(t[name], test="t"),
      )
    )
  return tuple(results)


def _t_test(a: np.ndarray, b: np.ndarray) -> tuple[Interval, float]:
  """Returns the interval and the p-value of the paired t-test of values [n]."""
  from scipy import stats

  result = stats.ttest_rel(a, b)
  low, high = result.confidence_interval(CONFIDENCE)
  return Interval(float(low), float(high)), float(result.pvalue)


def _sign_flip_p(differences: np.ndarray, rounding: float) -> float:
  """Returns the fraction of sign flips whose sum is as far from zero.

  The differences are [n]; sums are compared up to `rounding`.
  """
  from scipy import stats

  threshold = abs(differences.sum()) - rounding

  def is_as_far(flipped: np.ndarray, axis: int) -> np.ndarray:
    return (np.abs(flipped.sum(axis=axis)) >= threshold).astype(np.float64)

  result = stats.permutation_test(
    (differences,),
    is_as_far,  # an indicator: SciPy's own comparison of sums misses ties up to rounding
    permutation_type="samples",
    n_resamples=math.inf if len(differences) <= MAX_EXACT_FLIPS else NUM_RESAMPLES,
    alternative="greater",
    vectorized=True,
    batch=4096,
    rng=np.random.default_rng(0),
  )
  return float(result.pvalue)


def _bootstrap_interval(differences: np.ndarray) -> Interval:
  """Returns the percentile interval of the mean of differences [n], n >= 2.

  SciPy cannot enumerate all resamples.
  """
  from scipy import stats

  n = len(differences)
  if n <= MAX_EXACT_RESAMPLES:
    means = differences[np.indices((n,) * n).reshape(n, -1)].mean(axis=0)
    quantiles = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    return Interval(*(float(q) for q in np.quantile(means, quantiles, method="inverted_cdf")))
  low, high = stats.bootstrap(
    (differences,),
    np.mean,
    n_resamples=NUM_RESAMPLES,
    confidence_level=CONFIDENCE,
    method="percentile",
    rng=np.random.default_rng(0),
  ).confidence_interval
  return Interval(float(low), float(high))
