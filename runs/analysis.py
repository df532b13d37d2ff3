"""What a run's curves and texts say, in numbers: slope, spikes, plateaus, divergence, time, diversity.

A curve is a list of (step, value).
"""

import math
from collections import Counter
from collections.abc import Callable
from statistics import mean, median, pstdev

from .run import Run

SPIKE_FACTOR = 3.0  # a spike rises above the median of its neighbourhood by this many spreads
NEIGHBOURHOOD = 10
MIN_SPIKE = 0.05  # nats; smaller wiggles are noise whatever the spread is
MIN_FALL = 0.01  # nats; a loss that falls by less over a fifth of the run is on a plateau
MIN_RISE = 0.2  # nats; a loss that ends this far above its lowest has diverged


def at_fractions(values: list[float], fractions=(0.1, 0.25, 0.5, 0.75, 1.0)) -> list[float]:
    """The values at these fractions of a curve's length."""
    return [values[min(len(values) - 1, max(0, round(fraction * len(values)) - 1))] for fraction in fractions]


def slope(points: list[tuple[float, float]]) -> float:
    """Least-squares slope; 0 for fewer than two different steps."""
    if len(points) < 2:
        return 0.0
    x_mean, y_mean = mean(x for x, _ in points), mean(y for _, y in points)
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / spread if spread else 0.0


def last_tenth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return points[-max(2, len(points) // 10) :]


def spikes(points: list[tuple[float, float]]) -> list[float]:
    """The steps at which a curve jumps above the values just before it."""
    found = []
    for i in range(NEIGHBOURHOOD, len(points)):
        before = [value for _, value in points[i - NEIGHBOURHOOD : i]]
        threshold = median(before) + max(SPIKE_FACTOR * pstdev(before), MIN_SPIKE)
        if points[i][1] > threshold:
            found.append(points[i][0])
    return found


def smoothed(values: list[float]) -> list[float]:
    """The running median of the last NEIGHBOURHOOD values."""
    return [median(values[max(0, i - NEIGHBOURHOOD + 1) : i + 1]) for i in range(len(values))]


def plateaus(points: list[tuple[float, float]], share: float = 0.2) -> list[tuple[float, float]]:
    """Stretches (first, last step), at least this share of a curve long, in which it falls by less than MIN_FALL."""
    width = max(NEIGHBOURHOOD, round(share * len(points)))
    smooth, found = smoothed([value for _, value in points]), []
    for i in range(NEIGHBOURHOOD - 1, len(points) - width):  # the running median settles first
        if smooth[i] - smooth[i + width] < MIN_FALL:
            first, last = points[i][0], points[i + width][0]
            if found and first <= found[-1][1]:
                first, _ = found.pop()
            found.append((first, last))
    return found


def divergence(points: list[tuple[float, float]]) -> float:
    """How far the median of the last tenth lies above the lowest running median, if by more than MIN_RISE; else 0."""
    if len(points) < 2 * NEIGHBOURHOOD:
        return 0.0
    rise = median(value for _, value in last_tenth(points)) - min(smoothed([value for _, value in points]))
    return rise if rise > MIN_RISE else 0.0


def outliers(points: list[tuple[float, float]], is_far: Callable[[float, float], bool]) -> list[float]:
    """The steps whose value is far from the curve's median."""
    middle = median(value for _, value in points) if points else 0.0
    return [step for step, value in points if is_far(value, middle)]


def not_finite_at_the_end(run: Run) -> int | None:
    """The step of the last loss, of training or validation, if it is not a number."""
    losses = [(line["step"], line[name]) for line in run.metrics for name in ("loss", "val_loss") if name in line]
    step, value = max(losses, key=lambda loss: loss[0], default=(None, 0.0))
    return step if value is None else None


def last_unless_broken(run: Run, name: str) -> float | None:
    """The last value of a metric, unless the run ended in a loss that is not a number."""
    return run.last(name) if not_finite_at_the_end(run) is None else None


def time_shares(run: Run) -> dict[str, float]:
    """Shares of the time in training, largest first: of evaluation, and of the parts of a step (their mean)."""
    names = {name for line in run.metrics for name in line if name.startswith("time_share/")}
    evaluation = sum(value for _, value in run.curve("eval_s")) / run.seconds if run.seconds else 0.0
    shares = {name.removeprefix("time_share/"): mean(value for _, value in run.curve(name)) for name in names}
    shares = {name: share * (1 - evaluation) for name, share in shares.items()} | {"evaluation": evaluation}
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def self_bleu(texts: list[list[str]], n: int = 4) -> float:
    """Mean BLEU-n of each text against all others, from 0 (nothing shared) to 1 (all alike).

    Counts of 2-grams and longer are smoothed by one. Source: Zhu et al. 2018, arXiv:1802.01886 (Texygen).
    """

    def grams(words: list[str], size: int) -> Counter:
        return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))

    def bleu(own: list[str], others: list[list[str]]) -> float:
        logs = []
        for size in range(1, n + 1):
            known = Counter()
            for other in others:
                known |= grams(other, size)
            counts, smooth = grams(own, size), size > 1
            shared = sum((counts & known).values())
            logs.append(math.log(max(shared + smooth, 1e-9) / (counts.total() + smooth)))
        nearest = min((len(other) for other in others), key=lambda length: (abs(length - len(own)), length))
        return math.exp(mean(logs) + min(0.0, 1 - nearest / len(own)))

    texts = [text for text in texts if text]
    if len(texts) < 2:
        return 0.0
    return mean(bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts))
