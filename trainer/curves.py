"""What a run's curves say, in numbers: convergence, spikes, growth. Pure functions over (step, value) lists."""

from statistics import mean, median, pstdev

SPIKE_FACTOR = 3.0  # a spike rises above the median of its neighbourhood by this many spreads
NEIGHBOURHOOD = 10
MIN_SPIKE = 0.05  # nats; smaller wiggles are noise whatever the spread is


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
