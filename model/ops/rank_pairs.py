"""Which pairs of ranks can be among the best C sums of two sorted lists."""


def rank_pairs(n_candidates: int) -> list[tuple[int, int]]:
    """The pairs (i, j) with at most C pairs (i', j') <= (i, j), all of which are at least as good as (i, j)."""
    ranks = range(n_candidates)
    return [(i, j) for i in ranks for j in ranks if (i + 1) * (j + 1) <= n_candidates]
