"""Tests of analysis/statistics.py against textbooks, enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from smskd_jax.analysis import statistics

# Darwin's 15 pairs of maize plants, crossed less self-fertilised, in eighths of an inch. Fisher, "The Design of
# Experiments", sections 17 and 21: t = 2.148, and 1726 of the 32768 flips of the signs give a sum as far from zero.
MAIZE = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)


def of_seeds(values):
  return {seed: float(value) for seed, value in enumerate(values)}


def compared(differences, base=70.0):
  return statistics.paired_comparison(
    of_seeds(base + np.asarray(differences)), of_seeds([base] * len(differences))
  )


def normal(n, seed, mean=0.0):
  return np.random.default_rng(seed).normal(mean, 1.0, n)


def noise_and_effect(rng, effects, seeds=8):
  """A family of a method for each effect, in standard deviations of the difference, against one base."""
  base = rng.normal(70, 3, seeds)
  ours = [base + effect + rng.normal(0, 1, seeds) for effect in effects]
  return {f"claim {i}": (of_seeds(values), of_seeds(base)) for i, values in enumerate(ours)}


def test_summary():
  assert statistics.summary([70.0, 71.0, 72.5]) == pytest.approx((3, 71.16667, 1.258306), abs=1e-5)
  assert statistics.summary([70.0]) == (1, 70.0, None)
  assert statistics.summary([]) == (0, None, None)


def test_summaries_and_intervals_as_text():
  assert statistics.Summary(5, 70.123, 0.314).text() == "70.12 ± 0.31"
  assert statistics.Summary(5, 0.5, 0.0124).text(3) == "0.500 ± 0.012"
  assert statistics.summary([70.0]).text() == "70.00"
  assert statistics.summary([]).text() == "-"
  assert statistics.Interval(-0.1, 0.35).text() == "-0.10 to +0.35"


def test_mean_and_spread_are_of_the_differences():
  found = statistics.paired_comparison({3: 70.0, 1: 60.0, 2: 65.0}, {1: 59.0, 2: 63.0, 3: 67.0})
  assert (found.n, found.mean, found.std) == (3, pytest.approx(2.0), pytest.approx(1.0))


@pytest.mark.parametrize("n", (2, 3, 8, 30))
def test_t_is_students_paired_test(n):
  ours, theirs = normal(n, 1, 70.5), normal(n, 2, 70)
  found = statistics.paired_comparison(of_seeds(ours), of_seeds(theirs))
  mean, error = np.mean(ours - theirs), np.std(ours - theirs, ddof=1) / math.sqrt(n)
  half = stats.t.isf(0.025, n - 1) * error
  assert found.t_p == pytest.approx(2 * stats.t.sf(abs(mean) / error, n - 1), rel=1e-9)
  assert found.t_interval == pytest.approx((mean - half, mean + half), rel=1e-9)


@pytest.mark.parametrize("n", (2, 5, 8))
def test_the_exact_test_counts_all_sign_flips(n):
  differences = normal(n, 3, 0.5)
  sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=n)]
  assert compared(differences).exact_p == np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9)


def test_fishers_example():
  found = compared(MAIZE, base=140.0)
  assert found.exact_p == 1726 / 32768
  assert found.mean == pytest.approx(314 / 15)
  assert found.t_p == pytest.approx(0.0497, abs=1e-4)


def test_drawn_flips_are_near_all_flips(monkeypatch):
  differences = normal(14, 4, 0.5)
  exact = compared(differences).exact_p
  monkeypatch.setattr(statistics, "MAX_EXACT_FLIPS", 13)
  drawn = compared(differences).exact_p
  assert drawn != exact
  assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact / statistics.NUM_RESAMPLES))
  assert compared(np.full(40, 1.0) + normal(40, 5, 0) / 100).exact_p == 1 / (1 + statistics.NUM_RESAMPLES)


def test_flips_that_tie_but_for_rounding_count():
  """Differences of 0.1, 0.1 and -0.1, no two of them equal in floating point: all 8 sums are 0.1 or 0.3 from zero."""
  ours, theirs = (70.3, 70.7, 55.5), (70.2, 70.6, 55.6)
  assert len(set(np.abs(np.subtract(ours, theirs)))) == 3
  assert statistics.paired_comparison(of_seeds(ours), of_seeds(theirs)).exact_p == 1.0


@pytest.mark.parametrize("n", (3, 6, 7, 15))
def test_the_bootstrap_is_near_that_of_other_resamples(n):
  differences = normal(n, 6)
  means = np.random.default_rng(1).choice(differences, (40_000, n)).mean(axis=1)
  width = np.std(differences) / math.sqrt(n)
  assert compared(differences).bootstrap == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.1 * width)


def test_the_bootstrap_by_hand():
  """The resamples of three values are 27: each end is more than 2.5 % of them.

  Those of four values, one of which is 4, are 256. The 4 is drawn k times in C(4, k) 3^(4 - k) of them: 81, 108, 54, 12
  and 1. The first 2.5 % end at k = 0, and number 249.6 is among the twelve.
  """
  assert compared([0.0, 3.0, 6.0], base=0.0).bootstrap == (0.0, 6.0)
  assert compared([0.0, 4.0, 0.0, 0.0], base=0.0).bootstrap == (0.0, 3.0)


def test_random_resamples_are_deterministic():
  differences = normal(25, 7)
  assert compared(differences) == compared(differences)


@pytest.mark.parametrize(("n", "stated"), ((3, 0.75), (6, 0.86), (20, 0.93)))
def test_coverage_of_the_bootstrap_interval(n, stated, monkeypatch):
  """As its docstring states."""
  monkeypatch.setattr(statistics, "NUM_RESAMPLES", 999)
  monkeypatch.setattr(statistics, "MAX_EXACT_FLIPS", 0)  # only for speed
  found = [compared(row).bootstrap for row in np.random.default_rng(8).normal(0, 1, (400, n))]
  assert np.mean([low <= 0 <= high for low, high in found]) == pytest.approx(stated, abs=0.05)


def test_seeds_of_one_side_are_dropped():
  found = statistics.paired_comparison({1: 5.0, 2: 7.0, 4: 9.0}, {1: 4.0, 2: 5.0, 3: 100.0})
  assert (found.n, found.dropped, found.mean) == (2, (3, 4), 1.5)


def test_too_few_seeds_are_undecided():
  nothing, one = (
    statistics.paired_comparison({1: 5.0}, {2: 4.0}),
    statistics.paired_comparison({1: 5.0}, {1: 4.0}),
  )
  assert nothing == (0, (1, 2), None, None, None, None, 1.0, 1.0)
  assert one == (1, (), 1.0, None, None, None, 1.0, 1.0)
  assert str(statistics.decide(nothing, 1.0)) == "undecided: no common seed"
  assert str(statistics.decide(one, 1.0)) == "undecided at 1 seed"


def test_no_spread_and_no_difference():
  steady = statistics.paired_comparison(of_seeds([70.3, 71.4, 72.2]), of_seeds([70.2, 71.3, 72.1]))
  assert (steady.std, steady.t_interval, steady.t_p, steady.exact_p) == (0.0, None, 1.0, 0.25)
  same = compared([0.0, 0.0, 0.0])
  assert (same.mean, same.t_p, same.exact_p, same.bootstrap) == (0.0, 1.0, 1.0, (0.0, 0.0))
  cancelled = statistics.paired_comparison(of_seeds([0.3, 0.1]), of_seeds([0.1, 0.3]))
  assert (cancelled.mean, cancelled.t_p) == (0.0, 1.0)
  for found in (steady, same, cancelled):
    assert statistics.decide(found, 1.0, test="t").needed is None


@pytest.mark.parametrize("bad", (math.nan, math.inf))
def test_values_that_are_not_finite_are_refused(bad):
  for sides in (({7: bad}, {7: 1.0}), ({7: 1.0}, {8: bad})):
    with pytest.raises(ValueError, match=f"{bad}.*must be finite"):
      statistics.paired_comparison(*sides)
  with pytest.raises(ValueError, match="must be finite"):
    statistics.summary([1.0, bad])


def test_holm_by_hand():
  """0.005 * 4; 0.01 * 3; 0.03 * 2; and 0.04 * 1, not below the one before."""
  adjusted = statistics.holm_adjust({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
  assert list(adjusted) == ["a", "b", "c", "d"]
  assert list(adjusted.values()) == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert statistics.holm_adjust({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
  assert statistics.holm_adjust({}) == {}


@pytest.mark.parametrize("p", (-0.1, 1.1, math.nan))
def test_holm_refuses_invalid_p_values(p):
  with pytest.raises(ValueError, match=f"the p-value of it is {p}"):
    statistics.holm_adjust({"other": 0.5, "it": p})


def test_the_least_seeds_of_the_exact_test():
  """An effect without doubt needs 6 seeds at 5 %, 10 in a family of 20; more than there are, or they had decided."""
  assert [statistics.min_exact_p(n) for n in (1, 2, 3, 6)] == [1.0, 0.5, 0.25, 0.03125]
  assert all(compared(100 + normal(n, 9)).exact_p == statistics.min_exact_p(n) for n in range(2, 12))
  clear = compared([100.0, 101.0, 102.0])
  assert str(statistics.decide(clear, 0.25)) == "undecided at 3 seeds, about 6 needed"
  assert statistics.seeds_needed(clear, num_claims=20) == 10
  assert statistics.seeds_needed(clear, test="t") == 4
  assert statistics.seeds_needed(clear._replace(n=8)) == 9


@pytest.mark.parametrize(("effect", "n"), ((1.0, 10), (0.8, 15), (0.5, 34), (0.1, 787)))
def test_seeds_needed_are_those_of_cohens_table(effect, n):
  """Cohen's for a paired t-test of power 0.8 at 5 %, two-sided."""
  found = statistics.PairedComparison(3, (), -2 * effect, 2.0)
  assert statistics.seeds_needed(found) == n
  assert statistics.power(effect, n) >= 0.8 > statistics.power(effect, n - 1)


