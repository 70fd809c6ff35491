"""The statistics of a comparison: published and hand-computed cases, and whether they alarm as often as they say."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from review import significance
from review.significance import BETTER, NOISE, WORSE, Difference
from stages.evaluate.scores import Floats


@pytest.mark.parametrize(
    ("fixed", "broken", "p"),
    [
        (11, 1, 2 * (1 + 12) / 2**12),  # Raschka's example of two classifiers, in the guide of mlxtend
        (0, 5, 2 / 2**5),
        (2, 8, 2 * (1 + 10 + 45) / 2**10),
        (9, 1, 2 * (1 + 10) / 2**10),
        (3, 3, 1.0),
        (1, 0, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemars_exact_test_is_that_of_a_fair_coin(fixed: int, broken: int, p: float) -> None:
    assert significance.mcnemar(fixed, broken) == pytest.approx(p)
    assert significance.mcnemar(broken, fixed) == pytest.approx(p)


def test_images_are_fixed_broken_and_changed() -> None:
    labels = np.array([0, 1, 2, 3, 4, 5])
    a = np.array([0, 1, 0, 0, 0, 5])
    b = np.array([0, 0, 2, 1, 0, 5])
    found = {name: np.flatnonzero(mask).tolist() for name, mask in significance.paired(labels, a, b).items()}
    assert found == {"fixed": [2], "broken": [1], "both_wrong": [3, 4], "changed": [1, 2, 3]}


@pytest.mark.parametrize(
    ("difference", "p", "word"),
    [(0.1, 0.01, BETTER), (-0.1, 0.01, WORSE), (0.1, 0.05, NOISE), (-0.1, 0.2, NOISE), (0.0, 0.0, NOISE)],
)
def test_the_verdict(difference: float, p: float, word: str) -> None:
    assert significance.verdict(difference, p, 0.05) == word


@pytest.mark.parametrize(("fixed", "broken", "images"), [(300, 200, 10_000), (30, 400, 5000)])
def test_of_many_images_the_paired_interval_is_the_bootstraps(fixed: int, broken: int, images: int) -> None:
    each = np.repeat([1.0, -1.0, 0.0], [fixed, broken, images - fixed - broken])
    expected = stats.bootstrap((each,), np.mean, n_resamples=2_000, method="percentile", rng=1).confidence_interval
    found = significance.paired_interval(fixed, broken, images, 0.05)
    assert found == pytest.approx((expected.low, expected.high), abs=0.05 * (expected.high - expected.low))
    assert significance.paired_interval(broken, fixed, images, 0.05) == pytest.approx((-found[1], -found[0]))
    wider = significance.paired_interval(fixed, broken, images, 0.001)
    assert wider[0] < found[0] < found[1] < wider[1]


def test_the_paired_interval_excludes_0_where_mcnemars_test_finds_a_difference() -> None:
    for fixed, broken in itertools.product(range(14), repeat=2):
        low, high = significance.paired_interval(fixed, broken, 10_000, 0.05)
        assert low <= (fixed - broken) / 10_000 <= high
        assert (low > 0 or high < 0) == (significance.mcnemar(fixed, broken) < 0.05), (fixed, broken)
    low, high = significance.paired_interval(0, 0, 10_000, 0.05)
    assert (
        high == -low == pytest.approx(3.7 / 10_000, abs=1e-5)
    )  # Clopper and Pearson: up to 3.7 events if none is seen


def test_fishers_test_against_the_lady_tasting_tea() -> None:
    assert significance.fisher(1, 4, 3, 4) == pytest.approx(2 * (16 + 1) / 70)  # Fisher 1935, two-sided
    assert significance.fisher(0, 10, 0, 10) == 1.0


def test_newcombes_interval_is_the_published_one() -> None:
    # 56 of 70 against 48 of 80: the difference of 0.2 is from 0.0524 to 0.3339 (Newcombe 1998, table II, method 10).
    low, high = significance.newcombe(80 - 48, 80, 70 - 56, 70, 0.05)
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_a_paired_comparison_sees_what_an_unpaired_one_cannot() -> None:
    assert significance.mcnemar(30, 10) < 0.01
    assert significance.fisher(100, 10_000, 80, 10_000) > 0.1  # the same 20 errors fewer


def welch(a: Floats, b: Floats) -> Difference:
    found = significance.welch(a, b, 0.05)
    assert found is not None
    return found


# Student (1908), "sleep" in R: t.test(extra ~ group) has t = -1.8608; with paired = TRUE t = -4.0621, df = 9
DRUG_1 = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
DRUG_2 = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])


def test_welchs_t_is_that_of_r_and_its_degrees_of_freedom_are_the_smaller_sides() -> None:
    found = welch(DRUG_1, DRUG_2)
    assert found.p == pytest.approx(2 * stats.t.sf(1.8608, 9), abs=5e-6)
    assert found.difference == pytest.approx(1.58)
    assert (found.low, found.high) == pytest.approx(
        1.58 + np.array([-1, 1]) * stats.t.isf(0.025, 9) * 1.58 / 1.8608, abs=1e-4
    )
    fewer = welch(DRUG_1[:3], DRUG_2)
    t = stats.ttest_ind(DRUG_2, DRUG_1[:3], equal_var=False).statistic
    assert fewer.p == pytest.approx(2 * stats.t.sf(abs(t), 2))


def test_pairs_are_those_of_r() -> None:
    found = significance.paired_by_seed(DRUG_1, DRUG_2, 0.05)
    assert found is not None
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert (found.low, found.difference, found.high) == pytest.approx((0.7001142, 1.58, 2.4598858), abs=5e-8)
    assert significance.paired_by_seed(DRUG_1, DRUG_1 + 0.25, 0.05) is None
    with pytest.raises(ValueError, match="as many numbers on both sides"):
        significance.paired_by_seed(DRUG_1[:4], DRUG_2, 0.05)


def test_seeds_that_all_agree() -> None:
    same = np.full(3, 0.99)
    assert welch(same, same) == Difference(0.0, 0.0, 0.0, 1.0)
    assert significance.welch(same, same - 0.25, 0.05) is None  # a difference, and no chance to compare it with
    assert significance.seeds_needed(0.0, 0.0, 0.0, 0.05, 0.8) is None
    assert significance.seeds_needed(0.1, 0.0, 0.0, 0.05, 0.8) is None
    with pytest.raises(ValueError, match="two numbers or more"):
        significance.welch(same[:1], same, 0.05)


def accuracies(errors: list[int], images: int) -> Floats:
    return np.array([1 - count / images for count in errors])


def word(a: Floats, b: Floats) -> str | None:
    found = significance.welch(a, b, 0.05)
    return significance.verdict(found.difference, found.p, 0.05) if found else None


def test_seeds_without_a_spread_have_no_verdict() -> None:
    # Every pair of 0.9900 ... 0.9999 and of 2 to 10 seeds: 3,294 of these 8,100 alarmed where floats were averaged.
    for a_errors, b_errors in itertools.product(range(1, 101, 11), repeat=2):
        for a_seeds, b_seeds in itertools.product(range(2, 11), repeat=2):
            a, b = accuracies([a_errors] * a_seeds, 10_000), accuracies([b_errors] * b_seeds, 10_000)
            assert word(a, b) == (NOISE if a_errors == b_errors else None), (a_errors, a_seeds, b_errors, b_seeds)


@pytest.mark.parametrize("images", [600, 7_000, 10_000])
def test_the_verdict_has_the_sign_of_the_exact_difference(images: int) -> None:
    random = np.random.default_rng(images)
    other = {BETTER: WORSE, WORSE: BETTER, NOISE: NOISE, None: None}
    seen = set()
    for _ in range(2_000):
        a_errors, b_errors = (random.integers(0, 4, random.integers(2, 11)).tolist() for _ in "ab")
        a, b = accuracies(a_errors, images), accuracies(b_errors, images)
        exact = Fraction(sum(a_errors), len(a_errors)) - Fraction(sum(b_errors), len(b_errors))  # fewer errors: better
        found = word(a, b)
        seen.add(found)
        assert found in ({NOISE} if exact == 0 else {NOISE, None, BETTER if exact > 0 else WORSE})
        assert word(b, a) == other[found]
    assert seen >= {BETTER, WORSE, NOISE}


@pytest.mark.parametrize(
    ("effect", "level", "power", "seeds"),
    # Cohen (1988), table 2.4.1, two-sided: 0.2, 0.5 and 0.8 deviations
    [(0.2, 0.05, 0.8, 394), (0.5, 0.05, 0.8, 64), (0.8, 0.05, 0.8, 26), (0.8, 0.01, 0.8, 38), (0.5, 0.05, 0.9, 85)],
)
def test_the_seeds_needed_are_cohens(effect: float, level: float, power: float, seeds: int) -> None:
    # Cohen used an approximation, one off at times, and the degrees of freedom of both sides, where `welch` has half.
    found = significance.seeds_needed(effect, 1.0, 1.0, level, power)
    assert found in range(seeds - 1, seeds + 3)
    assert significance.seeds_needed(-effect * 0.003, 0.003, 0.003, level, power) == found


def test_a_difference_that_nobody_can_see() -> None:
    assert significance.seeds_needed(1e-9, 1.0, 1.0, 0.05, 0.8) is None
    assert significance.seeds_needed(1e9, 1.0, 1.0, 0.05, 0.8) == 2


# Calibration. A count of alarms is binomial: it must lie where all but one in ten thousand of such counts do.


def within(count: int, trials: int, lowest: float, highest: float) -> bool:
    """Whether `count` of `trials` fits some rate from lowest to highest."""
    return bool(stats.binom.ppf(5e-5, trials, lowest) <= count <= stats.binom.ppf(1 - 5e-5, trials, highest))


def verdicts(trials: int, images: int, fix: float, spoil: float, level: float) -> list[str]:
    """Verdicts on simulated pairs: each image is fixed with probability `fix`, and broken with `spoil`."""
    draws = np.random.default_rng(0).multinomial(images, [fix, spoil, 1 - fix - spoil], size=trials)
    return [
        significance.verdict(fixed - broken, significance.mcnemar(int(fixed), int(broken)), level)
        for fixed, broken, _ in draws
    ]


@pytest.mark.parametrize("level", [0.05, 0.2])
@pytest.mark.parametrize("share", [0.002, 0.02])
def test_equal_classifiers_are_told_apart_no_oftener_than_the_level_says(level: float, share: float) -> None:
    found = verdicts(2_000, 10_000, share, share, level)
    alarms = len(found) - found.count(NOISE)
    assert within(alarms, len(found), 0.6 * level, level)  # exact: at most the level; and not a test that never alarms
    assert within(found.count(BETTER), max(alarms, 1), 0.5, 0.5)


def test_a_real_difference_is_found() -> None:
    found = verdicts(500, 10_000, 0.002, 0.006, 0.05)  # 40 errors more of 10,000
    assert found.count(WORSE) > 0.98 * len(found)
    assert BETTER not in found


def test_the_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    """The exact share over all outcomes, whatever the shares of fixed and broken images are."""
    images = 40
    counts = np.array([(f, b) for f in range(images + 1) for b in range(images + 1 - f)])
    low, high = np.array([significance.paired_interval(int(f), int(b), images, 0.1) for f, b in counts]).T
    outcomes = np.column_stack([counts, images - counts.sum(1)])
    for fix, spoil in itertools.product((0.001, 0.01, 0.05, 0.1, 0.2, 0.4), repeat=2):
        chance = stats.multinomial.pmf(outcomes, images, [fix, spoil, 1 - fix - spoil])
        assert chance[(low <= fix - spoil) & (fix - spoil <= high)].sum() >= 0.9, (fix, spoil)


def test_two_unpaired_samples_of_one_classifier_are_told_apart_no_oftener_than_the_level_says() -> None:
    errors = np.random.default_rng(2).binomial(10_000, 0.02, size=(600, 2))
    alarms = sum(significance.fisher(int(a), 10_000, int(b), 10_000) < 0.05 for a, b in errors)
    assert within(alarms, len(errors), 0.03, 0.05)
    covered = [significance.newcombe(int(a), 10_000, int(b), 10_000, 0.05) for a, b in errors]
    assert within(sum(low <= 0 <= high for low, high in covered), len(covered), 0.94, 0.96)


# Accuracies over seeds, as many trials at once as numpy can hold. Spreads: B's over A's.

SPREADS = (1.0, 2.0, 5.0, 20.0)
SIZES = ((2, 2), (2, 5), (5, 2), (2, 20), (20, 2), (3, 3), (3, 5), (5, 3), (3, 20), (20, 3), (5, 5), (5, 20), (20, 20))


def alarms(a: Floats, b: Floats, level: float) -> int:
    """How many trials `welch` tells apart; a, b: (trials, seeds). Its formula, over all trials at once."""
    error = np.sqrt(a.var(1, ddof=1) / a.shape[1] + b.var(1, ddof=1) / b.shape[1])
    p = 2 * stats.t.sf(np.abs(b.mean(1) - a.mean(1)) / error, min(a.shape[1], b.shape[1]) - 1)
    for trial in range(5):  # that it is the same formula
        assert welch(a[trial], b[trial]).p == pytest.approx(p[trial], abs=1e-4)
    return int((p < level).sum())


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_seeds_of_one_recipe_are_told_apart_no_oftener_than_the_level_says(
    sizes: tuple[int, int], spread: float
) -> None:
    random = np.random.default_rng(3)
    a, b = (
        random.normal(0.99, 0.001 * deviation, (20_000, n)) for n, deviation in zip(sizes, (1, spread), strict=True)
    )
    assert within(alarms(a, b, 0.05), len(a), 0.0, 0.05)


def test_welchs_own_degrees_of_freedom_would_not_keep_the_level() -> None:
    random = np.random.default_rng(3)
    a, b = random.normal(0.99, 0.001, (20_000, 2)), random.normal(0.99, 0.001, (20_000, 20))
    own = int((stats.ttest_ind(b, a, axis=1, equal_var=False).pvalue < 0.05).sum())
    assert not within(own, len(a), 0.0, 0.1)


def test_so_many_seeds_as_are_said_to_be_needed_find_the_difference() -> None:
    seeds = significance.seeds_needed(0.002, 0.001, 0.002, 0.05, 0.8)
    assert seeds is not None
    random = np.random.default_rng(4)
    a, b = random.normal(0.990, 0.001, (20_000, seeds)), random.normal(0.992, 0.002, (20_000, seeds))
    assert within(alarms(a, b, 0.05), len(a), 0.79, 0.86)  # one seed more than needed adds up to 0.05
    assert alarms(a[:, :-1], b[:, :-1], 0.05) < 0.81 * len(a)
