"""Ordering the bank by content, so that a row or a column of sub-keys means something.

Axes: N bank entries = R*R · R rows and columns of the grid · K sub-key width · G groups · X entries of one
      W first tokens of an entry · D width · V vocabulary
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .bank import MemoryBank
from .bank_index import ROWS_AT_ONCE
from .ngram_index import rarest, rarity, rarity_ranks

POWER_STEPS = 8
Cached = Callable[[tuple[Tensor, ...], Callable[[], Tensor]], Tensor]  # (what the order depends on, how to make it)
TOKENS_COMPARED = 3  # entries that share all of them keep the order of the bank


def content_order(vector_ND: Tensor, grid_side: int, by_token_N: Tensor | None = None) -> Tensor:
    """(N,) int64: which entry goes to each cell of the R x R grid.

    Rows are clusters of the first halves of the entries' vectors, because the first set of sub-keys scores the first
    half of a query; within each row, entries are dealt to columns that are clusters of the second halves.

    Args:
        by_token_N: the entries in an order to be cut into rows as it stands. Columns are then clusters of what the
            entries of a row do not share: of their second halves without the row's mean.
    """
    first_NK, second_NK = F.normalize(vector_ND.float(), dim=-1).chunk(2, dim=-1)
    if by_token_N is None:
        every_1N = torch.arange(len(vector_ND), device=vector_ND.device)[None]
        row_RR = balanced_clusters(first_NK, every_1N, grid_side).view(grid_side, grid_side)
    else:
        row_RR = by_token_N.view(grid_side, grid_side)
        second_RRK = second_NK[row_RR]
        second_NK = torch.empty_like(second_NK).index_copy_(
            0, by_token_N, (second_RRK - second_RRK.mean(dim=1, keepdim=True)).flatten(0, 1)
        )
    return balanced_clusters(second_NK, row_RR, grid_side).flatten()


def order_by_rarest_tokens(token_NW: Tensor, count_V: Tensor) -> Tensor:
    """(N,) int64: the entries, those side by side that share their rarest token; among them, the next rarest."""
    order_N = torch.arange(len(token_NW), device=token_NW.device)
    for rank_N in rarest(rarity_ranks(count_V)[token_NW.long()], TOKENS_COMPARED).unbind(dim=-1)[::-1]:
        order_N = order_N[rank_N[order_N].argsort(stable=True)]
    return order_N


def weighted_tokens(token_XW: Tensor, rarity_V: Tensor, embedding_VD: Tensor) -> Tensor:
    """(X, D): the sum of the embeddings of an entry's first tokens, each times its rarity."""
    token_XW = token_XW.long()
    return F.embedding_bag(token_XW, embedding_VD, per_sample_weights=rarity_V[token_XW].to(embedding_VD), mode="sum")


def balanced_clusters(vector_NK: Tensor, index_GX: Tensor, n_clusters: int) -> Tensor:
    """(G, X): each group's entries, reordered into `n_clusters` consecutive runs of equal length.

    Hierarchical 2-means with sizes held equal: the points are cut at the median along their leading principal
    direction, the relaxed solution of 2-means, and each half likewise. All groups are cut along the same directions,
    so cluster c means the same in each of them.

    Source: Ding & He 2004, "K-means clustering via principal component analysis".
    """
    if n_clusters == 1:
        return index_GX
    point_GXK = vector_NK[index_GX]
    centred_XK = point_GXK.flatten(0, 1) - point_GXK.mean(dim=(0, 1))
    # The power iteration starts from the widest coordinate: deterministic, and seldom orthogonal to the answer.
    direction_K = F.one_hot(centred_XK.square().sum(dim=0).argmax(), centred_XK.shape[1]).to(centred_XK.dtype)
    for _ in range(POWER_STEPS):
        direction_K = F.normalize(centred_XK.T @ (centred_XK @ direction_K), dim=0)
    order_GX = (point_GXK @ direction_K).argsort(dim=-1, stable=True)
    index_GX = index_GX.gather(-1, order_GX)
    left = n_clusters // 2
    cut = left * (index_GX.shape[1] // n_clusters)
    return torch.cat(
        [
            balanced_clusters(vector_NK, index_GX[:, :cut], left),
            balanced_clusters(vector_NK, index_GX[:, cut:], n_clusters - left),
        ],
        dim=-1,
    )


def content_keys(vector_ND: Tensor, grid_side: int) -> Tensor:
    """(2, R, K) sub-keys: the mean first half of each row and second half of each column, scaled to unit variance.

    Args:
        vector_ND: the entries' vectors, in the order of the grid.
    """
    grid_RRD = F.normalize(vector_ND.float(), dim=-1).view(grid_side, grid_side, -1)
    first_RRK, second_RRK = grid_RRD.chunk(2, dim=-1)
    keys_2RK = torch.stack([first_RRK.mean(dim=1), second_RRK.mean(dim=0)])
    keys_2RK = keys_2RK - keys_2RK.mean(dim=1, keepdim=True)
    return F.normalize(keys_2RK, dim=-1) * keys_2RK.shape[-1] ** 0.5


@torch.no_grad()
def order_bank(
    bank: MemoryBank, embedding_VD: Tensor, n_tokens: int | None = None, cached: Cached | None = None
) -> tuple[Tensor, Tensor]:
    """Order the bank so that rows and columns of the grid are clusters.

    Args:
        n_tokens: only so many first tokens of an entry count, each times its rarity; None: all, alike.
        cached: gives the order from a store, if it has it; `dataset.cache.cached_order` with a path.
    Returns:
        (N,) int64: which of the given entries each row now has.  (2, R, K) sub-keys to start from.
    """
    R = bank.config.grid_side
    rows = torch.arange(len(bank.tokens), device=bank.tokens.device).split(ROWS_AT_ONCE)
    if n_tokens is None:
        vectors, by_token_N = [bank.vectors(row_X, embedding_VD) for row_X in rows], None
    else:
        first_NW, count_V = bank.tokens[:, :n_tokens], bank.count_tokens()
        rarity_V, by_token_N = rarity(count_V, len(first_NW)), order_by_rarest_tokens(first_NW, count_V)
        vectors = [weighted_tokens(first_NW[row_X], rarity_V, embedding_VD) for row_X in rows]
    vector_ND = torch.cat(vectors)

    def make() -> Tensor:
        return content_order(vector_ND, R, by_token_N)

    depends_on = (bank.tokens,) if by_token_N is None else (bank.tokens, by_token_N)
    order_N = (cached(depends_on, make) if cached else make()).to(bank.tokens.device)
    bank.tokens.copy_(bank.tokens[order_N])
    return order_N, content_keys(vector_ND[order_N], R)