def test_estimates_above_the_limit():
  found = statistics.PairedComparison(3, (), 0.05, 1.0)
  assert str(statistics.decide(found, 0.9)) == "undecided at 3 seeds, over 1000 needed"
  assert statistics.seeds_needed(found._replace(n=5000)) == statistics.MAX_SEEDS + 1


@pytest.mark.parametrize(("effect", "n", "level"), ((1.0, 10, 0.05), (2.0, 6, 0.0125), (0.3, 4, 0.05)))
def test_power_is_the_detection_rate_of_a_simulated_effect(effect, n, level):
  test = stats.ttest_1samp(np.random.default_rng(10).normal(effect, 1, (20_000, n)), 0.0, axis=1)
  found = np.mean((test.pvalue <= level) & (test.statistic > 0))
  assert statistics.power(effect, n, level) == pytest.approx(found, abs=0.015)


def verdict(claim, test):
  return getattr(claim, f"{test}_verdict")


@pytest.mark.parametrize("test", ("exact", "t"))
def test_a_planted_effect_is_detected_and_noise_is_not(test):
  claims = noise_and_effect(np.random.default_rng(11), (4.0, 0.0, -4.0, 0.0))
  results = statistics.compare_all(claims)
  assert [claim.name for claim in results] == list(claims)
  assert [verdict(claim, test).decision for claim in results] == ["better", "undecided", "worse", "undecided"]
  lower = statistics.compare_all(claims, better="lower")
  assert [verdict(claim, test).decision for claim in lower] == ["worse", "undecided", "better", "undecided"]


