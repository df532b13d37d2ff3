"""What a run's curves say, in numbers: slope, spikes, plateaus, divergence. Pure functions over (step, value) lists."""

from statistics import mean, median, pstdev

SPIKE_FACTOR = 3.0  # a spike rises above the median of its neighbourhood by this many spreads
NEIGHBOURHOOD = 10
MIN_SPIKE = 0.05  # nats; smaller wiggles are noise whatever the spread is
MIN_FALL = 0.01  # nats; a loss that falls by less over a fifth of the run stands still
MIN_RISE = 0.2  # nats; a loss that ends this far above its lowest has diverged


def at_fractions(values: list[float], fractions=(0.1, 0.25, 0.5, 0.75, 1.0)) -> list[float]:
    """The values at these shares of the way through a curve."""
    return [values[min(len(values) - 1, max(0, round(fraction * len(values)) - 1))] for fraction in fractions]


def slope(points: list[tuple[float, float]]) -> float:
    """Least-squares slope; 0 for fewer than two different places."""
    if len(points) < 2:
        return 0.0
    x_mean, y_mean = mean(x for x, _ in points), mean(y for _, y in points)
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / spread if spread else 0.0


def last_tenth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return points[-max(2, len(points) // 10) :]


def spikes(points: list[tuple[float, float]]) -> list[float]:
    """The places where a curve jumps above the values just before it."""
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
    """Stretches (first, last place) of at least this share of a curve in which it falls by less than MIN_FALL."""
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
