"""Is a difference more than noise? Welch's t-test over seeds, and a paired test over questions or documents.

Both are two-sided. A difference counts when noise alone would show as much in at most one case of twenty.
"""

import math
from collections.abc import Sequence
from statistics import mean, variance

import numpy as np

LEVEL = 0.05  # the share of false differences that is accepted, in each row of a table
NORMAL = 1e4  # degrees of freedom from which on Student's distribution is taken for the normal one
NODES, WEIGHTS = np.polynomial.legendre.leggauss(256)


def two_sided_p(t: float, degrees: float) -> float:
    """The probability that Student's t, of any degrees of freedom above 0, lies beyond -t and t.

    With t = sqrt(degrees) tan(a) the density is that of cos(a)^(degrees - 1), which is integrated by 256 nodes.
    """
    t = abs(t)
    if math.isinf(t):
        return 0.0
    if degrees > NORMAL:
        return math.erfc(t / math.sqrt(2))
    end = math.atan2(t, math.sqrt(degrees))
    inside = end / 2 * float(WEIGHTS @ np.cos(end / 2 * (NODES + 1)) ** (degrees - 1))
    log_whole = 0.5 * math.log(math.pi) + math.lgamma(degrees / 2) - math.lgamma((degrees + 1) / 2) - math.log(2)
    return min(1.0, max(0.0, 1 - inside / math.exp(log_whole)))


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """(standard error of the difference of the means, p) of two samples of at least two values each.

    Their spreads may differ. Source: Welch 1947.
    """
    gap, (error, degrees) = mean(first) - mean(second), welch_error(first, second)
    if error == 0:
        return 0.0, 0.0 if gap else 1.0
    return error, two_sided_p(gap / error, degrees)


def welch_error(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """(standard error of the difference of the means, degrees of freedom, at least 1) of two samples."""
    parts = variance(first) / len(first), variance(second) / len(second)
    spread = sum(part**2 / (len(own) - 1) for part, own in zip(parts, (first, second), strict=True))
    return math.sqrt(sum(parts)), sum(parts) ** 2 / spread if spread else math.inf


def welch_half(first: Sequence[float], second: Sequence[float]) -> float:
    """Half of the interval of the difference of the means; it excludes zero where Welch's p is below LEVEL."""
    error, degrees = welch_error(first, second)
    low, high = 1.9, 12.8  # the quantiles of infinitely many degrees and of one lie between
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, degrees) > LEVEL else (low, middle)
    return error * high


def paired_p(difference_X: np.ndarray, weight_X: np.ndarray | None = None) -> float:
    """The p of a weighted mean of 0, of differences on one question each, or on one document of `weight_X` tokens each.

    Differences of -1, 0 and 1 are counted exactly (McNemar's test). Others are taken as a ratio estimate, whose error
    is that of its linear part; t has one degree of freedom less than there are differences.
    """
    difference_X = np.asarray(difference_X, dtype=np.float64)
    if weight_X is None and np.isin(difference_X, (-1, 0, 1)).all():
        return exact_mcnemar(int((difference_X > 0).sum()), int((difference_X < 0).sum()))
    weight_X = np.ones_like(difference_X) if weight_X is None else np.asarray(weight_X, dtype=np.float64)
    n, total = len(difference_X), weight_X.sum()
    if n < 2 or total == 0:
        return 1.0
    middle = float(difference_X @ weight_X / total)
    rest_X = weight_X * (difference_X - middle)
    error = math.sqrt(n / (n - 1) * float(rest_X @ rest_X)) / total
    if error == 0:
        return 0.0 if middle else 1.0
    return two_sided_p(middle / error, n - 1)


def exact_mcnemar(wins: int, losses: int) -> float:
    """The p of so many wins among the questions that two models answer differently, if each is as likely to win."""
    n, fewer = wins + losses, min(wins, losses)
    tail, term = 0, 1
    for k in range(fewer + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)