def test_a_family_reports_both_tests_and_means_over_common_seeds():
  claims = {"one": ({0: 3.0, 1: 5.0, 2: 9.0}, {0: 2.0, 1: 3.0}), "none": ({}, {0: 1.0})}
  one, none = statistics.compare_all(claims)
  assert (one.ours.mean, one.theirs.mean, one.paired) == (
    4.0,
    2.5,
    statistics.paired_comparison(*claims["one"]),
  )
  assert (one.exact_holm, one.t_holm) == (1.0, pytest.approx(2 * one.paired.t_p))  # of two claims
  assert (none.ours, none.exact_holm, none.t_holm) == ((0, None, None), 1.0, 1.0)
  assert statistics.compare_all({}) == ()


def test_three_seeds_never_decide_exactly():
  claims = noise_and_effect(np.random.default_rng(12), (50.0,), seeds=3)
  (claim,) = statistics.compare_all(claims)
  assert str(claim.exact_verdict) == "undecided at 3 seeds, about 6 needed"
  assert str(claim.t_verdict) == "better"


def test_false_claims_are_as_rare_as_the_level(monkeypatch):
  """Families of five methods without an effect that share a base; any claim at all is an error."""
  monkeypatch.setattr(statistics, "NUM_RESAMPLES", 9)  # of the bootstrap, which is not looked at
  rng = np.random.default_rng(13)
  families = [statistics.compare_all(noise_and_effect(rng, [0.0] * 5)) for _ in range(200)]
  by_t = np.mean([min(one.t_holm for one in found) <= 0.05 for found in families])
  by_verdict = np.mean(
    [any(one.exact_verdict.decision != "undecided" for one in found) for found in families]
  )
  for wrong in (by_t, by_verdict):
    assert 0 < wrong < 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(families))


@pytest.mark.parametrize("option", ({"better": "larger"}, {"test": "sign"}, {"level": 5}))
def test_bad_options_are_refused(option):
  with pytest.raises(ValueError, match=next(iter(option))):
    statistics.decide(compared([1.0, 0.5]), 0.5, **option)


def test_a_single_seeds_warning_is_one_line():
  assert "\n" not in statistics.SINGLE_SEED
  assert "One seed" in statistics.SINGLE_SEED
